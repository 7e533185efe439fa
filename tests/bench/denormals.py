"""What denormals cost: the same training with and without them, in turn.

    python tests/bench/denormals.py nbs/denormals.csv

The shipped cells, on as many threads as `OMP_NUM_THREADS` says. `kept`: denormals are computed
with, as torch does if it is not told otherwise; `zero`: they are taken for 0, as gmvae_nb does.
One row for each preset, repeat, way and epoch: seconds, and the -ELBO of the training cells.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from gmvae_nb import reproducible
from gmvae_nb.reading import read_input
from gmvae_nb.train import GMVAE
from peers import write_rows
from tqdm import tqdm

CONTENDERS = {"blog": 30, "recommended": None}  # and the number of components
plain = reproducible.take_denormals_for_zero


def trained(preset: str, way: str, n_epochs: int) -> pd.DataFrame:
    "The history of a training."
    data = read_input("kang_pbmc", batch_key="batch")
    keys = dict(batch_key="batch", layer=data.layer)
    model = GMVAE(data.cells, CONTENDERS[preset], preset=preset, **keys)
    reproducible.take_denormals_for_zero = plain if way == "zero" else lambda on: None
    try:
        model.train(n_epochs, progress=False)
    finally:
        reproducible.take_denormals_for_zero = plain
    return model.history[["epoch", "seconds", "train_neg_elbo"]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--presets", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    args = parser.parse_args()
    rounds = [(p, r) for p in args.presets for r in range(args.repeats)]
    rows = []
    for preset, repeat in tqdm(rounds, unit="round"):
        found = {way: trained(preset, way, args.epochs) for way in ("kept", "zero")}
        for way, history in found.items():
            rows.append(history.assign(preset=preset, repeat=repeat, way=way))
        kept, zero = (history["train_neg_elbo"] for history in found.values())
        np.testing.assert_array_equal(kept, zero)  # not a bit differs
    write_rows(args.csv, pd.concat(rows, ignore_index=True))
    last = pd.concat(rows).query("epoch == epoch.max()")
    by = last.groupby(["preset", "way"], sort=False)["seconds"]
    print(by.agg(["median", "min", "max"]).round(2).to_string())


if __name__ == "__main__":
    main()
