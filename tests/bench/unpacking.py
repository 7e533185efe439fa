"""What looking through a gzip-compressed h5ad costs beside reading it, on simulated cells.

    python tests/bench/unpacking.py nbs/unpacking.csv
    python tests/bench/unpacking.py /tmp/mine.csv cells.h5ad      of files of your own

Seconds of processor time, the looking process included, in the middle of `--repeats` rounds. In
each round a file is looked through with zlib and with ISA-L, and read by `read_input`, which looks
with ISA-L; the files are in the memory of the machine.
"""

import argparse
import os
import resource
import statistics
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before numpy is imported

import anndata as ad  # noqa: E402
import h5py  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from gmvae_nb import h5ad, looking  # noqa: E402
from gmvae_nb.reading import read_input  # noqa: E402
from isal import isal_zlib  # noqa: E402
from scipy.sparse import csr_matrix, vstack  # noqa: E402

# cells, form, level of gzip, entries in a block (None: h5py's choice)
FILES = [
    (4_000, "csr", 4, None),
    (20_000, "csr", 1, None),
    (20_000, "csr", 4, None),
    (20_000, "csr", 4, 2_000),
    (20_000, "csr", 4, 1_000_000),
    (20_000, "dense", 4, None),
    (20_000, "csr", 9, None),
    (50_000, "csr", 4, None),
]


def cells(n: int, G: int = 2_000) -> ad.AnnData:
    "About 660 counts that are not 0 in each cell, of four batches."
    rng = np.random.default_rng(0)
    share = rng.gamma(0.5, 1, G)
    depth = rng.lognormal(np.log(1200), 0.3, n)[:, None]
    parts = (depth[i : i + 1000] * share / share.sum() for i in range(0, n, 1000))
    y = vstack([csr_matrix(rng.poisson(part).astype(np.float32)) for part in parts], "csr")
    names = [f"{i:016d}-1" for i in rng.permutation(n)]
    obs = pd.DataFrame({"batch": pd.Categorical([f"{i % 4}" for i in range(n)])}, index=names)
    return ad.AnnData(y, obs=obs, var=pd.DataFrame(index=[f"gene{g}" for g in range(G)]))


def write(path: Path, n: int, form: str, level: int, block: int | None) -> None:
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


def seconds_of(work) -> float:
    def now():
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, both))

    start = now()
    work()
    return now() - start


def look(path: Path, deflate) -> None:
    looking.deflate = deflate
    found = h5ad._look_through(path)
    assert found["missing"] == [], found


def measure(path: Path, repeats: int) -> dict[str, float]:
    work = dict(
        look_zlib=lambda: look(path, zlib),
        look=lambda: look(path, isal_zlib),
        read_input=lambda: read_input(path),
    )
    rounds = [{name: seconds_of(do) for name, do in work.items()} for _ in range(repeats)]
    found = {name: statistics.median(r[name] for r in rounds) for name in work}
    return {"MB": path.stat().st_size / 1e6, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path, help="is written anew after each file")
    parser.add_argument("files", nargs="*", type=Path, help="of your own, instead")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows: list[dict] = []

    def keep(path: Path, **about) -> None:
        rows.append({**about, **measure(path, options.repeats)})
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(options.csv, index=False, float_format="%.3f")

    for path in options.files:
        keep(path, file=path.name)
    with tempfile.TemporaryDirectory() as folder:
        for n, form, level, block in [] if options.files else FILES:
            path = Path(folder) / "cells.h5ad"
            write(path, n, form, level, block)
            keep(path, cells=n, form=form, level=level, block=block or "")


if __name__ == "__main__":
    main()
