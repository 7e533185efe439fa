"""What keeps the mixture alive: w, its offsets, the start, the bound, the warm-up, the sizes.

    python tests/bench/ablation.py nbs/ablation.csv --seeds 0 1 2 3 4 5 \\
        --data kang_pbmc ../shared/data/vangalen_bm_normal_2000hvg.h5ad

Each run trains on 85 % of the cells. One row per data set, method, K and seed in the csv:

ari, nmi, n_clusters      the model's own clusters on all cells, which saw no label
effective_K               of the components on the held-out cells, before they are merged
mutual_information, neg_elbo, kl_w, kl_z    nats per held-out cell
types, asw                cell types there are; their silhouette in the embedding, all cells
cpu_seconds               of one thread, training alone

Finished rows are kept. The rows of a seed come in the order of `rows_of`; processes that are given
different seeds may fill one table.
"""

import itertools
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb.metrics import ari, nmi, silhouette_width
from gmvae_nb.network import get_preset
from gmvae_nb.reading import read_input
from gmvae_nb.schedule import row_of_weights
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from tqdm import tqdm

PRESETS = {name: dict(preset=name) for name in ("recommended", "with_w", "blog_alive")}
AWAY = {  # one of four things taken away
    "no offsets": dict(prior="network"),
    "random start": dict(init="random"),
    "paper's bound": dict(bound="paper"),
    "no warm-up": dict(kl_warmup_share=0.0),
}
BARE = dict(  # all that is neither of the four nor a schedule
    preset="blog_alive",
    encoder_input="standardised",
    library_size=False,
    mean_head=False,
    refit=0.0,
    weight_decay=0.0,
    input_dropout=0.0,
    align=0.0,
)
LEAST = {f"blog_alive, {name}": dict(preset="blog_alive", **new) for name, new in AWAY.items()}
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
}
for what in ("random start", "paper's bound"):
    GRID |= {
        f"no w, {what}": NO_W | AWAY[what],
        f"offsets, n_w = 10, {what}": OFFSETS | AWAY[what],
        f"network, n_w = 10, {what}": NETWORK | AWAY[what],
    }
METHODS = PRESETS | LEAST | GRID


def rows_of(K: list[int]) -> list[tuple[str, int]]:  # method and K
    "In the order of their weight: the presets, what they need, the grid."
    of_K = [(name, k) for k in K for name in PRESETS]
    return of_K + [(name, 30) for name in LEAST | GRID]


def fit(cells, method: str, K: int, seed: int) -> dict:
    "One row of the table."
    settings = dict(METHODS[method])
    preset = replace(get_preset(settings.pop("preset")), **settings)
    model = GMVAE(cells.cells, K, batch_key="batch", layer=cells.layer, preset=preset, seed=seed)
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
    parser.add_argument("--K", type=int, nargs="+", default=[30, 10, 50])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    todo = itertools.product(args.seeds, rows_of(args.K), args.data)
    todo = [(seed, *row, data) for seed, row, data in todo if row[0] in args.methods]
    cells = {}
    for seed, method, K, data in (bar := tqdm(todo, unit="run")):
        bar.set_description(f"{Path(data).stem}: {method}, K = {K}, seed {seed}")
        key = {"data": Path(data).stem, "method": method, "K": K, "seed": seed}
        done = read(args.csv)
        if not done.empty and (done[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        if data not in cells:
            cells[data] = read_input(data, batch_key="batch", labels_key="cell_type")
        row = pd.DataFrame([key | fit(cells[data], method, K, seed)])
        # read anew: several processes may fill one table
        write_rows(args.csv, pd.concat([read(args.csv), row], ignore_index=True))
    shown = ["ari", "nmi", "effective_K", "kl_w", "neg_elbo"]
    by = read(args.csv).groupby(["data", "method", "K"], sort=False)[shown]
    print(by.agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
