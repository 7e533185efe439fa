"""Files: whole or not there, downloaded in parts; what the dead leave; one process in a folder."""

import errno
import hashlib
import http.server
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from gmvae_nb import files
from gmvae_nb.files import (
    LOCK_FILE,
    check_regular,
    download,
    is_as_written,
    is_locked,
    locked_folder,
    read_json,
    sha256_of,
    write_atomically,
    write_checked_json,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


def start(code: str, *args) -> subprocess.Popen:
    "Python in another process, which can be killed."
    words = [sys.executable, "-c", "import os, sys, time\nfrom gmvae_nb.files import *\n" + code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen([*words, *map(str, args)], env=env, **pipes)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_sha256(tmp_path):
    content = random.Random(0).randbytes(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert sha256_of(str(tmp_path / "a")) == sha256_of(tmp_path / "a")


# --- one way to write -----------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, lambda p: p.write_text("old"))

    def fails(p):
        assert p.parent == path.parent and p.suffix == ".txt"
        p.write_text("ne")
        assert path.read_text() == "old"
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_atomically(path, fails)
    assert path.read_text() == "old" and names(path.parent) == ["a.txt"]
    write_atomically(str(path), lambda p: p.write_text("new"))
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("when", ["lock", "content", "rename"])
def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, number, when):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    if when == "lock":
        monkeypatch.setattr(files.FileLock, "acquire", refuse)
    if when == "rename":
        monkeypatch.setattr(os, "replace", refuse)
    write = refuse if when == "content" else lambda p: p.write_text("new")
    with pytest.raises(OSError, match="could not be written") as error:
        write_atomically(path, write)
    said = str(error.value)
    assert str(path) in said and os.strerror(number) in said and "\n" not in said
    monkeypatch.undo()
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_what_the_writer_says_itself_is_let_through(tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such_file"):
        write_atomically(tmp_path / "a", lambda p: p.write_bytes(Path("no_such_file").read_bytes()))
    assert names(tmp_path) == []


DIES = """
def half(path):
    path.write_text("half")
    os._exit(9)
write_atomically(sys.argv[1], half)
"""


def left_by_a_dead_writer(folder: Path) -> list[str]:
    before = set(names(folder))
    assert start(DIES, folder / "a.txt").wait() == 9
    left = sorted(set(names(folder)) - before)
    assert [Path(name).suffix for name in left] == [".lock", ".txt"], left
    return left


def test_what_a_dead_writer_has_left_is_deleted_by_the_next_and_nothing_else(tmp_path):
    lock = left_by_a_dead_writer(tmp_path)[0]
    left_by_a_dead_writer(tmp_path)
    machine, other_machine = lock[1:17], "0" * 16
    assert machine == hashlib.sha256(platform.node().encode()).hexdigest()[:16]
    others = [
        f".{other_machine}{'1' * 16}.lock",
        f".{other_machine}{'1' * 16}.new.txt",
        f".{machine}{'2' * 16}.new.txt",  # no lock vouches for its writer's death
        f".{machine}{'2' * 16}.txt",
        f".{machine}.lock",
        f".{machine}{'x' * 16}.lock",
        ".hidden",
        LOCK_FILE,
    ]
    for other in others:
        (tmp_path / other).write_text("not ours")
    write_atomically(tmp_path / "b.txt", lambda p: p.write_text("b"))
    assert names(tmp_path) == sorted([*others, "b.txt"])


SLOW = """
import threading
def slow(path):
    with open(path, "w") as file:
        file.write("first half, "), file.flush(), os.write(1, b"begun\\n"), stop.wait()
        file.write("second half")
stop = threading.Event()
threads = [
    threading.Thread(target=write_atomically, args=(f"{sys.argv[1]}/{i}.txt", slow)) for i in (1, 2)
]
for thread in threads:
    thread.start()
sys.stdin.read(), stop.set()
"""


def test_the_files_of_a_live_writer_are_let_alone(tmp_path):
    "Two threads of another process write, and one of this process, while this one writes often."
    other, begun, stop = start(SLOW, tmp_path), threading.Event(), threading.Event()

    def slow(path):
        path.write_text("first half, ")
        begun.set(), stop.wait()
        path.write_text(path.read_text() + "second half")

    args = (tmp_path / "3.txt", slow)
    thread = threading.Thread(target=write_atomically, args=args, daemon=True)
    thread.start()
    assert [other.stdout.readline() for _ in "12"] == ["begun\n"] * 2 and begun.wait(60)
    for i in range(50):
        write_atomically(tmp_path / "a.txt", lambda p, i=i: p.write_text(str(i)))
    stop.set(), thread.join(), other.communicate()
    assert other.returncode == 0 and names(tmp_path) == ["1.txt", "2.txt", "3.txt", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "49"
    for i in "123":
        assert (tmp_path / f"{i}.txt").read_text() == "first half, second half"


WRITES = """
n, me = int(sys.argv[2]), sys.argv[3]
for i in range(n):
    for name in ("shared", me):
        write_atomically(f"{sys.argv[1]}/{name}.txt", lambda path: path.write_text(f"{me} " * 1000))
"""


def test_many_writers_at_once_do_not_hinder_each_other(tmp_path):
    "Each looks at the lock files of all the others, which come and go."
    writers = [start(WRITES, tmp_path, 60, name) for name in "abcd"]
    assert [w.communicate() and w.returncode for w in writers] == [0] * 4
    assert names(tmp_path) == ["a.txt", "b.txt", "c.txt", "d.txt", "shared.txt"]
    for file in tmp_path.iterdir():
        words = file.read_text().split()
        assert len(words) == 1000 and len(set(words)) == 1


def test_killed_at_any_moment_the_file_is_whole(tmp_path):
    rng, path = random.Random(0), tmp_path / "shared.txt"
    write_atomically(path, lambda p: p.write_text("old " * 1000))
    for _ in range(6):
        writer = start("print(flush=True)" + WRITES, tmp_path, 100_000, "new")
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        writer.kill(), writer.communicate()
        assert len(path.read_text().split()) == 1000
        write_atomically(tmp_path / "b.txt", lambda p: p.write_text("b"))
        assert not [name for name in names(tmp_path) if name.startswith(".")]


NO_LOCKS = [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL]


@pytest.fixture(params=NO_LOCKS, ids=errno.errorcode.get)
def without_locks(monkeypatch, request):
    "A file system that has no locks."
    fcntl = pytest.importorskip("fcntl")

    def flock(handle, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_files_are_written_and_nothing_is_left(tmp_path, without_locks):
    left = tmp_path / f".{files._machine_id()}{'3' * 16}.lock"
    left.touch()  # its writer may be alive: there is no telling
    write_atomically(tmp_path / "a.txt", lambda p: p.write_text("a"))
    assert names(tmp_path) == sorted([left.name, "a.txt"])


# --- downloads ------------------------------------------------------------------------------------

CONTENT = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    "Serves CONTENT; `cut` bytes of the first answer only, and in parts if `ranges`."

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            here.asked.append(self.headers.get("Range"))
            start = 0
            if here.ranges:
                start = int(here.asked[-1].removeprefix("bytes=").removesuffix("-"))
            status = 200 if not here.ranges else 206 if start < len(CONTENT) else 416
            self.send_response(404 if self.path != "/a.bin" else status)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            stop = here.cut if len(here.asked) == 1 else None
            self.wfile.write(CONTENT[start:stop])
            self.close_connection = True

        def log_message(self, *args):
            pass

    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.asked, here.cut, here.ranges = [], None, True
    here.url = f"http://127.0.0.1:{here.server_port}/a.bin"
    threading.Thread(target=here.serve_forever, daemon=True).start()
    yield here
    here.shutdown()
    here.server_close()


def test_a_whole_download(server, tmp_path, capsys):
    download(server.url, tmp_path / "cache" / "a.bin", SHA256)
    assert (tmp_path / "cache" / "a.bin").read_bytes() == CONTENT and len(server.asked) == 1
    assert f"a.bin: sha256 {SHA256}, as expected" in capsys.readouterr().out
    download(server.url, tmp_path / "b.bin")
    assert f"b.bin: sha256 {SHA256}, NOT checked" in capsys.readouterr().out


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on(server, tmp_path, ranges):
    server.cut, server.ranges, target = 200_000, ranges, tmp_path / "a.bin"
    with pytest.raises(OSError):
        download(server.url, target, SHA256)
    assert names(tmp_path) == ["a.bin.part"]
    have = (tmp_path / "a.bin.part").stat().st_size
    assert 100_000 < have <= 200_000
    download(server.url, target, SHA256)
    assert server.asked == ["bytes=0-", f"bytes={have}-"]
    assert target.read_bytes() == CONTENT and names(tmp_path) == ["a.bin"]


def test_a_download_that_only_lacked_its_name(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "a.bin", SHA256)
    assert names(tmp_path) == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_download_that_is_not_what_it_should_be(server, tmp_path):
    says = f"does not match the known hash: sha256 {SHA256}, expected 000"
    with pytest.raises(ValueError, match=says):
        download(server.url, tmp_path / "a.bin", "0" * 64)
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="404"):
        download(server.url + "x", tmp_path / "a.bin", SHA256)
    assert names(tmp_path) == []


# --- JSON -----------------------------------------------------------------------------------------


def test_json(tmp_path):
    path, content = tmp_path / "run" / "a.json", {"K": 20, "text": "µ", "list": [1.5, None]}
    write_json(path, content)
    assert read_json(path, "") == content and path.read_text().endswith("}\n")
    assert path.read_text() == json.dumps(content, indent=1) + "\n"


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "does not exist"),
        (b"{", "is damaged or no JSON"),
        (b"\xff", "is damaged or no JSON"),
        (b"[" * 100_000, "is damaged or no JSON"),
        (b"[1]", "is not what was written"),
    ],
)
def test_json_that_cannot_be_read_is_a_sentence(tmp_path, text, says):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=f"a.json {says}.*: run it again$") as error:
        read_json(path, hint="run it again")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs os.mkfifo")
