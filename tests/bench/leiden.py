"""Leiden at resolution 1, that sees no label, on embeddings of the same cells.

    python tests/bench/leiden.py nbs/leiden.csv --seeds 0 1 2 --data kang_pbmc kang_pbmc:1000 \\
        kang_pbmc:300 $(ls ../shared/data/{*_2000hvg,mouse_bladder,bmmc_*_starter}.h5ad)

One row per data set, seed and embedding: clusters, and their ARI and NMI with the types.

mean, draw    of q(x|y) of each cell, `recommended` with K = None, 85 % of the cells trained on
PCA, Harmony  30 components, as peers.py has them (`make peers-env`; without it no Harmony, and
              with one batch it has nothing to do)
own           no Leiden: the clusters of the same `recommended`

NAME:300 is a random part of 300 cells. Finished seeds are kept.
"""

import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from gmvae_nb.counts import get_counts
from gmvae_nb.metrics import leiden
from gmvae_nb.neighbors import neighbor_graph
from gmvae_nb.train import GMVAE
from merging import beside_types, part_of
from peers import HERE, Contender, arguments, fit, read, write_rows
from tqdm import tqdm

PEERS = HERE.parents[1] / ".venv-peers/bin/python"
PCS = {"n_pcs": 30}


def leiden_at_one(x: np.ndarray, seed: int) -> np.ndarray:
    "As `nmi_leiden1` of evaluate has it."
    return leiden(neighbor_graph(x, 15), [1.0], seed=seed)[0]


def clusterings(adata, batch_key: str, seed: int) -> dict[str, np.ndarray]:
    "Clusters of each cell, by the embedding that Leiden saw."
    model = GMVAE(adata, batch_key=batch_key, seed=seed).train(progress=False)
    embeddings = {
        "mean": model.get_latent_representation(),
        "draw": model.get_latent_representation(give_mean=False),
    }
    with tempfile.TemporaryDirectory() as folder:
        cells = Path(folder) / "cells.h5ad"
        adata.write_h5ad(cells)
        for name in ("PCA", "Harmony"):
            if name == "PCA" or (PEERS.exists() and adata.obs[batch_key].nunique() > 1):
                of = Contender(name.lower(), name, PCS)
                embeddings[name] = fit(of, cells, batch_key, seed, PEERS)[0]["latent"]
    found = {name: leiden_at_one(x, seed) for name, x in embeddings.items()}
    return found | {"own": np.asarray(model.predict())}


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        for data in (bar := tqdm(args.data)):
            rows, name = read(args.csv), data.split("/")[-1].removesuffix(".h5ad")
            if not rows.empty and ((rows["data"] == name) & (rows["seed"] == seed)).any():
                continue
            bar.set_description(f"{name}, seed {seed}")
            part, layer = part_of(data)
            keys = [args.batch_key, args.labels_key]
            counts = get_counts(part, layer, allow_empty_genes=True)
            adata = anndata.AnnData(counts, obs=part.obs[keys], var=part.var[[]])
            labels = adata.obs[args.labels_key].astype(str).to_numpy()
            found = clusterings(adata, args.batch_key, seed).items()
            new = [
                dict(data=name, seed=seed, embedding=embedding, **beside_types(labels, clusters))
                for embedding, clusters in found
            ]
            write_rows(args.csv, pd.concat([rows, pd.DataFrame(new)], ignore_index=True))
    by = read(args.csv).groupby(["data", "embedding"], sort=False)[["n_clusters", "ari", "nmi"]]
    print(by.agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
