"""Seconds and peak memory of one training step of the decoder's heads, in each form of `log_prob`.

    python tests/bench/heads.py                          # the seed's size
    python tests/bench/heads.py --G 2000 --M 1
    python tests/bench/heads.py --tiles 64 128 256 512   # the fused form at other tile widths

The seed's size is N = 128, M = 10, H = 300, G = 13,431, with 9 % of the counts not zero. A step is
forward and backward. The contenders take turns. Beside them, the six matrix products that no form
can do without. Wall seconds are what one waits for; CPU seconds (all threads) hardly move when
other programs use the machine, so the ratios are given for both.
"""

import os

os.environ.setdefault("KMP_BLOCKTIME", "0")  # threads that wait sleep: before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from gmvae_nb import nb_heads
from gmvae_nb.files import write_atomically
from gmvae_nb.nb_heads import NBHeads
from tqdm import tqdm

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)


def products(h, heads, dtype):
    "The six matrix products of a step on given matrices, and nothing else: a function to call."
    h = h.detach().reshape(-1, h.shape[-1]).to(dtype)
    weights = [w.detach().to(dtype) for w in (heads.log_r.weight, heads.logits.weight)]
    D = torch.randn(len(h), len(weights[0]), device=h.device).to(dtype)

    def step():
        for w in weights:
            h @ w.T, D.T @ h, D @ w

    return step


def likelihood(h, heads, y, tile=None, **options):
    "One step through `log_prob`: a function to call."
    rows = h.shape[0] * h.shape[1]
    tile_width = nullcontext()
    if tile:
        tile_width = mock.patch.multiple(nb_heads, TILE_ENTRIES=tile * rows, TILE_GENES=1)

    def step():
        with tile_width:
            heads.log_prob(h, y, reduction="mean", **options).backward()
        heads.zero_grad()
        h.grad = None

    return step


def as_written(h, heads, y):
    "One step with the textbook's log-pmf, in single precision and by autograd: a function to call."

    def step():
        r, l = heads(h)
        log_coef = torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1)
        terms = log_coef - r * F.softplus(l) + y * F.logsigmoid(l)
        terms.sum(-1).mean().backward()
        heads.zero_grad()
        h.grad = None

    return step


def contenders(a: argparse.Namespace) -> dict:
    "Name -> step, on one set of random heads, hidden layer and counts."
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    heads = NBHeads(a.H, a.G).to(a.device)
    h = torch.randn(a.M, a.N, a.H, device=a.device, requires_grad=True)
    y = 1 + torch.poisson(torch.full((a.N, a.G), 1.0))
    y = (y * (torch.rand(a.N, a.G) < a.nonzero)).to(a.device)
    csr = y.to_sparse_csr()
    steps = {}
    for name, dtype in TYPES.items():
        steps[f"six products, {name}"] = products(h, heads, dtype)
    if a.tiles:
        for name, dtype in TYPES.items():
            fused = dict(impl="fused", dtype=dtype)
            for tile in a.tiles:
                steps[f"fused {name}, tile {tile}"] = likelihood(h, heads, csr, tile, **fused)
        return steps
    steps["as written, fp32"] = as_written(h, heads, y)
    for impl in ("dense", "sparse"):
        steps[impl] = likelihood(h, heads, y, impl=impl)
    for suffix, options in (("", {}), (", one draw per tile", dict(M_heads=1))):
        for name, dtype in TYPES.items():
            fused = dict(impl="fused", dtype=dtype, **options)
            steps[f"fused {name}{suffix}"] = likelihood(h, heads, csr, **fused)
    return steps


def peak_mb(a: argparse.Namespace, name: str) -> float:
    """Most memory beyond weights, hidden layer and counts in one step, in a process of its own.

    nan where not known.
    """
    small = argparse.Namespace(**{**vars(a), "N": 8, "M": 1, "G": 64})
    contenders(small)[name]()  # loads what a first step loads
    step = contenders(a)[name]
    if torch.device(a.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: Linux
        before = resident("VmRSS")
        step()
        return (resident("VmHWM") - before) * 1024 / 1e6
    except OSError:
        return float("nan")


def measure(step, device: str) -> dict[str, float]:
    "Seconds of one step, on the wall and of all threads."
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--N", type=int, default=128, help="cells (%(default)s)")
    add("--M", type=int, default=10, help="draws (%(default)s)")
    add("--H", type=int, default=300, help="hidden width (%(default)s)")
    add("--G", type=int, default=13431, help="genes (%(default)s)")
    add("--nonzero", type=float, default=0.09, help="share of counts not zero (%(default)s)")
    add("--repeats", type=int, default=5)
    add("--without", nargs="*", default=[], help="contenders to leave out: dense is slow")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--device", default="cpu")
    add("--tiles", type=int, nargs="*", help="compare tile widths (genes) of the fused form")
    add("--csv", help="also write the table to this file")
    return parser.parse_args()


def peaks_mb(a: argparse.Namespace) -> dict[str, float]:
    "Peak memory of each contender, one process after the other."
    small = contenders(argparse.Namespace(**{**vars(a), "N": 2, "G": 2}))
    names = [name for name in small if "products" not in name and name not in a.without]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        return dict(zip(names, pool.map(peak_mb, [a] * len(names), names)))


def in_turns(a: argparse.Namespace) -> dict[str, pd.DataFrame]:
    "Seconds of each contender, one row for each round."
    steps = {name: step for name, step in contenders(a).items() if name not in a.without}
    rows = {name: [] for name in steps}
    for repeat in tqdm(range(a.repeats + 1), unit="round", disable=None):
        for name, step in steps.items():
            seconds = measure(step, a.device)
            if repeat:
                rows[name].append(seconds)  # the first round warms up
    return {name: pd.DataFrame(seconds) for name, seconds in rows.items()}


def summary(rounds: dict[str, pd.DataFrame], peaks: dict[str, float]) -> pd.DataFrame:
    "Medians, ranges, and ratios within the run."
    table = pd.DataFrame()
    for name, seconds in rounds.items():
        wall, cpu = seconds.wall, seconds.cpu
        table.loc[name, ["wall s", "min", "max"]] = wall.median(), wall.min(), wall.max()
        table.loc[name, ["cpu s", "cpu min", "cpu max"]] = cpu.median(), cpu.min(), cpu.max()
    if peaks:
        table["peak MB"] = pd.Series(peaks).round()
    own = [f"six products, {'bf16' if 'bf16' in name else 'fp32'}" for name in table.index]
    for clock in ("wall", "cpu"):
        seconds = table[f"{clock} s"]
        table[f"/products {clock}"] = seconds.to_numpy() / seconds[own].to_numpy()
        if "dense" in table.index:
            table[f"dense/ {clock}"] = seconds["dense"] / seconds
    return table


def main():
    a = arguments()
    peaks = {} if a.tiles else peaks_mb(a)
    table = summary(in_turns(a), peaks)
    print(
        f"N = {a.N}, M = {a.M}, H = {a.H}, G = {a.G}, {a.nonzero:.0%} of the counts not zero, "
        f"{a.device}, {a.threads} threads, median of {a.repeats}, "
        f"load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(table.to_string(float_format=lambda v: f"{v:.3g}"))
    if a.csv:
        write_atomically(a.csv, lambda path: table.to_csv(path, float_format="%.4g"))


if __name__ == "__main__":
    main()
