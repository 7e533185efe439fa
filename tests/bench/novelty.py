"""Is a type that the model has not seen found by its novelty? Each type is left out in turn.

    python tests/bench/novelty.py nbs/novelty.csv --data kang_pbmc
    python tests/bench/novelty.py nbs/novelty.csv --every 3 --data \\
        ../shared/data/vangalen_bm_normal_2000hvg.h5ad ../shared/data/mouse_bladder.h5ad

Of the other types a seventh of the cells is put aside. The model, `recommended`, sees the rest.
The columns auroc_* say how well a number tells the cells of the type that was left out from those
that were put aside; permuted_* how well it tells the latter from themselves with permuted genes.
The number is novelty, -ELBO (`elbo`), one minus the probability of the cluster (`confidence`), or,
without any model of ours, the distance to the 15th nearest training cell in 50 principal components
of the training cells (`pca`).
above_95 is the share of a kind of cells whose novelty is above 0.95, of those put aside (`known`)
it should be 0.05. `relative` is the type that most training cells have in the cluster that most of
the cells left out get. One row per data set, type and seed; finished rows are kept.
"""

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb.novelty import novelty_of, novelty_of_own
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm


def auroc(new: np.ndarray, old: np.ndarray) -> float:
    "The chance that a new cell has more of it than an old one."
    return float(roc_auc_score(np.repeat([1, 0], [len(new), len(old)]), np.r_[new, old]))


def pca_distances(counts: csr_matrix, trained: np.ndarray, parts: dict) -> dict[str, np.ndarray]:
    "Of the rows of each part: how far the 15th nearest training cell is, in 50 components."
    totals = np.asarray(counts.sum(1)).ravel()
    rates = counts.multiply(1e4 / totals[:, None]).log1p().tocsr()
    n = min(50, len(trained), counts.shape[1])
    pca = PCA(n, svd_solver="randomized", random_state=0).fit(rates[trained].toarray())
    found = NearestNeighbors(n_neighbors=15).fit(pca.transform(rates[trained].toarray()))
    places = {name: pca.transform(rates[rows].toarray()) for name, rows in parts.items()}
    return {name: found.kneighbors(place)[0][:, -1] for name, place in places.items()}


def fit(given, left_out: str, seed: int, args) -> dict:
    "One row of the table."
    cells, rng = given.cells, np.random.default_rng(seed)
    labels = cells.obs[args.labels_key].astype(str).to_numpy()
    known = np.flatnonzero(labels != left_out)
    aside = np.sort(rng.choice(known, len(known) // 7, replace=False))
    trained = np.setdiff1d(known, aside)
    start = time.process_time()
    keys = dict(batch_key=args.batch_key, layer=given.layer, seed=seed)
    model = GMVAE(cells[trained].copy(), **keys).train(args.max_epochs, progress=False)
    seconds = time.process_time() - start
    reference = novelty_of_own(model)[1]

    any_batch = {"*": model.batches[0]}  # some batches may have this type alone
    parts = {
        "known": model.match_cells(cells[aside].copy(), map_batch=any_batch, min_matched=0.5),
        "new": model.match_cells(
            cells[labels == left_out].copy(), map_batch=any_batch, min_matched=0.5
        ),
    }
    order = rng.permutation(len(model.genes))
    parts["permuted"] = parts["known"]._replace(counts=parts["known"].counts[:, order].tocsr())
    prob = {name: model.predict_proba(part) for name, part in parts.items()}
    numbers = {
        "novelty": {name: novelty_of(model, part, reference) for name, part in parts.items()},
        "elbo": {name: -model.get_elbo(part) for name, part in parts.items()},
        "confidence": {name: 1 - p.max(1) for name, p in prob.items()},
    }
    cluster = np.bincount(prob["new"].argmax(1)).argmax()
    here = pd.Series(labels[trained][model.predict_proba().argmax(1) == cluster])
    row = dict(
        cells=int((labels == left_out).sum()),
        relative=here.mode().iloc[0] if len(here) else "",
        n_clusters=model.n_clusters,
    )
    for name, of in numbers.items():
        row[f"auroc_{name}"] = auroc(of["new"], of["known"])
    counts = csr_matrix(cells.layers[given.layer] if given.layer else cells.X, dtype=np.float64)
    new = np.flatnonzero(labels == left_out)
    of = pca_distances(counts, trained, dict(known=aside, new=new))
    row["auroc_pca"] = auroc(of["new"], of["known"])
    for name, of in numbers.items():
        row[f"permuted_{name}"] = auroc(of["permuted"], of["known"])
    for name, values in numbers["novelty"].items():
        row[f"above_95_{name}"] = float((values > 0.95).mean())
    return row | dict(cpu_seconds=seconds)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--every", type=int, default=1, help="only every n-th type, by name")
    parser.add_argument("--least", type=int, default=30, help="cells of a type that is left out")
    parser.add_argument("--max_epochs", type=int, help="by default the preset's")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for data in args.data:
        keys = dict(batch_key=args.batch_key, labels_key=args.labels_key, layer=args.layer)
        given = read_input(data, **keys)
        sizes = given.cells.obs[args.labels_key].astype(str).value_counts()
        types = sorted(sizes.index[sizes >= args.least])[:: args.every]
        todo = list(itertools.product(args.seeds, types))
        for seed, left_out in (bar := tqdm(todo, unit="run")):
            key = {"data": Path(data).stem, "left_out": left_out, "seed": seed}
            bar.set_description(", ".join(map(str, key.values())))
            done = read(args.csv)
            if not done.empty:
                wanted = pd.Series(key).astype(str)  # names may be numbers
                if (done[list(key)].astype(str) == wanted).all(axis=1).any():
                    continue
            row = pd.DataFrame([key | fit(given, left_out, seed, args)])
            write_rows(args.csv, pd.concat([read(args.csv), row], ignore_index=True))
    shown = [c for c in read(args.csv) if c.startswith(("auroc", "permuted", "above"))]
    print(read(args.csv).groupby("data", sort=False)[shown].mean().round(3).T.to_string())


if __name__ == "__main__":
    main()
