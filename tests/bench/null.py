"""How often one population is split, and two are told apart: simulated counts, K = None.

    python tests/bench/null.py nbs/null.csv --cells 300 1000 --runs 20
    python tests/bench/null.py nbs/null.csv --cells 1000 --runs 5 --genes 100 200 --fold 1.5 2 \\
        --preset once recommended centred
    python tests/bench/null.py nbs/panel.csv --n_genes 150 --cells 400 1000 --runs 3 \\
        --genes 0 20 --fold 3 --preset once recommended centred

Counts are negative binomial (r = 2) with log-normal gene means, 2,000 genes and about 2,000 counts
a cell; --n_genes is for a smaller panel of genes, in a table of its own. Without --genes all cells
are of one population; with it half of them differ by --fold, up or down, in so many genes that are
found more often than the median. `once` is `recommended` without its second training. Where there
was one, `halves_agree_p` is what it was chosen or dropped by, and `nats` how much better its model
describes a held-out cell than the first. `sure` is the share of cells that a likelihood-ratio with
the true means puts on the right side, `linear` the share that a logistic regression on the
embedding does, cross-validated. One row per run; finished rows are kept.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from gmvae_nb.metrics import ari
from gmvae_nb.network import PRESETS
from gmvae_nb.schedule import row_of_weights
from gmvae_nb.train import GMVAE
from peers import read, write_rows
from scipy.sparse import csr_matrix
from scipy.stats import nbinom
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

N_GENES, COUNTS, R = 2000, 2000, 2.0
ONCE = replace(PRESETS["recommended"], recentre=False)
SHOWN = ["one_cluster", "n_clusters", "ari", "ari_of_two", "sure", "linear"]


def simulated(
    n_cells: int, n_different: int, fold: float, seed: int, n_genes: int = N_GENES
) -> tuple[ad.AnnData, float]:
    "Cells, and how sure the true means are of their population."
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0, 1.5, n_genes)
    means = np.stack([mean, mean])
    found = np.argsort(-mean)[: n_genes // 2]
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
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    adata = ad.AnnData(csr_matrix(y.astype(np.float32)), obs=obs, var=var)
    return adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy(), sure


def linear(x: np.ndarray, kind: pd.Series) -> float:
    "The share of cells whose population a linear rule reads off the embedding."
    if kind.nunique() == 1:
        return float("nan")
    rule = make_pipeline(StandardScaler(), LogisticRegression())
    return float((cross_val_predict(rule, x, kind, cv=5) == kind).mean())


def second(history: pd.DataFrame) -> dict[str, float]:
    "p of a second training's clusters, and what it brought; NaN without one."
    last = history.iloc[-1].reindex(["halves_agree_p", "centred_neg_elbo", "uncentred_neg_elbo"])
    p, of_second, of_first = last
    loss = row_of_weights(history)["test_neg_elbo"]
    nats = loss - of_second if np.isnan(of_first) else of_first - loss
    return dict(halves_agree_p=p, nats=nats)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--genes", type=int, nargs="+", default=[0], help="that differ")
    parser.add_argument("--fold", type=float, nargs="+", default=[1.5])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--n_genes", type=int, default=N_GENES)
    parser.add_argument("--preset", nargs="+", default=["recommended"])
    args = parser.parse_args()
    rows, names = read(args.csv), ["preset", "n_cells", "genes", "fold", "seed"]
    grid = itertools.product(args.preset, args.cells, args.genes, args.fold, range(args.runs))
    for preset, n_cells, genes, fold, seed in tqdm(list(grid)):
        settings = dict(zip(names, (preset, n_cells, genes, fold if genes else 1.0, seed)))
        if not rows.empty and (rows[names] == pd.Series(settings)).all(axis=1).any():
            continue
        adata, sure = simulated(n_cells, genes, fold, seed, args.n_genes)
        of_name = ONCE if preset == "once" else preset
        model = GMVAE(adata, preset=of_name, seed=seed).train(progress=False)
        clusters = model.predict()
        row = dict(
            settings,
            n_clusters=len(clusters.categories),
            ari=ari(adata.obs["kind"], clusters),
            ari_of_two=ari(adata.obs["kind"], model.predict(n_clusters=2)),
            sure=sure,
            linear=linear(model.get_latent_representation(), adata.obs["kind"]),
            **second(model.history),
        )
        rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
        write_rows(args.csv, rows)
    one = rows.assign(one_cluster=rows["n_clusters"] == 1).groupby(names[:-1])
    print(one[SHOWN].mean().assign(runs=one.size()).round(3))


if __name__ == "__main__":
    main()
