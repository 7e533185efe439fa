"""A chemistry and a share of damage, planted in real cells: told to the decoder, or not?

    python tests/bench/covariates.py nbs/covariates.csv --cells 1500 --max_epochs 50 --seeds 0 1

Each cell gets a chemistry, v2 or v3, and a damage between 0 and 1, both by chance, whatever its
type and batch. Four fifths of the genes lose counts: in cells of v3 a gene of the first two keeps a
share of its own between 0.02 and 0.3, in a cell with damage d a gene of the other two keeps
exp(-3 d); so PCA tells the chemistry from neighbours as well as it tells the two batches of
kang_pbmc. The contenders are

    pca        20 components of what is left, log-normalised, and `recommended` on
    clean      the cells as they are
    untold     what is left, without a word of either
    told       ... with both as covariates
    batch      ... with the chemistry joined to the batch, and the damage as a covariate

and each row of the table is a model: asw of the types, from 0 to 1, and NMI of its clusters with
them; what 30 nearest cells tell of batch and chemistry (mixed_*: the share of neighbours with the
other one, over that expected by chance) and of the damage (r2_damage: of the mean of theirs, less
that of the type); and, where the decoder was told, the correlation over genes of the planted change
with what `transform_batch` says (found_*). Finished rows are kept.
"""

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb.counts import get_counts
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

NAMED = dict(categorical_covariate_keys=["chemistry"], continuous_covariate_keys=["damage"])
CONTENDERS = {
    "pca": {},
    "clean": {},
    "untold": {},
    "told": NAMED,
    "batch": dict(batch_key="joined", continuous_covariate_keys=["damage"]),
}


def counts_of(given) -> csr_matrix:
    "A copy; of some cells, so that genes may be empty."
    return csr_matrix(get_counts(given.cells, given.layer, allow_empty_genes=True)).copy()


def planted(given, seed: int):
    "The cells after their losses, and the log2 change of each gene by either."
    cells, rng = given.cells.copy(), np.random.default_rng([seed, 1])
    y = counts_of(given)
    n, G = y.shape
    part, m = rng.permutation(G), 2 * G // 5
    kept_v3, by_damage = np.ones(G), np.zeros(G)
    kept_v3[part[:m]] = rng.uniform(0.02, 0.3, m)
    by_damage[part[m : 2 * m]] = 3.0
    v3, damage = rng.random(n) < 0.5, rng.random(n)
    cell_of = np.repeat(np.arange(n), np.diff(y.indptr))
    share = np.where(v3[cell_of], kept_v3[y.indices], 1.0)
    share = share * np.exp(-by_damage[y.indices] * damage[cell_of])
    y.data = rng.binomial(y.data.astype(np.int64), share).astype(np.float32)
    y.eliminate_zeros()
    cells.X, cells.layers = y, {}
    cells.obs["chemistry"], cells.obs["damage"] = np.where(v3, "v3", "v2"), damage
    return cells, np.log2(kept_v3), -by_damage / np.log(2)


def pca(y: csr_matrix) -> np.ndarray:
    "Principal components of log-normalised counts."
    z = csr_matrix(y.multiply(1e4 / y.sum(1)))
    return PCA(min(20, *z.shape), random_state=0).fit_transform(np.log1p(z.toarray()))


def neighbours_tell(X: np.ndarray, obs: pd.DataFrame, args) -> dict:
    "Of batch, chemistry and damage."
    near = NearestNeighbors(n_neighbors=31).fit(X).kneighbors(X, return_distance=False)[:, 1:]
    told = {}
    for key in (args.batch_key, "chemistry"):
        codes = obs[key].astype("category").cat.codes.to_numpy()
        by_chance = 1 - (np.bincount(codes) ** 2).sum() / len(codes) ** 2
        told[f"mixed_{key}"] = (codes[near] != codes[:, None]).mean() / by_chance
    mean = obs.groupby(args.labels_key, observed=True)["damage"].transform("mean")
    rest = (obs["damage"] - mean).to_numpy()
    r = np.corrcoef(rest[near].mean(1), rest)[0, 1]
    return told | dict(r2_damage=max(0.0, r) ** 2)


def found(model: GMVAE, cells, changes: dict) -> dict:
    "How well the decoder knows what was done to each gene that was changed."
    some, columns = cells[:500].copy(), cells.var_names.get_indexer(model.genes)
    correlations = {}
    for key, (low, high, change) in changes.items():
        means = []
        for value in (low, high):
            shown = model.get_normalized_expression(some, transform_batch={key: value})
            means.append(np.log2(shown.mean().to_numpy()))
        r = np.corrcoef(means[1] - means[0], change[columns])[0, 1]
        correlations[f"found_{key}"] = r
    return correlations


def fit(given, contender: str, seed: int, args) -> dict:
    "One row of the table."
    cells, by_v3, by_damage = planted(given, seed)
    options = dict(batch_key=args.batch_key, seed=seed) | CONTENDERS[contender]
    cells.obs["joined"] = cells.obs[args.batch_key].astype(str) + cells.obs["chemistry"]
    trained = cells.copy()
    if contender == "clean":
        trained.X = counts_of(given)
    types = cells.obs[args.labels_key].astype(str)
    if contender == "pca":
        X = pca(cells.X)
        return dict(asw=(1 + silhouette_score(X, types)) / 2) | neighbours_tell(X, cells.obs, args)
    start = time.process_time()
    model = GMVAE(trained, **options).train(args.max_epochs, progress=False)
    seconds = time.process_time() - start
    X = model.get_latent_representation()
    row = dict(
        asw=(1 + silhouette_score(X, types)) / 2,
        nmi_clusters=normalized_mutual_info_score(types, model.predict()),
        **neighbours_tell(X, cells.obs, args),
    )
    changes = {"chemistry": ("v2", "v3", by_v3), "damage": (0.0, 1.0, by_damage)}
    changes = {key: c for key, c in changes.items() if key in {k.key for k in model.covariates}}
    row |= found(model, trained, changes)
    return row | dict(n_clusters=model.n_clusters, cpu_seconds=seconds)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, help="so many, by chance; by default all")
    parser.add_argument("--max_epochs", type=int, help="by default the preset's")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for data in args.data:
        keys = dict(batch_key=args.batch_key, labels_key=args.labels_key, layer=args.layer)
        given = read_input(data, **keys)
        if args.cells is not None:
            rows = np.random.default_rng(0).permutation(given.cells.n_obs)[: args.cells]
            given = given._replace(cells=given.cells[np.sort(rows)].copy())
        todo = list(itertools.product(args.seeds, CONTENDERS))
        for seed, contender in (bar := tqdm(todo, unit="run")):
            key = {"data": Path(data).stem, "contender": contender, "seed": seed}
            bar.set_description(", ".join(map(str, key.values())))
            done = read(args.csv)
            if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            row = pd.DataFrame([key | fit(given, contender, seed, args)])
            write_rows(args.csv, pd.concat([read(args.csv), row], ignore_index=True))
    table = read(args.csv)
    shown = [c for c in table if c not in ("data", "contender", "seed")]
    print(table.groupby(["data", "contender"], sort=False)[shown].mean().round(3).T.to_string())


if __name__ == "__main__":
    main()
