"""What larger mini-batches cost: `recommended` with 128, 512 and 1,024 cells in each.

    OMP_NUM_THREADS=1 python tests/bench/batch_size.py nbs/batch_size.csv --seeds 0 \\
        --data kang_pbmc ../shared/data/vangalen_bm_normal_2000hvg.h5ad

The rate is multiplied as the mini-batch is (`scaled`, schedule.with_batch_size) or by nothing
(`same`); passes over the cells are the same but for rounding. A row per data set, seed, size and
rate: -ELBO of the held-out cells, ARI of the own clusters with the types on all cells, clusters,
epochs, and seconds of the processor for the training. Finished rows are kept.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from gmvae_nb.metrics import ari
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.schedule import row_of_weights, with_batch_size
from gmvae_nb.train import GMVAE

RUNS = ((128, "same"), (512, "scaled"), (1024, "scaled"), (512, "same"))
KEY = ["data", "seed", "batch_size", "rate"]


def measured(data, preset, seed: int) -> dict:
    model = GMVAE(
        data.cells, batch_key="batch", layer=data.layer, preset=preset, seed=seed, device="cpu"
    )
    start = time.process_time()
    model.train(progress=False)
    seconds = time.process_time() - start
    types = data.cells.obs["cell_type"].to_numpy()
    return dict(
        test_neg_elbo=row_of_weights(model.history)["test_neg_elbo"],
        ari_clusters=ari(types, model.predict().to_numpy()),
        clusters=model.n_clusters,
        epochs=len(model.history),
        processor_seconds=seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--data", nargs="+", default=["kang_pbmc"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    rows = (
        pd.read_csv(options.table, float_precision="round_trip").to_dict("records")
        if options.table.exists()
        else []
    )
    for seed in options.seeds:
        for name in options.data:
            data = read_input(name, batch_key="batch")
            for size, rate in RUNS:
                key = dict(zip(KEY, (Path(name).stem, seed, size, rate), strict=True))
                if any(all(row[k] == v for k, v in key.items()) for row in rows):
                    continue
                preset = with_batch_size(PRESETS["recommended"], size)
                if rate == "same":
                    preset = replace(preset, lr=PRESETS["recommended"].lr)
                rows.append(key | measured(data, preset, seed))
                pd.DataFrame(rows).round(4).to_csv(options.table, index=False)
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
