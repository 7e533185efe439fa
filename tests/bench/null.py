"""How often one population is split, and two are told apart: simulated counts, K = None.

    python tests/bench/null.py nbs/null.csv --cells 300 1000 --runs 20
    python tests/bench/null.py nbs/null.csv --cells 1000 --runs 5 --genes 20 50 100 200 --fold 1.5 2

Counts are negative binomial (r = 2) with log-normal gene means, 2,000 genes and about 2,000 counts
a cell. Without --genes all cells are of one population; with it half of them differ by --fold, up
or down, in so many genes that are found more often than the median. `sure` is the share of cells
that a likelihood-ratio with the true means puts on the right side. One row per run; finished rows
are kept.
"""

import argparse
import itertools
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from gmvae_nb.metrics import ari
from gmvae_nb.train import GMVAE
from peers import read, write_rows
from scipy.sparse import csr_matrix
from scipy.stats import nbinom
from tqdm import tqdm

N_GENES, COUNTS, R = 2000, 2000, 2.0


def simulated(n_cells: int, n_different: int, fold: float, seed: int) -> tuple[ad.AnnData, float]:
    "Cells, and how sure the true means are of their population."
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0, 1.5, N_GENES)
    means = np.stack([mean, mean])
    found = np.argsort(-mean)[: N_GENES // 2]
    different = rng.choice(found, n_different, replace=False)
    means[1, different] *= fold ** rng.choice([-1, 1], n_different)
    means /= means.sum(1, keepdims=True)
    kind = (np.arange(n_cells) % 2) * (n_different > 0)
    depth = rng.lognormal(np.log(COUNTS), 0.4, n_cells)
    mu = depth[:, None] * means[kind]
    y = rng.poisson(rng.gamma(R, mu / R))
    ratio = sum(
        sign * nbinom.logpmf(y, R, R / (R + depth[:, None] * m)).sum(1)
        for sign, m in zip((-1, 1), means)
    )
    sure = float(((ratio > 0) == (kind == 1)).mean()) if n_different else float("nan")
    obs = pd.DataFrame({"kind": kind.astype(str)}, index=[f"cell{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    adata = ad.AnnData(csr_matrix(y.astype(np.float32)), obs=obs, var=var)
    return adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy(), sure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--genes", type=int, nargs="+", default=[0], help="that differ")
    parser.add_argument("--fold", type=float, nargs="+", default=[1.5])
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    rows, names = read(args.csv), ["n_cells", "genes", "fold", "seed"]
    grid = itertools.product(args.cells, args.genes, args.fold, range(args.runs))
    for n_cells, genes, fold, seed in tqdm(list(grid)):
        settings = dict(zip(names, (n_cells, genes, fold if genes else 1.0, seed)))
        if not rows.empty and (rows[names] == pd.Series(settings)).all(axis=1).any():
            continue
        adata, sure = simulated(n_cells, genes, fold, seed)
        model = GMVAE(adata, seed=seed).train(progress=False)
        clusters = model.predict()
        row = dict(
            settings,
            n_clusters=len(clusters.categories),
            ari=ari(adata.obs["kind"], clusters),
            sure=sure,
        )
        rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
        write_rows(args.csv, rows)
    one = rows.assign(one_cluster=rows["n_clusters"] == 1).groupby(names[:-1])
    print(one[["one_cluster", "n_clusters", "ari", "sure"]].mean().assign(runs=one.size()).round(3))


if __name__ == "__main__":
    main()
