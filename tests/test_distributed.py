"""Several processes train one model: the numbers of one, whoever is killed on the way.

Processes are forked and talk over gloo; networks are in double precision, so that what is left to
differ is the order in which sums are rounded.
"""

import contextlib
import io
import os
import pickle
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import gmvae_nb.distributed as distributed
import numpy as np
import pytest
import torch
import torch.distributed as dist
from gmvae_nb.after_training import gmvae_embed
from gmvae_nb.counts_on_disk import CountsOnDisk
from gmvae_nb.distributed import (
    SHARDS,
    ShardedDraws,
    Team,
    joined,
    own_shards,
    shards_of,
    shared_answers,
)
from gmvae_nb.inference import for_each_cell, latent_means
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.train import GMVAE

from hazards import SMALL, TINY, cells

if not hasattr(os, "fork") or not dist.is_available() or sys.platform == "darwin":
    pytest.skip("processes are forked and meet over gloo", allow_module_level=True)

# everything that a training can have: placed twice, aligned, resting, merged, watched, centred,
# thinned
RECOMMENDED = replace(
    SMALL,
    batch_size=32,
    dtype="float32",
    max_epochs=7,
    weight_decay=300.0,
    encoder_input="centred_log",
    thin_to=0.3,
)
BLOG = replace(  # free nats on the way, several draws, a prior network
    PRESETS["blog"],
    n_x=4,
    n_w=3,
    encoder_hidden=(12,),
    decoder_hidden=(12,),
    prior_hidden=12,
    batch_size=32,
    M=4,
    lam=0.5,
    dtype="float32",
    max_epochs=2,
)


def trained(preset, epochs=None, out=None, n=200, **kw) -> GMVAE:
    model = GMVAE(cells(n=n, G=30), K=5, batch_key="batch", preset=preset)
    if out is None:  # files are in single precision
        model.network.double()
    return model.train(epochs or preset.max_epochs, out=out, progress=False, **kw)


def in_processes(world: int, folder: Path, work: Callable[[], object]) -> list:
    "What each of them found, or the exception it raised."
    meet, pids = folder / f"meet-{world}-{random.random()}", []
    for rank in range(world):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 1
        torch.set_num_threads(1)  # a fork has not the threads that tests before have started
        try:
            where, patience = dict(rank=rank, world_size=world), timedelta(minutes=10)
            dist.init_process_group("gloo", init_method=f"file://{meet}", timeout=patience, **where)
            try:
                with joined():
                    found = work()
            except Exception as error:
                found = error
            (folder / f"found-{rank}").write_bytes(pickle.dumps(found))
            code = 0
        finally:
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return [
        code or pickle.loads((folder / f"found-{rank}").read_bytes())
        for rank, code in enumerate(codes)
    ]


def numbers(model: GMVAE) -> SimpleNamespace:
    return SimpleNamespace(
        state=model._state(),
        history=model.history.drop(columns="seconds").to_numpy(dtype=float),
        embedding=model.get_latent_representation(),
        clusters=model.predict(),
    )


def same_numbers(found: list, one: SimpleNamespace, most=1e-12) -> None:
    for each in found:
        assert isinstance(each, SimpleNamespace), each
        for name, t in found[0].state.items():  # to the bit
            assert torch.equal(each.state[name], t), name
        np.testing.assert_allclose(each.history, one.history, rtol=most, atol=most)
        np.testing.assert_allclose(each.embedding, one.embedding, rtol=0, atol=most)
        assert (each.clusters == one.clusters).all()


@pytest.mark.parametrize("preset", [RECOMMENDED, BLOG], ids=["recommended", "blog_and_tiles"])
def test_processes_train_the_model_of_one(tmp_path, preset, monkeypatch):
    if preset is BLOG:  # so few entries that tiles are narrower with more cells
        monkeypatch.setattr("gmvae_nb.nb_heads.TILE_ENTRIES", 128)
        monkeypatch.setattr("gmvae_nb.nb_heads.TILE_GENES", 2)
        preset = replace(BLOG, M_heads=1)

    def work():
        return numbers(trained(preset))

    (one,) = in_processes(1, tmp_path, work)
    same_numbers(in_processes(2, tmp_path, work), one)


def test_processes_look_twice_as_one_does(tmp_path):
    "Where all cells are one cluster, see tests/test_second_training.py."

    def work():
        preset = replace(RECOMMENDED, encoder_input="lognorm", thin_to=0.0, recentre=True)
        model = trained(replace(preset, alpha=1e-300), out=tmp_path / "model")
        assert model.history.columns[-1] in ("halves_agree_p", "centred_n_clusters")
        return numbers(model)

    (one,) = in_processes(1, tmp_path, work)
    shutil.rmtree(tmp_path / "model")
    same_numbers(in_processes(2, tmp_path, work), one, most=1e-3)


