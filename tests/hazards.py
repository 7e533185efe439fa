"""What tests do to the package: kill it, fill its disk, damage its files.

Used by test_promises.py, soak/soak_promises.py and others; cells and models here are tiny.
"""

import contextlib
import importlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from gmvae_nb.counts import get_counts
from gmvae_nb.data import load_data
from gmvae_nb.files import write_atomically
from gmvae_nb.network import PRESETS, Preset
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix

try:
    import resource
except ImportError:
    resource = None  # Windows

ROOT = Path(__file__).resolve().parents[1]
TINY = Preset(
    n_x=3,
    n_w=2,
    encoder_hidden=(8,),
    decoder_hidden=(8,),
    prior_hidden=8,
    M=1,
    M_w=1,
    batch_size=16,
    dtype="float32",
)
# every part of it, in small
SMALL = replace(
    PRESETS["recommended"],
    n_x=3,
    encoder_hidden=(8,),
    decoder_hidden=(8,),
    batch_size=16,
    min_steps=0,
)


def no_map(X, seed: int = 0) -> np.ndarray:
    "In the place of annotation.umap, where nobody looks at the map."
    return np.asarray(X[:, :2], dtype=np.float32)


def import_what_runs_need() -> None:
    "And let numba set itself up, once, before copies of this process are made that run a command."
    import numba

    for name in (
        "gmvae_nb.metrics gmvae_nb.report gmvae_nb.scale gmvae_nb.parts scanpy torch._dynamo "
        "numba.typed sklearn.linear_model sklearn.metrics sklearn.neighbors"
    ).split():
        importlib.import_module(name)
    numba.njit(lambda x: x + 1)(1)


@contextlib.contextmanager
def every_warning_an_error():
    "All but what pandas tells anndata of a version to come, which nobody hears of by default."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # pytest undoes our own filter
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="anndata")
        yield


def cells(n=100, G=20, seed=0) -> ad.AnnData:
    "Counts of three groups of cells in two batches; no cell and no gene is empty."
    rng = np.random.default_rng(seed)
    group, batch = np.arange(n) % 3, np.arange(n) // 3 % 2
    y = rng.poisson(rng.gamma(1.0, 2.0, (3, G))[group]) + (np.arange(G) == 0)
    y[0] += 1
    obs = pd.DataFrame(
        {"batch": batch.astype(str), "cell_type": [f"type{g}" for g in group]},
        index=[f"cell{i}" for i in range(n)],
    )
    return ad.AnnData(
        csr_matrix(y.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=[f"gene{g}" for g in range(G)]),
    )


def model(epochs=1, preset=TINY, seed=0, **kw) -> GMVAE:
    m = GMVAE(cells(**kw), K=3, batch_key="batch", preset=preset, seed=seed)
    return m.train(epochs, progress=False)


def fork(work) -> int:
    "Do it in a copy of this process; its number."
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
        work()
        os._exit(0)
    except ValueError as error:
        os._exit(2 if "\n" not in str(error) else 5)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(7)


def outcome(pid: int) -> int:
    "Exit code, or minus the signal."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(work, seconds: float) -> int:
    "SIGKILL it; the signal, or the exit code if it was done before."
    pid = fork(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return outcome(pid)


def write_for_ever(folder: Path, models: list[GMVAE], tables: list[ad.AnnData]) -> None:
    "Save one model after the other, and one h5ad after the other, over the same names."
    while True:
        for m, a in zip(models, tables):
            m.save(folder)
            write_atomically(folder / "cells.h5ad", a.write_h5ad)


def before_steps(m: GMVAE, do) -> None:
    "Before each step of the model's optimizer call `do(step)`, counted from 0 over all epochs."
    original, steps = m.optimizer.step, itertools.count()

    def step(*args, **kw):
        do(next(steps))
        return original(*args, **kw)

    m.optimizer.step = step


def stop_at_step(m: GMVAE, step: int, error: type[BaseException]) -> None:
    "Raise `error` once, before this step of the optimizer, counted from 0 over all epochs."

    def stop(i):
        if i == step:
            raise error("stopped by a test")

    before_steps(m, stop)


def die_at_step(folder: Path, step: int, epochs: int) -> None:
    "Train with checkpoints; SIGKILL in the middle of this step, counted from 0 over all epochs."
    m = GMVAE(cells(), K=3, batch_key="batch", preset=SMALL)

    def die(i):
        if i == step:
            os.kill(os.getpid(), signal.SIGKILL)

    before_steps(m, die)
    m.train(epochs, out=folder, progress=False)


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "5m"):
    "A file system of 5 MB at `folder`; None where mounting is not permitted."
    folder.mkdir(exist_ok=True)
    mounted = False
    if shutil.which("mount"):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def read_all(path) -> None:
    get_counts(load_data(path), allow_empty_genes=True)


def cpu_seconds() -> float:
    """Of this process and of those that it has started and seen end.

    On a busy machine they do not grow, as seconds on the clock do.
    """
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def memory_of(work) -> tuple[int, float, float]:
    "Outcome, seconds of CPU, and the megabytes that it needed."
    read, write = os.pipe()

    def measured():
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, cpu_seconds()
        try:
            work()
        finally:
            took = cpu_seconds() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(write, f"{took} {peak / 1024}".encode())

    code = outcome(fork(measured))
    os.close(write)
    with os.fdopen(read) as f:
        took, peak = map(float, f.read().split())
    return code, took, peak


