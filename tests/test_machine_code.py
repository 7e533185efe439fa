"""What numba compiles is kept on disk where it can be, and numba is left as it was found."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numba
import numpy as np
import pytest
from gmvae_nb import annotation, machine_code
from gmvae_nb.machine_code import COMPILERS, code_folder, keep_machine_code, kept_on_disk
from numba.core.caching import FunctionCache

# one function asks to be kept, as some of pynndescent's do, the others do not
THEIRS = """
import numba

@numba.njit(cache=True)
def one(x):
    return x + 1

@numba.jit
def two(x):
    return one(x) + 1

three = numba.njit(lambda x: two(x) + 1, fastmath=True)

@numba.vectorize(cache=True)
def each(x):
    return x + 1
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    "A call that imports a module of numba's functions anew, and calls them."
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))

    def imported(inside=kept_on_disk) -> ModuleType:
        spec = importlib.util.spec_from_file_location("theirs", tmp_path / "theirs.py")
        module = importlib.util.module_from_spec(spec)
        with inside():
            spec.loader.exec_module(module)
        assert module.three(1) == module.each(3) == 4
        return module

    return imported


def compiled(module: ModuleType) -> int:
    "How many of the three functions were compiled, and not read from disk."
    return sum(bool(f.stats.cache_misses) for f in (module.one, module.two, module.three))


def test_all_are_compiled_once_and_then_read(theirs):
    assert [compiled(theirs()), compiled(theirs())] == [3, 0]


def test_a_folder_that_cannot_be_written_is_one_for_now(theirs, tmp_path):
    (tmp_path / "kept").write_text("a file, where the folder would be")
    folder = code_folder()
    assert folder == code_folder() and folder.parent == Path(tempfile.gettempdir())
    assert [compiled(theirs()), compiled(theirs())] == [3, 0]


def test_it_goes_with_the_process_and_not_with_a_copy():
    code = """
import os, sys
from gmvae_nb.machine_code import code_folder
os.environ["NUMBA_CACHE_DIR"] = "/dev/null"
folder = code_folder()
print(folder, flush=True)
if os.fork():
    os.wait()
    print(folder.is_dir())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folder, kept = done.stdout.split()
    assert kept == "True" and not Path(folder).exists()


def test_where_nothing_can_be_written_nothing_asks_for_a_folder(theirs, monkeypatch):
    "As in a container that is read-only through and through."
    monkeypatch.setattr(FunctionCache._impl_class, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache function"):
        theirs(nullcontext)

    def full(**place):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine_code.tempfile, "TemporaryFile", full)
    assert code_folder() is None
    assert [compiled(theirs()), compiled(theirs())] == [3, 3]


def test_without_a_variable_it_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(
        machine_code.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name)
    )
    assert code_folder() == tmp_path / "gmvae_nb/machine_code"
    keep_machine_code()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "gmvae_nb/machine_code")


def test_numba_is_left_as_it_was_found(theirs):
    def found():
        return *(getattr(numba, name) for name in COMPILERS), numba.config.CACHE_DIR

    numba.config.reload_config()  # the tests above have changed the environment
    before = found()
    with pytest.raises(KeyError), kept_on_disk():
        assert not set(found()[:-1]) & set(before)
        raise KeyError
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: theirs().three(1), range(8))) == [4] * 8
    assert found() == before


def test_the_map_is_made_inside(monkeypatch):
    entered = []

    def noted():
        entered.append(1)
        return nullcontext()

    monkeypatch.setattr(annotation, "kept_on_disk", noted)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "umap", ModuleType("umap"))
        with pytest.raises(ImportError):
            annotation.umap(np.zeros((9, 2), dtype=np.float32))
    assert len(entered) == 1