def test_goes_on_with_another_number_of_processes(tmp_path):
    def work(folder, epochs):
        return lambda: numbers(trained(BLOG, epochs, tmp_path / folder))

    (one,) = in_processes(1, tmp_path, work("one", 2))
    in_processes(2, tmp_path, work("many", 1))
    same_numbers(in_processes(1, tmp_path, work("many", 2)), one, most=1e-4)


def test_all_stop_where_a_loss_is_not_finite(tmp_path):
    def work():
        trained(replace(TINY, lr=1e30))

    found = in_processes(2, tmp_path, work)
    assert all(isinstance(error, FloatingPointError) for error in found)
    assert str(found[0]) == str(found[1]) and "as it was after 0 epochs" in str(found[0])


def dies_at(step: int, how: Callable[[], None]) -> None:
    "This process ends before it sends its gradients of that step."
    sums, steps = distributed.sum_gradients, iter(range(1, step + 1))

    def sum_or_die(*these):
        if next(steps, 0) == step:
            how()
        return sums(*these)

    distributed.sum_gradients = sum_or_die


def test_a_process_that_ends_is_said_by_the_others(tmp_path):
    def work():
        model = GMVAE(cells(n=200), K=3, batch_key="batch", preset=TINY)
        before = [p.detach().clone() for p in model.network.parameters()]
        if dist.get_rank():
            dies_at(2, lambda: os._exit(7))
        try:
            model.train(2, progress=False)
        except ConnectionError as error:
            pairs = zip(before, model.network.parameters(), strict=True)
            return str(error), all(torch.equal(a, b) for a, b in pairs)

    (sentence, restored), code = in_processes(2, tmp_path, work)
    assert code == 7 and restored
    assert "another process has ended" in sentence and "\n" not in sentence
    assert sentence.endswith("the model is as it was after 0 epochs")


