"""What is around the package: another locale, no home, no terminal, no git, R without packages."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gmvae_nb
import numpy as np
import pytest
from packaging.requirements import Requirement

from hazards import cells

try:
    import pty
except ImportError:
    pty = None  # Windows

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m", "gmvae_nb"]
TEXT = dict(text=True, capture_output=True)
posix = pytest.mark.skipif(pty is None, reason="needs a terminal of POSIX")


def test_the_model_is_imported_from_the_package_itself():
    from gmvae_nb import GMVAE
    from gmvae_nb.train import GMVAE as same

    assert GMVAE is same is gmvae_nb.GMVAE


# --- licences -----------------------------------------------------------------------------------


def needed(name: str, found: dict) -> dict:
    "The licence of a package and of all that it needs, extras left out."
    try:
        told = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return found  # for another system
    if told["Name"].lower() in found:
        return found
    kinds = [told["License-Expression"] or "", *(told.get_all("Classifier") or [])]
    kinds.append((told["License"] or "")[:100])  # some have the whole text there
    found[told["Name"].lower()] = " ".join(kinds)
    for text in importlib.metadata.requires(name) or []:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            needed(wanted.name, found)
    return found


def test_packages_under_the_GPL_are_named():
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    found: dict = {}
    for text in re.search(r"(?m)^requirements = (.*)$", settings)[1].split():
        needed(Requirement(text).name, found)
    gpl = {n for n, kind in found.items() if re.search(r"(?<!L)GPL|\bGNU General", kind)}
    gpl -= {n for n in gpl if "Lesser" in found[n]}
    assert "igraph" in gpl and len(found) > 30
    for name in ("README.md", "SECURITY.md"):
        said = re.search(r"[^.]* GPL\b", (ROOT / name).read_text(encoding="utf-8"))[0]
        assert {n for n in {*gpl, "leidenalg"} if n not in said} == set(), name


# --- the page of how-tos, with R and without ----------------------------------------------------


def page_function(name: str) -> dict:
    "What a cell of the page makes that defines this function."
    page = json.loads((ROOT / "nbs/howto.ipynb").read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in page["cells"] if c["cell_type"] == "code"]
    wanted = {f"def {n}(" for n in (name, "absent")}
    made: dict = {"re": re, "shutil": __import__("shutil"), "Path": Path}
    made["shell"] = lambda *w: subprocess.run(w, text=True, stdout=-1, stderr=-2)
    for text in code:
        if any(word in text for word in wanted):
            exec(text, made)
    return made


@posix
@pytest.mark.parametrize("missing", ["R", "its packages", "nothing"])
def test_the_page_says_what_of_R_is_absent(tmp_path, monkeypatch, capsys, missing):
    if missing != "R":
        code = 1 if missing == "its packages" else 0
        (tmp_path / "Rscript").write_text(f"#!/bin/sh\necho called\nexit {code}\n")
        (tmp_path / "Rscript").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    made = page_function("run_r")
    assert made["run_r"]("script", "hdf5r", "Matrix") == (missing == "nothing")
    words = {"R": "no Rscript here", "its packages": "no hdf5r, no Matrix here"}
    assert words.get(missing, "called") in capsys.readouterr().out
    assert made["no_snakemake"][0] == "snakemake"


# --- the command, elsewhere ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    a = cells(60)
    a.obs["Spender ä"] = np.where(a.obs["batch"] == "0", "é", "ö")
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    a.write_h5ad(path)
    return path


@posix
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_a_command_runs_without_home_programs_terminal_and_UTF_8(file, tmp_path, locale):
    (tmp_path / "no programs").mkdir()
    home = {"C": "/nonexistent", "POSIX": "/dev/null"}[locale]  # which not even root can make
    env = {"PATH": str(tmp_path / "no programs"), "HOME": home, "LC_ALL": locale}
    env["PYTHONPATH"] = str(ROOT)
    words = ["train", file, "--batch_key", "Spender ä", "--K", "2", "--dry_run"]
    call = dict(cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    done = subprocess.run([*PYTHON, *words], **call)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert b"Traceback" not in done.stderr and b"\r" not in done.stderr and done.stdout
    assert os.listdir(tmp_path) == ["no programs"]


def test_a_command_bears_another_backend_of_matplotlib_and_python_without_docstrings(tmp_path):
    env = {**os.environ, "MPLBACKEND": "none such", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-OO", "-m", "gmvae_nb"]
    for words, code, said in (([], 0, "gmvae train"), (["table", "there"], 2, "no metrics.json")):
        done = subprocess.run([*command, *words], cwd=tmp_path, env=env, **TEXT)
        assert done.returncode == code and said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "backend" not in done.stderr


@posix
def test_a_refusal_is_a_sentence_on_a_terminal_too(file, tmp_path):
    ours, theirs = pty.openpty()
    env = {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    words = ["train", file, "--batch_key", "Spendér", "--out", tmp_path / "run"]
    with subprocess.Popen([*PYTHON, *words], env=env, stdin=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while part := read_terminal(ours):
            said += part
    os.close(ours)
    assert process.returncode == 2 and b"is not a column of adata.obs" in said
    assert b"Traceback" not in said and os.listdir(tmp_path) == []


def read_terminal(handle: int) -> bytes:
    "What was written to it; nothing at its end."
    try:
        return os.read(handle, 1000)
    except OSError:  # its other end is closed
        return b""


@posix
def test_a_folder_that_is_gone_is_named_and_not_the_library_that_needs_it(tmp_path):
    (tmp_path / "gone").mkdir()
    remove = f"cd {tmp_path}/gone && rmdir ../gone && "
    of_train = f"{remove} {sys.executable} -m gmvae_nb train kang_pbmc"
    done = subprocess.run(["sh", "-c", of_train], capture_output=True, text=True)
    assert done.returncode == 4 and "has been deleted: go to another with cd" in done.stderr
    assert "Traceback" not in done.stderr
