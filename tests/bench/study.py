"""Train and score a grid of settings on one data set; one row per run in a csv.

Finished rows are kept, so it resumes.

python tests/bench/study.py nbs/lambda.csv --K 20 --seeds 3 --set M=1 --set lam=0,1,2,2.5,3
"""

import argparse
import ast
import itertools
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import pandas as pd
from gmvae_nb.network import get_preset
from gmvae_nb.reading import read_input
from gmvae_nb.results import read_run
from gmvae_nb.runs import train_run
from peers import write_rows
from tqdm import tqdm

SHOWN = (
    "ari_oracle nmi_oracle asw batch_asw kbet ari_clusters "
    "neg_elbo kl_z effective_K mutual_information"
).split()


def one_run(data: str, preset: str, K: int, seed: int, settings: dict) -> dict:
    "Train on 85 %, score the other cells: one row."
    os.environ["OMP_NUM_THREADS"] = "1"  # one process per core
    keys = {"batch_key": "batch", "labels_key": "cell_type"}
    changed = replace(get_preset(preset), **settings)
    with tempfile.TemporaryDirectory() as folder:
        model = train_run(
            read_input(data, **keys),
            folder,
            K=K,
            **keys,
            preset=changed,
            seed=seed,
            progress=False,
        )
        row = read_run(Path(folder))
    row |= {"data": Path(data).stem, "preset": preset, "n_clusters": model.n_clusters}
    return row | settings


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--data", default="kang_pbmc")
    parser.add_argument("--preset", default="blog")
    parser.add_argument("--K", type=int, nargs="+", default=[20])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE...]",
        help="a field of Preset",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()

    names = [word.split("=")[0] for word in args.set]
    values = [[literal(v) for v in word.split("=", 1)[1].split(",")] for word in args.set]
    grid = [
        (args.data, args.preset, K, seed, dict(zip(names, chosen)))
        for seed in range(args.seeds)
        for chosen in itertools.product(*values)
        for K in args.K
    ]
    done = (
        pd.read_csv(args.csv, float_precision="round_trip") if args.csv.exists() else pd.DataFrame()
    )
    grid = [g for g in grid if not finished(done, *g)]
    with ProcessPoolExecutor(args.jobs) as pool:
        waiting = [pool.submit(one_run, *g) for g in grid]
        for future in tqdm(as_completed(waiting), total=len(waiting), unit="run"):
            done = pd.concat([done, pd.DataFrame([future.result()])], ignore_index=True)
            write_rows(args.csv, done)
    changing = [name for name, v in zip(names, values) if len(v) > 1] or ["seed"]
    shown = [name for name in SHOWN if name in done]
    print(done.groupby(["K", *changing])[shown].agg(["mean", "std"]).round(3).to_string())


def literal(word: str):
    try:
        return ast.literal_eval(word)
    except ValueError:
        return word


def finished(done: pd.DataFrame, data: str, preset: str, K: int, seed: int, settings: dict) -> bool:
    "Whether the csv has this run."
    key = {"data": Path(data).stem, "preset": preset, "K": K, "seed": seed, **settings}
    if done.empty or not set(key) <= set(done):
        return False
    return bool((done[list(key)] == pd.Series(key)).all(axis=1).any())


if __name__ == "__main__":
    main()
