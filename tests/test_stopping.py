"""Ctrl-C and its like, a second one, one that is hidden or dropped; pipes closed, streams full."""

import errno
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from gmvae_nb import annotation, command_line, model_folder, report
from gmvae_nb.after_training import gmvae_report, gmvae_table
from gmvae_nb.annotation import annotate_run
from gmvae_nb.command_line import check_table, command
from gmvae_nb.files import check_own_files, check_target, is_locked, write_atomically
from gmvae_nb.network import PRESETS
from gmvae_nb.options import Param
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.stopping import STOPS, take_stops, was_stopped
from gmvae_nb.train import GMVAE

from hazards import TINY, cells, fork, model, no_map, outcome

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture(autouse=True)
def signals():
    "None is ignored at first, as some are after nohup; what a command sets is undone in the end."
    numbers = [getattr(signal, name) for name in STOPS if hasattr(signal, name)]
    before = {n: signal.signal(n, signal.SIG_DFL) for n in numbers}
    hook = sys.unraisablehook
    yield numbers
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


# --- signals --------------------------------------------------------------------------------------


def as_command(work, folder: Path, *words) -> tuple[int, str, str]:
    "In a copy of this process, as the command `gmvae_try`: exit code, stdout, stderr."

    def run():
        for handle, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)
        sys.argv = ["gmvae_try", *map(str, words)]

        def gmvae_try(resume: Param("go on", bool) = None):
            "Tries."
            work()

        code = 0
        try:
            command("examples:\n  gmvae_try", reads_cells=False)(gmvae_try)()
        except SystemExit as end:
            code = end.code
        os._exit(code)  # as after a stop, with nothing written any more

    code = outcome(fork(run))
    return code, (folder / "out").read_text(), (folder / "err").read_text()


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_of_the_signals_is_a_sentence_and_130(tmp_path, name):
    "The second one comes while the first is cleaned up after."

    def work():
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(20)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            (tmp_path / "cleaned").touch()

    code, _, said = as_command(work, tmp_path)
    assert code == 130 and (tmp_path / "cleaned").exists()
    assert said == "\ngmvae_try: stopped; to go on, run the same command again: gmvae_try \n"


@posix
def test_what_is_ignored_stays_ignored(tmp_path):
    "As nohup does."

    def work():
        os.kill(os.getpid(), signal.SIGHUP)
        print("done")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert as_command(work, tmp_path) == (0, "done\n", "")
    finally:
        signal.signal(signal.SIGHUP, before)


@posix
def test_a_stop_behind_an_error_is_a_stop(tmp_path):
    def work():
        try:
            raise KeyboardInterrupt
        finally:  # as torch.device("meta") ends
            raise RuntimeError("trying to pop from empty mode stack")

    code, _, said = as_command(work, tmp_path)
    assert code == 130 and "gmvae_try: stopped; to go on" in said


@posix
def test_a_stop_that_python_drops_comes_again(tmp_path):
    class Deleted:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    def work():
        Deleted()
        time.sleep(20)

    start = time.monotonic()
    code, _, said = as_command(work, tmp_path)
    assert code == 130 and "Exception ignored" not in said and time.monotonic() - start < 10


def test_another_error_that_is_dropped_is_told_as_ever(signals, capsys):
    class Deleted:
        def __del__(self):
            raise ValueError("of somebody else")

    seen = []
    sys.unraisablehook = seen.append
    take_stops()
    take_stops()  # as two commands in a process do
    Deleted()
    assert [str(told.exc_value) for told in seen] == ["of somebody else"]


def test_a_stop_while_a_model_is_read_is_no_damage(tmp_path, monkeypatch):
    "PyTorch has an error of its own, with which it leaves a block that was stopped."
    m = model()
    m.save(tmp_path / "m")

    def stopped(*args):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    monkeypatch.setattr(model_folder, "expected_tensors", stopped)
    with pytest.raises(KeyboardInterrupt):
        GMVAE.load(tmp_path / "m")
    assert not was_stopped(ValueError("of a file")) and not was_stopped(None)


# --- streams --------------------------------------------------------------------------------------


def long_work():
    print("working", file=sys.stderr)
    print("result")


def fill(handle: int) -> None:
    "From now on the stream goes to a full disk."
    os.dup2(os.open("/dev/full", os.O_WRONLY), handle)


def close_reader(handle: int) -> None:
    "From now on the stream goes to a pipe that nobody reads."
    read, write = os.pipe()
    os.close(read), os.dup2(write, handle)


@linux
def test_messages_that_nobody_reads_stop_no_work(tmp_path):
    def work():
        for spoil in (fill, close_reader):
            spoil(2)
            long_work()

    assert as_command(work, tmp_path) == (0, "result\nresult\n", "")


@linux
def test_results_that_cannot_be_written_are_an_error_and_a_closed_pipe_is_none(tmp_path):
    def full():
        fill(1)
        long_work()

    code, _, said = as_command(full, tmp_path)
    assert code == 4 and said.count("\n") == 2
    assert said.endswith("stdout could not be written (No space left on device): make room where it"
                         " goes, or send it elsewhere\n")  # fmt: skip

    def closed():
        close_reader(1)
        long_work()

    assert as_command(closed, tmp_path) == (0, "", "working\n")


@linux
def test_no_file_is_opened_in_the_place_of_a_stream(tmp_path):
    "What a library writes to stderr would be written into it."

    def work():
        file = os.open(tmp_path / "mine", os.O_WRONLY | os.O_CREAT)
        os.write(2, b"a warning of C")
        os.write(file, str(file).encode())
        long_work()

    def closed():
        for handle, name in enumerate(("stdin", "stdout", "stderr")):
            os.close(handle)
            setattr(sys, name, None), setattr(sys, f"__{name}__", None)
        command_line.hold_streams()
        work()

    assert outcome(fork(closed)) == 0
    assert int((tmp_path / "mine").read_text()) > 2


