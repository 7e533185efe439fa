"""Cells of a donor that the model never saw, embedded as well as if it had been trained on them?

    python tests/bench/donor.py nbs/donor.csv --donors BM3 AML328-D0 AML420B-D0 --seeds 0 1 2 \\
        --data ../shared/data/vangalen_bm_normal_2000hvg.h5ad

For each seed one model of all cells, and one for each donor that is left out, whose cells are then
embedded with `map_batch`. All cells are scored with the summaries of peers.py; `donor_nmi`,
`donor_ari` and `donor_asw` are those of the donor's own cells. Two rows per donor and seed in the
csv (`trained_on` all, others); finished rows are kept.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb.metrics import evaluate
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from peers import arguments, prepare, read, score, table, write_rows
from tqdm import tqdm

SHOWN = "total bio batch ari_clusters nmi_clusters donor_nmi donor_ari donor_asw".split()


def embed(adata, donor: str | None, batch_key: str, seed: int) -> dict:
    "Embedding and clusters of all cells, by a model that did not see those of `donor`."
    seen = adata if donor is None else adata[adata.obs[batch_key] != donor].copy()
    with tempfile.TemporaryDirectory() as folder:
        model = train_run(read_input(seen), folder, batch_key=batch_key, seed=seed, progress=False)
    others = {} if donor is None else {"map_batch": {donor: model.batches[0]}}
    return {
        "latent": model.get_latent_representation(adata, **others),
        "clusters": np.asarray(model.predict(adata, **others), dtype=str),
    }


def scores_of(adata, arrays: dict, donor: str, args, seed: int) -> dict:
    "Those of all cells, and those of the donor's."
    n_clusters = len(np.unique(arrays["clusters"]))
    of_all = score(adata, arrays, args.batch_key, args.labels_key, n_clusters, seed)
    own = np.flatnonzero(adata.obs[args.batch_key] == donor)
    cells = adata[own].copy()
    cells.obsm["X_gmvae"] = arrays["latent"][own]
    alone = evaluate(
        cells, batch_key=None, labels_key=args.labels_key, seed=seed, progress=False
    ).scores
    return {
        **of_all,
        "donor_nmi": alone["nmi_oracle"],
        "donor_ari": alone["ari_oracle"],
        "donor_asw": alone["asw"],
    }


def finished(rows: pd.DataFrame, data: str, donor: str, seed: int) -> bool:
    "Whether the csv has these two rows."
    if rows.empty:
        return False
    same = (rows["data"] == data) & (rows["donor"].astype(str) == donor) & (rows["seed"] == seed)
    return bool(same.any())


def main():
    parser = arguments(__doc__)
    parser.add_argument(
        "--donors", nargs="+", required=True, help="batches to leave out, one at a time"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.n_pcs = [30]  # of the unintegrated PCA in the scores
    os.environ["OMP_NUM_THREADS"] = "1"
    for data in args.data:
        with tempfile.TemporaryDirectory() as folder:
            adata = prepare(data, args, Path(folder) / "cells.h5ad")
        for seed in args.seeds:
            whole = None
            for donor in tqdm(args.donors, unit="donor", desc=f"{Path(data).stem}, seed {seed}"):
                rows, name = read(args.csv), Path(data).stem
                if finished(rows, name, donor, seed):
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
                write_rows(args.csv, rows)
    rows = read(args.csv)
    methods = rows["donor"].astype(str) + ", trained on " + rows["trained_on"]
    print(table(rows.assign(method=methods), SHOWN).to_string())


if __name__ == "__main__":
    main()
