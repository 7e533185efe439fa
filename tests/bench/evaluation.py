"""Time and peak memory of the evaluation of one embedding: ours against scib's, on simulated cells.

    python tests/bench/evaluation.py --cells 1000 5000 --repeats 3 --scib-max-cells 10000
    python tests/bench/evaluation.py nbs/evaluation.csv    keeps the rows of a file, adds others

Every measurement is a process of its own, so that memory is its own; contenders take turns, so that
a busy minute hits all. They are:

- `five`: ours, the scores of the seed: ARI, ASW, NMI, batch ASW and kBET;
- `evaluate`: ours, everything that metrics.evaluate gives, with intervals;
- `scib`: the same five by scib's functions: Leiden by leidenalg at 20 resolutions, k-means by
  scikit-learn; kBET only where R, its package and rpy2 are installed, otherwise four;
- `one_type`: our kBET as if all cells were of one type, its hardest case.

Imports and just-in-time compilation are not counted. Wall seconds are those of a machine that
others may be using (`load` is the number of processes that wanted its cores as the run began); CPU
seconds, summed over cores, hardly depend on that.
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
from itertools import product
from pathlib import Path

# waiting threads sleep, for every contender: to be said before numpy is imported
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

CONTENDERS = ("five", "evaluate", "scib", "one_type")


def simulate(n: int, dims: int, labels: int, batches: int, seed: int, apart: float = 0.5):
    """An AnnData with X_gmvae: Gaussian types of uneven size and sd 1, each batch shifted a little.

    The centres of the types are drawn with a standard deviation of `apart`. At 0.5 types touch and
    Leiden reaches an NMI of 0.85, as on real data. At 1 they lie apart and NMI is 1: leidenalg,
    which iterates until nothing changes, is then done at once.
    """
    import anndata as ad

    rng = np.random.default_rng(seed)
    sizes = rng.dirichlet(np.full(labels, 3.0))
    label, batch = rng.choice(labels, n, p=sizes), rng.integers(0, batches, n)
    label[:labels], batch[:batches] = np.arange(labels), np.arange(batches)  # every name occurs
    X = rng.normal(size=(n, dims))
    X = X + apart * rng.normal(size=(labels, dims))[label]
    X = X + 0.3 * rng.normal(size=(batches, dims))[batch]
    names = {"cell_type": [f"type {i}" for i in label], "batch": [f"batch {i}" for i in batch]}
    obs = pd.DataFrame(names, index=[f"c{i}" for i in range(n)])
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

    one = np.zeros(adata.n_obs, dtype=int)
    return {"kbet": m.kbet(adata.obsm["X_gmvae"], adata.obs["batch"], one)[0]}


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
        clusters = KMeans(k, n_init=10, random_state=0).fit_predict(adata.obsm["X_gmvae"])
        adata.obs["kmeans"] = pd.Categorical(clusters.astype(str))
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
    """Run one contender in this process and print seconds, memory and scores.

    Memory is the peak that is resident, and what the run added to it (GB). A small warm-up comes
    first: what is loaded or compiled once (numba, under scanpy's two kinds of neighbour search) is
    nobody's time.
    """
    warnings.filterwarnings("ignore")
    import gmvae_nb.metrics  # noqa: F401  these are imported so that nobody's time is theirs
    import igraph  # noqa: F401
    import scanpy
    import sklearn.cluster  # noqa: F401
    import threadpoolctl  # noqa: F401

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
    row = {"wall": wall, "cpu": cpu, "load": load, "gb": peak.gb, "gb_added": peak.gb - before}
    row |= {k: None if np.isnan(v) else float(v) for k, v in found.items()}
    print(json.dumps(row))


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

    kbet = "with" if has_r() else "without"
    print(f"{os.cpu_count()} cores, scib {kbet} kBET")
    print(f"{args.dims} dims, {args.labels} labels, {args.batches} batches")
    for name in "OMP_NUM_THREADS", "OMP_WAIT_POLICY":
        print(f"{name}={os.environ.get(name, 'unset')}")
    runs = (
        pd.read_csv(args.csv, float_precision="round_trip").to_dict("records")
        if args.csv and args.csv.exists()
        else []
    )
    for n, repeat, contender in product(args.cells, range(args.repeats), args.contenders):
        key = {"cells": n, "dims": args.dims, "labels": args.labels, "batches": args.batches}
        key |= {"apart": args.apart, "contender": contender, "repeat": repeat}
        too_large = contender == "scib" and n > args.scib_max_cells
        if too_large or any(key.items() <= r.items() for r in runs):
            continue
        row = key | measured(contender, key, args.seed + repeat)
        runs.append(row)
        cost = f"{row['wall']:.1f} s, {row['cpu']:.1f} CPU s, {row['gb']:.2f} GB"
        print(f"  {n} cells, repeat {repeat}, {contender}: {cost}", file=sys.stderr, flush=True)
        if args.csv:
            in_order = pd.DataFrame(runs).sort_values(["apart", "cells", "repeat"], kind="stable")
            in_order.to_csv(args.csv, index=False)
    runs = pd.DataFrame(runs)
    runs = runs[runs["apart"] == args.apart]
    print(report(runs).to_string())
    found = differences(runs)
    if len(found):
        print("largest difference of scores, ours - scib:")
        print(found.to_string(float_format="{:+.1e}".format))


def measured(contender: str, key: dict, seed: int) -> dict:
    "What `measure` prints, in a process of its own."
    words = [sys.executable, __file__, "--measure", contender, "--seed", str(seed)]
    for name in "cells", "dims", "labels", "batches", "apart":
        words += [f"--{name}", str(key[name])]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} at {key['cells']} cells failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(runs: pd.DataFrame) -> pd.DataFrame:
    "By size and contender: repeats, seconds, memory, and how many times faster than scib."
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
    five, scib = (scores[(runs["contender"] == name).to_numpy()] for name in ("five", "scib"))
    found = (five - scib).dropna(how="all")
    return found.groupby("cells").agg(lambda d: d.iloc[d.abs().argmax()])


if __name__ == "__main__":
    main()
