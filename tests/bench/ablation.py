"""What keeps the mixture alive: w, its offsets, the start, the bound, the warm-up, the sizes.

    python tests/bench/ablation.py nbs/ablation.csv --seeds 0 1 2 3 4 5 \\
        --data kang_pbmc ../shared/data/vangalen_bm_normal_2000hvg.h5ad

Each run trains on 85 % of the cells. The grid is trained for `--min_steps` mini-batches; the
presets are in it, and are trained in full besides, at several K. One row per data set, method, K,
min_steps and seed in the csv:

ari, nmi, n_clusters      the model's own clusters on all cells, which saw no label
effective_K               of the components on the held-out cells, before they are merged
mutual_information, neg_elbo, kl_w, kl_z    nats per held-out cell
types, asw                cell types there are; their silhouette in the embedding, all cells
cpu_seconds               of one thread, training alone

Finished rows are kept. Those of a seed come in the order of `runs_of`; processes that are given
different seeds may fill one table.
"""

import itertools
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from gmvae_nb.metrics import ari, nmi, silhouette_width
from gmvae_nb.network import get_preset
from gmvae_nb.reading import read_input
from gmvae_nb.schedule import row_of_weights
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from tqdm import tqdm

PRESETS = {name: dict(preset=name) for name in ("recommended", "with_w", "blog_offsets")}
AWAY = {  # one of four things taken away
    "no offsets": dict(prior="network"),
    "random start": dict(init="random"),
    "paper's bound": dict(bound="paper"),
    "no warm-up": dict(kl_warmup_share=0.0),
}
BARE = dict(  # all that is neither of the four nor a schedule
    preset="blog_offsets",
    encoder_input="standardised",
    library_size=False,
    mean_head=False,
    refit=0.0,
    weight_decay=0.0,
    input_dropout=0.0,
    align=0.0,
)
LEAST = {f"blog_offsets, {name}": dict(preset="blog_offsets", **new) for name, new in AWAY.items()}
LEAST |= {"bare": BARE} | {f"bare, {name}": BARE | new for name, new in AWAY.items()}
NO_W, OFFSETS = dict(preset="recommended"), dict(preset="with_w")
NETWORK = OFFSETS | AWAY["no offsets"]
GRID = {
    "offsets, n_w = 2": OFFSETS | dict(n_w=2),
    "offsets, n_w = 60": OFFSETS | dict(n_w=60),
    "network, n_w = 2": NETWORK | dict(n_w=2),
    "network, n_w = 10": NETWORK,
    "network, n_w = 60": NETWORK | dict(n_w=60),
    "no w, n_x = 20": NO_W | dict(n_x=20),
    "no w, n_x = 80": NO_W | dict(n_x=80),
    "no w, no rest": NO_W | dict(refit=0.0),
    "offsets, n_w = 10, no rest": OFFSETS | dict(refit=0.0),  # learned from the start
}
for what in ("random start", "paper's bound"):
    GRID |= {
        f"no w, {what}": NO_W | AWAY[what],
        f"offsets, n_w = 10, {what}": OFFSETS | AWAY[what],
        f"network, n_w = 10, {what}": NETWORK | AWAY[what],
    }
METHODS = PRESETS | LEAST | GRID


class Run(NamedTuple):
    method: str
    K: int
    min_steps: int


def runs_of(K: list[int], min_steps: int) -> list[Run]:
    "Of a data set and seed: all methods for so many mini-batches; then the presets as they are."
    full = get_preset("recommended").min_steps
    return [Run(name, 30, min_steps) for name in METHODS] + [
        Run(name, k, full) for k in K for name in PRESETS
    ]


def fit(cells, run: Run, seed: int) -> dict:
    "One row of the table."
    settings = dict(METHODS[run.method], min_steps=run.min_steps)
    preset = replace(get_preset(settings.pop("preset")), **settings)
    model = GMVAE(
        cells.cells, run.K, batch_key="batch", layer=cells.layer, preset=preset, seed=seed
    )
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has collapsed: the table says so
        model.train(progress=False)
    seconds = time.process_time() - start
    labels = cells.cells.obs["cell_type"].astype(str).to_numpy()
    clusters, row = np.asarray(model.predict()), row_of_weights(model.history)
    return dict(
        types=len(np.unique(labels)),
        n_clusters=len(np.unique(clusters)),
        ari=ari(labels, clusters),
        nmi=nmi(labels, clusters),
        asw=silhouette_width(model.get_latent_representation(), labels),
        effective_K=row["effective_K"],
        mutual_information=row["mutual_information"],
        neg_elbo=row["test_neg_elbo"],
        kl_w=row["test_kl_w"],
        kl_z=row["test_kl_z"],
        epochs=len(model.history),
        cpu_seconds=seconds,
    )


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--K", type=int, nargs="+", default=[30, 10, 50], help="of the presets")
    parser.add_argument("--min_steps", type=int, default=500, help="of the grid")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    todo = itertools.product(args.seeds, runs_of(args.K, args.min_steps), args.data)
    todo = [(seed, run, data) for seed, run, data in todo if run.method in args.methods]
    cells = {}
    for seed, run, data in (bar := tqdm(todo, unit="run")):
        key = {"data": Path(data).stem, **run._asdict(), "seed": seed}
        bar.set_description(", ".join(map(str, key.values())))
        done = read(args.csv)
        if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        if data not in cells:
            cells[data] = read_input(data, batch_key="batch", labels_key="cell_type")
        row = pd.DataFrame([key | fit(cells[data], run, seed)])
        # read anew: several processes may fill one table
        write_rows(args.csv, pd.concat([read(args.csv), row], ignore_index=True))
    shown = ["ari", "nmi", "effective_K", "kl_w", "neg_elbo"]
    by = read(args.csv).groupby(["data", "min_steps", "method", "K"], sort=False)[shown]
    print(by.agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
