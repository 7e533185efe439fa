"""Files that would do harm, as small as they can be, and honest ones beside them."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from anndata import AnnData
from gmvae_nb import data, h5ad, looking
from gmvae_nb.counts import get_counts
from gmvae_nb.counts_on_disk import canonical
from gmvae_nb.data import download_h5ad, read_h5ad
from gmvae_nb.h5ad import open_h5ad
from gmvae_nb.looking import UnknownCompression, UnsafeFile, memory_needed
from gmvae_nb.reading import read_input
from isal import isal_zlib
from scipy import sparse

from hazards import ROOT, cells

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

COMPRESSION = [
    dict(compression="gzip"),
    dict(compression="gzip", shuffle=True),
    dict(compression="gzip", shuffle=True, fletcher32=True),
    dict(compression="lzf"),
    dict(compression="lzf", shuffle=True),
    dict(fletcher32=True),
    dict(),
]


def looked_at(path: Path) -> int:
    with h5py.File(path) as f:
        return memory_needed(f)


def file_with(folder: Path, build) -> Path:
    "An h5ad that `build` has added to."
    path = folder / "a.h5ad"
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as f:
        build(f)
    return path


def array(f, name, values, **options):
    made = f.create_dataset(name, data=values, **options)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return made


# --- honest files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", COMPRESSION, ids=str)
def test_honest_files_of_every_compression_are_read(tmp_path, options):
    numbers = np.random.default_rng(0).poisson(1, (300, 70)).astype("f8")
    texts = np.array([f"text {i % 50}" for i in range(5000)], dtype=object)

    def build(f):
        array(f, "uns/numbers", numbers, chunks=(64, 32), **options)
        array(f, "uns/zeros", np.zeros((500, 900)), chunks=(500, 900), **options)
        plain = {key: value for key, value in options.items() if key != "fletcher32"}
        made = f.create_dataset("uns/texts", (5000,), h5py.string_dtype(), chunks=(512,), **plain)
        made[:] = texts
        made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})

    found = read_h5ad(file_with(tmp_path, build))
    np.testing.assert_array_equal(found.uns["numbers"], numbers)
    assert list(found.uns["texts"]) == list(texts)


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_files_that_anndata_writes_are_read(tmp_path, compression):
    a = cells()
    a.obsm["zeros"] = np.zeros((100, 3000))
    a.obs["note"] = [f"n{i}" for i in range(100)]
    a.obs["maybe"] = np.array([True, False] * 50)
    a.raw = a.copy()
    a.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    assert read_input(tmp_path / "a.h5ad").sha256 == read_input(a).sha256


def test_what_was_never_written_is_read_as_zeros(tmp_path):
    def build(f):
        for name, options in (("a", {}), ("b", dict(chunks=(10, 600), compression="gzip"))):
            made = f.create_dataset(f"obsm/{name}", (100, 30_000), "f8", **options)
            made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    found = read_h5ad(file_with(tmp_path, build))
    assert found.obsm["a"].shape == (100, 30_000) and not found.obsm["b"].any()


@pytest.mark.parametrize("options", [dict(userblock_size=512), dict(libver="latest")], ids=str)
def test_files_of_other_writers_are_read(tmp_path, options):
    "With something before the file itself, or in HDF5's newest form."
    file_with(tmp_path, lambda f: None)
    with h5py.File(tmp_path / "a.h5ad") as old, h5py.File(tmp_path / "b.h5ad", "w", **options) as f:
        for name in old:
            old.copy(name, f)
        f.attrs.update(dict(old.attrs))
    assert read_input(tmp_path / "b.h5ad").sha256 == read_input(tmp_path / "a.h5ad").sha256


def test_MuData_with_obs_and_var_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5mu", "w") as f:
        for name in ("obs", "var", "mod/rna"):
            f.create_group(name)
    for read in (read_input, read_h5ad):
        with pytest.raises(ValueError, match="is a MuData file, .*read_h5mu"):
            read(tmp_path / "a.h5mu")


def test_looking_is_not_stopped_by_a_clock(tmp_path, monkeypatch):
    "The bound is of processor time: a machine that is busy is no reason to refuse a file."
    asked = {}

    def run(words, **options):
        asked.update(options)
        return subprocess.CompletedProcess(words, 0, b'{"missing": [], "size": 1, "old": false}')

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(h5ad, "_may_be_copied", lambda: False)
    h5ad.checked_h5ad(file_with(tmp_path, lambda f: None))
    assert asked["timeout"] is None or os.name == "nt"


@needs_linux
def test_no_program_is_started_to_look(tmp_path, monkeypatch):
    "That would cost more than all the rest of looking."
    monkeypatch.setattr("subprocess.run", None)
    assert read_h5ad(file_with(tmp_path, lambda f: None)).n_obs == 100


@needs_linux
def test_a_copy_of_the_process_looks_unless_it_has_files_open(tmp_path):
    path, other = file_with(tmp_path, lambda f: None), tmp_path / "other.h5"
    assert h5ad._may_be_copied()
    memory = psutil.virtual_memory().total
    ways = (looking.look_in_copy, h5ad._look_in_another)
    copied, started = (json.loads(look(str(path), memory)[1]) for look in ways)
    assert copied == started and copied["missing"] == []
    with h5py.File(other, "w"):
        assert not h5ad._may_be_copied()
        assert read_h5ad(path).n_obs == 100
    with h5py.File(path, "r+"):
        with pytest.raises(ValueError, match="is open for writing elsewhere"):
            read_h5ad(path)


@needs_linux
@pytest.mark.parametrize("kill", [signal.SIGSEGV, signal.SIGXCPU])
def test_a_copy_that_dies_is_a_sentence(tmp_path, monkeypatch, kill):
    path = file_with(tmp_path, lambda f: None)
    monkeypatch.setattr(looking, "look_through", lambda *_: os.kill(os.getpid(), kill))
    what = "HDF5 finds no end in it" if kill == signal.SIGXCPU else "HDF5 stopped with code -11"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=f"is no h5ad file, or not a whole one .{what}"):
        read_h5ad(path)
    assert len(os.listdir("/proc/self/fd")) == before


@needs_linux
def test_a_copy_writes_nothing_of_its_own(tmp_path, monkeypatch, capfd):
    "An error that nobody has thought of: the copy ends, and goes on with nothing of its parent."
    path = file_with(tmp_path, lambda f: None)
    monkeypatch.setattr(looking, "look_through", lambda *_: 1 / 0)
    print("before, and not yet written", end="")
    with pytest.raises(ValueError, match="HDF5 stopped with code 1"):
        read_h5ad(path)
    assert capfd.readouterr().out.count("before") == 1


# --- the small process of a command ---------------------------------------------------------------


@pytest.fixture
def start(monkeypatch):
    "Starts a small process, which looks with this, and lets `h5ad` ask it."
    if not looking.can_be_copied():
        pytest.skip("needs Linux")
    started = []

    def one(look_through=looking.look_through):
        with monkeypatch.context() as m:
            m.setattr(looking, "look_through", look_through)
            started.append(looking.Looker())
        monkeypatch.setattr(looking, "_lookers", started[-1:])
        return started[-1]

    yield one
    for looker in started:
        looker.stop()


def is_gone(pid: int, seconds: float = 20) -> bool:
    "Whether a process has ended by then; nobody need have waited for it."
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_the_small_process_finds_what_a_copy_finds(tmp_path, start, monkeypatch):
    path = file_with(tmp_path, lambda f: None)
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(path.read_bytes()[:5000])
    looker = start()
    for asked in (path, cut, tmp_path / "none"):
        assert looker.look(str(asked), 1e9) == looking.look_in_copy(str(asked), 1e9)
    monkeypatch.setattr(h5ad, "look_in_copy", None)
    monkeypatch.setattr(h5ad, "_look_in_another", None)
    assert read_h5ad(path).n_obs == 100
    monkeypatch.chdir(tmp_path)  # it is still where it was started
    assert read_h5ad("a.h5ad").n_obs == 100
    with h5py.File(path, "r+"), pytest.raises(ValueError, match="is open for writing elsewhere"):
        read_h5ad(path)


@pytest.mark.parametrize("kill", ["SIGSEGV", "SIGXCPU"])
def test_a_copy_that_dies_takes_the_small_process_not_with_it(tmp_path, start, kill):
    good = file_with(tmp_path, lambda f: None)
    bad = tmp_path / "bad.h5ad"
    bad.write_bytes(good.read_bytes())
    look_through = looking.look_through

    def dies(path, memory):
        if path == str(bad):
            os.kill(os.getpid(), getattr(signal, kill))
        return look_through(path, memory)

    looker = start(dies)
    what = "HDF5 finds no end in it" if kill == "SIGXCPU" else "HDF5 stopped with code -11"
    for _ in range(2):
        with pytest.raises(ValueError, match=what):
            read_h5ad(bad)
        assert read_h5ad(good).n_obs == 100
    assert psutil.Process(looker.pid).children() == []  # none is left to be waited for


def test_a_copy_has_its_bounds_whoever_makes_it(tmp_path, start):
    import resource

    def bounds(*_):
        return [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)]

    path = file_with(tmp_path, lambda f: None)
    memory = psutil.Process().memory_info().vms
    seconds, most = json.loads(start(bounds).look(str(path), 1e9)[1])
    assert seconds == 3 and most < memory + 300e6


def test_without_the_small_process_this_one_is_copied(tmp_path, start):
    path, looker = file_with(tmp_path, lambda f: None), start()
    os.kill(looker.pid, signal.SIGKILL)
    os.waitpid(looker.pid, 0)
    assert read_h5ad(path).n_obs == 100
    assert looker.look(str(path), 1e9) is None


def test_a_copy_of_its_owner_lets_the_small_process_alone(tmp_path, start):
    path, looker = str(file_with(tmp_path, lambda f: None)), start()
    pid = os.fork()
    if pid == 0:
        same = looker.look(path, 1e9)
        looker.stop()
        os._exit(0 if same is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert looker.look(path, 1e9)[0] == 0


def test_a_look_that_is_stopped_ends_all_processes(tmp_path, start):
    path, looker = file_with(tmp_path, lambda f: None), start(lambda *_: time.sleep(100))
    assert os.getpgid(looker.pid) == looker.pid  # Ctrl-C reaches its owner alone
    small, copies = psutil.Process(looker.pid), []

    def stopped(*_):
        copies.extend(small.children())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stopped)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            read_h5ad(path)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert looker.look(str(path), 1e9) is None  # the answer to the first would come
    looker.stop()
    assert len(copies) == 1 and is_gone(copies[0].pid) and is_gone(looker.pid)


@needs_linux
def test_nobody_waits_for_the_small_process_of_who_is_gone(tmp_path):
    "Its owner is killed while a copy looks; it keeps nobody's output open, and ends after that."
    code = (
        "import os, signal, sys, time; from gmvae_nb import looking; "
        "looking.look_through = lambda *_: time.sleep(float(sys.argv[1])); "
        "looker = looking.Looker(); print(looker.pid, flush=True); "
        "looker.pipe.send_bytes(b'[\".\", 1]'); time.sleep(0.3); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    for seconds in (0, 60):
        start = time.perf_counter()
        words = [sys.executable, "-c", code, str(seconds)]
        done = subprocess.run(words, capture_output=True, cwd=ROOT, timeout=50)
        pid = int(done.stdout)
        assert time.perf_counter() - start < 30 and done.stderr == b""
        if seconds:
            os.killpg(pid, signal.SIGKILL)
        assert is_gone(pid)


@needs_linux
def test_a_command_starts_it_before_torch_and_ends_it(tmp_path):
    path = file_with(tmp_path, lambda f: None)
    code = (
        "import os, sys; from gmvae_nb import commands, looking\n"
        "class Looker(looking.Looker):\n"
        "    def __init__(self):\n"
        "        assert 'torch' not in sys.modules\n"
        "        super().__init__()\n"
        "        print('started', self.pid)\n"
        "    def look(self, path, memory):\n"
        "        assert 'torch' in sys.modules\n"
        "        print('looked', super().look(path, memory)[0])\n"
        '        return 0, b\'{"unsafe": "it is told"}\'\n'
        "looking.Looker = Looker\n"
        "sys.argv = ['gmvae_train', sys.argv[1], '--dry_run']\n"
        "try:\n"
        "    commands.gmvae_train()\n"
        "finally:\n"
        "    print('left', len(looking._lookers))\n"
    )
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "not read, for safety: it is told" in done.stderr
    started, *others = done.stdout.splitlines()
    assert started.startswith("started ") and others == ["looked 0", "left 0"]
    assert is_gone(int(started.split()[1]), 0.1)


def test_where_none_can_be_started_it_is_as_without(tmp_path, monkeypatch):
    def none_is_started() -> bool:
        with looking.small_looker():
            return looking._lookers == []

    def no_process():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    assert none_is_started()  # torch is imported here: it would not be small
    monkeypatch.delitem(sys.modules, "torch")
    with monkeypatch.context() as m:
        m.setattr(os, "fork", no_process, raising=False)
        assert none_is_started()
    with monkeypatch.context() as m:
        m.setattr(sys, "platform", "darwin")
        assert none_is_started()
    if hasattr(signal, "SIGCHLD"):
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            assert none_is_started()
        finally:
            signal.signal(signal.SIGCHLD, before)
    if looking.can_be_copied():
        with looking.small_looker():
            assert len(looking._lookers) == 1
        assert looking._lookers == []


def test_a_command_that_reads_no_cells_starts_nothing(tmp_path):
    code = (
        "import sys; from gmvae_nb import umbrella; sys.argv = ['gmvae', 'notebook']; "
        "umbrella.gmvae(); assert not {'h5py', 'gmvae_nb.looking'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- blocks ---------------------------------------------------------------------------------------


def block(raw: bytes, mask=0, **options):
    "A dataset of 4,000 bytes whose only block holds these."

    def build(f):
        options.setdefault("compression", "gzip")
        made = f.create_dataset("uns/x", (500,), "f8", chunks=(500,), **options)
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        made.id.write_direct_chunk((0,), raw, mask)

    return build


BLOCKS = {
    "short": block(zlib.compress(bytes(40))),
    "long": block(zlib.compress(bytes(4001))),
    "bomb": block(zlib.compress(bytes(30_000_000), 9)),
    "cut off": block(zlib.compress(os.urandom(4000))[:-9]),
    "no deflate": block(b"hello"),
    "not deflated, and short": block(bytes(40), mask=1),
    "short lzf": block(bytes([3]) + b"abcd", compression="lzf"),
    "short before a checksum": block(zlib.compress(bytes(40)) + bytes(4), fletcher32=True),
}


# ISA-L, and zlib where that is missing
both = pytest.mark.parametrize("deflate", [isal_zlib, zlib], ids=lambda m: m.__name__)


@both
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_that_is_not_of_its_size_is_never_read(tmp_path, monkeypatch, name, deflate):
    monkeypatch.setattr(looking, "deflate", deflate)
    path = file_with(tmp_path, BLOCKS[name])
    for read in (read_h5ad, read_input):
        with pytest.raises(ValueError, match="is no h5ad file, or not a whole one"):
            read(path)


@both
def test_a_bomb_goes_no_further_than_the_size_that_was_declared(monkeypatch, deflate):
    monkeypatch.setattr(looking, "deflate", deflate)
    unpacked, raw = 0, zlib.compress(bytes(50_000_000))
    with pytest.raises(ValueError, match="a block of 4,000 bytes holds others"):
        for piece in looking.unpacked(raw, [1], 4000):
            unpacked += len(piece)
    assert unpacked <= 4000


def test_both_unpackers_take_and_refuse_the_same():
    "Whole, cut off, with bits flipped, with something after the end, of another size."
    rng, taken = random.Random(0), 0

    def unpack(raw, size):
        try:
            return b"".join(looking.unpacked(raw, [1], size))
        except (ValueError, zlib.error, isal_zlib.error):
            return None

    for _ in range(600):
        part = bytes(rng.choice([0, 0, 1, rng.randrange(256)]) for _ in range(200))
        content = part * rng.choice([1, 2, 40])
        raw, size = bytearray(zlib.compress(content, rng.randrange(10))), len(content)
        how = rng.choice(["whole", "cut", "flip", "more", "size"])
        if how == "cut":
            raw = raw[: rng.randrange(len(raw))]
        elif how == "flip":
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif how == "more":
            raw += b"more"
        elif how == "size":
            size += rng.choice([-1, 1])
        found = []
        for looking.deflate in (zlib, isal_zlib):
            found.append(unpack(bytes(raw), size))
        assert found[0] == found[1], (how, size)
        taken += found[0] is not None
    assert 100 < taken < 500


def test_without_isal_zlib_unpacks(tmp_path):
    block = "import sys; sys.modules['isal'] = None; "
    code = "import zlib; from gmvae_nb import looking; assert looking.deflate is zlib"
    subprocess.run([sys.executable, "-c", block + code], check=True, cwd=ROOT)


def test_deflate_twice_and_unknown_filters_are_told(tmp_path):
    def filtered(*numbers):
        def build(f):
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_chunk((100,))
            for number in numbers:
                plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (4,))
            space = h5py.h5s.create_simple((100,))
            h5py.h5d.create(f["uns"].id, b"x", h5py.h5t.IEEE_F32LE, space, plan)

        return build

    for numbers in ((1, 1), (1, 2, 1), (1, 32000)):
        with pytest.raises(
            ValueError, match="not read, for safety: /uns/x is compressed more than"
        ):
            read_h5ad(file_with(tmp_path, filtered(*numbers)))
    for number in (4, 32001, 32015):  # szip, blosc, zstd
        with pytest.raises(ValueError, match=rf"compressed in a way .*filter {number}.*hdf5plugin"):
            read_h5ad(file_with(tmp_path, filtered(number)))
    assert issubclass(UnknownCompression, ValueError)


# --- texts, references, sizes ---------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_one_text_under_many_names_is_not_read(tmp_path, packed):
    "30,000 names of a text of 60 kB, 1.8 GB; in blocks, which may be compressed."

    def build(f):
        one = f.create_dataset("uns/one", (1,), h5py.string_dtype())
        one[0] = "x" * 60_000
        f.attrs["at"] = one.id.get_offset()
        options = dict(chunks=(1000,), compression="gzip" if packed else None)
        f.create_dataset("uns/x", (30_000,), h5py.string_dtype(), **options)

    path = file_with(tmp_path, build)
    content = path.read_bytes()
    with h5py.File(path, "r+") as f:
        raw = content[f.attrs["at"] :][:16] * 1000
        for start in range(0, 30_000, 1000):
            chunk = zlib.compress(raw) if packed else raw
            f["uns/x"].id.write_direct_chunk((start,), chunk)
    with pytest.raises(ValueError, match="/uns/x uses the same text over and over"):
        read_h5ad(path)


def test_references_and_lists_of_any_length_are_not_read(tmp_path):
    def references(f):
        f.create_dataset("uns/x", data=[f["X"].ref] * 3, dtype=h5py.ref_dtype)

    def lists(f):
        f.create_dataset("uns/x", (3,), h5py.vlen_dtype("f8"))

    for build in (references, lists):
        with pytest.raises(UnsafeFile, match="/uns/x holds references, or lists"):
            looked_at(file_with(tmp_path, build))


def test_the_same_bytes_in_attributes_are_counted(tmp_path):
    def build(f):
        for i in range(30):
            f["uns"].attrs[f"a{i}"] = "x" * 60_000  # an honest one: each is stored

    assert looked_at(file_with(tmp_path, build)) > 0


def test_a_dense_matrix_larger_than_the_machine_is_told_before_it_is_read(tmp_path, monkeypatch):
    a = cells()
    a.X = a.X.toarray()
    a.write_h5ad(tmp_path / "a.h5ad")
    memory = psutil.virtual_memory()
    small = memory._replace(total=a.X.nbytes - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    with pytest.raises(ValueError, match="X of '.*a.h5ad', which is dense, takes .* GB in memory"):
        read_input(tmp_path / "a.h5ad")
    a.layers["b"] = sparse.csc_matrix(a.X)
    del a.X
    a.write_h5ad(tmp_path / "a.h5ad")
    small = memory._replace(total=99)
    with pytest.raises(ValueError, match="layers/b of .*, which is stored by columns, takes"):
        read_input(tmp_path / "a.h5ad")


def test_bounds_of_the_process_that_looks(tmp_path):
    "It may use some more memory than it starts with, and two seconds."
    if os.name == "nt":
        pytest.skip("Windows has no such bounds")
    code = "from gmvae_nb.looking import limit_resources; limit_resources(0); "
    for work in ("bytes(500_000_000)", "while True: pass"):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", f"{code}\n{work}"], capture_output=True)
        assert done.returncode != 0 and time.perf_counter() - start < 60


# --- sparse matrices ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_sparse_matrix_without_its_lists_is_told(tmp_path, part):
    def gone(f):
        del f["X"][part]

    def square(f):
        values = f["X"][part][:]
        del f["X"][part]
        f["X"][part] = values[: len(values) // 2 * 2].reshape(-1, 2)

    for build, words in (
        (gone, f"/X is damaged .it has no {part}"),
        (square, f"{part} is of shape"),
    ):
        path = file_with(tmp_path, build)
        with pytest.raises(ValueError, match=words):
            read_input(path)
        with pytest.raises(ValueError, match="is no h5ad file, or not a whole one|damaged"):
            read_h5ad(path)


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "bool", "u2"])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
def test_counts_stored_twice_are_added_without_overflow(kind, form):
    top = 1 if kind == "bool" else min(np.iinfo(kind).max, 40_000)
    shape = (2, 2)
    y = form((np.full(4, top, kind), np.array([0, 0, 1, 1]), np.array([0, 2, 4])), shape=shape)
    assert canonical(sparse.csr_matrix(y)).sum() == 4 * int(top)
    assert get_counts(AnnData(y)).sum() == 4 * int(top)


# --- .h5ad.gz -------------------------------------------------------------------------------------


def zipped(path: Path, a: AnnData) -> None:
    a.write_h5ad(path.with_suffix(".tmp"))
    path.write_bytes(gzip.compress(path.with_suffix(".tmp").read_bytes(), 1))
    path.with_suffix(".tmp").unlink()


def same(a, b) -> bool:
    return (a.X != b.X).nnz == 0


def test_a_gz_that_was_replaced_is_read_anew(tmp_path):
    gz = tmp_path / "mine.h5ad.gz"
    for seed in (0, 1, 2, 1):
        zipped(gz, cells(seed=seed))
        assert same(read_h5ad(gz), cells(seed=seed))
        assert same(read_h5ad(gz), cells(seed=seed))
    assert same(read_h5ad(tmp_path / "mine.h5ad"), cells(seed=0))


def test_somebodys_file_beside_a_gz_is_neither_taken_nor_replaced(tmp_path):
    gz, mine = tmp_path / "mine.h5ad.gz", tmp_path / "mine.h5ad"
    zipped(gz, cells(seed=0))
    cells(seed=1).write_h5ad(mine)
    before = mine.read_bytes()
    assert same(read_h5ad(gz), cells(seed=0)) and mine.read_bytes() == before
    with open_h5ad(gz) as (path, _):
        path.write_bytes(before)  # the copy is changed by hand
    with pytest.raises(ValueError, match="has been changed since: name that file itself"):
        read_h5ad(gz)


def test_a_full_disk_while_unpacking_keeps_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(data.platformdirs, "user_cache_dir", lambda name: str(tmp_path))
    asked = []

    def fetch(url, target, sha256):
        asked.append(url)
        zipped(target, cells())

    monkeypatch.setattr(data.files, "download", fetch)
    unpack = data.decompress

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(data, "decompress", full)
    with pytest.raises(OSError, match="No space left"):
        download_h5ad("http://x/big.h5ad.gz")
    assert (tmp_path / "big.h5ad.gz").exists()
    monkeypatch.setattr(data, "decompress", unpack)
    assert same(read_h5ad(download_h5ad("http://x/big.h5ad.gz")), cells())
    assert asked == ["http://x/big.h5ad.gz"] and not (tmp_path / "big.h5ad.gz").exists()
