"""The promises in large: make soak. Its figures go to nbs/promises.csv.

`make test` does not collect files of this name.
"""

import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
from gmvae_nb.files import write_atomically
from gmvae_nb.model_folder import read_model, verify
from gmvae_nb.train import GMVAE

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
# ruff: noqa: E402  what follows is found by the line above
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
from test_limits import failing, whichever_allocation_fails  # noqa: F401
from test_promises import megabytes_for, same_weights, untrained, wide_file

try:
    import test_ray
except pytest.skip.Exception:
    test_ray = None  # without ray, or not on Linux
else:
    from test_ray import data, nodes, serial  # noqa: F401

FIGURES = ROOT / "nbs/promises.csv"


@pytest.fixture
def note():
    """Keeps a row of figures: what was tried, how often, and how often the promise was kept.

    And how long it took, and on which day."""
    start = time.perf_counter()

    def keep(what: str, tried: int, kept: int, detail: str = "") -> None:
        rows = pd.DataFrame(columns=["what", "tried", "kept", "seconds", "date", "detail"])
        if FIGURES.exists():
            rows = pd.read_csv(FIGURES, dtype=str, keep_default_na=False)
        row = dict(what=what, tried=str(tried), kept=str(kept))
        row |= dict(seconds=f"{time.perf_counter() - start:.0f}", detail=detail)
        row |= dict(date=time.strftime("%Y-%m-%d"))
        rows = pd.concat([rows[rows["what"] != what], pd.DataFrame([row])])
        write_atomically(FIGURES, lambda path: rows.to_csv(path, index=False))
        print("\n", row)

    return keep


@pytest.mark.parametrize("name", ["test_promises", "test_bad_input"])
def test_the_quick_ones(note, name):
    command = [sys.executable, "-m", "pytest", "-q", ROOT / f"tests/{name}.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    others = sum(map(int, re.findall(r"(\d+) (?:failed|error)", done.stdout)))
    note(f"tests/{name}.py", passed + others, passed)
    assert done.returncode == 0, done.stdout[-3000:]


def test_200_kills_leave_the_last_good_state(tmp_path, note):
    # two states of one run: a model of another run is refused by verify, as it should be
    models, tables, rng = [model(1), model(2)], [cells(), cells(seed=1)], random.Random(1)
    good = [m.network.state_dict() for m in models]
    models[0].save(tmp_path)
    write_atomically(tmp_path / "cells.h5ad", tables[0].write_h5ad)
    between = left = 0
    for _ in range(200):
        seconds = rng.uniform(0, 0.15)
        code = kill_after(lambda: write_for_ever(tmp_path, models, tables), seconds)
        assert code == -signal.SIGKILL
        found = GMVAE.load(tmp_path).network.state_dict()
        assert any(same_weights(found, state) for state in good)
        y = ad.read_h5ad(tmp_path / "cells.h5ad").X
        assert any((y != a.X).nnz == 0 for a in tables)
        between += any("newer than config.json" in said for said in verify(tmp_path)["notes"])
        left += any(tmp_path.glob(".*.new*"))
        # of two models in one folder, each stopped between two files, verify could not say
        # which wrote history.csv
        models[0].save(tmp_path)
    assert not list(tmp_path.glob(".*"))
    detail = f"{left} while one was written, {between} between two; nothing is left over"
    note("SIGKILL while files are written", 200, 200, detail)


def test_runs_killed_at_random_steps_equal_the_undisturbed_one(tmp_path, note):
    untrained().train(6, out=tmp_path / "whole", progress=False)
    whole, rng, kills = (tmp_path / "whole/model.safetensors").read_bytes(), random.Random(2), 0
    for i in range(40):
        run = tmp_path / str(i)
        for _ in range(rng.randrange(1, 4)):  # several times in the same run
            work = partial(die_at_step, run, rng.randrange(30), 6)
            code = outcome(fork(work))
            assert code in (-signal.SIGKILL, 0)
            kills += code != 0
        untrained().train(6, out=run, progress=False)
        assert (run / "model.safetensors").read_bytes() == whole
    what = "SIGKILL at a random step, resumed, the same bytes"
    note(what, kills, kills, "40 runs, killed up to three times each")


@pytest.mark.parametrize(
    "how, n, compression",
    [
        ("cut", 200, None),
        ("flip", 2000, None),
        ("cut", 100, "gzip"),
        ("flip", 1000, "gzip"),
        ("flip", 500, "lzf"),
    ],
)
def test_damaged_h5ad_never_brings_the_process_down(tmp_path, note, how, n, compression):
    found, seconds, megabytes = try_damaged(tmp_path, n, how, 1, compression)
    read, refused = found.get(0, 0), found.get(2, 0)
    kept = read + refused
    what = {"cut": "h5ad cut off at a random byte", "flip": "h5ad with random bits flipped"}[how]
    what += f", {compression}, read by a command" if compression else ""
    detail = f"{refused} refused in a sentence, {read} read; at most {seconds:.1f} s of "
    note(what, n, kept, f"{detail}processor time and {megabytes:.0f} MB, Python included")
    assert kept == n, found


@pytest.mark.skipif(test_ray is None, reason="needs ray, and Linux")
def test_sweeps_on_two_nodes_equal_the_serial_one(nodes, data, serial, tmp_path, note):
    "In each a worker is killed, then the second node: both in the middle of a run."
    rounds, again = 6, 0
    for i in range(rounds):
        out = tmp_path / str(i)
        failed, hit = test_ray.harmed(nodes, data, out, test_ray.grid(out))
        assert failed == [] and len(hit) == 2
        again += sum(not test_ray.went_on(*h) for h in hit)
        test_ray.same(out, serial)
    detail = f"{4 * rounds} runs, all as in turn, to the byte; "
    detail += f"{2 * rounds} of them killed, {again} begun again"
    note("sweeps on two nodes, a worker and a node killed in each", rounds, rounds, detail)
    assert not again


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    "least, count, which",
    [(2**16, "all", "each of 64 kB or more"), (2**12, "written", "4 kB, each while writing")],
)
def test_whichever_allocation_fails(failing, tmp_path, note, least, count, which):  # noqa: F811
    codes = whichever_allocation_fails(failing, tmp_path, least, count)
    detail = f"{codes.count(4)} a sentence and code 4, {codes.count(2)} with code 2, "
    detail += f"{codes.count(0)} done without it, {sum(code < 0 for code in codes)} killed by a "
    detail += "library; all gone on with to the same model"
    note(f"a request for memory fails: {which}", len(codes), len(codes), detail)
    assert codes.count(4) > len(codes) / 2
    assert least < 2**16 or sum(code < 0 for code in codes) < len(codes) / 20


