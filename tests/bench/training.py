"""Seconds and peak memory of training, form by form, against the plain form and SCVI, in turns.

    python tests/bench/training.py --csv nbs/training.csv            # the forms and SCVI
    python tests/bench/training.py --simulate 2048 13431             # the seed's genes
    python tests/bench/training.py --scaling --csv nbs/scaling.csv   # cost of a cell by N, G, M, K
    python tests/bench/training.py --disk 500000 13431               # a file on disk, and memory

The first reads ../shared/data/vangalen_bm_full.h5ad, or simulates counts of the seed's size where
that is missing. Every contender is a process of its own; in each round each of them trains for
some mini-batches while the others wait. The preset is `blog` with K = 20. Contenders:
- plain: the model as one writes it down in PyTorch: dense float32 counts, the textbook's log-pmf
  at every entry and draw, autograd, ordinary Adam
- sparse, fused fp32, fused bf16: the same estimator (all M draws for all genes and M of w) by the
  library's means
- default: the preset as it is, M = 10; default M = 1: the same with one draw
- limit, limit M = 1: what no step of these can do without, and nothing else: their matrix
  products, one pass over weights and Adam's moments, log-gamma and digamma once for each non-zero
  count and draw
- recommended: our other preset, of other sizes
- SCVI: scvi-tools' with 80 latent dimensions, 2 layers of 300, NB, gene-cell dispersion
  (`make peers-env`); left out where its environment is missing
Beside them the rate of the machine's matrix products in the same rounds. Wall seconds are what one
waits for; CPU seconds (all threads) move less when other programs use the machine.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

# threads that wait sleep: before torch is imported, for every contender alike
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from cost import Cost
from evaluation import current_gb
from gmvae_nb.data import minibatches
from gmvae_nb.files import write_atomically
from gmvae_nb.network import PRESETS, GMVAENetwork, Posterior, fast_dtype, training_loss
from gmvae_nb.reproducible import without_denormals
from gmvae_nb.schedule import kl_weight
from gmvae_nb.train import GMVAE
from scipy import sparse
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
FULL = HERE.parents[2] / "shared" / "data" / "vangalen_bm_full.h5ad"
SCVI = HERE.parents[1] / ".venv-peers" / "bin" / "python"
ALL_DRAWS = dict(M_heads=10, M_w=10)
FORMS = {
    "plain": dict(**ALL_DRAWS, dtype="float32"),
    "sparse": dict(**ALL_DRAWS, dtype="float32"),
    "fused fp32": dict(**ALL_DRAWS, dtype="float32"),
    "fused bf16": dict(**ALL_DRAWS, dtype="bfloat16"),
    "default": {},
    "default M = 1": dict(M=1),
    "limit": {},
    "limit M = 1": dict(M=1),
    "recommended": {},
}
# mini-batches of a turn; the others 20
STEPS = {"plain": 1, "sparse": 2, "fused fp32": 3, "fused bf16": 5}


class Plain(GMVAENetwork):
    "The network as one writes it down first."

    def encode(self, y, b):
        first, *layers = self.encoder
        h = (y.to_dense() - self.y_mean) / self.y_std @ first.weight + first.bias
        for layer in layers:
            h = layer(h)
        return Posterior(*self.q_x(h), *self.q_w(h))

    def log_likelihood(self, y, b, x, reduction="none"):
        r, l = self.heads(self.decode(x, b))
        y = y.to_dense()
        log_coef = torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1)
        log_p = log_coef - r * F.softplus(l) + y * F.logsigmoid(l)
        return log_p.sum(-1).mean()


class Sparse(GMVAENetwork):
    "The likelihood in autograd's hands, with gamma functions at the non-zero counts only."

    def log_likelihood(self, y, b, x, reduction="none"):
        return self.heads.log_prob(self.decode(x, b), y, impl="sparse").mean()


class Limit:
    """The least work of a step: a bound from below, on this machine, for what `default` does.

    Products: of both heads, the decoder's trunk and the prior network, forward and two backward
    each; the encoder's first layer is counted at its non-zero inputs only."""

    def __init__(self, model: GMVAE, N: int, n_nonzero: int):
        net, p = model.network, model.preset
        draws, low = min(p.M_heads, p.M) * N, fast_dtype(p.dtype, torch.device("cpu"))
        G, H = net.heads.log_r.weight.shape
        tile, first = 1024, net.encoder[0].weight.shape[1]
        linear = [m for m in net.decoder.modules() if isinstance(m, torch.nn.Linear)]
        shapes = [(p.M * N, m.in_features, m.out_features, torch.float32) for m in linear]
        linear = [m for m in net.prior.modules() if isinstance(m, torch.nn.Linear)]
        rows = min(p.M_w, p.M) * N
        shapes += [(rows, m.in_features, m.out_features, torch.float32) for m in linear]
        shapes.append((n_nonzero // first, first, first, torch.float32))
        shapes += [(draws, H, tile, low)] * (2 * G // tile)
        self.products = []
        for n, i, o, kind in shapes:
            a, b, d = (torch.randn(s).to(kind) for s in ((n, i), (i, o), (n, o)))
            self.products += [(a, b, d), (d, b.T, a), (a.T, d, torch.empty_like(b))]
        n = sum(t.numel() for t in net.parameters())
        self.state = [torch.randn(n) for _ in range(3)]  # weights, and two moments
        self.counts = torch.rand(n_nonzero * min(p.M_heads, p.M)) + 1

    def step(self) -> None:
        for a, b, out in self.products:
            torch.mm(a, b, out=out)
        for t in self.state:
            t.mul_(1.0)
        torch.lgamma(self.counts), torch.digamma(self.counts)


def simulate(n: int, G: int, seed: int = 0, block: int = 4096):
    "Blocks of counts, 9 % of them not zero, with a few loud genes and uneven cells."
    rng = np.random.default_rng(seed)
    rate = np.minimum(rng.gamma(0.28, 0.52, G), 30)
    for start in range(0, n, block):
        m = min(block, n - start)
        few = rng.poisson(rate * rng.gamma(4, 0.25, (min(m, 512), 1)))
        pool = sparse.csr_matrix(few.astype(np.float32))
        # the same few hundred cells again: only their number matters here
        y = pool[np.arange(m) % pool.shape[0]]
        if not start:  # no gene is empty
            places = np.arange(G) % m, np.arange(G)
            y += sparse.csr_matrix((np.ones(G, np.float32), places), shape=y.shape)
        yield y


def write_h5ad(path: Path, n: int, G: int) -> None:
    "A simulated h5ad of any size, written block by block."
    batch = pd.Categorical.from_codes(np.arange(n) * 13 // n, [f"b{i}" for i in range(13)])
    obs = pd.DataFrame({"batch": batch}, index=np.arange(n).astype(str))
    var = pd.DataFrame(index=[f"g{i}" for i in range(G)])
    ad.AnnData(obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "r+") as f:
        f.pop("X", None)
        x = f.create_group("X")
        encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        x.attrs.update(encoding | {"shape": [n, G]})
        growing = dict(maxshape=(None,), chunks=(2**17,))
        data = x.create_dataset("data", (0,), "f4", **growing)
        indices = x.create_dataset("indices", (0,), "i4", **growing)
        starts = [0]
        for y in tqdm(simulate(n, G), total=-(-n // 4096), desc=path.name):
            for stored, part in ((data, y.data), (indices, y.indices)):
                stored.resize(starts[-1] + y.nnz, 0)
                stored[starts[-1] :] = part
            starts += (starts[-1] + y.indptr[1:].astype(np.int64)).tolist()
        x["indptr"] = np.array(starts, dtype=np.int64)


# --- a contender's process -----------------------------------------------------------------------


def worker(a) -> None:
    "Train the mini-batches of one turn for every line on stdin; print what it cost."
    if a.threads:
        torch.set_num_threads(a.threads)
    adata = ad.read_h5ad(a.data, backed="r" if a.backed else None)
    seen = np.asarray((adata.X[:] > 0).sum(0)).ravel() > 0 if not a.backed else None
    if seen is not None and not seen.all():
        adata = adata[:, seen].copy()
    settings = FORMS[a.contender] | json.loads(a.settings)
    preset = PRESETS["recommended" if a.contender == "recommended" else "blog"]
    model = GMVAE(adata, K=a.K, batch_key="batch", preset=replace(preset, **settings))
    model.train_idx, model.test_idx = np.arange(adata.n_obs), np.arange(0)
    del adata.obs  # the model holds what it needs
    network = {"plain": Plain, "sparse": Sparse}.get(a.contender)
    if network:
        model.network.__class__ = network
        model.optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-3)
    net, p = model.network, model.preset
    net.train()
    net.y_mean.fill_(0.14), net.y_std.fill_(2.4)

    def endless():
        epoch = 0
        while True:
            options = dict(rng=np.random.default_rng(epoch), drop_last=True)
            yield from minibatches(model.counts, model.batch, model.train_idx, a.N, **options)
            epoch += 1

    def step(y, b):  # as GMVAE._train_epoch has it
        noise = net.paired_noise(p.M, len(y), min(p.M_w, p.M))
        terms = net(y, b, *noise, reduction="mean")
        loss = training_loss(terms, p, kl_weight(0, p, p.max_epochs))
        if p.align:
            log_stds = net.prior.log_stds[0, 0]
            loss = loss + p.align * net.alignment(terms["x_mean"], terms["gamma"], b, log_stds)
        model.optimizer.zero_grad()
        loss.backward()
        model.optimizer.step()
        if p.weight_decay:
            net.heads.decay(p.lr * p.weight_decay / len(model.train_idx))
        return loss.item()

    batches = endless()
    if a.contender.startswith("limit"):
        limit = Limit(model, a.N, next(batches)[0].values().numel())
        step = lambda y, b: limit.step() or 0.0  # noqa: E731
    step(*next(batches)[:2])  # what a first step loads is nobody's time
    print(json.dumps({"ready": True, "gb": current_gb()}), flush=True)
    for line in sys.stdin:
        if line == "stop\n":
            break
        with Cost() as cost:
            for _ in range(a.steps):
                y, b, _ = next(batches)
                loss = step(y, b)
        assert np.isfinite(loss)
        print(json.dumps({"cells": a.steps * a.N, **cost.found, "loss": loss}), flush=True)


class Turn:
    "A contender's process, which trains when it is told to."

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self.read()

    def read(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a contender failed: {' '.join(self.process.args)}")

    def __call__(self) -> dict:
        self.process.stdin.write("\n"), self.process.stdin.flush()
        return self.read()

    def stop(self):
        try:
            self.process.communicate("stop\n")
        except BrokenPipeError:
            pass


def words(options: dict) -> list[str]:
    "--name value, for each option."
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def ours(
    a, contender: str, data: Path, K: int = 20, N: int = 128, steps: int | None = None, **settings
) -> Turn:
    "A contender among our forms."
    backed = settings.pop("backed", False)
    options = dict(contender=contender, data=data, K=K, N=N, threads=a.threads)
    options["steps"] = steps or STEPS.get(contender, 20)
    options["settings"] = json.dumps(settings)
    command = [sys.executable, __file__, "--worker", *words(options)]
    if backed:
        command.append("--backed")
    return Turn(command)


def scvi(a, data: Path) -> Turn:
    options = dict(
        n_latent=80,
        n_hidden=300,
        n_layers=2,
        gene_likelihood="nb",
        dispersion="gene-cell",
        batch_size=128,
        batch_key="batch",
    )
    if a.threads:
        options["threads"] = a.threads
    worker = str(HERE / "scvi_worker.py")
    return Turn([str(SCVI), worker, str(data), "--time-only", *words(options)])


def processor() -> str:
    "What the machine's processor calls itself, and how many of its cores there are."
    name, about = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if about.exists():
        found = re.search(r"model name\s*: (.*)", about.read_text())
        name = found[1] if found else name
    return f"{name}, {os.cpu_count()} cores"


def product_rate(dtype: torch.dtype, rows: int = 1280, H: int = 300, G: int = 8192) -> float:
    "Billion floating-point operations a second of a product of the heads' shape."
    h, w = torch.randn(rows, H).to(dtype), torch.randn(H, G).to(dtype)
    h @ w
    start = time.perf_counter()
    for _ in range(3):
        h @ w
    return 3 * 2 * rows * H * G / (time.perf_counter() - start) / 1e9


def rounds(a, turns: dict[str, Turn], **about) -> pd.DataFrame:
    """Everyone's turn, `repeats` times; the order changes from round to round.

    The csv, if wanted, is written after every round.
    """
    rng, rows = np.random.default_rng(0), []
    for repeat in tqdm(range(a.repeats), unit="round", disable=None):
        rates = {"products_fp32": product_rate(torch.float32)}
        rates["products_bf16"] = product_rate(torch.bfloat16)
        for name in rng.permutation(list(turns)):
            found = turns[name]()
            if "cells_per_second" in found:
                found["cells"] = found["cells_per_second"] * found["seconds"]  # SCVI: an epoch
            place = {"contender": name, "repeat": repeat, "load": os.getloadavg()[0]}
            place["processor"] = processor()
            rows.append({**place, **rates, **found, **about})
        if a.csv and about:
            keep(a, pd.DataFrame(rows))
    for turn in turns.values():
        turn.stop()
    return pd.DataFrame(rows)


def table(found: pd.DataFrame, n_cells: int, order: list[str]) -> pd.DataFrame:
    "Medians over repeats, and ratios within the run."
    found = found.assign(
        ms=1e3 * found["seconds"] / found["cells"],
        cpu_ms=1e3 * found.get("cpu_seconds", np.nan) / found["cells"],
    )
    per = found.groupby("contender")
    out = pd.DataFrame(
        {
            "cells/s": 1e3 / per["ms"].median(),
            "s/epoch": per["ms"].median() * n_cells / 1e3,
            "min": per["ms"].min() * n_cells / 1e3,
            "max": per["ms"].max() * n_cells / 1e3,
            "cpu s/epoch": per["cpu_ms"].median() * n_cells / 1e3,
            "peak GB": per["peak_gb"].max(),
        }
    )
    for other in ("plain", "SCVI"):
        if other in out.index:
            out[f"{other} / this"] = out.loc[other, "s/epoch"] / out["s/epoch"]
    return out.loc[[name for name in order if name in out.index]]


def forms(a, folder: Path) -> None:
    data, n = source(a, folder)
    turns = {name: ours(a, name, data) for name in FORMS if name not in a.without}
    if SCVI.exists() and "SCVI" not in a.without:
        turns["SCVI"] = scvi(a, data)
    found = rounds(a, turns, data=data.stem, n_cells=n)
    print(header(a, data, found))
    print(table(found, n, [*FORMS, "SCVI"]).to_string(float_format=lambda v: f"{v:.3g}"))


def scaling(a, folder: Path) -> None:
    "One factor at a time around N = 128, G = 4,000, M = 10, K = 20."
    base, parts = dict(N=128, G=4000, M=10, K=20), []
    grid = dict(
        N=(64, 128, 256, 512),
        G=(2000, 4000, 8000, 16000),
        M=(1, 2, 10, 20, 40),
        K=(1, 10, 20, 50, 100),
    )
    for factor, values in grid.items():
        turns = {}
        for value in values:
            size = base | {factor: value}
            data = folder / f"simulated-{size['G']}.h5ad"
            if not data.exists():
                write_h5ad(data, 2048, size["G"])
            turns[value] = ours(a, "default", data, size["K"], size["N"], steps=4, M=size["M"])
        found = rounds(a, turns)
        ms = (1e3 * found["seconds"] / found["cells"]).groupby(found["contender"]).median()
        print(f"{factor}: " + ", ".join(f"{v} {ms[v]:.2f}" for v in values) + "   ms per cell")
        parts.append(found.assign(factor=factor, value=found["contender"]))
    keep(a, pd.concat(parts))


def disk(a, folder: Path) -> None:
    n, G = a.disk
    file, few = folder / "disk.h5ad", folder / "memory.h5ad"
    write_h5ad(file, n, G), write_h5ad(few, 16384, G)
    turns = {
        "on disk": ours(a, "default", file, steps=64, backed=True),
        "in memory": ours(a, "default", few, steps=64),
    }
    ready = ", ".join(f"{name} {turn.ready['gb']:.2f} GB" for name, turn in turns.items())
    found = rounds(a, turns, n_cells=n, G=G)
    print(
        f"{n:,} cells x {G:,} genes on disk ({file.stat().st_size / 1e9:.1f} GB) "
        f"against 16,384 of such cells in memory; once set up: {ready}"
    )
    print(table(found, n, list(turns)).to_string(float_format=lambda v: f"{v:.3g}"))


def source(a, folder: Path) -> tuple[Path, int]:
    if a.data:
        data = Path(a.data)
    elif FULL.exists() and not a.simulate:
        data = FULL
    else:
        n, G = a.simulate or (2048, 13431)
        write_h5ad(data := folder / f"simulated-{n}-{G}.h5ad", n, G)
    return data, ad.read_h5ad(data, backed="r").n_obs


def header(a, data: Path, found: pd.DataFrame) -> str:
    n, G = ad.read_h5ad(data, backed="r").shape
    rates = ", ".join(f"{k} {found[f'products_{k}'].median():.0f}" for k in ("fp32", "bf16"))
    return (
        f"{found['processor'].iloc[0]}\n"
        f"{data.name}: {n:,} cells x {G:,} genes, {a.threads or torch.get_num_threads()} threads, "
        f"median of {a.repeats}, load {found['load'].median():.1f}, "
        f"products of the heads' shape in GFLOP/s: {rates}"
    )


def keep(a, found: pd.DataFrame) -> None:
    if a.csv:
        write_atomically(a.csv, lambda path: found.round(6).to_csv(path, index=False))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="an h5ad with counts in X and obs['batch']")
    parser.add_argument("--simulate", type=int, nargs=2, metavar=("CELLS", "GENES"))
    parser.add_argument("--disk", type=int, nargs=2, metavar=("CELLS", "GENES"))
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: torch's own choice")
    parser.add_argument("--csv", help="write one row for each turn to this file")
    worker_options = dict(contender=str, K=int, N=int, steps=int, settings=str)
    for name, kind in worker_options.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--backed", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        with nullcontext() if a.contender == "plain" else without_denormals():
            return worker(a)
    measured = disk if a.disk else scaling if a.scaling else forms
    with tempfile.TemporaryDirectory() as folder:
        measured(a, Path(folder))


if __name__ == "__main__":
    main()
