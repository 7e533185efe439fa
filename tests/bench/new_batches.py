"""A batch that the model was not trained on: treated as a known one, learned, or trained with.

    python tests/bench/new_batches.py nbs/new_batches.csv --cells 1000 --genes 500 \\
        --max_epochs 60 --data kang_pbmc=stim ../shared/data/vangalen_bm_normal_2000hvg.h5ad=BM3

Behind = stands the batch that the model does not see. A sixth of its cells is put aside. `mapped`
treats them as the known batch with most cells, `fine-tuned` has learned the batch's own weights
from the other five sixths, and `trained with it` is a model that has seen these like all others.
iwae: mean of the cells put aside, nats per cell. ilisi and bras: of the embedding of all cells,
how well the new batch mixes with the others. cpu_seconds: of the training, or the fine-tuning.
One row per data set, way and seed; finished rows are kept.
"""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb.metrics import evaluate
from gmvae_nb.new_batches import with_new_batches
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows


def rows_of(cells, new: str, seed: int, args, layer: str | None) -> list[dict]:
    "One row for each way."
    rng = np.random.default_rng(seed)
    batch = cells.obs[args.batch_key].astype(str).to_numpy()
    known = np.flatnonzero(batch != new)
    counts = cells.layers[layer] if layer else cells.X
    cells = cells[:, np.asarray(counts[known].sum(0)).ravel() > 0].copy()
    theirs = np.flatnonzero(batch == new)
    aside = np.sort(rng.choice(theirs, len(theirs) // 6, replace=False))
    learned = np.setdiff1d(theirs, aside)
    nearest = pd.Series(batch[known]).value_counts().idxmax()
    keys = dict(batch_key=args.batch_key, layer=layer, seed=seed)
    everyone, kept_aside = cells.copy(), cells[aside].copy()

    def row(way: str, model: GMVAE, start: float, map_batch=None) -> dict:
        seconds = time.process_time() - start
        everyone.obsm["X"] = model.get_latent_representation(everyone, map_batch=map_batch)
        options = dict(batch_key=args.batch_key, labels_key=args.labels_key, progress=False)
        scores = evaluate(everyone, "X", **options).scores
        iwae = model.get_iwae(kept_aside, map_batch=map_batch).mean()
        found = {name: scores[name] for name in ("ilisi", "bras")}
        return dict(way=way, iwae=float(iwae), **found, cpu_seconds=seconds)

    start = time.process_time()
    model = GMVAE(cells[known].copy(), **keys).train(args.max_epochs, progress=False)
    found = [row("mapped", model, start, {new: nearest})]
    start = time.process_time()
    wider = with_new_batches(model, cells[learned].copy(), min_matched=0.5)
    found.append(row("fine-tuned", wider, start))
    start = time.process_time()
    both = np.sort(np.r_[known, learned])
    model = GMVAE(cells[both].copy(), **keys).train(args.max_epochs, progress=False)
    return [*found, row("trained with it", model, start)]


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", type=int, default=2000, help="at most; a random sample")
    parser.add_argument("--genes", type=int, help="highly variable ones; by default all")
    parser.add_argument("--max_epochs", type=int, help="by default the preset's")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for pair in args.data:
        data, new = pair.rsplit("=", 1)
        keys = dict(batch_key=args.batch_key, labels_key=args.labels_key, layer=args.layer)
        given = read_input(data, **keys, n_top_genes=args.genes)
        for seed in args.seeds:
            done, name = read(args.csv), Path(data).stem
            if not done.empty and ((done["data"] == name) & (done["seed"] == seed)).any():
                continue
            cells = given.cells
            if cells.n_obs > args.cells:
                chosen = np.random.default_rng(seed).choice(cells.n_obs, args.cells, False)
                cells = cells[np.sort(chosen)].copy()
            key = dict(data=name, new=new, seed=seed, cells=cells.n_obs, genes=cells.n_vars)
            rows = rows_of(cells, new, seed, args, given.layer)
            rows = pd.DataFrame([key | row for row in rows])
            write_rows(args.csv, pd.concat([done, rows], ignore_index=True))
    print(read(args.csv).round(3).to_string())


if __name__ == "__main__":
    main()
