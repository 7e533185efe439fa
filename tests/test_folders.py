"""The folder of a run: its parts belong together, damage is told and mended, no fault loses it."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb import annotation, commands, embed, reading, runs
from gmvae_nb.after_training import gmvae_embed, gmvae_report
from gmvae_nb.annotation import annotate_run
from gmvae_nb.command_line import COMMANDS
from gmvae_nb.commands import gmvae_sweep, gmvae_train
from gmvae_nb.embed import embed_file
from gmvae_nb.files import LOCK_FILE
from gmvae_nb.model_folder import describe_again, verify
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.train import GMVAE

from hazards import TINY, cells, model, no_map

KEYS = dict(batch_key="batch", labels_key="cell_type")
QUICK = dict(K=2, preset="blog", max_epochs=2, quiet=True, **KEYS)
TEXTS = ["config.json", "run.json", "metrics.json", "history.csv", "markers.csv", "report.html"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "A small network behind the name of a preset; the map is not computed."
    monkeypatch.setitem(PRESETS, "blog", TINY)
    monkeypatch.setattr(annotation, "umap", no_map)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A file and the folder of a finished run of it, to be copied."
    folder = tmp_path_factory.mktemp("finished")
    cells().write_h5ad(folder / "mine.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "blog", TINY)
        patch.setattr(annotation, "umap", no_map)
        gmvae_train(str(folder / "mine.h5ad"), out=str(folder / "run"), **QUICK)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copy(finished / "mine.h5ad", tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def again(run: Path, **options) -> dict:
    return gmvae_train(str(run.parent / "mine.h5ad"), out=str(run), resume=True, **QUICK | options)


def sentence(error) -> str:
    said = str(error.value)
    assert said and "\n" not in said and len(said) < 1500, said
    return said


def other_cells(path: Path) -> None:
    "A file with the same names and other counts takes the place of this one."
    new = path.with_suffix(".new")
    cells(seed=1).write_h5ad(new)
    new.replace(path)


# --- what belongs together ------------------------------------------------------------------------


def test_a_file_that_is_replaced_while_training_does_not_get_the_clusters(
    finished, tmp_path, monkeypatch
):
    path, run = tmp_path / "mine.h5ad", tmp_path / "run"
    shutil.copy(finished / "mine.h5ad", path)

    def train(self, *args, original=GMVAE.train, **kw):
        other_cells(path)
        return original(self, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(GMVAE, "train", train)
        with pytest.raises(ValueError, match="mine.h5ad was changed or replaced since") as error:
            gmvae_train(str(path), out=str(run), **QUICK)
    assert "annotated_cells.csv" in sentence(error) and "--resume" in sentence(error)
    assert not (run / "annotated.h5ad").exists() and (run / "metrics.json").exists()
    table = pd.read_csv(run / "annotated_cells.csv", index_col="cell")
    arrays = np.load(run / "annotated_cells.npz")
    assert verify(run)["notes"] == []
    with pytest.raises(ValueError, match="other counts, cells or genes"):
        again(run)  # on the new file
    shutil.copy(finished / "mine.h5ad", path)  # as the sentence says
    again(run)
    kept = ad.read_h5ad(run / "annotated.h5ad")
    assert list(kept.obs["gmvae_cluster"].astype(int)) == list(table["gmvae_cluster"])
    np.testing.assert_array_equal(kept.obsm["X_gmvae"], arrays["X_gmvae"])
    assert not list(run.glob("annotated_cells*")) and verify(run)["notes"] == []


def test_a_file_that_is_replaced_between_reading_and_training_is_noticed(run):
    path = run.parent / "mine.h5ad"
    data = read_input(path, **KEYS)
    other_cells(path)
    out = run.parent / "other"
    m = train_run(data, out, K=2, preset=TINY, max_epochs=1, progress=False, **KEYS)
    with pytest.raises(ValueError, match="was changed or replaced since it was read"):
        annotate_run(m, data, out)


def test_a_file_that_changes_while_it_is_read_is_refused(run, monkeypatch):
    path = run.parent / "mine.h5ad"

    def find(*args, original=reading.find_counts):
        other_cells(path)
        return original(*args)

    monkeypatch.setattr(reading, "find_counts", find)
    with pytest.raises(OSError, match="while it was read: read it again"):
        read_input(path)


def test_other_batches_are_not_gone_on_with(run):
    path = run.parent / "mine.h5ad"
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    a = ad.read_h5ad(path)
    a.obs["batch"] = a.obs["batch"].astype(str).to_numpy()[::-1]
    a.write_h5ad(path)
    with pytest.raises(ValueError, match=r"other batches of the cells \(batches_sha256 was"):
        again(run, max_epochs=3)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_a_model_of_other_cells_is_told_before_anything_is_written(run):
    "Here run.json does not help: it is lost."
    (run / "run.json").unlink()
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(ValueError, match=r"the model of another run \(K is 2 there, 3 here\)"):
        again(run, K=3)
    other_cells(run.parent / "mine.h5ad")
    with pytest.raises(ValueError, match="it was trained on other counts, cells or batches"):
        again(run)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_a_page_shows_one_state_of_the_model(run):
    data = read_input(run.parent / "mine.h5ad", **KEYS)
    options = dict(K=2, preset="blog", progress=False, resume=True, **KEYS)
    train_run(data, run, max_epochs=3, **options)  # and stopped before the annotation
    says = "annotated.h5ad and what is beside it are of different states .* 3 epochs now"
    with pytest.raises(ValueError, match=says) as error:
        gmvae_report(str(run))
    assert "gmvae_train with --resume" in sentence(error)
    assert "annotated.h5ad has no checksum" in verify(run)["notes"][0]
    again(run, max_epochs=3)
    gmvae_report(str(run))
    stored = ad.read_h5ad(run / "annotated.h5ad").uns["gmvae"]
    assert stored["epochs"] == 3 and verify(run)["notes"] == []


def test_an_annotated_file_of_another_run_makes_no_page(run):
    other = run.parent / "other"
    gmvae_train(str(run.parent / "mine.h5ad"), out=str(other), **QUICK | {"seed": 1})
    from gmvae_nb.model_folder import record_checksums

    shutil.copy(other / "annotated.h5ad", run)
    record_checksums(run, "annotated.h5ad")  # as somebody may who means well
    with pytest.raises(ValueError, match="annotated.h5ad is not of the model beside it"):
        gmvae_report(str(run))


def test_a_model_is_annotated_with_its_own_cells_and_state(run):
    data = read_input(run.parent / "mine.h5ad", **KEYS)
    m = GMVAE.load(run, data.cells)
    annotate_run(m, data, run)
    others = read_input(cells(seed=1), **KEYS)
    with pytest.raises(ValueError, match="was made for other cells than these"):
        annotate_run(m, others, run)
    m.train(3, progress=False)
    with pytest.raises(ValueError, match="another state of the model than the one in memory"):
        annotate_run(m, data, run)


def test_cells_in_memory_that_were_sorted_do_not_get_the_clusters_of_others(tmp_path):
    a = cells()
    data = read_input(a, **KEYS)
    m = train_run(data, tmp_path, K=2, preset=TINY, max_epochs=1, progress=False, **KEYS)
    a._inplace_subset_obs(np.arange(100)[::-1])
    with pytest.raises(ValueError, match="others than when it was read, or in another order"):
        annotate_run(m, data, tmp_path)
    assert (tmp_path / "annotated_cells.csv").exists()


def test_a_file_that_is_replaced_while_it_is_embedded_is_refused(run, monkeypatch):
    path, target = run.parent / "mine.h5ad", run.parent / "target.h5ad"

    def annotate(*args, original=embed.annotate):
        other_cells(path)
        return original(*args)

    monkeypatch.setattr(embed, "annotate", annotate)
    with pytest.raises(OSError, match="was changed or replaced while it was embedded"):
        gmvae_embed(str(run), str(path), out=str(target), quiet=True)
    assert not target.exists()


# --- damage is called damage ----------------------------------------------------------------------


def flipped(path: Path, place: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


def flips_not_told(run: Path, name: str, places: list[int], seed=0) -> list[tuple]:
    "Single bits that verify does not call damage of this very file."
    path, rng, missed = run / name, random.Random(seed), []
    before = path.read_bytes()
    for place in places:
        bit = rng.randrange(8)
        flipped(path, place, bit)
        try:
            said = str(verify(run)["notes"])
        except ValueError as error:
            said = str(error)
        damage = "damaged" in said or "not what was written" in said
        if name not in said or not damage or "stopped" in said:
            missed.append((place, bit, said))
        path.write_bytes(before)
    return missed


@pytest.mark.parametrize("name", [*TEXTS, "annotated.h5ad", "model.safetensors"])
def test_one_bit_is_told_and_is_no_stopped_write(run, name):
    size = (run / name).stat().st_size
    places = random.Random(1).sample(range(size), 60)
    assert flips_not_told(run, name, places) == []
    assert verify(run)["notes"] == []


def test_a_flip_in_the_padding_of_a_header_is_damage_too(tmp_path):
    "Spaces that nothing else reads; the settings and the weights are untouched."
    m = model(1)
    m.save(tmp_path)
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    longer = (length + 8).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * 8
    path.write_bytes(longer + raw[8 + length :])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        verify(tmp_path)


def test_a_model_of_another_run_is_not_a_stopped_write(tmp_path):
    model(1).save(tmp_path / "one")
    model(2, seed=1).save(tmp_path / "two")
    shutil.copy(tmp_path / "two/model.safetensors", tmp_path / "one")
    with pytest.raises(ValueError, match="is not of this run .seed is 0 there, 1 here"):
        verify(tmp_path / "one")


# --- the advice works -----------------------------------------------------------------------------

BESIDE = [*TEXTS, "annotated.h5ad"]


# each file in two ways, a text and the one that h5py reads in all four
DAMAGED = [(name, how) for name in BESIDE for how in ("bit", "gone")]
DAMAGED += [(name, how) for name in ("metrics.json", "annotated.h5ad") for how in ("cut", "empty")]


@pytest.mark.parametrize(("name", "how"), DAMAGED)
def test_what_is_said_about_a_damaged_file_mends_it(run, name, how):
    weights, path = (run / "model.safetensors").read_bytes(), run / name
    if how == "gone":
        path.unlink()
    elif how == "bit":
        flipped(path, path.stat().st_size // 2, 3)
    else:
        path.write_bytes(path.read_bytes()[: 40 if how == "cut" else 0])
    try:
        said = str(verify(run)["notes"])  # a config.json that is missing is a note
    except ValueError as error:
        said = str(error)
    assert name in said and "--resume" in said, said
    if "delete it and" in said:
        path.unlink(missing_ok=True)
    again(run)
    assert verify(run)["notes"] == [] and path.name in {*verify(run)["files"], "config.json"}
    assert (run / "model.safetensors").read_bytes() == weights
    if how == "gone":  # every file is whole again: once for each of them
        gmvae_report(str(run))


LOST = [
    ("config.json",),
    ("run.json",),
    ("history.csv",),
    ("config.json", "run.json"),
    ("config.json", "run.json", "history.csv", "metrics.json"),
]


@pytest.mark.parametrize("lost", LOST, ids=range(len(LOST)))
def test_a_file_that_is_missing_is_damage_and_what_is_said_brings_it_back(run, lost, capsys):
    weights = (run / "model.safetensors").read_bytes()
    for name in lost:
        (run / name).unlink()
    sys.argv = ["gmvae_verify", str(run)]
    with pytest.raises(SystemExit) as end:
        COMMANDS["gmvae_verify"]()
    said = capsys.readouterr().err
    # without a list, only what the model tells of is known to be missing
    told = lost if len(lost) == 1 else {*lost} & {"config.json", "history.csv"}
    assert end.value.code == 2 and all(f"{name} is missing" in said for name in told)
    assert "run the command again that made the folder (gmvae_train with --resume)" in said
    again(run)
    assert verify(run)["notes"] == [] and {*lost} <= {*verify(run)["files"], "config.json"}
    assert (run / "model.safetensors").read_bytes() == weights


def test_every_damaged_file_is_named_at_once(run):
    flipped(run / "history.csv", 30, 1)
    flipped(run / "run.json", 30, 1)
    flipped(run / "model.safetensors", (run / "model.safetensors").stat().st_size - 5, 1)
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match="model.safetensors.*history.csv.*metrics.json.*run.json"):
        verify(run)
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match="model.safetensors is not a model"):
        verify(run)


@pytest.mark.parametrize("damage", ["history", "run", "none"])
def test_without_its_list_the_other_files_of_a_run_are_still_checked(run, damage):
    (run / "config.json").unlink()
    changes = {
        "history": ("history.csv", r"\n\d", "\n7"),
        "run": ("run.json", '"seed": 0', '"seed": 7'),
    }
    if damage in changes:
        name, old, new = changes[damage]
        text = (run / name).read_text()
        (run / name).write_text(re.sub(old, new, text, count=1))
        assert (run / name).read_text() != text
    with pytest.raises(ValueError, match="config.json is missing") as error:
        verify(run)
    words = {"history": "not the history of the model", "run": "run.json is damaged", "none": "zz"}
    found = {kind for kind, said in words.items() if said in str(error.value)}
    assert found == {damage} - {"none"}


@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.json", "history.csv"])
def test_a_run_with_a_damaged_file_goes_on_without_any_advice(run, name):
    flipped(run / name, (run / name).stat().st_size // 2, 3)
    again(run, max_epochs=3)
    assert verify(run)["notes"] == [] and len(pd.read_csv(run / "history.csv")) == 3


@pytest.mark.parametrize("how", ["damaged", "gone"])
@pytest.mark.parametrize("name", ["config.json", "history.csv"])
def test_what_is_said_about_a_saved_model_mends_it(tmp_path, name, how):
    model(1).save(tmp_path)
    if how == "gone":
        (tmp_path / name).unlink()
    else:
        flipped(tmp_path / name, 50, 2)
    try:
        said = str(verify(tmp_path)["notes"])
    except ValueError as error:
        said = str(error)
    folder = re.search(r"gmvae_nb\.model_folder\.describe_again\(['\"\\]+(.*?)['\"\\]+\)", said)
    describe_again(folder[1])
    assert verify(tmp_path) == {"files": ["history.csv", "model.safetensors"], "notes": []}


def test_a_damaged_model_is_trained_again_once_it_is_deleted(run):
    path = run / "model.safetensors"
    before = path.read_bytes()
    flipped(path, len(before) - 5, 1)
    with pytest.raises(ValueError, match="delete it and train again"):
        verify(run)
    with pytest.raises(ValueError, match="delete it and train again"):
        again(run)
    path.unlink()
    again(run)
    assert path.read_bytes() == before and verify(run)["notes"] == []


def test_a_sweep_makes_again_what_is_damaged(tmp_path):
    cells().write_h5ad(tmp_path / "mine.h5ad")
    words = dict(out=str(tmp_path / "s"), K=[2], max_epochs=1, preset="blog", quiet=True, **KEYS)
    gmvae_sweep(str(tmp_path / "mine.h5ad"), **words)
    for name in ("config.json", "history.csv", "run.json", "metrics.json"):
        flipped(tmp_path / "s/K2-seed0" / name, 60, 2)
        gmvae_sweep(str(tmp_path / "mine.h5ad"), **words)
        assert verify(tmp_path / "s/K2-seed0")["notes"] == []


# --- faults of the disk and of memory -------------------------------------------------------------


class Faults:
    """Counts what is opened for writing, flushed and renamed below a folder; the n-th fails.

    At the lowest level that Python sees: an audit hook, h5py.File, and os.fsync."""

    def __init__(self):
        self.folder, self.n, self.seen, self.failed = None, None, 0, False
        sys.addaudithook(self.hook)

    def step(self, path) -> None:
        if self.folder is None or not str(path).startswith(str(self.folder)):
            return
        self.seen += 1
        if self.seen - 1 == self.n:
            self.failed = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def hook(self, event, args):
        if self.folder is None:
            return
        if event == "open" and isinstance(args[0], str | os.PathLike):
            mode, flags = args[1] or "", args[2] or 0
            if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR):
                self.step(os.fspath(args[0]))
        elif event == "os.rename":
            self.step(os.fspath(args[1]))

    @contextlib.contextmanager
    def at(self, folder, n):
        original, sync = h5py.File.__init__, os.fsync

        def opened(file, name, mode="r", *args, **kw):
            if mode != "r":
                self.step(name)
            return original(file, name, mode, *args, **kw)

        def flush(handle):
            self.step(os.readlink(f"/proc/self/fd/{handle}"))
            return sync(handle)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(h5py.File, "__init__", opened)
            if sys.platform == "linux":
                patch.setattr(os, "fsync", flush)
            self.folder, self.n, self.seen, self.failed = folder, n, 0, False
            try:
                yield
            finally:
                self.folder = None


@pytest.fixture(scope="module")
def faults():
    return Faults()


def called(name: str, *words) -> int:
    "Exit code of a command."
    handler, code = signal.getsignal(signal.SIGTERM), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        try:
            getattr(commands, name)()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    return code


WORDS = "--K 2 --preset blog --max_epochs 2 --batch_key batch --labels_key cell_type --quiet"


def fails_at(n: int, faults, folder: Path, capsys, weights: bytes) -> bool:
    "One run whose n-th write fails, and its continuation; whether there was an n-th."
    run, path = folder / f"run{n}", folder / "mine.h5ad"
    command = ("gmvae_train", path, "--out", run, *WORDS.split(), "--resume")
    with faults.at(run, n):
        code = called(*command)
    said = capsys.readouterr().err
    if not faults.failed:
        assert code == 0, said
        shutil.rmtree(run)
        return False
    # a name that cannot be noted in a lock is no loss
    assert code in (0, 4), (n, code, said)
    if code == 4:
        assert said.count("\n") == 1 and "No space left on device" in said, said
    assert not list(run.glob(".*.new*")), n
    assert called(*command) == 0, (n, capsys.readouterr().err)
    assert (run / "model.safetensors").read_bytes() == weights, n
    assert verify(run)["notes"] == [], n
    shutil.rmtree(run)
    return True


def test_whichever_write_fails_the_run_goes_on_to_the_same_model(
    finished, tmp_path, faults, capsys
):
    "Some of the writes; all of them with GMVAE_ALL_FAULTS=1, in some minutes."
    shutil.copy(finished / "mine.h5ad", tmp_path)
    weights = (finished / "run/model.safetensors").read_bytes()
    with faults.at(tmp_path / "whole", None):
        called("gmvae_train", tmp_path / "mine.h5ad", "--out", tmp_path / "whole", *WORDS.split())
    n_writes = faults.seen
    assert n_writes > 40
    chosen = range(n_writes)
    if not os.environ.get("GMVAE_ALL_FAULTS"):
        chosen = [0, 1, *random.Random(0).sample(chosen, 3), n_writes - 1]
    for n in chosen:
        assert fails_at(n, faults, tmp_path, capsys, weights)
    assert not fails_at(n_writes, faults, tmp_path, capsys, weights)


def test_whichever_write_fails_an_embedding_is_whole_or_not_there(run, faults, capsys):
    target, path = run.parent / "there/embedded.h5ad", run.parent / "mine.h5ad"
    for n in range(100):
        with faults.at(target.parent, n):
            code = called("gmvae_embed", run, path, "--out", target, "--quiet")
        said = capsys.readouterr().err
        if not faults.failed:
            break
        if code:
            assert code == 4 and said.count("\n") == 1, said
            assert target.exists() == ("is written, but" in said)
        if target.exists():
            assert "X_gmvae" in ad.read_h5ad(target).obsm
        shutil.rmtree(target.parent, ignore_errors=True)
    assert 4 < n < 99 and code == 0


def test_results_that_cannot_be_written_as_h5ad_are_kept(run, monkeypatch):
    def fail(*args):
        raise TypeError("Can't implicitly convert non-string objects to strings")

    monkeypatch.setattr(annotation, "add_arrays", fail)
    data = read_input(run.parent / "mine.h5ad", **KEYS)
    m = GMVAE.load(run, data.cells)
    old = (run / "annotated.h5ad").read_bytes()
    with pytest.raises(ValueError, match="annotated.h5ad was not written .Can't impl") as error:
        annotate_run(m, data, run)
    assert "annotated_cells.npz" in sentence(error)
    table = pd.read_csv(run / "annotated_cells.csv", index_col="cell")
    assert list(table.index) == list(data.cells.obs_names)
    assert list(np.load(run / "annotated_cells.npz")) == ["X_gmvae", "gmvae_prob", "X_gmvae_umap"]
    assert (run / "annotated.h5ad").read_bytes() == old
    assert set(m.predict()) == set(table["gmvae_cluster"].astype(str))


ALLOCATIONS = {
    "numpy": MemoryError("Unable to allocate 9.00 TiB for an array"),
    "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "nothing said": MemoryError(),
}


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        *(("step", kind) for kind in ALLOCATIONS),
        ("runs.score_run", "torch"),
        ("annotation.annotate", "nothing said"),
        ("annotation.write_annotated", "numpy"),
    ],
)
def test_too_little_memory_is_a_sentence_and_the_run_goes_on(
    finished, tmp_path, monkeypatch, capsys, where, kind
):
    def fail(*args, **kw):
        raise ALLOCATIONS[kind]

    shutil.copy(finished / "mine.h5ad", tmp_path)
    command = ("gmvae_train", tmp_path / "mine.h5ad", "--out", tmp_path / "run", *WORDS.split())
    with monkeypatch.context() as patch:
        patch.setattr("torch.optim.Adam.step" if where == "step" else f"gmvae_nb.{where}", fail)
        code = called(*command)
    said = capsys.readouterr().err
    kept = where == "annotation.write_annotated"  # the results are there, in another form
    assert code == (2 if kept else 4) and said.count("\n") == 1, said
    assert kept or "there is not enough memory" in said
    assert called(*command, "--resume") == 0
    model_file = tmp_path / "run/model.safetensors"
    assert model_file.read_bytes() == (finished / "run/model.safetensors").read_bytes()


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_that_is_deleted_while_it_is_trained_in_is_left_alone(
    finished, tmp_path, monkeypatch, capsys, anew
):
    run = tmp_path / "run"

    def score(*args, original=runs.score_run, **kw):
        shutil.rmtree(run)
        if anew:  # by somebody else
            run.mkdir()
            (run / LOCK_FILE).touch()
        return original(*args, **kw)

    monkeypatch.setattr(runs, "score_run", score)
    code = called("gmvae_train", finished / "mine.h5ad", "--out", run, *WORDS.split())
    said = capsys.readouterr().err
    assert code == 4 and "run was deleted or replaced while it was in use" in said
    assert said.count("\n") == 1
    assert [p.name for p in run.iterdir()] == [LOCK_FILE] if anew else not run.exists()


def test_a_disk_that_is_too_small_is_told_before_training(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(GMVAE, "train", lambda *a, **k: pytest.fail("trained"))
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="needs about .* MB, and its disk has 0 MB"):
        gmvae_train(str(finished / "mine.h5ad"), out=str(tmp_path / "run"), **QUICK)


# --- models that are not what they seem -----------------------------------------------------------

BIG = 12 * 2**30


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def as_hole(path):
    with open(path, "r+b") as file:
        file.truncate(BIG)


@pytest.mark.skipif(sys.platform != "linux", reason="needs pipes and /dev/zero")
@pytest.mark.parametrize("change", [as_pipe, as_device, as_hole])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "history.csv", "run.json"])
def test_what_is_no_file_or_enormous_is_not_read(run, name, change):
    change(run / name)
    start = time.process_time()
    with pytest.raises(ValueError, match=name) as error:
        verify(run)
    sentence(error)
    if name != "model.safetensors":
        assert len(GMVAE.load(run).history) == 2
    with contextlib.suppress(ValueError):  # a history is written anew, the others are refused
        gmvae_report(str(run))
    assert time.process_time() - start < 20


def written(path: Path, header: dict, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_long_header_is_not_read(run):
    path = run / "model.safetensors"
    with open(path, "wb") as file:
        file.write((60_000_000).to_bytes(8, "little"))
        file.truncate(70_000_000)
    with pytest.raises(ValueError, match="its header has 60,000,000 bytes, expected at most"):
        GMVAE.load(run)


def test_weights_made_of_holes_are_not_read(run):
    "The settings ask for a network of some gigabytes, and the file has its size, and no content."
    path = run / "model.safetensors"
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    said = json.loads(header["__metadata__"]["gmvae_nb"])
    said["config"]["preset"] |= dict(encoder_hidden=[30_000, 30_000])
    from gmvae_nb.model_folder import expected_tensors, read_preset

    expected = expected_tensors(said["config"], read_preset(said["config"]["preset"]))
    tensors, start = {"__metadata__": {"gmvae_nb": json.dumps(said)}}, 0
    dtypes = {torch.float32: "F32", torch.int64: "I64", torch.float64: "F64"}
    for name, t in expected.items():
        place = [start, start + t.nbytes]
        tensors[name] = dict(dtype=dtypes[t.dtype], shape=list(t.shape), data_offsets=place)
        start += t.nbytes
    written(path, tensors)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + start)
    assert start > 2**32
    with pytest.raises(ValueError, match="the rest is holes"):
        GMVAE.load(run)
    path.write_bytes(raw)
    with open(path, "r+b") as file:
        file.truncate(BIG)
    with pytest.raises(ValueError, match="it has 12,.* bytes, expected .* for its settings"):
        GMVAE.load(run)


LARGE = {
    "every weight": lambda name, t: t.fill_(3e38),
    "prior": lambda name, t: t.fill_(3e38) if name.startswith("prior") else t,
    "encoder": lambda name, t: t.mul_(3e38) if name.startswith("encoder") else t,
}


@pytest.mark.parametrize("change", LARGE.values(), ids=LARGE)
def test_results_that_are_not_finite_are_not_written(run, change, capsys):
    data = read_input(run.parent / "mine.h5ad", **KEYS)
    m = GMVAE.load(run, data.cells)
    with torch.no_grad():
        for name, p in m.network.named_parameters():
            change(name, p)
    m.save(run)
    again_ = GMVAE.load(run, data.cells)
    target = run.parent / "embedded.h5ad"
    words = ("gmvae_embed", run, run.parent / "mine.h5ad", "--out", target, "--quiet")
    assert called(*words) == 3 and not target.exists()
    assert "is not finite" in capsys.readouterr().err
    before = (run / "annotated.h5ad").read_bytes()
    with pytest.raises(
        FloatingPointError, match="answer for cell .* is not finite: look whether its counts"
    ) as error:
        annotate_run(again_, data, run)
    sentence(error)
    assert (run / "annotated.h5ad").read_bytes() == before
    with pytest.raises(FloatingPointError):
        runs.score_run(again_, data.cells, **KEYS, progress=False)


# --- numbers that something later does not take ---------------------------------------------------


@pytest.mark.parametrize("K", [0, -1, 10_001, 10**400])
def test_one_bad_K_of_a_sweep_is_refused_before_the_first_is_trained(finished, tmp_path, K):
    words = dict(out=str(tmp_path / "s"), max_epochs=1, preset="blog", quiet=True)
    with pytest.raises(ValueError, match="K is .* from 1 to 10,000") as error:
        gmvae_sweep(str(finished / "mine.h5ad"), K=[2, K], **words)
    sentence(error)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("seed", [-1, 2**32, 10**400])
def test_a_seed_that_k_means_does_not_take_is_refused_before_training(finished, tmp_path, seed):
    path, out = str(finished / "mine.h5ad"), str(tmp_path / "s")
    with pytest.raises(ValueError, match="seed is .*expected a whole number from 0 to 4,294,967,"):
        gmvae_train(path, out=out, seed=seed, **QUICK)
    with pytest.raises(ValueError, match="seed is"):
        gmvae_sweep(path, out=out, K=[2], seed=seed - 1, repeats=2, max_epochs=1, quiet=True)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_share_of_genes_is_a_share(run, share):
    with pytest.raises(ValueError, match="min_matched is .*expected a share from 0 to 1"):
        embed_file(GMVAE.load(run), run.parent / "mine.h5ad", run / "x.h5ad", min_matched=share)


def test_a_model_replaces_no_files_of_its_names_that_are_of_no_model(tmp_path):
    m = model()
    for name in ("config.json", "history.csv", "model.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text('{"mine": 1}')
        with pytest.raises(ValueError, match=f"{name} was not written with a model"):
            m.save(folder)
        with pytest.raises(ValueError, match=f"{name} "):
            model().train(1, out=folder, progress=False)
        assert (folder / name).read_text() == '{"mine": 1}'
        assert {path.name for path in folder.iterdir()} <= {name, LOCK_FILE}
    kept = m.save(tmp_path / "own")
    for lost in ("config.json", "model.safetensors", "history.csv"):
        (kept / lost).unlink()
        m.save(kept)  # what is left is of a model
        assert not verify(kept)["notes"]
    model().train(1, out=tmp_path / "config.json", overwrite=True, progress=False)
    assert verify(tmp_path / "config.json")