# --- what takes the place of what -----------------------------------------------------------------


def pipe(path: Path):
    os.mkfifo(path)
    os.write(os.open(path, os.O_RDWR), b"who reads it waits no longer\n" * 9)


def device(path: Path):
    path.symlink_to("/dev/null")


@linux
@pytest.mark.parametrize("make", [pipe, device])
def test_a_pipe_or_a_device_is_not_replaced_nor_waited_for(tmp_path, make):
    path = tmp_path / "report.html"
    make(path)
    for work in (
        lambda: check_table(path),
        lambda: check_table(path, overwrite=True),
        lambda: check_target(None, path),
        lambda: check_own_files(tmp_path, overwrite=True),
        lambda: write_atomically(path, lambda new: new.touch()),
    ):
        with pytest.raises(ValueError, match="report.html is a pipe or a device"):
            work()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_full_disk_names_what_was_to_be_written_not_what_was_read(tmp_path, monkeypatch):
    source, target = tmp_path / "mine.h5ad", tmp_path / "copy.h5ad"

    def copy(new: Path):
        number = errno.ENOSPC
        raise OSError(number, os.strerror(number), str(source), None, str(new))

    with pytest.raises(OSError, match="copy.h5ad could not be written .No space") as error:
        write_atomically(target, copy)
    assert "mine.h5ad" not in str(error.value)

    def gone(new: Path):
        raise OSError(errno.ENOENT, "No such file", str(source), None, str(new))

    with pytest.raises(OSError, match="No such file: .*mine.h5ad"):
        write_atomically(target, gone)


# --- a run and its page ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The folder of a finished run, to be copied."
    folder = tmp_path_factory.mktemp("finished")
    a = cells(60)
    a.write_h5ad(folder / "mine.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "blog", TINY)
        patch.setattr(annotation, "umap", no_map)
        data = read_input(folder / "mine.h5ad", batch_key="batch")
        options = dict(K=2, preset="blog", batch_key="batch", progress=False)
        m = train_run(data, folder / "run", max_epochs=1, **options)
        annotate_run(m, data, folder / "run")
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here/run"


def test_the_checksums_of_a_page_are_noted_while_nobody_else_is_in_the_folder(run, monkeypatch):
    "Else a training that begins in between has its config.json replaced by the one before."
    locked = []

    def record(folder, *names, original=model_folder.record_checksums):
        locked.append(is_locked(Path(folder)))
        original(folder, *names)

    for module in (model_folder, report):
        monkeypatch.setattr(module, "record_checksums", record)
    gmvae_report(str(run))
    assert locked == [True] and model_folder.verify(run)["notes"] == []


def test_a_table_is_written_though_nobody_reads_it(run, tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        gmvae_table([str(run)], csv=str(tmp_path / "t.csv"))
    assert len(pd.read_csv(tmp_path / "t.csv")) == 1


def test_a_pair_that_is_none_is_told_before_anything_is_read(tmp_path):
    from gmvae_nb.after_training import gmvae_embed
    from gmvae_nb.comparing import gmvae_differential

    words = dict(map_batch=["donor7"], quiet=True)
    with pytest.raises(ValueError, match="map_batch 'donor7' is not of the form new=known"):
        gmvae_embed("no run", "no file.h5ad", **words)
    words |= dict(out=str(tmp_path / "d.csv"), group="a=b")
    with pytest.raises(ValueError, match="map_batch 'donor7' is not of the form new=known"):
        gmvae_differential("no run", "no file.h5ad", **words)


def test_a_stop_while_the_last_epoch_is_written_loses_nothing(tmp_path, monkeypatch):
    "Called again, nothing is left to train, and the folder gets what it lacks."
    whole = GMVAE(cells(60), K=2, batch_key="batch", preset=TINY)
    whole.train(2, out=tmp_path / "whole", progress=False)
    for n in (1, 2, 3):  # the files of an epoch: weights, history, config
        m, left = GMVAE(cells(60), K=2, batch_key="batch", preset=TINY), [3 + n]

        def write(*args, left=left, original=write_atomically):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(model_folder, "write_atomically", write)
            patch.setattr("gmvae_nb.files.write_atomically", write)
            with pytest.raises(KeyboardInterrupt):
                m.train(2, out=tmp_path / str(n), progress=False)
        m.train(2, out=tmp_path / str(n), progress=False)
        assert model_folder.verify(tmp_path / str(n))["notes"] == []
        ours, theirs = (tmp_path / f / "model.safetensors" for f in (str(n), "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    m.train(2, out=tmp_path / "later", progress=False)
    assert len(GMVAE.load(tmp_path / "later").history) == 2


def test_an_estimator_that_is_stopped_is_of_one_fit(monkeypatch):
    from gmvae_nb.estimator import GMVAEClusterer

    X = cells(60).X.toarray()
    e = GMVAEClusterer(2, preset=TINY, max_epochs=1).fit(X)
    before = e.model_, e.labels_, e.embedding_

    def stopped(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(GMVAE, "get_latent_representation", stopped)
    with pytest.raises(KeyboardInterrupt):
        e.fit(X[::-1])
    assert all(a is b for a, b in zip(before, (e.model_, e.labels_, e.embedding_)))


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for check in (check_table, lambda path: check_target(None, path)):
        with pytest.raises(OSError, match="file is a file: name another folder"):
            check(tmp_path / "file/folder/t.csv")
        check(tmp_path / "new/folder/t.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@posix
def test_a_folder_without_the_right_to_write_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OSError, match="there is no right to write in .*name another folder"):
        check_table(tmp_path / "new/t.csv")
