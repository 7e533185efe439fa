"""What a graphics card is given, checked without one: its forms on the processor."""

import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from gmvae_nb import nb_heads
from gmvae_nb.data import to_torch
from gmvae_nb.gpu import CountsOnCard, carried, sum_by_cell
from gmvae_nb.nb_heads import NBHeads, tile_counts_by_cell
from gmvae_nb.train import GMVAE
from scipy import sparse
from torch.testing import assert_close

AS_ON_A_CARD = dict(on_card=lambda device: True)


def counts(N: int, G: int, seed: int = 0) -> sparse.csr_matrix:
    "Small counts, large ones, fractions, a cell and a gene without any."
    rng = np.random.default_rng(seed)
    y = rng.poisson(rng.gamma(0.3, 2, (N, G)))
    y[rng.random((N, G)) < 0.02] = 1234
    y[N // 2], y[:, G // 2] = 0, 0
    y = y.astype(np.float64)
    y[rng.random((N, G)) < 0.05] *= 0.5
    return sparse.csr_matrix(y)


def csr(y: sparse.csr_matrix) -> torch.Tensor:
    return torch.sparse_csr_tensor(y.indptr, y.indices, y.data, y.shape)


def value_and_gradients(y, of_mean: bool, level: float, card: bool, **how) -> list[torch.Tensor]:
    torch.manual_seed(1)
    heads = NBHeads(6, y.shape[1], of_mean).double()
    heads.log_r.bias.data.fill_(level)
    h = torch.randn(4, y.shape[0], 6, dtype=torch.float64, requires_grad=True)
    size = 0.5 + torch.rand(y.shape[0], 1, dtype=torch.float64)
    tiles = dict(TILE_ENTRIES=1, CARD_TILE_ENTRIES=1, TILE_GENES=how.pop("tile"))
    form = mock.patch.multiple(nb_heads, **AS_ON_A_CARD) if card else nullcontext()
    with mock.patch.multiple(nb_heads, **tiles), form:
        value = heads.log_prob(h, y, size, impl="fused", **how)
        gradients = torch.autograd.grad(value.sum(), [h, *heads.parameters()])
    return [value.detach(), *gradients]


@pytest.mark.parametrize("of_mean", [False, True])
@pytest.mark.parametrize("level", [0.0, 15.0, -15.0])
@pytest.mark.parametrize("tile", [1, 7, 40])
def test_the_cards_form_gives_the_processors_numbers(of_mean, level, tile):
    "Log r on either side of where it is clamped, one tile and many."
    y = csr(counts(9, 30))
    for how in (dict(), dict(reduction="mean"), dict(reduction="mean", M_heads=2)):
        found, expected = (
            value_and_gradients(y, of_mean, level, card, tile=tile, **how) for card in (True, False)
        )
        for a, b in zip(found, expected):  # at r = e^15 digammas of 1e6 are subtracted
            assert_close(a, b, rtol=1e-9, atol=1e-7 if level > 0 else 1e-9)


def test_zeros_that_a_matrix_stores_add_nothing():
    y = counts(9, 30)
    stored = y.copy()
    stored.data[::3] = 0
    without = stored.copy()
    without.eliminate_zeros()
    assert without.nnz < stored.nnz
    found, expected = (
        value_and_gradients(csr(m), True, 0.5, True, tile=7) for m in (stored, without)
    )
    for a, b in zip(found, expected):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_each_tile_has_its_counts_sorted_by_cell():
    y = counts(9, 30)
    tiled = tile_counts_by_cell(csr(y), 7)
    for k, (first, starts) in enumerate(zip(range(0, 30, 7), tiled.of_cell, strict=True)):
        part = slice(tiled.ends[k][-1], tiled.ends[k][0])
        assert (tiled.cell[part].diff() >= 0).all()
        gene = first + tiled.slot[part] // 9
        there = torch.from_numpy(y.toarray())[tiled.cell[part], gene]
        assert there.equal(tiled.value[part, 0])
        of_tile = y[:, first : first + 7]
        assert starts.diff().tolist() == np.diff(of_tile.indptr).tolist()
        total = sum_by_cell(tiled.value[part], starts)[:, 0]
        assert_close(total, torch.from_numpy(of_tile.sum(1).A1))


@pytest.mark.parametrize("G", [40, 2**15, 2**15 + 1])
@pytest.mark.parametrize("largest", [1, 2**15 - 1, 2**15, 0.5])
def test_counts_on_a_device_are_those_they_were_made_of(G, largest):
    rng = np.random.default_rng(0)
    y = sparse.lil_matrix(3 * (rng.random((50, G)) < 0.05).astype(np.float32))
    y[7, G - 1], y[3] = largest, 0
    y = y.tocsr()
    batch = rng.integers(0, 3, 50)
    source, seen = CountsOnCard(y, batch, torch.device("cpu")), []
    for found, b, rows in source(np.arange(50), 8, np.random.default_rng(1)):
        assert found.dtype == torch.float32 and b.tolist() == batch[rows].tolist()
        assert found.to_dense().equal(to_torch(y[rows]).to_dense())
        seen += rows.tolist()
    assert sorted(seen) == list(range(50)) and seen != sorted(seen)


def test_a_tensor_for_the_processor_is_not_copied():
    y = csr(counts(5, 6))
    assert carried(y, torch.device("cpu")) is y


def test_the_check_of_a_card_runs_on_the_processor(tmp_path):
    "So that it is in order on the day that somebody has a card."
    script = Path(__file__).with_name("gpu_check.py")
    words = [sys.executable, str(script), "cpu", str(tmp_path / "found.csv")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = pd.read_csv(tmp_path / "found.csv")
    promises = found["kept"].dropna()
    assert len(promises) > 15 and (promises == True).all()  # noqa: E712, read as objects
    assert {"one seed, one result", "an epoch", "a process group"} <= set(found["part"])


def test_a_trained_model_can_be_pickled():
    "What feeds a training is let go of when it is over."
    rng = np.random.default_rng(0)
    model = GMVAE(AnnData(rng.poisson(2.0, (60, 20)).astype(np.float32)))
    model.train(1, progress=False)
    again = pickle.loads(pickle.dumps(model))
    assert (again.get_latent_representation() == model.get_latent_representation()).all()