def test_what_is_no_regular_file_is_not_read(tmp_path):
    "A pipe would be waited for, a device never ends."
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "zero.json", "folder.json"):
        with pytest.raises(ValueError, match="is no regular file"):
            check_regular(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is damaged or no JSON .*: run it again"):
            read_json(tmp_path / name, hint="run it again")
        assert is_as_written(tmp_path / name) is False


def test_a_checked_file_tells_each_of_its_bits(tmp_path):
    path = tmp_path / "run.json"
    write_checked_json(path, {"K": 20, "seconds": [0.1, None], "checksum": "of before"})
    assert is_as_written(path) is True
    raw = path.read_bytes()
    for place in range(len(raw)):
        for bit in range(8):
            flipped = raw[place] ^ 1 << bit
            path.write_bytes(raw[:place] + bytes([flipped]) + raw[place + 1 :])
            if b'"checksum"' in path.read_bytes():  # without it the file is an older one
                assert is_as_written(path) is False, (place, bit)


def test_a_folder_that_cannot_be_flushed_is_told_as_such(tmp_path, monkeypatch):
    def fails(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "_sync_folder", fails)
    with pytest.raises(OSError, match="a.txt is written, but its folder could not be flushed"):
        write_atomically(tmp_path / "a.txt", lambda p: p.write_text("new"))
    assert (tmp_path / "a.txt").read_text() == "new" and names(tmp_path) == ["a.txt"]


# --- one process in a folder ----------------------------------------------------------------------

HOLDS = """
with locked_folder(sys.argv[1]):
    print("in", flush=True), sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    "Another process that is in the folder `run`."
    process = start(HOLDS, tmp_path / "run")
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill(), process.communicate()


def from_another_thread(folder: Path) -> str:
    "What a thread is told that wants to enter; empty: it may."
    said = []

    def enter():
        try:
            with locked_folder(folder):
                said.append("")
        except BlockingIOError as error:
            said.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return said[0]


def test_a_thread_may_enter_again_and_only_it(tmp_path):
    with locked_folder(tmp_path) as lock:
        with locked_folder(tmp_path / ".") as again:
            assert again is lock
        # the inner one has not opened the door
        assert "trains in" in from_another_thread(tmp_path) and is_locked(tmp_path)
    assert from_another_thread(tmp_path) == "" and not is_locked(tmp_path)


@pytest.mark.parametrize("how", ["folder deleted", "file deleted", "replaced", "moved"])
def test_who_has_lost_a_folder_is_told_before_she_writes(tmp_path, how):
    run = tmp_path / "run"
    with locked_folder(run) as lock:
        lock.check()
        if how == "folder deleted":
            shutil.rmtree(run)
        elif how == "moved":
            run.rename(tmp_path / "elsewhere")
        else:
            (run / LOCK_FILE).unlink()
        if how == "replaced":  # by somebody who is in it now
            holder = start(HOLDS, run)
            holder.stdout.readline()
        with pytest.raises(OSError, match="run was deleted or replaced while") as error:
            lock.check()
        assert "\n" not in str(error.value)
        with pytest.raises(OSError, match="was deleted or replaced"):
            with locked_folder(run):
                raise AssertionError("entered")
        if how == "replaced":
            holder.kill(), holder.communicate()


def test_two_processes_are_never_in_one_folder(tmp_path, holder):
    folder, who = tmp_path / "run", f"process {holder.pid} on {platform.node()}"
    for _ in range(3):  # whoever is refused leaves the name of the other as it is
        with pytest.raises(BlockingIOError, match=f"^{who} trains in .*run: wait until") as error:
            with locked_folder(folder):
                raise AssertionError("two at once")
    assert "\n" not in str(error.value) and names(folder) == [LOCK_FILE]
    holder.kill(), holder.communicate()
    with locked_folder(folder):
        said = from_another_thread(folder)
        assert f"process {os.getpid()} " in said and "trains in" in said
    with locked_folder(folder):  # free again
        pass


def test_waiting_for_a_folder(tmp_path, holder):
    entered = threading.Event()

    def enter():
        with locked_folder(tmp_path / "run", wait=True):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    assert not entered.wait(1)
    holder.kill(), holder.communicate()
    assert entered.wait(30)
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_does_not_keep_a_folder_locked(tmp_path):
    code = """
with locked_folder(sys.argv[1]):
    child = os.fork()
    if child == 0:
        time.sleep(60), os._exit(0)
    print(child, flush=True), os.kill(os.getpid(), 9)
"""
    parent = start(code, tmp_path / "run")
    child = int(parent.stdout.readline())
    parent.wait()
    try:  # the child lets go as soon as it comes to its turn, long before it ends
        for _ in range(200):
            try:
                with locked_folder(tmp_path / "run"):
                    break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            pytest.fail("the child keeps the folder locked")
    finally:
        os.kill(child, 9)


def test_an_error_inside_is_let_through_and_the_folder_is_free(tmp_path):
    for error in (ValueError("inside"), OSError(errno.EACCES, "inside"), TimeoutError("inside")):
        with pytest.raises(type(error), match="inside"):
            with locked_folder(tmp_path / "run"):
                raise error
    with locked_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_may_not_be_written_is_a_sentence(tmp_path, monkeypatch, number):
    original = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith(LOCK_FILE):
            raise OSError(number, os.strerror(number), path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=r"run.\.lock could not be written") as error:
        with locked_folder(tmp_path / "run"):
            pass
    assert os.strerror(number) in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file cannot be made, a file is in its place"):
        with locked_folder(tmp_path / "file"):
            pass


def test_without_locks_nothing_is_kept_apart(tmp_path, without_locks):
    with locked_folder(tmp_path), locked_folder(tmp_path):
        write_json(tmp_path / "a.json", {})
    assert "a.json" in names(tmp_path)
