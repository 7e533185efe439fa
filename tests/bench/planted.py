"""Does w find a factor that all types share? One is planted in the counts, by thinning them.

    python tests/bench/planted.py nbs/planted.csv --seeds 0 1 2 \\
        --data simulated kang_pbmc ../shared/data/vangalen_bm_normal_2000hvg.h5ad

Each cell gets a t, uniform from -1 to 1, and three genes of ten a sign s. Of the counts of such a
gene each is kept with probability 1 / (1 + exp(-2 a s t)): what is left are counts, of which half
of these genes rise with t, in every type, and the other half fall. `--strength` is a; at 0 half of
their counts are lost and nothing is planted. `simulated` are 1,500 Poisson cells of five types.

One row per data set, method, strength and seed: the share of the variance of t in held-out cells
that a linear map of E[w], or of E[x], fitted to the training cells, explains (r2_w, r2_x); and the
clusters' ari, effective_K, kl_w and neg_elbo, as in ablation.py. K = 30. Finished rows are kept.
"""

import itertools
import os
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from gmvae_nb.inference import w_means
from gmvae_nb.metrics import ari
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.schedule import row_of_weights
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from scipy.sparse import csr_matrix
from tqdm import tqdm

SHARE = 0.3  # of the genes
METHODS = ("with_w", "blog_offsets", "recommended")


def simulated(n: int = 1500, G: int = 300, types: int = 5) -> ad.AnnData:
    "Poisson cells of types that differ in all genes."
    rng = np.random.default_rng(0)
    rates = 4 * np.exp(rng.normal(0, 0.8, G) + rng.normal(0, 0.5, (types, G)))
    of = rng.integers(types, size=n)
    y = csr_matrix(rng.poisson(rates[of]).astype(np.float32))
    return ad.AnnData(y, obs=pd.DataFrame({"batch": "0", "cell_type": of.astype(str)}))


def plant(y: csr_matrix, strength: float, seed: int) -> tuple[csr_matrix, np.ndarray]:
    "Thinned counts, and t of each cell."
    rng = np.random.default_rng(seed)
    t = rng.uniform(-1, 1, y.shape[0])
    sign = rng.choice([-1, 0, 1], y.shape[1], p=[SHARE / 2, 1 - SHARE, SHARE / 2])
    entries = y.tocoo()
    slope = sign[entries.col]
    kept = np.where(slope == 0, 1, 1 / (1 + np.exp(-2 * strength * slope * t[entries.row])))
    left = rng.binomial(entries.data.astype(int), kept).astype(np.float32)
    thinned = csr_matrix((left, (entries.row, entries.col)), shape=y.shape)
    thinned.eliminate_zeros()
    return thinned, t


def explained(of: np.ndarray, t: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    "R^2 of t on held-out cells."
    columns = np.column_stack([np.ones(len(of)), of])
    weights = np.linalg.lstsq(columns[train], t[train], rcond=None)[0]
    error = t[test] - columns[test] @ weights
    return float(1 - (error**2).sum() / ((t[test] - t[train].mean()) ** 2).sum())


def fit(cells: ad.AnnData, layer: str | None, method: str, strength: float, seed: int) -> dict:
    "One row of the table."
    counts = cells.layers[layer] if layer else cells.X
    y, t = plant(csr_matrix(counts), strength, seed)
    adata = ad.AnnData(y, obs=cells.obs[["batch", "cell_type"]], var=cells.var[[]])
    adata = adata[:, np.asarray(y.sum(0)).ravel() > 0].copy()
    start = time.process_time()
    model = GMVAE(adata, 30, batch_key="batch", preset=method, seed=seed).train(progress=False)
    seconds = time.process_time() - start
    split, row = (model.train_idx, model.test_idx), row_of_weights(model.history)
    w = w_means(model.network, model.match_cells(adata))
    return dict(
        r2_w=explained(w, t, *split),
        r2_x=explained(model.get_latent_representation(), t, *split),
        ari=ari(adata.obs["cell_type"].astype(str), np.asarray(model.predict())),
        n_clusters=model.n_clusters,
        effective_K=row["effective_K"],
        neg_elbo=row["test_neg_elbo"],
        kl_w=row["test_kl_w"],
        cpu_seconds=seconds,
    )


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strength", type=float, nargs="+", default=[2.0, 0.0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(PRESETS))
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    todo = itertools.product(args.seeds, args.strength, args.methods, args.data)
    for seed, strength, method, data in (bar := tqdm(list(todo), unit="run")):
        key = {"data": Path(data).stem, "method": method, "strength": strength, "seed": seed}
        bar.set_description(", ".join(map(str, key.values())))
        done = read(args.csv)
        if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        cells, layer = simulated(), None
        if data != "simulated":
            given = read_input(data, batch_key="batch", labels_key="cell_type")
            cells, layer = given.cells, given.layer
        row = pd.DataFrame([key | fit(cells, layer, method, strength, seed)])
        # read anew: several processes may fill one table
        write_rows(args.csv, pd.concat([read(args.csv), row], ignore_index=True))
    by = read(args.csv).groupby(["data", "strength", "method"], sort=False)
    shown = ["r2_w", "r2_x", "ari", "effective_K", "kl_w", "neg_elbo"]
    print(by[shown].agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