def test_killed_at_a_random_step_ends_in_the_same_bytes(tmp_path):
    def work(folder, kill_at=0):
        def train():
            if kill_at and dist.get_rank():
                dies_at(kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            trained(BLOG, out=tmp_path / folder, n=100)

        return train

    steps = BLOG.max_epochs * -(-85 // BLOG.batch_size)
    kill_at = random.randint(1, steps)
    in_processes(2, tmp_path, work("whole"))
    said, code = in_processes(2, tmp_path, work("killed", kill_at))
    assert code == -signal.SIGKILL and isinstance(said, ConnectionError)
    in_processes(2, tmp_path, work("killed"))  # as torchrun starts them again
    whole, killed = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes(), f"killed at {kill_at}"


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "cells.h5ad"
    cells(n=12_000, G=10).write_h5ad(path)
    return CountsOnDisk(ad.read_h5ad(path, backed="r").X)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_process_reads_its_share(on_disk, world, monkeypatch):
    read, met, n = [], [], on_disk.shape[0]
    rows = np.flatnonzero(np.arange(n) % 7 > 0)  # the others are held out
    whole = on_disk.read
    monkeypatch.setattr(on_disk, "read", lambda a, b: read.append(b - a) or whole(a, b))
    for rank in range(world):
        draws = ShardedDraws(0, 0, torch.device("cpu"), own_shards(rank, world))
        before = sum(read)
        batches = draws.batches(None, rows, 32, on_disk, np.zeros(n, dtype=int))
        for _, _, here in batches:
            met.append(here)
        assert sum(read) - before <= 1.3 * n / world
    assert (np.sort(np.concatenate(met)) == rows).all()  # each once


def test_the_order_does_not_depend_on_the_processes():
    counts, batch = cells(n=500).X, np.zeros(500, dtype=int)

    def order(world):
        each = []
        for rank in range(world):
            draws = ShardedDraws(3, 1, torch.device("cpu"), own_shards(rank, world))
            source = distributed.counts_for(torch.device("cpu"), counts, batch)
            each.append([r for _, _, r in draws.batches(source, np.arange(500), 64, counts, batch)])
        return [np.concatenate(step) for step in zip(*each)]

    for world in (2, 4, 8):
        for a, b in zip(order(1), order(world), strict=True):
            assert (a == b).all()
    assert len(shards_of(np.arange(500))) == SHARDS


def test_refuses_what_cannot_be_shared(tmp_path):
    team = Team.__new__(Team)
    for n, test, preset, word in (
        (100, 20, replace(TINY, batch_size=8), "mini-batches of 16 or more"),
        (200, 3, TINY, "3 held-out cells"),
        (200, 20, replace(TINY, original_reshape=True), "one process"),
    ):
        with pytest.raises(ValueError, match=word):
            team.check(n, test, preset)
    found = in_processes(3, tmp_path, lambda: None)
    assert all("start 1, 2, 4 or 8" in str(error) for error in found)


ASKED = ("get_latent_representation", "predict_proba", "get_elbo", "get_iwae")


def answers(model, adata) -> list[bytes]:
    return [np.ascontiguousarray(getattr(model, ask)(adata)).tobytes() for ask in ASKED]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_answers_that_are_shared_are_those_of_one_process_to_the_bit(tmp_path, dtype, world):
    model = trained(BLOG, 1)
    model.network.to(dtype)
    new = cells(n=101, G=30, seed=3)  # the last mini-batch is short

    def work():
        with shared_answers():
            found = [answers(model, new), answers(model, new[:20])]
        return [*found, answers(model, new)]  # the last are not shared

    one = [answers(model, new), answers(model, new[:20]), answers(model, new)]
    assert in_processes(world, tmp_path, work) == [one] * world


def test_each_process_reads_the_counts_of_its_cells(on_disk, tmp_path):
    of_32 = replace(TINY, batch_size=32)  # 375 mini-batches: no halves
    model = GMVAE(cells(n=200, G=10), K=3, batch_key="batch", preset=of_32)
    new = ad.read_h5ad(on_disk.matrix.group.file.filename, backed="r")

    def work():
        found, read = model.match_cells(new), []
        whole = found.counts.read
        found.counts.read = lambda a, b: read.append((a, b)) or whole(a, b)
        with shared_answers():
            latent_means(model.network, found)
        return min(a for a, _ in read), max(b for _, b in read), sum(b - a for a, b in read)

    found, n, size = in_processes(2, tmp_path, work), len(new), 32
    half = n // size // 2 * size
    assert found == [(0, half, half), (half, n, n - half)]


def test_an_error_of_one_process_is_that_of_all(tmp_path):
    model = GMVAE(cells(n=100), K=3, batch_key="batch", preset=TINY)

    def asked(end):
        def last(y, b):
            if dist.get_rank():
                end()
            return b

        def work():
            with shared_answers():
                for_each_cell(model.network, model._own_cells(), last)

        return work

    def refuse():
        raise ValueError("cell 99 is odd")

    found = in_processes(2, tmp_path, asked(refuse))
    assert [str(error) for error in found] == ["cell 99 is odd"] * 2
    said, code = in_processes(2, tmp_path, asked(lambda: os._exit(7)))
    assert code == 7 and str(said).startswith("another process has ended")


def test_a_file_is_embedded_by_two_processes_and_written_by_the_first(tmp_path):
    file, run = tmp_path / "mine.h5ad", tmp_path / "run"
    cells(n=300, G=30).write_h5ad(file)
    data, how = read_input(file, batch_key="batch"), dict(batch_key="batch", progress=False)
    train_run(data, run, preset=SMALL, max_epochs=2, **how)  # without a map: UMAP takes long
    cells(n=2500, G=30, seed=5).write_h5ad(tmp_path / "new.h5ad")

    def embed(name):
        said, words = io.StringIO(), (str(run), str(tmp_path / "new.h5ad"))
        if dist.is_initialized():  # as torchrun says it
            engine = dict(RANK=str(dist.get_rank()), WORLD_SIZE="2", MASTER_ADDR="here")
            os.environ.update(engine)
        with contextlib.redirect_stdout(said):
            gmvae_embed(*words, out=str(tmp_path / name), csv=f"{tmp_path / name}.csv", quiet=True)
        return said.getvalue()

    def of_a_process():
        if dist.get_rank():  # writes nothing
            for name in ("write_annotated", "write_table"):
                setattr(sys.modules["gmvae_nb.embed"], name, None)
        return embed("two.h5ad")

    alone, (first, second) = embed("one.h5ad"), in_processes(2, tmp_path, of_a_process)
    assert first == alone.replace("one.h5ad", "two.h5ad") and second == "", second
    one, two = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("one", "two"))
    for key in ("X_gmvae", "gmvae_prob"):
        assert one.obsm[key].tobytes() == two.obsm[key].tobytes(), key
    assert one.obs.equals(two.obs)
    tables = [(tmp_path / f"{name}.h5ad.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
