"""How many clusters the cells of a single type are, each type of a data set by itself, K = None.

    python tests/bench/one_type.py nbs/one_type.csv --seeds 2 --data kang_pbmc \\
        ../shared/data/vangalen_bm_normal_2000hvg.h5ad ../shared/data/mouse_bladder.h5ad

`by_looks` is the number of clusters by cells that are looked at twice, `n_clusters` what is left of
it when the branches of the tree have been asked of held-out cells; `p` is that of the root, empty
if it could not be asked. Types of --fewest cells or more. One row per data set, type and seed;
finished rows are kept.
"""

from pathlib import Path

import pandas as pd
from gmvae_nb.count_splitting import LEAST_P
from gmvae_nb.inference import root_p
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import arguments, read, write_rows
from tqdm import tqdm

SHOWN = ["by_looks", "n_clusters"]


def of_one_type(cells, layer: str | None, batch_key: str, seed: int) -> dict:
    "What a model makes of cells of one type."
    key = batch_key if cells.obs[batch_key].nunique() > 1 else None
    model = GMVAE(cells, batch_key=key, layer=layer, seed=seed).train(progress=False)
    asked = model.cluster_tree()["halves_agree_p"]
    joined = (asked > max(model.preset.alpha, LEAST_P)).sum()
    return dict(
        n_cells=cells.n_obs,
        n_held_out=len(model.test_idx),
        by_looks=model.n_clusters + joined,
        n_clusters=model.n_clusters,
        p=root_p(model.network),
        recentred=model.recentred,
    )


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ...")
    parser.add_argument("--fewest", type=int, default=150, help="cells of a type")
    args = parser.parse_args()
    rows, keys = read(args.csv), ["data", "type", "seed"]
    for data in args.data:
        name = Path(data).stem
        given = read_input(
            data, batch_key=args.batch_key, labels_key=args.labels_key, layer=args.layer
        )
        sizes = given.cells.obs[args.labels_key].value_counts()
        types = sizes[sizes >= args.fewest].index
        with tqdm([(t, s) for t in types for s in range(args.seeds)], desc=name) as bar:
            for of_type, seed in bar:
                made = pd.Series(dict(zip(keys, (name, of_type, seed))))
                if not rows.empty and (rows[keys] == made).all(axis=1).any():
                    continue
                cells = given.cells[given.cells.obs[args.labels_key] == of_type].copy()
                row = dict(made) | of_one_type(cells, given.layer, args.batch_key, seed)
                rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
                write_rows(args.csv, rows)
    one = rows.assign(one_by_looks=rows["by_looks"] == 1, one_cluster=rows["n_clusters"] == 1)
    shown = one.groupby("data")[[*SHOWN, "one_by_looks", "one_cluster"]].mean()
    print(shown.assign(runs=one.groupby("data").size()).round(2))


if __name__ == "__main__":
    main()
