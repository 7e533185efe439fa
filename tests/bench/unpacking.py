"""What looking through a gzip-compressed h5ad costs beside reading it, on simulated cells.

    python tests/bench/unpacking.py nbs/unpacking.csv
    python tests/bench/unpacking.py /tmp/mine.csv cells.h5ad      of files of your own

Seconds of processor time, of all processes together, in the middle of `--repeats` rounds. In each
round a file is looked through as in a command, by a small process that was started before torch was
imported, with zlib and with ISA-L; as in a notebook, by a copy of a process that has torch
(`look_here`, with ISA-L); and read by `read_input` as in a command. The files are in the memory of
the machine.
"""

import argparse
import contextlib
import mmap
import os
import resource
import statistics
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before numpy is imported

from gmvae_nb import looking  # noqa: E402
from isal import isal_zlib  # noqa: E402

# anndata, torch and the rest are imported when small processes have been started

SECONDS = mmap.mmap(-1, 16)  # of processor time, which each of them writes here: we do not wait for
# them, and so are not told by the system

# cells, form, level of gzip, entries in a block (None: h5py's choice)
FILES = [
    (100, "csr", 4, None),
    (4_000, "csr", 4, None),
    (20_000, "csr", 1, None),
    (20_000, "csr", 4, None),
    (20_000, "csr", 4, 2_000),
    (20_000, "csr", 4, 1_000_000),
    (20_000, "dense", 4, None),
    (20_000, "csr", 9, None),
    (50_000, "csr", 4, None),
]


def cells(n: int, G: int = 2_000):
    "About 660 counts that are not 0 in each cell, of four batches."
    import anndata as ad
    import numpy as np
    import pandas as pd
    from scipy.sparse import csr_matrix, vstack

    rng = np.random.default_rng(0)
    share = rng.gamma(0.5, 1, G)
    depth = rng.lognormal(np.log(1200), 0.3, n)[:, None]
    parts = (depth[i : i + 1000] * share / share.sum() for i in range(0, n, 1000))
    y = vstack([csr_matrix(rng.poisson(part).astype(np.float32)) for part in parts], "csr")
    names = [f"{i:016d}-1" for i in rng.permutation(n)]
    obs = pd.DataFrame({"batch": pd.Categorical([f"{i % 4}" for i in range(n)])}, index=names)
    return ad.AnnData(y, obs=obs, var=pd.DataFrame(index=[f"gene{g}" for g in range(G)]))


def write(path: Path, n: int, form: str, level: int, block: int | None) -> None:
    import h5py

    adata = cells(n)
    if form == "dense":
        adata.X = adata.X.toarray()
    adata.write_h5ad(path, compression="gzip", compression_opts=level)
    if block is None:
        return
    with h5py.File(path, "r+") as f:
        for part in ("data", "indices"):
            values = f["X"][part][:]
            del f["X"][part]
            options = dict(chunks=(block,), compression="gzip", compression_opts=level)
            f["X"].create_dataset(part, data=values, **options)


def seconds_here() -> float:
    "Of this process, and of those that it has waited for."
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, both))


def seconds_of(work) -> float:
    def now():
        return seconds_here() + sum(struct.unpack("2d", SECONDS[:]))

    start = now()
    work()
    return now() - start


def started(deflate, place: int) -> looking.Looker:
    "A small process that unpacks with this, and writes its seconds to its place."
    look_in_copy, before = looking.look_in_copy, looking.deflate

    def timed(*args) -> tuple[int, bytes]:
        found = look_in_copy(*args)
        struct.pack_into("d", SECONDS, 8 * place, seconds_here())
        return found

    looking.look_in_copy, looking.deflate = timed, deflate
    looker = looking.Looker()
    looking.look_in_copy, looking.deflate = look_in_copy, before
    return looker


@contextlib.contextmanager
def small_lookers() -> Iterator[dict[str, looking.Looker]]:
    lookers = dict(look_zlib=started(zlib, 0), look=started(isal_zlib, 1))
    try:
        yield lookers
    finally:
        for looker in lookers.values():
            looker.stop()


def measure(path: Path, lookers: dict[str, looking.Looker], repeats: int) -> dict[str, float]:
    from gmvae_nb import h5ad
    from gmvae_nb.reading import read_input

    def by(looker: looking.Looker | None, read) -> float:
        h5ad.look_in_small_copy = looker.look if looker else lambda *_: None
        return seconds_of(lambda: read(path))

    def look(path: Path) -> None:
        found = h5ad._look_through(path)
        assert found["missing"] == [], found

    look_in_small_copy, rounds = h5ad.look_in_small_copy, []
    for _ in range(repeats):
        found = {name: by(looker, look) for name, looker in lookers.items()}
        found["look_here"] = by(None, look)
        rounds.append({**found, "read_input": by(lookers["look"], read_input)})
    h5ad.look_in_small_copy = look_in_small_copy
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    return {"MB": path.stat().st_size / 1e6, **median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path, help="is written anew after each file")
    parser.add_argument("files", nargs="*", type=Path, help="of your own, instead")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    rows: list[dict] = []

    def keep(path: Path, **about) -> None:
        import pandas as pd

        rows.append({**about, **measure(path, lookers, options.repeats)})
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(options.csv, index=False, float_format="%.3f")

    with small_lookers() as lookers, tempfile.TemporaryDirectory() as folder:
        for path in options.files:
            keep(path, file=path.name)
        for n, form, level, block in [] if options.files else FILES:
            path = Path(folder) / "cells.h5ad"
            write(path, n, form, level, block)
            keep(path, cells=n, form=form, level=level, block=block or "")


if __name__ == "__main__":
    main()
