"""Does a cell type that some batches do not have keep to itself?

    python tests/bench/overcorrection.py nbs/overcorrection.csv --seeds 0 \\
        --data kang_pbmc ../shared/data/vangalen_bm_normal_2000hvg.h5ad

One cell type at a time is taken out of every second batch, the largest batch first. Of the cells
of this type that are left, `foreign` is the share of their 15 nearest neighbours that are cells of
batches without it. Such neighbours are of another type: 0 is best, and a method that puts them
there has taken a type for an effect of the batch. `--cells` are drawn at random from each data set,
and types with fewer than 30 cells left are passed over. Harmony runs in the peers' environment
(`make peers-env`). One row per data set, type, method and seed in the csv; finished rows are kept.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb.neighbors import knn
from peers import HERE, Contender, arguments, prepare, read, write_rows
from peers import fit as fit_peer
from search import fit
from tqdm import tqdm

METHODS = {"recommended": {}, "no alignment": {"align": 0.0}, "Harmony 30": None}
KEY = ["data", "dropped", "method", "seed"]


def drop(adata, dropped: str, args) -> tuple:
    "The cells without those of a type in every second batch, and which of them are foreign."
    batch = adata.obs[args.batch_key].astype(str)
    size = batch.value_counts()
    lacking = sorted(size.index, key=lambda name: (-size[name], name))[1::2]
    is_type = (adata.obs[args.labels_key] == dropped).to_numpy()
    foreign = batch.isin(lacking).to_numpy()
    keep = ~(is_type & foreign)
    return adata[keep].copy(), foreign[keep], is_type[keep]


def embed(adata, method: str, seed: int, args) -> np.ndarray:
    "Cells by dimensions."
    if METHODS[method] is not None:
        steps = {} if args.min_steps is None else {"min_steps": args.min_steps}
        return fit(adata, args.batch_key, seed, **METHODS[method], **steps)[0]["latent"]
    with tempfile.TemporaryDirectory() as folder:
        cells = Path(folder) / "cells.h5ad"
        adata.write_h5ad(cells)
        harmony = Contender("harmony", method, {"n_pcs": 30})
        return fit_peer(harmony, cells, args.batch_key, seed, args.peers_python)[0]["latent"]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    "Mean of `foreign` over seeds; a line for each data set and type, a column for each method."
    return rows.pivot_table(index=["data", "dropped"], columns="method", values="foreign").round(3)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--types", nargs="+", help="to take out; without it all")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--min_steps", type=int, help="of ours; without it the preset's")
    parser.add_argument(
        "--peers_python", type=Path, default=HERE.parents[1] / ".venv-peers/bin/python"
    )
    args = parser.parse_args()
    args.n_pcs = [30]
    os.environ["OMP_NUM_THREADS"] = "1"
    for data in args.data:
        with tempfile.TemporaryDirectory() as folder:
            adata = prepare(data, args, Path(folder) / "cells.h5ad")
        n = min(args.cells, adata.n_obs)
        chosen = np.random.default_rng(1).choice(adata.n_obs, n, replace=False)
        adata = adata[np.sort(chosen)].copy()
        for dropped in tqdm(args.types or sorted(set(adata.obs[args.labels_key])), unit="type"):
            cells, foreign, is_type = drop(adata, dropped, args)
            if is_type.sum() < 30:
                continue
            for seed in args.seeds:
                for method in args.methods:
                    row = dict(zip(KEY, (Path(data).stem, dropped, method, seed)))
                    rows = read(args.csv)
                    if not rows.empty and (rows[KEY] == pd.Series(row)).all(axis=1).any():
                        continue
                    x = embed(cells, method, seed, args)
                    near = knn(x, 16)[0][is_type, 1:]  # without the cell itself
                    row |= {"cells": is_type.sum(), "foreign": foreign[near].mean()}
                    write_rows(args.csv, pd.concat([rows, pd.DataFrame([row])], ignore_index=True))
    print(table(read(args.csv)).to_string())


if __name__ == "__main__":
    main()
