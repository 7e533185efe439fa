"""How far it has come: a bar on a screen, a line a minute in a log file, whatever the stage."""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation, command_line, inference, progress
from gmvae_nb.findings import marker_genes
from gmvae_nb.progress import SECONDS, SHORT, Progress, working
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix

from hazards import TINY, cells

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    "A clock that is put forward by hand; the last line of a log file was written at 0."
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Progress, "told", 0.0)
    return now


def test_many_short_bars_are_a_line_a_minute(clock):
    log = io.StringIO()
    for _ in range(10):  # of half a minute each
        with Progress(total=30, leave=False, mininterval=0, file=log) as bar:
            for _ in range(30):
                clock[0] += 1
                bar.update()
    lines = log.getvalue().split("\n")[:-1]
    assert len(lines) == 300 // SECONDS and "\r" not in log.getvalue()


def test_a_short_bar_after_a_long_silence_says_nothing(clock):
    log = io.StringIO()
    clock[0] = 10 * SECONDS
    with Progress(total=4, leave=False, mininterval=0, file=log) as bar:
        for _ in range(4):
            clock[0] += (SHORT - 1) / 4
            bar.update()
    assert log.getvalue() == ""


@pytest.fixture
def short(monkeypatch):
    "A twentieth of a second is long, and a line follows at once."
    monkeypatch.setattr(progress, "SHORT", 0.05)
    monkeypatch.setattr(progress, "SECONDS", 0)


def test_a_command_that_is_to_be_quiet_draws_no_bar(short, capsys, monkeypatch):
    def steps(quiet: bool = False):
        with working("a call without steps"):
            time.sleep(0.3)
        assert sum(Progress(range(4))) == 6

    monkeypatch.setattr(command_line, "COMMANDS", {})
    run = command_line.command("")(steps)
    for quiet in (True, False):
        run(quiet=quiet)
        said = capsys.readouterr().err
        assert ("a call without steps" in said and "4/4" in said) != quiet, said
        assert quiet != bool(said)


def test_what_has_no_steps_says_what_it_is_and_ends(short, capsys):
    with pytest.raises(KeyError), working("UMAP"):
        time.sleep(0.5)
        raise KeyError
    lines = capsys.readouterr().err.split("\n")
    assert lines[0].startswith("UMAP: 00:0") and len(lines) > 3
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # its thread has ended


def test_the_long_stages_of_a_run_say_what_they_are(short, capsys, monkeypatch):
    class Slow:
        def __init__(self, **settings):
            pass

        def fit_transform(self, X):
            time.sleep(0.3)
            return X[:, :2]

    monkeypatch.setitem(sys.modules, "umap", type("umap", (), {"UMAP": Slow}))
    annotation.umap(np.zeros((60, 3), dtype=np.float32))
    assert capsys.readouterr().err.startswith("UMAP: ")
    monkeypatch.setattr("gmvae_nb.findings.rank_genes", lambda *a: time.sleep(0.3))
    with pytest.raises(TypeError):  # there are no genes
        clusters = pd.Categorical(list("aaaabbbb"))
        marker_genes(csr_matrix(np.ones((8, 2), np.float32)), ["x", "y"], clusters)
    assert capsys.readouterr().err.startswith("marker genes: ")


def test_a_question_that_takes_long_is_a_bar_however_few_the_cells(monkeypatch):
    asked = []

    def bar(steps, **options):
        asked.append(options)
        return steps

    monkeypatch.setattr(inference, "Progress", bar)
    GMVAE(cells(), 3, batch_key="batch", preset=TINY).get_latent_representation()
    assert asked and all(not o.get("disable") and o["delay"] == SHORT for o in asked)


def test_a_command_that_writes_to_a_log_file_draws_no_bar(tmp_path):
    code = (
        "import time; from gmvae_nb import progress; progress.SECONDS = 0; progress.SHORT = 0\n"
        "bar = progress.Progress(range(5), desc='epochs', mininterval=0)\n"
        "for _ in bar: time.sleep(0.01)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "\r" not in done.stderr
    assert done.stderr.split("\n")[-2].startswith("epochs: 100%")
