"""What the placing of the components does to the clusters of one and the same embedding.

    python tests/bench/placings.py nbs/placings.csv --seeds 0 1 --data kang_pbmc \\
        ../shared/data/vangalen_bm_normal_2000hvg.h5ad ../shared/data/mouse_bladder.h5ad \\
        ../shared/data/rnamix_2000hvg.h5ad

`recommended` is trained once for each data set and seed. Then its components are placed again, from
`--placings` other starts of k-means, by expectation-maximisation and merged as the model does it.
All figures are of the cells that were trained on, and types judge alone. `own` is the ARI of the
model's clusters, `mean` and `sd` are those of the others, `medoid` that of the placing whose
clusters agree best with those of all the others.
`together` is a consensus: cells are joined by average linkage of the share of placings in which
they have the same cluster, down to that share; `n_` is the number of its clusters of six cells and
more. One row per data set and seed; finished rows are kept.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from gmvae_nb.clusters import cluster_tree, cut_tree, shared_cells
from gmvae_nb.gmvae_loss import responsibilities
from gmvae_nb.inference import for_each_cell
from gmvae_nb.metrics import ari
from gmvae_nb.placing import fit_components, kmeans_components
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

DRAWS, ROWS = 20, 4096
MOST = 3000  # cells of the consensus: its memory grows with their square
TOGETHER = 0.8, 0.65, 0.5  # shares of the placings
SMALL = 6  # cells


def posterior(model: GMVAE, cells: ad.AnnData) -> tuple[torch.Tensor, torch.Tensor]:
    "Mean and standard deviation of q(x|y) of the cells that were trained on."
    net = model.network.eval()

    def both(y, b):
        return torch.stack(net.encode(y, b)[:2], 1)

    q = for_each_cell(net, model.match_cells(cells), both, model.train_idx).double()
    return q[:, 0], q[:, 1].exp()


def placed(mean: torch.Tensor, std: torch.Tensor, K: int, alpha: float, seed: int) -> np.ndarray:
    "The cluster of each cell, after one placing."
    generator = torch.Generator().manual_seed(seed)
    m, s, _ = kmeans_components(mean, std, K, seed)
    m, s = fit_components(mean, std, m, s, generator)
    gamma = torch.zeros(len(mean), len(m))
    for start in range(0, len(mean), ROWS):
        rows = slice(start, start + ROWS)
        eps = torch.randn((DRAWS, *mean[rows].shape), generator=generator, dtype=torch.float64)
        x = mean[rows] + std[rows] * eps
        gamma[rows] = responsibilities(x, m[None, None], s.log()[None, None]).exp().mean(0).float()
    tree = cluster_tree(shared_cells(gamma), alpha)
    return cut_tree(tree.forks, tree.n_clusters)[gamma.argmax(1).numpy()]


def consensus(clusters: list[np.ndarray], types: np.ndarray) -> dict[str, float]:
    "ARI and number of clusters of cells that most placings put together."
    n = len(types)
    rows = np.sort(np.random.default_rng(0).choice(n, min(n, MOST), replace=False))
    same = np.mean([c[rows, None] == c[rows] for c in clusters], axis=0)
    joins, found = linkage(squareform(1 - same, checks=False), "average"), {}
    for share in TOGETHER:
        cluster = fcluster(joins, 1 - share, "distance")
        found[f"together_{share}"] = ari(types[rows], cluster)
        found[f"n_{share}"] = int((np.bincount(cluster) >= SMALL).sum())
    return found


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--placings", type=int, default=15)
    parser.add_argument("--max_epochs", type=int, help="by default the preset's")
    args = parser.parse_args()
    for data in args.data:
        keys = dict(batch_key=args.batch_key, layer=args.layer)
        given = read_input(data, **keys, labels_key=args.labels_key)
        keys["layer"] = given.layer
        for seed in args.seeds:
            rows, key = read(args.csv), dict(data=Path(data).stem, seed=seed)
            if not rows.empty and (rows[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            model = GMVAE(given.cells, seed=seed, **keys).train(args.max_epochs, progress=False)
            types = given.cells.obs[args.labels_key].astype(str).to_numpy()[model.train_idx]
            own = np.asarray(model.predict())[model.train_idx]
            q = posterior(model, given.cells)
            clusters = [
                placed(*q, model.K, model.preset.alpha, 1000 + i) for i in range(args.placings)
            ]
            found = [ari(types, c) for c in clusters]
            agreement = [sum(ari(a, b) for b in clusters) for a in clusters]
            row = dict(
                own=ari(types, own),
                mean=np.mean(found),
                sd=np.std(found),
                medoid=found[int(np.argmax(agreement))],
            )
            row |= consensus(clusters, types) | dict(placings=args.placings, cells=len(types))
            write_rows(args.csv, pd.concat([rows, pd.DataFrame([key | row])], ignore_index=True))
    print(read(args.csv).set_index(["data", "seed"]).round(3).to_string())


if __name__ == "__main__":
    main()
