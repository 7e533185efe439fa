"""What the seed moves: the same cells trained with several seeds, and what they say of one another.

    python tests/bench/seeds.py nbs/seeds.csv --data kang_pbmc kang_pbmc:1000 kang_pbmc:300 \\
        ../shared/data/*hvg.h5ad ../shared/data/mouse_bladder.h5ad

`recommended` with K = None; NAME:300 is a random part of 300 cells. One row per data set and seed:
its number of clusters that have cells, the mean ARI with the other seeds' clusters, the mean
stability of its clusters (weighted by cells), how many cells are of the type that most cells of
their cluster have, the mean of the run's own confidence and of that over seeds, and the expected
calibration error of both, and of what the other seeds say without this one. Labels are for scores
only. A data set that is in the table is kept.
"""

import numpy as np
import pandas as pd
from gmvae_nb.calibration import calibration, cluster_types
from gmvae_nb.metrics import ari
from gmvae_nb.stability import compare_seeds, read_by_other
from gmvae_nb.train import GMVAE
from merging import part_of
from peers import arguments, read, write_rows
from tqdm import tqdm


def rows_of(name: str, labels: np.ndarray, probs: list[np.ndarray]) -> list[dict]:
    "Each seed in turn is the run, the others compare."
    rows = []
    for seed, prob in enumerate(probs):
        others = probs[:seed] + probs[seed + 1 :]
        found = compare_seeds(prob, others)
        clusters = prob.argmax(1)
        types = cluster_types(clusters, labels)
        right = labels == [types[str(k)] for k in clusters]
        own = prob.max(1).clip(0, 1)
        alone = np.mean([read_by_other(prob, other) for other in others], axis=0)
        alone = alone[np.arange(len(prob)), clusters].clip(0, 1)
        cells, stability = found.clusters["cells"], found.clusters["stability"]
        rows.append(
            dict(
                data=name,
                seed=seed,
                n_seeds=len(probs),
                n_clusters=found.n_clusters[0],
                agreement=np.mean([ari(clusters, other.argmax(1)) for other in others]),
                stability=(cells * stability).sum() / cells.sum(),
                right=right.mean(),
                own=own.mean(),
                seeds=found.confidence.mean(),
                ece_own=calibration(own, right).ece,
                ece_others=calibration(alone, right).ece,
                ece_seeds=calibration(found.confidence, right).ece,
                ari=ari(labels, clusters),
            )
        )
    return rows


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    args = parser.parse_args()
    rows = read(args.csv)
    for data in tqdm(args.data):
        name = data.split("/")[-1].removesuffix(".h5ad")
        if not rows.empty and (rows["data"] == name).any():
            continue
        adata, layer = part_of(data)
        probs = []
        for seed in range(args.seeds):
            model = GMVAE(adata, batch_key=args.batch_key, layer=layer, seed=seed)
            probs.append(model.train(progress=False).predict_proba())
        labels = adata.obs[args.labels_key].astype(str).to_numpy()
        new = pd.DataFrame(rows_of(name, labels, probs))
        rows = pd.concat([rows, new], ignore_index=True)
        write_rows(args.csv, rows)
    shown = [
        "n_clusters",
        "agreement",
        "right",
        "own",
        "seeds",
        "ece_own",
        "ece_others",
        "ece_seeds",
    ]
    print(rows.groupby("data")[shown].mean().round(3).to_string())


if __name__ == "__main__":
    main()
