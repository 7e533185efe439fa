"""Time and peak memory of the evaluation of one embedding: ours against scib's way, on simulated cells.

    python tests/bench/evaluation.py --cells 1000 5000 10000 20000 70000 --repeats 3 --scib-max-cells 10000
    python tests/bench/evaluation.py nbs/evaluation.csv    keeps the rows of a file, adds those that are missing

Every measurement is a process of its own, so that memory is its own; contenders take turns, so that a busy minute hits all.
Contenders: `five` (ours: ARI, ASW, NMI, batch ASW and kBET, as the seed scores them), `evaluate` (ours: everything metrics.evaluate
gives, with intervals) and `scib` (the same five by scib's functions: Leiden by leidenalg at 20 resolutions, k-means by scikit-learn;
kBET only where R, its package and rpy2 are installed, otherwise four), and `one_type` (our kBET as if all cells were of one type,
its hardest case). Imports and just-in-time compilation are not counted.
Wall seconds are those of a machine that others may be using (`load` is the number of processes that wanted its cores as the run began);
CPU seconds, summed over cores, hardly depend on that.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

for name, value in {
    "KMP_BLOCKTIME": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():  # waiting threads sleep, for every contender
    os.environ.setdefault(name, value)

import numpy as np
import pandas as pd

CONTENDERS = ("five", "evaluate", "scib", "one_type")


def simulate(n: int, dims: int, labels: int, batches: int, seed: int, apart: float = 0.5):
    """An AnnData with X_gmvae: Gaussian types of uneven size with a standard deviation of 1, each batch shifted a little.

    The centres of the types are drawn with a standard deviation of `apart`. At 0.5 types touch and Leiden reaches an NMI of 0.85, as
    on real data. At 1 they lie apart and NMI is 1: leidenalg, which iterates until nothing changes, is then done at once.
    """
    import anndata as ad

    rng = np.random.default_rng(seed)
    sizes = rng.dirichlet(np.full(labels, 3.0))
    label, batch = rng.choice(labels, n, p=sizes), rng.integers(0, batches, n)
    label[:labels], batch[:batches] = np.arange(labels), np.arange(batches)  # every name occurs
    X = (
        rng.normal(size=(n, dims))
        + apart * rng.normal(size=(labels, dims))[label]
        + 0.3 * rng.normal(size=(batches, dims))[batch]
    )
    obs = pd.DataFrame(
        {"cell_type": [f"type {i}" for i in label], "batch": [f"batch {i}" for i in batch]},
        index=[f"c{i}" for i in range(n)],
    )
    return ad.AnnData(obs=obs.astype("category"), obsm={"X_gmvae": X.astype(np.float32)})


def five(adata):
    from gmvae_nb import metrics as m

    X, labels, batch = adata.obsm["X_gmvae"], adata.obs["cell_type"], adata.obs["batch"]
    found, parts = {}, {}

    def part(name, f):
        start = time.process_time()
        out = f()
        parts["cpu_" + name] = time.process_time() - start
        return out

    neighbors = part("neighbours", lambda: m.knn(X, 50))
    for name, f in {
        "ari_oracle": lambda: m.ari_kmeans(X, labels)[0],
        "asw": lambda: m.silhouette_width(X, labels),
        "nmi_oracle": lambda: m.nmi_leiden(X, labels, neighbors=neighbors)[0],
        "batch_asw": lambda: m.batch_silhouette_width(X, batch, labels),
        "kbet": lambda: m.kbet(X, batch, labels, neighbors=neighbors)[0],
    }.items():
        found[name] = part(name, f)
    return found | parts


def evaluate(adata):
    from gmvae_nb import metrics as m

    return m.evaluate(adata, progress=False).scores


def one_type(adata):
    from gmvae_nb import metrics as m

    return {
        "kbet": m.kbet(adata.obsm["X_gmvae"], adata.obs["batch"], np.zeros(adata.n_obs, dtype=int))[
            0
        ]
    }


def scib(adata):
    import scanpy as sc
    import scib
    from sklearn.cluster import KMeans

    keys = {"batch_key": "batch", "label_key": "cell_type", "embed": "X_gmvae", "verbose": False}
    found = {
        "asw": scib.me.silhouette(adata, "cell_type", "X_gmvae"),
        "batch_asw": scib.me.silhouette_batch(adata, **keys),
    }
    scores = []
    for k in range(1, adata.obs["cell_type"].nunique() + 1):
        adata.obs["kmeans"] = pd.Categorical(
            KMeans(k, n_init=10, random_state=0).fit_predict(adata.obsm["X_gmvae"]).astype(str)
        )
        scores.append(scib.me.ari(adata, "kmeans", "cell_type"))
    found["ari_oracle"] = max(scores)
    sc.pp.neighbors(adata, use_rep="X_gmvae")
    _, found["nmi_oracle"], _ = scib.cl.cluster_optimal_resolution(
        adata,
        "cell_type",
        "leiden",
        resolutions=scib.cl.get_resolutions(n=20, max=2),
        use_rep="X_gmvae",
        return_all=True,
    )
    if has_r():
        found["kbet"] = scib.me.kBET(adata, "batch", "cell_type", "embed", embed="X_gmvae")
    return found


def has_r() -> bool:
    try:
        from rpy2.robjects.packages import isinstalled

        return bool(isinstalled("kBET"))
    except Exception:  # no rpy2, or rpy2 without R
        return False


def measure(contender: str, args) -> None:
    """Run one contender in this process and print seconds, peak resident memory, what the run added to it (GB), and the scores.

    A small warm-up comes first: what is loaded or compiled once (numba, under scanpy's two kinds of neighbour search) is nobody's time.
    """
    warnings.filterwarnings("ignore")
    import gmvae_nb.metrics  # noqa: F401
    import igraph  # noqa: E401, F401
    import scanpy
    import sklearn.cluster
    import threadpoolctl

    with contextlib.redirect_stdout(io.StringIO()):
        if contender == "scib":
            import scib  # noqa: F401
        warnings.filterwarnings("ignore")
        adata = simulate(args.cells[0], args.dims, args.labels, args.batches, args.seed, args.apart)
        small, run = simulate(300, args.dims, 3, 2, 0), globals()[contender]
        if contender == "scib":
            for some in small, simulate(8200, args.dims, 3, 2, 0):
                scanpy.pp.neighbors(some, use_rep="X_gmvae")
        else:
            run(small)
        before, peak, load = current_gb(), Peak(), os.getloadavg()[0]
        wall, cpu = time.perf_counter(), time.process_time()
        with peak:
            found = run(adata)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        json.dumps(
            {"wall": wall, "cpu": cpu, "load": load, "gb": peak.gb, "gb_added": peak.gb - before}
            | {k: None if np.isnan(v) else float(v) for k, v in found.items()}
        )
    )


def current_gb() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**30


class Peak:
    "The largest resident memory of this process while the block runs, looked at every 20 ms."

    def __enter__(self):
        self.gb, self.done = current_gb(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.02):
            self.gb = max(self.gb, current_gb())

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "csv", nargs="?", type=Path, help="file with one row per measurement: kept and added to"
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 5000, 10000, 20000, 70000])
    parser.add_argument("--dims", type=int, default=80)
    parser.add_argument("--labels", type=int, default=22)
    parser.add_argument("--batches", type=int, default=13)
    parser.add_argument(
        "--apart",
        type=float,
        default=0.5,
        help="how far apart the types lie, in their standard deviations per dimension",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scib-max-cells", type=int, default=10000, help="larger sizes are measured without scib"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure, args)

    print(
        f"{os.cpu_count()} cores, {args.dims} dims, {args.labels} labels, {args.batches} batches, "
        f"scib {'with' if has_r() else 'without'} kBET, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}"
    )
    runs = pd.read_csv(args.csv).to_dict("records") if args.csv and args.csv.exists() else []
    for n in args.cells:
        for repeat in range(args.repeats):
            for contender in args.contenders:
                key = {
                    "cells": n,
                    "dims": args.dims,
                    "labels": args.labels,
                    "batches": args.batches,
                    "apart": args.apart,
                    "contender": contender,
                    "repeat": repeat,
                }
                if (
                    contender == "scib"
                    and n > args.scib_max_cells
                    or any(key.items() <= r.items() for r in runs)
                ):
                    continue
                words = {**key, "seed": args.seed + repeat, "measure": contender}
                del words["contender"], words["repeat"]
                command = [
                    sys.executable,
                    __file__,
                    *(w for k, v in words.items() for w in (f"--{k}", str(v))),
                ]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{contender} at {n} cells failed:\n{done.stderr}")
                runs.append(key | json.loads(done.stdout.splitlines()[-1]))
                print(
                    f"  {n} cells, repeat {repeat}, {contender}: {runs[-1]['wall']:.1f} s, {runs[-1]['cpu']:.1f} CPU s, {runs[-1]['gb']:.2f} GB",
                    file=sys.stderr,
                    flush=True,
                )
                if args.csv:
                    pd.DataFrame(runs).sort_values(
                        ["apart", "cells", "repeat"], kind="stable"
                    ).to_csv(args.csv, index=False)
    runs = pd.DataFrame(runs)
    runs = runs[runs["apart"] == args.apart]
    print(report(runs).to_string())
    found = differences(runs)
    if len(found):
        print(
            "largest difference of scores, ours - scib:\n"
            + found.to_string(float_format="{:+.1e}".format)
        )


def report(runs: pd.DataFrame) -> pd.DataFrame:
    "By size and contender: repeats, seconds (median, smallest, largest), peak memory, and how many times faster than scib."
    by = runs.groupby(["cells", "contender"], sort=False)
    table = pd.DataFrame(
        {
            "repeats": by.size(),
            "wall s": by["wall"].median(),
            "min": by["wall"].min(),
            "max": by["wall"].max(),
            "CPU s": by["cpu"].median(),
            "load": by["load"].median(),
            "peak GB": by["gb"].max(),
            "GB added": by["gb_added"].max(),
        }
    )
    scib = table.reindex([(n, "scib") for n, _ in table.index])  # NaN where scib was not run
    table["× faster"], table["× less CPU"] = (
        scib[k].to_numpy() / table[k] for k in ("wall s", "CPU s")
    )
    return table.round(2)


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    "By size: ours - scib, the largest over repeats of the scores that both give."
    scores = runs.set_index(["cells", "repeat"])[["ari_oracle", "asw", "nmi_oracle", "batch_asw"]]
    found = (
        scores[(runs["contender"] == "five").to_numpy()]
        - scores[(runs["contender"] == "scib").to_numpy()]
    ).dropna(how="all")
    return found.groupby("cells").agg(lambda d: d.iloc[d.abs().argmax()])


if __name__ == "__main__":
    main()
