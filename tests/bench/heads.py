"""Seconds and peak memory of one training step of the decoder's heads, forward and backward, in each form of `log_prob`.

    python tests/bench/heads.py                      # the seed's size: N = 128, M = 10, H = 300, G = 13,431, 9 % not zero
    python tests/bench/heads.py --G 2000 --M 1
    python tests/bench/heads.py --tiles 64 128 256 512   # the fused form at other tile widths

The contenders take turns. Beside them, the six matrix products that no form can do without. Wall seconds are what one waits
for; CPU seconds (all threads) hardly move when other programs use the machine, so the ratios are given for both.
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
from gmvae_nb import nb_likelihood
from gmvae_nb.data import write_atomically
from gmvae_nb.nb_likelihood import NBHeads
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
    width = (
        mock.patch.multiple(nb_likelihood, TILE_ENTRIES=tile * rows, TILE_GENES=1)
        if tile
        else nullcontext()
    )

    def step():
        with width:
            heads.log_prob(h, y, reduction="mean", **options).backward()
        heads.zero_grad()
        h.grad = None

    return step


def as_written(h, heads, y):
    "One step with the log-pmf as a textbook has it, in single precision and autograd's hands: a function to call."

    def step():
        r, l = heads(h)
        terms = (
            torch.lgamma(y + r)
            - torch.lgamma(r)
            - torch.lgamma(y + 1)
            - r * F.softplus(l)
            + y * F.logsigmoid(l)
        )
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
    y = ((1 + torch.poisson(torch.full((a.N, a.G), 1.0))) * (torch.rand(a.N, a.G) < a.nonzero)).to(
        a.device
    )
    csr = y.to_sparse_csr()
    steps = {f"six products, {name}": products(h, heads, dtype) for name, dtype in TYPES.items()}
    if a.tiles:
        return steps | {
            f"fused {name}, tile {tile}": likelihood(h, heads, csr, tile, impl="fused", dtype=dtype)
            for name, dtype in TYPES.items()
            for tile in a.tiles
        }
    steps |= {"as written, fp32": as_written(h, heads, y)}
    steps |= {impl: likelihood(h, heads, y, impl=impl) for impl in ("dense", "sparse")}
    steps |= {
        f"fused {name}": likelihood(h, heads, csr, impl="fused", dtype=dtype)
        for name, dtype in TYPES.items()
    }
    return steps | {
        f"fused {name}, one draw per tile": likelihood(
            h, heads, csr, impl="fused", dtype=dtype, M_heads=1
        )
        for name, dtype in TYPES.items()
    }


def peak_mb(a: argparse.Namespace, name: str) -> float:
    "Most memory beyond weights, hidden layer and counts in one step, in a process of its own; nan where not known."
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, what in (
        ("N", 128, "cells"),
        ("M", 10, "draws"),
        ("H", 300, "hidden width"),
        ("G", 13431, "genes"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument(
        "--nonzero", type=float, default=0.09, help="share of counts that are not zero (0.09)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--without", nargs="*", default=[], help="contenders to leave out, say dense, which is slow"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--tiles", type=int, nargs="*", help="compare tile widths (genes) of the fused form instead"
    )
    parser.add_argument("--csv", help="also write the table to this file")
    a = parser.parse_args()
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        small = contenders(argparse.Namespace(**{**vars(a), "N": 2, "G": 2}))
        names = (
            []
            if a.tiles
            else [name for name in small if "products" not in name and name not in a.without]
        )
        peaks = dict(zip(names, pool.map(peak_mb, [a] * len(names), names)))
    steps = {name: step for name, step in contenders(a).items() if name not in a.without}
    rows = {name: [] for name in steps}
    for repeat in tqdm(range(a.repeats + 1), unit="round", disable=None):
        for name, step in steps.items():
            found = measure(step, a.device)
            if repeat:
                rows[name].append(found)  # the first round warms up

    table = pd.DataFrame()
    for name, found in rows.items():
        found = pd.DataFrame(found)
        table.loc[name, "wall s"], table.loc[name, "min"], table.loc[name, "max"] = found.wall.agg(
            ["median", "min", "max"]
        )
        table.loc[name, "cpu s"] = found.cpu.median()
        table.loc[name, "cpu min"], table.loc[name, "cpu max"] = found.cpu.min(), found.cpu.max()
    if peaks:
        table["peak MB"] = pd.Series(peaks).round()
    own = [f"six products, {'bf16' if 'bf16' in name else 'fp32'}" for name in table.index]
    for clock in ("wall", "cpu"):
        seconds = table[f"{clock} s"]
        table[f"/products {clock}"] = seconds.to_numpy() / seconds[own].to_numpy()
        if "dense" in table.index:
            table[f"dense/ {clock}"] = seconds["dense"] / seconds
    print(
        f"N = {a.N}, M = {a.M}, H = {a.H}, G = {a.G}, {a.nonzero:.0%} of the counts not zero, {a.device}, "
        f"{a.threads} threads, median of {a.repeats}, load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(table.to_string(float_format=lambda v: f"{v:.3g}"))
    if a.csv:
        write_atomically(a.csv, lambda path: table.to_csv(path, float_format="%.4g"))


if __name__ == "__main__":
    main()
