"""The promises in large: make soak. It writes its figures to nbs/promises.csv; `make test` does not collect files of this name."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import mutants

from hazards import (
    ROOT,
    SMALL,
    cells,
    die_at_step,
    fork,
    kill_after,
    model,
    outcome,
    try_damaged,
    write_for_ever,
)
from test_promises import megabytes_for

try:
    import test_ray
except pytest.skip.Exception:
    test_ray = None  # without ray, or not on Linux
else:
    from test_ray import given, nodes, serial  # noqa: F401

from gmvae_nb.data import write_atomically
from gmvae_nb.train import GMVAE
from gmvae_nb.verify import verify

FIGURES = ROOT / "nbs/promises.csv"


@pytest.fixture
def note():
    "Keeps a row of figures: what was tried, how often, how often the promise was kept, and how long it took."
    start = time.perf_counter()

    def keep(what: str, tried: int, kept: int, detail: str = "") -> None:
        rows = (
            pd.read_csv(FIGURES, dtype=str, keep_default_na=False)
            if FIGURES.exists()
            else pd.DataFrame(columns=["what", "tried", "kept", "seconds", "detail"])
        )
        row = dict(
            what=what,
            tried=str(tried),
            kept=str(kept),
            seconds=f"{time.perf_counter() - start:.0f}",
            detail=detail,
        )
        rows = pd.concat([rows[rows["what"] != what], pd.DataFrame([row])])
        write_atomically(FIGURES, lambda path: rows.to_csv(path, index=False))
        print("\n", row)

    return keep


@pytest.mark.parametrize("name", ["test_promises", "test_bad_input"])
def test_the_quick_ones(note, name):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", ROOT / f"tests/{name}.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    others = sum(map(int, re.findall(r"(\d+) (?:failed|error)", done.stdout)))
    note(f"tests/{name}.py", passed + others, passed)
    assert done.returncode == 0, done.stdout[-3000:]


def test_200_kills_leave_the_last_good_state(tmp_path, note):
    models, tables, rng = [model(1), model(1, seed=1)], [cells(), cells(seed=1)], random.Random(1)
    good = [m.network.state_dict() for m in models]
    models[0].save(tmp_path)
    write_atomically(tmp_path / "cells.h5ad", tables[0].write_h5ad)
    between = left = 0
    for _ in range(200):
        assert (
            kill_after(lambda: write_for_ever(tmp_path, models, tables), rng.uniform(0, 0.15))
            == -signal.SIGKILL
        )
        found = GMVAE.load(tmp_path).network.state_dict()
        assert any(all(found[n].equal(t) for n, t in state.items()) for state in good)
        assert any((ad.read_h5ad(tmp_path / "cells.h5ad").X != a.X).nnz == 0 for a in tables)
        between += any("newer than config.json" in said for said in verify(tmp_path)["notes"])
        left += len(list(tmp_path.glob(".*")))
        models[0].save(
            tmp_path
        )  # of two models in one folder, each stopped between two files, verify could not say which wrote history.csv
    assert not list(tmp_path.glob(".*"))
    note(
        "SIGKILL while files are written",
        200,
        200,
        f"{left} while one was written, {between} between two; nothing is left over",
    )


def test_runs_killed_at_random_steps_equal_the_undisturbed_one(tmp_path, note):
    torch.set_num_threads(1)
    GMVAE(cells(), K=3, batch_key="batch", preset=SMALL).train(
        6, out=tmp_path / "whole", progress=False
    )
    whole, rng, kills = (tmp_path / "whole/model.safetensors").read_bytes(), random.Random(2), 0
    for i in range(40):
        for _ in range(rng.randrange(1, 4)):  # several times in the same run
            step = rng.randrange(30)
            code = outcome(fork(lambda: die_at_step(tmp_path / str(i), step, 6)))
            assert code in (-signal.SIGKILL, 0)
            kills += code != 0
        GMVAE(cells(), K=3, batch_key="batch", preset=SMALL).train(
            6, out=tmp_path / str(i), progress=False
        )
        assert (tmp_path / str(i) / "model.safetensors").read_bytes() == whole
    note(
        "SIGKILL at a random step, resumed, the same bytes",
        kills,
        kills,
        "40 runs, killed up to three times each",
    )


@pytest.mark.parametrize("how, n", [("cut", 200), ("flip", 2000)])
def test_damaged_h5ad_never_brings_the_process_down(tmp_path, note, how, n):
    found = try_damaged(tmp_path, n, how, seed=1)
    kept = found.get(0, 0) + found.get(2, 0)
    note(
        {"cut": "h5ad cut off at a random byte", "flip": "h5ad with random bits flipped"}[how],
        n,
        kept,
        f"{found.get(2, 0)} refused in a sentence, {found.get(0, 0)} read",
    )
    assert kept == n, found


@pytest.mark.skipif(test_ray is None, reason="needs ray, and Linux")
def test_sweeps_on_two_nodes_equal_the_serial_one(nodes, given, serial, tmp_path, note):
    "In each a worker is killed, then the second node: both in the middle of a run."
    rounds, again = 6, 0
    for i in range(rounds):
        failed, hit = test_ray.harmed(
            nodes, given, tmp_path / str(i), test_ray.grid(tmp_path / str(i))
        )
        assert failed == [] and len(hit) == 2
        again += sum(not test_ray.went_on(*h) for h in hit)
        test_ray.same(tmp_path / str(i), serial)
    note(
        "sweeps on two nodes, a worker and a node killed in each",
        rounds,
        rounds,
        f"{4 * rounds} runs, all as in turn, to the byte; {2 * rounds} of them killed, {again} begun again",
    )
    assert not again


def test_bits_flipped_in_a_model_are_noticed(tmp_path, note):
    model(1, SMALL).save(tmp_path)
    raw, rng, same, alike = (
        (tmp_path / "model.safetensors").read_bytes(),
        random.Random(3),
        GMVAE.load(tmp_path),
        [],
    )
    for _ in range(2000):
        at, bit = rng.randrange(len(raw)), 1 << rng.randrange(8)
        (tmp_path / "model.safetensors").write_bytes(
            raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
        )
        try:
            found = GMVAE.load(tmp_path)
        except ValueError as error:
            assert "\n" not in str(error)
        else:  # 1e-05 is 1E-05
            assert (
                found._config() == same._config()
                and found._rows == same._rows
                and all(same._state()[n].equal(t) for n, t in found._state().items())
            )
            alike.append(raw[at - 4 : at + 4])
    note(
        "models with a random bit flipped",
        2000,
        2000,
        f"{2000 - len(alike)} refused, {len(alike)} read and the same, as 1E-05 for 1e-05",
    )
    assert len(alike) < 20, alike


def test_memory_on_disk_and_in_memory(tmp_path, note):
    "The cells in memory show what the measure can see."
    disk, memory = (
        [megabytes_for(tmp_path / f"{n}.h5ad", n, backed) for n in (18_000, 90_000)]
        for backed in (True, False)
    )
    note(
        "memory of 90,000 cells and of 18,000",
        2,
        2,
        f"from disk {disk[1]:.0f} and {disk[0]:.0f} MB, in memory {memory[1]:.0f} and {memory[0]:.0f} MB",
    )
    assert disk[1] - disk[0] < 50 < 115 < memory[1] - memory[0]


def test_protections_taken_out_are_missed(note):
    survived = mutants.main([])
    note(
        "protections taken out, and the test that missed them",
        len(mutants.MUTANTS),
        len(mutants.MUTANTS) - survived,
    )
    assert not survived
