"""Whichever write or allocation fails inside a library: a sentence, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import pytest
from gmvae_nb.model_folder import verify
from gmvae_nb.train import GMVAE

from hazards import ROOT, cells

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


# those of a file cut each that a run writes, and those of HDF5 at several places: clusters.csv
# 3 kB, model 20 kB, annotated.h5ad 64 kB, page 180 kB
OF_A_FILE = [1_000, 8_000, 16_000, 60_000, 100_000]
OF_MEMORY = [8_000_000, 24_000_000]


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    "A folder of runs that are gone on with under each bound, and their exit codes."
    folder = tmp_path_factory.mktemp("limited")
    cells().write_h5ad(folder / "mine.h5ad")
    bounds = [f"FSIZE-{n}" for n in OF_A_FILE] + [f"AS-{n}" for n in OF_MEMORY]
    words = [str(ROOT / "tests/limited_runs.py"), str(folder), *bounds]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    codes: dict[str, int] = json.loads(done.stdout)
    assert codes.pop("whole") == 0
    return folder, codes


def check_nothing_is_lost(run: Path) -> None:
    "The model is that of two epochs or of three, and every file is whole."
    assert len(GMVAE.load(run).history) in (2, 3)
    verify(run)
    assert not list(run.glob(".*.new*"))
    assert "X_gmvae" in ad.read_h5ad(run / "annotated.h5ad").obsm
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_a_file_that_may_not_grow_fails_at_any_size(limited):
    folder, codes = limited
    dies = h5py.version.hdf5_version_tuple < (1, 14, 4)  # of a file that it cannot close
    for bound in OF_A_FILE:
        name = f"FSIZE-{bound}"
        code, said = codes[name], (folder / f"{name}.txt").read_text()
        if dies and code == -signal.SIGSEGV:
            check_nothing_is_lost(folder / name)
            continue
        # with results that cannot be written as h5ad, which are kept in another form, it is 2
        assert code in (2, 4), (bound, code, said)
        last = said.strip().split("\n")[-1]  # h5py says what it cannot raise
        assert last.startswith("gmvae_train: ") and "File too large" in last, said
        assert code == 4 or "annotated_cells.npz" in last
        check_nothing_is_lost(folder / name)
    assert dies or codes["FSIZE-8000"] == codes["FSIZE-100000"] == 4


def test_too_little_memory_for_anything_is_a_sentence(limited):
    "Less than the libraries themselves take, which end a process in ways of their own."
    folder, codes = limited
    for bound in OF_MEMORY:
        name = f"AS-{bound}"
        said = (folder / f"{name}.txt").read_text().strip().split("\n")[-1]
        assert codes[name] == 4 and said.startswith("gmvae_train: there is not enough memory"), said
        check_nothing_is_lost(folder / name)


@pytest.fixture(scope="session")
def failing(tmp_path_factory) -> Path:
    "The library that lets a request for memory fail, compiled."
    compiler, library = shutil.which("cc"), tmp_path_factory.mktemp("c") / "fail_allocation.so"
    if compiler is None:
        pytest.skip("needs a C compiler, cc")
    source = ROOT / "tests/fail_allocation.c"
    words = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(source)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs GNU libc and its headers: {done.stderr[-200:]}")
    return library


def whichever_allocation_fails(failing: Path, folder: Path, least: int, count: str) -> list[int]:
    """The exit codes of runs in each of which one request of at least so many bytes fails.

    Each ends in one sentence, or can do without; nothing is lost, and gone on with it comes to the
    model of a run that was left alone. HDF5 does not always survive a request that fails, and
    where it is of less than 64 kB torch's matrix products do not: the process dies then, and
    nothing is lost either."""
    cells(40, 12).write_h5ad(folder / "mine.h5ad")
    words = [str(ROOT / "tests/failing_allocations.py"), str(folder), str(least), count]
    command = [sys.executable, "-W", "ignore", *words]
    env = {**os.environ, "LD_PRELOAD": str(failing)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    whole = (folder / "whole/model.safetensors").read_bytes()
    for n, code, said, again in found:
        # 2: what looks through the file has failed, or results are kept in another form
        killed = code in (-signal.SIGSEGV, -signal.SIGABRT)
        assert killed or code in (0, 2, 4), (n, code, said)
        if code > 0:
            last = said.strip().split("\n")[-1]
            assert last.startswith("gmvae_train: ") and "Traceback" not in said, (n, said)
        left = folder / f"{n}.left"
        assert len(GMVAE.load(left).history) in (1, 2)
        verify(left)
        # a process that died leaves a file it was writing, which the next write deletes
        assert killed or not list(left.glob(".*.new*"))
        assert not list((folder / str(n)).glob(".*.new*"))
        assert again == 0, (n, (folder / f"{n}.again").read_text())
        assert (folder / str(n) / "model.safetensors").read_bytes() == whole
        assert "X_gmvae" in ad.read_h5ad(folder / str(n) / "annotated.h5ad").obsm
        for path in (left, folder / str(n)):
            shutil.rmtree(path)
    return [code for _, code, *_ in found]


def test_whichever_allocation_fails_it_is_a_sentence_and_nothing_is_lost(failing, tmp_path):
    "Some of those of 64 kB and more; the soak has each of them."
    codes = whichever_allocation_fails(failing, tmp_path, 2**16, "2")
    assert len(codes) == 2 and 4 in codes, codes
