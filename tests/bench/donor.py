"""Cells of a donor that the model never saw, embedded as well as if it had been trained on them?

    python tests/bench/donor.py nbs/donor.csv --data ../shared/data/vangalen_bm_normal_2000hvg.h5ad --donors BM3 AML328-D0 AML420B-D0 --seeds 0 1 2

For each seed one model of all cells, and one for each donor that is left out, whose cells are then embedded with `map_batch`. All cells are
scored with the summaries of peers.py; `donor_nmi`, `donor_ari` and `donor_asw` are those of the donor's own cells. Two rows per donor and
seed in the csv (`trained_on` all, others); finished rows are kept.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from gmvae_nb.data import write_atomically
from gmvae_nb.metrics import evaluate
from gmvae_nb.train import GMVAE
from peers import arguments, prepare, read, score, table
from tqdm import tqdm

SHOWN = (
    "total",
    "bio",
    "batch",
    "ari_clusters",
    "nmi_clusters",
    "donor_nmi",
    "donor_ari",
    "donor_asw",
)


def embed(adata, donor: str | None, batch_key: str, seed: int) -> dict:
    "Embedding and clusters of all cells, by a model that did not see those of `donor`."
    seen = adata if donor is None else adata[adata.obs[batch_key] != donor].copy()
    model = GMVAE(seen, K=None, batch_key=batch_key, preset="recommended", seed=seed).train(
        progress=False
    )
    others = {} if donor is None else {"map_batch": {donor: model.batches[0]}}
    return {
        "latent": model.get_latent_representation(adata, **others),
        "clusters": np.asarray(model.predict(adata, **others), dtype=str),
    }


def scores_of(adata, arrays: dict, donor: str, args, seed: int) -> dict:
    "Those of all cells, and those of the donor's."
    found = score(
        adata, arrays, args.batch_key, args.labels_key, len(np.unique(arrays["clusters"])), seed
    )
    own = np.flatnonzero(adata.obs[args.batch_key] == donor)
    cells = adata[own].copy()
    cells.obsm["X_gmvae"] = arrays["latent"][own]
    alone = evaluate(
        cells, batch_key=None, labels_key=args.labels_key, seed=seed, progress=False
    ).scores
    return {
        **found,
        "donor_nmi": alone["nmi_oracle"],
        "donor_ari": alone["ari_oracle"],
        "donor_asw": alone["asw"],
    }


def main():
    parser = arguments(__doc__)
    parser.add_argument(
        "--donors", nargs="+", required=True, help="batches to leave out, one at a time"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.n_pcs = [30]  # of the unintegrated PCA in the scores
    torch.set_num_threads(1)
    for data in args.data:
        with tempfile.TemporaryDirectory() as folder:
            adata = prepare(data, args, Path(folder) / "cells.h5ad")
        for seed in args.seeds:
            whole = None
            for donor in tqdm(args.donors, unit="donor", desc=f"{Path(data).stem}, seed {seed}"):
                rows, name = read(args.csv), Path(data).stem
                if (
                    not rows.empty
                    and (
                        (rows["data"] == name) & (rows["donor"] == donor) & (rows["seed"] == seed)
                    ).any()
                ):
                    continue
                if whole is None:
                    whole = embed(adata, None, args.batch_key, seed)
                made = {"all": whole, "others": embed(adata, donor, args.batch_key, seed)}
                new = [
                    {
                        "data": name,
                        "donor": donor,
                        "seed": seed,
                        "trained_on": on,
                        **scores_of(adata, arrays, donor, args, seed),
                    }
                    for on, arrays in made.items()
                ]
                rows = pd.concat([rows, pd.DataFrame(new)], ignore_index=True)
                write_atomically(args.csv, lambda path: rows.to_csv(path, index=False))
    rows = read(args.csv)
    print(
        table(
            rows.assign(method=rows["donor"] + ", trained on " + rows["trained_on"]), SHOWN
        ).to_string()
    )


if __name__ == "__main__":
    main()
