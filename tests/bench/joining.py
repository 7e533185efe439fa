"""Memory of several files read as one, in multiples of the parts: 8 bytes a count that is not 0.

OMP_NUM_THREADS=1 python tests/bench/joining.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

N, G, PER_CELL, FILES = 15_000, 13_000, 900, 4  # cells and genes of a file, genes of a cell


def a_file(path: Path, k: int, lacking: int) -> None:
    "Cells in which some genes have a count; another tenth of the names in each file."
    rng = np.random.default_rng(k)
    indices = rng.integers(1, G - 1, (N, PER_CELL), dtype=np.int32)
    indices += indices % 20 == 19  # a twentieth of the genes has no count
    indices[:, 0] = 0  # no cell is empty
    indices.sort(1)
    keep = np.ones(indices.shape, dtype=bool)
    keep[:, 1:] = indices[:, 1:] != indices[:, :-1]
    ends = np.append(0, keep.sum(1).cumsum())
    values = rng.poisson(1.0, keep.sum()).astype(np.float32) + 1
    names = [f"gene{i}" for i in range(G - lacking)]
    names += [f"of{k}_{i}" for i in range(lacking)]
    y = csr_matrix((values, indices[keep], ends), shape=(N, G))
    obs = pd.DataFrame(index=[f"{k}_{i}" for i in range(N)])
    ad.AnnData(y, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(path)


READ = """
import resource, sys
from gmvae_nb.parts import join_files, read_files
from gmvae_nb.reading import read_input
how, files = sys.argv[1], sys.argv[2:]
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
if how == "alone":
    read_input(files[0])
elif how == "joined":
    join_files(files)
else:
    read_files(files, join=how)
print(peak() - before)
"""


def peak(how: str, files: list[Path]) -> int:
    "Bytes that a child process needs beside its imports, at most."
    words = [sys.executable, "-c", READ, how, *map(str, files)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    print(f"{FILES} files of {N:,} cells x {G:,} genes")
    for lacking in (0, G // 10):
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{k}.h5ad" for k in range(FILES)]
            for k, file in enumerate(files):
                a_file(file, k, lacking)
            size = sum(8 * ad.read_h5ad(f, backed="r").X.group["data"].size for f in files)
            print(f"{lacking:,} genes of each are its own; counts of all: {size / 1e6:,.0f} MB")
            of_one = peak("alone", files[:1])
            print(f"  one file alone        {FILES * of_one / size:.1f} x its counts")
            for how in ("joined", "inner", "outer"):
                what = "join_files" if how == "joined" else f"read_files, {how}"
                print(f"  {what:<21} {peak(how, files) / size:.1f} x", flush=True)


if __name__ == "__main__":
    main()
