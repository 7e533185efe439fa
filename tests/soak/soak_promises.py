"""The promises in large: make soak. Files of this kind are not collected by `make test`."""
import random
import signal
import sys
from pathlib import Path

import anndata as ad
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from hazards import SMALL, cells, die_at_step, fork, kill_after, model, outcome, try_damaged, write_for_ever
from test_promises import megabytes_for

from gmvae_nb.data import write_atomically
from gmvae_nb.train import GMVAE
from gmvae_nb.verify import verify


def test_200_kills_leave_the_last_good_state(tmp_path):
    models, tables, rng = [model(1), model(1, seed=1)], [cells(), cells(seed=1)], random.Random(1)
    good = [m.network.state_dict() for m in models]
    models[0].save(tmp_path)
    write_atomically(tmp_path / "cells.h5ad", tables[0].write_h5ad)
    stopped = 0
    for _ in range(200):
        assert kill_after(lambda: write_for_ever(tmp_path, models, tables), rng.uniform(0, 0.15)) == -signal.SIGKILL
        found = GMVAE.load(tmp_path).network.state_dict()
        assert any(all(found[n].equal(t) for n, t in state.items()) for state in good)
        assert any((ad.read_h5ad(tmp_path / "cells.h5ad").X != a.X).nnz == 0 for a in tables)
        stopped += any("newer than config.json" in note for note in verify(tmp_path)["notes"])
    print(f"\n200 kills, {stopped} of them between two files, {len(list(tmp_path.glob('.*')))} while one was written")


def test_40_runs_killed_at_a_random_step_equal_the_undisturbed_one(tmp_path):
    torch.set_num_threads(1)
    GMVAE(cells(), K=3, batch_key="batch", preset=SMALL).train(6, out=tmp_path / "whole", progress=False)
    whole, rng = (tmp_path / "whole/model.safetensors").read_bytes(), random.Random(2)
    for i in range(40):
        folder, kills = tmp_path / str(i), rng.randrange(1, 4)
        for _ in range(kills):  # several times in the same run
            step = rng.randrange(30)
            assert outcome(fork(lambda: die_at_step(folder, step, 6))) in (-signal.SIGKILL, 0)
        GMVAE(cells(), K=3, batch_key="batch", preset=SMALL).train(6, out=folder, progress=False)
        assert (folder / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("how, n", [("cut", 200), ("flip", 2000)])
def test_damaged_h5ad_never_brings_the_process_down(tmp_path, how, n):
    found = try_damaged(tmp_path, n, how, seed=1)
    print(f"\n{how}: {found}")
    assert set(found) <= {0, 2}, found


def test_bits_flipped_in_a_model_are_noticed(tmp_path):
    model(1, SMALL).save(tmp_path)
    raw, rng = (tmp_path / "model.safetensors").read_bytes(), random.Random(3)
    for _ in range(2000):
        at, bit = rng.randrange(len(raw)), 1 << rng.randrange(8)
        (tmp_path / "model.safetensors").write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1:])
        with pytest.raises(ValueError) as error: GMVAE.load(tmp_path)
        assert "\n" not in str(error.value)


def test_memory_on_disk_and_in_memory(tmp_path):
    "The cells in memory show what the measure can see."
    needed = {backed: [megabytes_for(tmp_path / f"{n}.h5ad", n, backed) for n in (18_000, 90_000)] for backed in (True, False)}
    print(f"\n18,000 and 90,000 cells: on disk {needed[True]} MB, in memory {needed[False]} MB")
    assert needed[True][1] - needed[True][0] < 50 < 115 < needed[False][1] - needed[False][0]
