"""Which components are one cluster: rules beside one another, on the same trained models.

    python tests/bench/merging.py nbs/merging.csv --seeds 0 1 2 --data kang_pbmc \\
        ../shared/data/vangalen_bm_normal_2000hvg.h5ad ../shared/data/mouse_bladder.h5ad \\
        ../shared/data/rnamix_2000hvg.h5ad kang_pbmc:1000 kang_pbmc:300

`recommended` with K = None is trained on 85 % of the cells; NAME:300 is a random part of 300 cells.
No rule sees a label, and all but the first go by the responsibilities of all cells:

proof       as the preset does it: agreement, and held-out cells asked of each branch (proof.py)
agreement   clusters.py alone
chance      components that share more cells than by chance are merged, the pair with the largest
            gain of modularity first (Clauset et al. 2004)
halves      clusters.py on two independent halves of each cell's counts (count_splitting.py)
kappa 0.80  as agreement, but two clusters need another kappa than 0.85

With `--preset centred` the models are of that preset, and the only rule is its own, `centred`: as
proof.

One row per data set, seed and rule: clusters, ARI and NMI with the types, and the mean F1 of types
of 20 cells or more, each with the cluster that fits it best. Finished rows are kept.
"""

import time

import numpy as np
import pandas as pd
import torch
from gmvae_nb.clusters import TOLD_APART, cluster_tree, cut_tree, number_by_size, shared_cells
from gmvae_nb.count_splitting import halve_cells
from gmvae_nb.inference import for_each_cell
from gmvae_nb.metrics import ari, nmi
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from tqdm import tqdm

LEVELS = {f"kappa {level:.2f}": level for level in (0.6, 0.7, 0.75, 0.8, 0.9, 0.95)}
LEVELS = {"agreement": TOLD_APART, **LEVELS}
RULES = ("proof", "chance", "halves", *LEVELS)
DRAWS = 20


def responsibilities(model: GMVAE, cells) -> torch.Tensor:
    "Of the components, averaged over draws of each cell's own, (N, K)."
    net, generator = model.network, torch.Generator().manual_seed(model.seed)

    def gamma(y, b):
        noise = net.noise(DRAWS, len(y), generator)
        return net.log_responsibilities(y, b, *noise).exp().mean(0)

    return for_each_cell(net, cells, gamma).double()


def by_chance(gamma: torch.Tensor) -> np.ndarray:
    "The greedy search for modularity; cluster of each component."
    gain = (gamma.T @ gamma / len(gamma) - gamma.mean(0) * gamma.mean(0)[:, None]).numpy()
    of = np.arange(len(gain))
    while True:
        np.fill_diagonal(gain, -np.inf)
        i, j = sorted(np.unravel_index(gain.argmax(), gain.shape))
        if not gain[i, j] > 1e-12:
            return of
        gain[i] += gain[j]
        gain[:, i] += gain[:, j]
        gain[j] = gain[:, j] = -np.inf
        of[of == j] = i


def merged(model: GMVAE, rule: str) -> np.ndarray:  # cluster of each cell, (N,)
    cells = model._own_cells()
    gamma = responsibilities(model, cells)
    if rule == "proof" or rule in PRESETS:
        return model.predict().astype(int)
    if rule == "chance":
        of = by_chance(gamma)
    elif rule in LEVELS:
        tree = cluster_tree(shared_cells(gamma), level=LEVELS[rule])
        of = cut_tree(tree.forks, tree.n_clusters)
    else:
        halves = halve_cells(model.network, cells, model.seed)
        one, two = (responsibilities(model, part) for part in (halves.first, halves.second))
        shared = (one.T @ two).numpy()
        tree = cluster_tree((shared + shared.T) / 2)
        of = cut_tree(tree.forks, tree.n_clusters)
    cluster = number_by_size(of, gamma)
    prob = torch.zeros(len(gamma), int(cluster.max()) + 1, dtype=gamma.dtype)
    return prob.index_add_(1, cluster, gamma).argmax(1).numpy()


def mean_f1(labels: np.ndarray, clusters: np.ndarray, at_least: int = 20) -> float:
    table = pd.crosstab(labels, clusters)
    sizes = table.sum(1)
    f1 = 2 * table.div(sizes.to_numpy()[:, None] + table.sum(0).to_numpy()).max(axis=1) * 1.0
    return float(f1[sizes >= at_least].mean())


def beside_types(labels: np.ndarray, clusters: np.ndarray) -> dict:
    "Part of a row: how many clusters, and how they agree with the types."
    n_clusters = len(np.unique(clusters))
    return dict(n_clusters=n_clusters, ari=ari(labels, clusters), nmi=nmi(labels, clusters))


def part_of(data: str):
    "The cells of a data set, or of a random part of it, and the layer with the counts."
    name, _, n = data.partition(":")
    read_in = read_input(name, batch_key="batch", labels_key="cell_type")
    adata = read_in.cells
    if n:
        rows = np.random.default_rng(0).choice(adata.n_obs, int(n), replace=False)
        adata = adata[np.sort(rows)].copy()
    return adata, read_in.layer


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="recommended")
    args = parser.parse_args()
    rows = read(args.csv)
    rules = RULES if args.preset == "recommended" else (args.preset,)
    for data, seed in tqdm([(d, s) for d in args.data for s in args.seeds]):
        name = data.split("/")[-1].removesuffix(".h5ad")
        done = rows.get(["data", "seed", "rule"], pd.DataFrame(columns=["data", "seed", "rule"]))
        if (done == (name, seed, rules[0])).all(axis=1).any():
            continue
        (adata, layer), start = part_of(data), time.process_time()
        model = GMVAE(adata, batch_key=args.batch_key, layer=layer, preset=args.preset, seed=seed)
        model.train(progress=False)
        seconds = time.process_time() - start
        labels = adata.obs[args.labels_key].astype(str).to_numpy()
        for rule in rules:
            clusters = np.asarray(merged(model, rule))
            row = dict(
                data=name,
                seed=seed,
                rule=rule,
                **beside_types(labels, clusters),
                f1=mean_f1(labels, clusters),
                train_cpu_seconds=seconds,
            )
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
        write_rows(args.csv, rows)
    shown = ["n_clusters", "ari", "nmi", "f1"]
    print(rows.groupby(["data", "rule"])[shown].agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
