"""Whichever write or allocation fails inside a library: a sentence, and nothing lost."""

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import pytest
from gmvae_nb.model_folder import verify
from gmvae_nb.train import GMVAE

from hazards import ROOT, cells

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def limited(folder: Path, kind: str, bounds: list[int]) -> dict[str, int]:
    "Exit codes of runs that are gone on with under each bound."
    cells().write_h5ad(folder / "mine.h5ad")
    words = [str(ROOT / "tests/limited_runs.py"), str(folder), kind, *map(str, bounds)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    codes: dict[str, int] = json.loads(done.stdout)
    assert codes.pop("whole") == 0
    return codes


def check_nothing_is_lost(run: Path) -> None:
    "The model is that of two epochs or of three, and every file is whole."
    assert len(GMVAE.load(run).history) in (2, 3)
    verify(run)
    assert not list(run.glob(".*.new*"))
    assert "X_gmvae" in ad.read_h5ad(run / "annotated.h5ad").obsm
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_a_file_that_may_not_grow_fails_at_any_size(tmp_path):
    """The bounds cut each file that a run writes, those of HDF5 at several places.

    Sizes: clusters.csv 3 kB, model 20 kB, annotated.h5ad 64 kB, page 180 kB."""
    bounds = [1_000, 8_000, 16_000, 60_000, 100_000]
    codes = limited(tmp_path, "FSIZE", bounds)
    for bound, code in codes.items():
        said = (tmp_path / f"{bound}.txt").read_text()
        # with results that cannot be written as h5ad, which are kept in another form, it is 2
        assert code in (2, 4), (bound, code, said)
        last = said.strip().split("\n")[-1]  # h5py says what it cannot raise
        assert last.startswith("gmvae_train: ") and "File too large" in last, said
        assert code == 4 or "annotated_cells.npz" in last
        check_nothing_is_lost(tmp_path / bound)
    assert codes["8000"] == codes["100000"] == 4


def test_too_little_memory_for_anything_is_a_sentence(tmp_path):
    "Less than the libraries themselves take, which end a process in ways of their own."
    for bound, code in limited(tmp_path, "AS", [8_000_000, 24_000_000]).items():
        said = (tmp_path / f"{bound}.txt").read_text().strip().split("\n")[-1]
        assert code == 4 and said.startswith("gmvae_train: there is not enough memory"), said
        check_nothing_is_lost(tmp_path / bound)