def test_bits_flipped_in_a_model_are_noticed(tmp_path, note):
    model(1, SMALL).save(tmp_path)
    path, rng = tmp_path / "model.safetensors", random.Random(3)
    raw, config, rows, state = path.read_bytes(), *read_model(tmp_path)
    alike = []
    for _ in range(2000):
        at, bit = rng.randrange(len(raw)), 1 << rng.randrange(8)
        path.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
        try:
            found_config, found_rows, found_state = read_model(tmp_path)
        except ValueError as error:
            assert "\n" not in str(error)
        else:  # 1e-05 is 1E-05
            assert found_config == config and found_rows == rows
            assert found_state.keys() == state.keys() and same_weights(found_state, state)
            alike.append(raw[at - 4 : at + 4])
    detail = f"{2000 - len(alike)} refused, {len(alike)} read and the same, as 1E-05 for 1e-05"
    note("models with a random bit flipped", 2000, 2000, detail)
    assert len(alike) < 20, alike


def test_memory_on_disk_and_in_memory(tmp_path, note):
    "The cells in memory show what the measure can see."
    few, many = 18_000, 90_000
    paths = {n: tmp_path / f"{n}.h5ad" for n in (few, many)}
    for n, path in paths.items():
        assert outcome(fork(partial(wide_file, path, n))) == 0
    disk, memory = (
        {n: megabytes_for(path, how) for n, path in paths.items()} for how in ("backed", "read")
    )
    detail = f"from disk {disk[many]:.0f} and {disk[few]:.0f} MB, "
    detail += f"in memory {memory[many]:.0f} and {memory[few]:.0f} MB"
    note("memory of 90,000 cells and of 18,000", 2, 2, detail)
    assert disk[many] - disk[few] < 50 < 115 < memory[many] - memory[few]


def test_protections_taken_out_are_missed(note):
    survived, n = mutants.main([]), len(mutants.MUTANTS)
    note("protections taken out, and the test that missed them", n, n - survived)
    assert not survived