def damaged(raw: bytes, rng: random.Random, how: str) -> bytes:
    "Cut off at a random place, or with one bit (sometimes eight) flipped."
    if how == "cut":
        return raw[: rng.randrange(len(raw))]
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 8])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def try_damaged(
    folder: Path, n: int, how: str, seed: int, compression: str | None = None
) -> tuple[dict[int, int], float, float]:
    """How often which outcome: 0 read, 2 refused in a sentence; anything else breaks the promise.

    And the most processor seconds and megabytes that one took, this process's own included.
    Compressed files are read as the commands read them."""
    a = cells(40, 25)
    a.layers["counts"] = a.X.copy()
    a.obsm["X_pca"] = np.random.default_rng(0).normal(size=(40, 3))
    a.uns["x"] = {"y": 1, "s": "t"}
    a.obs["batch"] = a.obs["batch"].astype("category")
    a.write_h5ad(folder / "whole.h5ad", compression=compression)
    raw, rng = (folder / "whole.h5ad").read_bytes(), random.Random(seed)
    read = partial(read_input, batch_key="batch") if compression else read_all
    found: dict[int, int] = {}
    seconds = megabytes = 0.0
    for i in range(n):
        (folder / "damaged.h5ad").write_bytes(damaged(raw, rng, how))
        _, status, used = os.wait4(fork(lambda: read(folder / "damaged.h5ad")), 0)
        code = os.waitstatus_to_exitcode(status)
        seconds = max(seconds, used.ru_utime + used.ru_stime)
        megabytes = max(megabytes, used.ru_maxrss / 1024)
        found[code] = found.get(code, 0) + 1
        if code not in (0, 2):
            shutil.copy(folder / "damaged.h5ad", f"/tmp/damaged-{how}-{seed}-{i}.h5ad")
    return found, seconds, megabytes


# --- files that are made to do harm ---------------------------------------------------------------


def external_link(f, secret):
    "Another HDF5 file, with a text for each cell: followed, they would come out as batches."
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["filler"] = np.zeros(10**5)
        f.copy("obs/batch", other, "text")
    del f["obs/batch"]
    f["obs/batch"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/text")


def external_storage(f, secret):
    f["obsm"].create_dataset("X_pca", (100, 1), "u1", external=[(str(secret), 0, 100)])


def virtual(f, secret):
    layout = h5py.VirtualLayout((100, 1), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (100, 1))
    f["obsm"].create_virtual_dataset("X_pca", layout)


def soft_link(f, secret):
    f["layers/again"] = h5py.SoftLink("/X")


def circle(f, secret):
    f["uns/again"] = f["uns"]


def many_names(f, secret):
    inside = f["uns"]
    for i in range(30):
        group = f["uns"].create_group(f"level{i}")
        group["a"], group["b"] = inside, inside
        inside = group


def shape_bomb(f, secret):
    del f["X"]
    f.create_dataset("X", (300_000, 300_000), "f4", chunks=(100, 100), compression="gzip")
    f["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def filled_bomb(f, secret):
    "2 GB, which there are."
    shape = (100, 2_500_000)
    f["obsm"].create_dataset("X_pca", shape, "f8", chunks=(1, 1000), fillvalue=1.0)


def wide_sparse(f, secret):
    f["X"].attrs["shape"] = np.array([100, 2**40])


def far_indices(f, secret):
    f["X/indices"][3] = 2_000_000_000


def negative_indices(f, secret):
    f["X/indices"][3] = -5


def falling_indptr(f, secret):
    f["X/indptr"][40] = 0


def codes_outside(f, secret):
    del f["obs/batch"]
    g = f["obs"].create_group("batch")
    g.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    g["categories"] = np.array(["a"], dtype=h5py.string_dtype())
    g["codes"] = np.full(100, 77, dtype="i1")
    for key, kind in (("categories", "string-array"), ("codes", "array")):
        g[key].attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})


def same_text(f, secret):
    "20,000 names that are one text of 60 kB: 1.2 GB."
    f["uns"].create_dataset("x", (20_000,), h5py.string_dtype())[0] = "x" * 60_000
    f["uns/x"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    f.attrs["repeat"] = f["uns/x"].id.get_offset()


def unknown_kind(f, secret):
    f["X"].attrs["encoding-type"] = "pickle"


HOSTILE = [
    external_link,
    external_storage,
    virtual,
    soft_link,
    circle,
    many_names,
    shape_bomb,
    filled_bomb,
    wide_sparse,
    far_indices,
    negative_indices,
    falling_indptr,
    codes_outside,
    same_text,
    unknown_kind,
]


def hostile(build, folder: Path) -> Path:
    "An h5ad that `build` has changed."
    (folder / "secret").write_bytes(b"root:x:0:0" * 50)
    path = folder / f"{build.__name__}.h5ad"
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as f:
        build(f, folder / "secret")
        at = f.attrs.get("repeat")
    if at is not None:
        raw = bytearray(path.read_bytes())
        raw[at : at + 16 * 20_000] = raw[at : at + 16] * 20_000
        path.write_bytes(raw)
    return path


def command(function, *words: str) -> int:
    "A command as the shell calls it: its exit status."
    handler, said = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = [function.__name__, *words]
    try:
        function()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, handler)  # which commands set
        sys.argv = said
    return 0
