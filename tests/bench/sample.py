"""The seed's sample result, K = 22: its curves, and how much better it knows its own cells.

Training and held-out cells are scored alike after an epoch: without dropout, by the same weights.
One row per seed and epoch; of seed 0 also where the held-out cells lie, and their scores.

python tests/bench/sample.py nbs/sample.csv nbs/sample_cells.csv nbs/sample_scores.csv
"""

import argparse
from pathlib import Path

import pandas as pd
from gmvae_nb.annotation import umap
from gmvae_nb.counts import get_counts
from gmvae_nb.reading import read_input
from gmvae_nb.runs import score_run
from gmvae_nb.train import GMVAE
from peers import write_rows

K, KEYS = 22, {"batch_key": "batch", "labels_key": "cell_type"}
LOOKS = [*range(1, 11), *range(15, 41, 5)]  # epochs
CURVES = "epoch train_neg_elbo test_neg_elbo train_kl_z test_kl_z effective_K".split()


def curves(model: GMVAE, cells) -> pd.DataFrame:
    "The history, and -ELBO of both kinds of cells after the epochs that are looked at."
    rows = []
    for epoch in LOOKS:
        model.train(epoch, progress=False)
        parts = {"train": model.train_idx, "test": model.test_idx}
        nats = {f"{part}_after": -model.get_elbo(cells[idx]).mean() for part, idx in parts.items()}
        rows.append({"epoch": epoch, **nats})
    return model.history[CURVES].merge(pd.DataFrame(rows), on="epoch", how="left")


def cells_of(model: GMVAE, held_out, layer) -> pd.DataFrame:
    "Where the held-out cells lie, raw and latent."
    table = held_out.obs[["cell_type", "batch"]].astype(str)
    embeddings = {
        "counts": get_counts(held_out, layer, allow_empty_genes=True),
        "latent": model.get_latent_representation(held_out),
    }
    for name, X in embeddings.items():
        table[f"{name}_x"], table[f"{name}_y"] = umap(X, model.seed).T.round(3)
    return table


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("curves", "cells", "scores"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--data", default="kang_pbmc")
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    data = read_input(args.data, **KEYS)
    done = pd.read_csv(args.curves) if args.curves.exists() else pd.DataFrame({"seed": []})
    for seed in range(args.seeds):
        if seed in set(done["seed"]):
            continue
        options = {"batch_key": "batch", "layer": data.layer, "preset": "blog", "seed": seed}
        model = GMVAE(data.cells, K=K, **options)
        rows = curves(model, data.cells).assign(seed=seed)
        if seed == 0:
            held_out = data.cells[model.test_idx].copy()
            write_rows(args.cells, cells_of(model, held_out, data.layer))
            scored = score_run(model, held_out, **KEYS, score_counts=True, progress=False)
            scores = pd.DataFrame(scored.scores).rename_axis("score").reset_index()
            write_rows(args.scores, scores)
        done = pd.concat([done, rows], ignore_index=True).astype({"seed": int})
        write_rows(args.curves, done)
        print(rows.tail(1).round(2).to_string(), flush=True)


if __name__ == "__main__":
    main()
