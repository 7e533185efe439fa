"""What each setting of the preset `recommended` is worth.

One factor is changed at a time, on several data sets and with several seeds; one table.

    python tests/bench/search.py nbs/search.csv --seeds 0 1 2 \\
        --data kang_pbmc ../shared/data/vangalen_bm_normal_2000hvg.h5ad

Trains on 85 % of the cells, scores all cells by gmvae_nb.metrics.evaluate with the summaries of
peers.py, and -IWAE on the other 15 %. The cost is that of a run: training, a checkpoint after each
epoch, and the terms of the held-out cells. One row per data set, change and seed in the csv;
finished rows are kept. `--changes` runs some of the changes only.
"""

import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from cost import Cost
from gmvae_nb.network import get_preset
from gmvae_nb.reading import read_input
from gmvae_nb.results import read_run
from gmvae_nb.runs import train_run
from peers import Contender as Change
from peers import add, arguments, finished, prepare, read, score, table, write_rows
from tqdm import tqdm

CHANGES = {  # from `recommended` with K = None
    "recommended": {},
    "blog, K = 20": dict(preset="blog", K=20),
    "r per gene": dict(dispersion="gene"),
    "r per cell and gene from the start": dict(refit=0.0),
    "heads of r and logits": dict(mean_head=False),
    "no weight decay": dict(weight_decay=0.0),
    "weights learned": dict(learn_weights=True),
    "no warm-up": dict(kl_warmup_share=0.0),
    "no alignment": dict(align=0.0),
    "no input dropout": dict(input_dropout=0.0),
    "input dropout 0.25": dict(input_dropout=0.25),
    "cells thinned for the encoder": dict(thin_to=0.2),
    "components start at random": dict(init="random"),
    "paper's bound": dict(bound="paper"),
    "encoder sees the batch": dict(encoder_batch=True),
    "n_x = 20": dict(n_x=20),
    "M = 10": dict(M=10),
    "K = 15": dict(K=15),
    "K = 20": dict(K=20),
    "K = 30": dict(K=30),
    "K = 30, not merged": dict(K=30, merge=False),
    "centred": dict(preset="centred"),
    "three times the passes": dict(min_steps=4500, most_epochs=300),
}
SHOWN = (
    "total bio batch nmi_clusters ari_clusters n_clusters effective_K iwae cpu_seconds"
).split()


def fit(
    adata, batch_key: str, seed: int, preset: str = "recommended", K: int | None = None, **changed
) -> tuple[dict, dict]:
    "The arrays that `score` wants; and cost, -IWAE (nats per held-out cell) and clusters in use."
    cells, changed_preset = read_input(adata), replace(get_preset(preset), **changed)
    with tempfile.TemporaryDirectory() as folder:
        with Cost() as cost:
            model = train_run(
                cells,
                folder,
                K=K,
                batch_key=batch_key,
                preset=changed_preset,
                seed=seed,
                progress=False,
            )
        iwae = read_run(Path(folder))["neg_iwae"]
    arrays = {"latent": model.get_latent_representation(), "clusters": model.predict().astype(str)}
    return arrays, dict(
        cost.found,
        iwae=iwae,
        n_clusters=model.n_clusters,
        effective_K=model.cluster_report()["effective_K"],
    )


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES), metavar="CHANGE"
    )
    args = parser.parse_args()
    args.n_pcs = [30]  # of the unintegrated PCA in the scores
    os.environ["OMP_NUM_THREADS"] = "1"
    changes = [Change("gmvae", name, CHANGES[name]) for name in args.changes]
    todo = itertools.product(args.seeds, changes, args.data)
    prepared = {}
    for seed, change, data in (bar := tqdm(list(todo), unit="run")):
        bar.set_description(f"{Path(data).stem}: {change.method}, seed {seed}")
        if finished(read(args.csv), Path(data).stem, change, seed):
            continue
        if data not in prepared:
            with tempfile.TemporaryDirectory() as folder:
                prepared[data] = prepare(data, args, Path(folder) / "cells.h5ad")
        arrays, measured = fit(prepared[data], args.batch_key, seed, **change.options)
        n_clusters = measured["n_clusters"]
        scores = score(prepared[data], arrays, args.batch_key, args.labels_key, n_clusters, seed)
        row = {"data": Path(data).stem, "method": change.method, "seed": seed}
        row |= {"settings": change.settings, **scores, **measured}
        # read anew: several processes may fill one table
        write_rows(args.csv, add(read(args.csv), row))
    print(table(read(args.csv), SHOWN).to_string())


if __name__ == "__main__":
    main()
