"""Noise of the training gradient, and its price, for other numbers of draws.

Draws of x (M), of those for each tile of genes (M_heads), of w (M_w).

    python tests/bench/partition.py nbs/partition.csv    # the bone-marrow file, or the shipped one
    python tests/bench/partition.py out.csv --data kang_pbmc --pairs 8

A model is trained for a few epochs. Then, for one mini-batch and without dropout unless asked for,
each choice of draws gives pairs of gradients with fresh draws; half the squared distance of a pair
is an unbiased estimate of the gradient's total variance. It is reported for the encoder, the
decoder's trunk, its heads and the prior network, relative to the squared norm of the mean gradient
of each. The choices take turns, and every gradient is timed: wall seconds are what one waits for,
CPU seconds hardly move when other programs use the machine.
"""

import os

os.environ.setdefault("KMP_BLOCKTIME", "0")  # threads that wait sleep: before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from gmvae_nb.data import load_data, minibatches, to_torch
from gmvae_nb.files import write_atomically
from gmvae_nb.gmvae_loss import gmvae_terms
from gmvae_nb.nb_heads import NBHeads
from gmvae_nb.network import GMVAENetwork, fast_dtype, get_preset
from gmvae_nb.train import GMVAE
from torch import Tensor
from tqdm import tqdm

FULL = Path(__file__).parents[3] / "shared/data/vangalen_bm_full.h5ad"
PARTS = ("encoder", "trunk", "heads", "prior")


class Draws(NamedTuple):
    "A choice of the numbers of draws."

    M: int  # of x
    M_heads: int  # of those, for each tile of genes
    M_w: int  # of w
    variant: str = ""  # one of the three below


SHUFFLED = "shuffled"  # tiles of shuffled genes, not of neighbours
ANTITHETIC = "antithetic"  # the noise of every second draw is minus that of the one before
ALL_PAIRS = "all pairs"  # every draw of x meets every draw of w

CHOICES = [
    *(Draws(M, M, M) for M in (1, 2, 10)),
    *(Draws(10, M_heads, M_w) for M_heads in (1, 2) for M_w in (1, 2, 5, 10)),
    *(Draws(M, M_heads, 10) for M in (20, 40) for M_heads in (1, 2)),
    Draws(10, 1, 1, SHUFFLED),
    Draws(10, 1, 2, ALL_PAIRS),
    Draws(2, 2, 2, ANTITHETIC),
    Draws(10, 10, 10, ANTITHETIC),
    Draws(10, 1, 2, ANTITHETIC),
    Draws(10, 2, 2, ANTITHETIC),
    Draws(10, 2, 10, ANTITHETIC),
    Draws(20, 2, 2, ANTITHETIC),
    Draws(20, 2, 10, ANTITHETIC),
]


def antithetic(network: GMVAENetwork, M: int, N: int, M_w: int) -> tuple[Tensor, ...]:
    """Noise as `network.noise` gives it, in pairs of opposite sign.

    Any draw alone still comes from the same distribution.
    """
    half = network.noise((M + 1) // 2, N, M_w=(M_w + 1) // 2)
    return tuple(torch.stack([e, -e], 1).flatten(0, 1)[:n] for e, n in zip(half, (M, M_w)))


def parameters(network: GMVAENetwork, heads: NBHeads) -> dict[str, list[Tensor]]:
    "The parameters of each part of the network."
    encoder = torch.nn.ModuleList([network.encoder, network.q_x, network.q_w])
    modules = dict(encoder=encoder, trunk=network.decoder, heads=heads, prior=network.prior)
    return {part: list(modules[part].parameters()) for part in PARTS}


def gradient(
    network: GMVAENetwork, y: Tensor, b: Tensor, d: Draws, heads: NBHeads, counts: Tensor
) -> dict[str, Tensor]:
    """Gradient of the mean -ELBO of one mini-batch with fresh draws.

    One vector for each part of the network.
    """
    q = network.encode(y, b)
    if d.variant == ANTITHETIC:
        noise = antithetic(network, d.M, len(b), d.M_w)
    else:
        noise = network.noise(d.M, len(b), M_w=d.M_w)
    x, components = network.draw(q, *noise)
    paired = x.repeat(d.M_w, 1, 1) if d.variant == ALL_PAIRS else x
    terms = gmvae_terms(paired, *q, *components, bound=network.preset.bound)
    log_lik = heads.log_prob(
        network.decode(x, b),
        counts,
        impl="fused",
        dtype=fast_dtype("auto", y.device),
        reduction="mean",
        M_heads=None if d.M_heads == d.M else d.M_heads,
    )
    neg_elbo = (terms["kl_w"] + terms["kl_xz"]).mean() - log_lik
    of_part = parameters(network, heads)
    grads = iter(torch.autograd.grad(neg_elbo, sum(of_part.values(), [])))
    return {part: torch.cat([next(grads).flatten() for _ in of_part[part]]) for part in PARTS}


def shuffled(heads: NBHeads, y, seed: int = 0) -> tuple[NBHeads, Tensor]:
    "The same heads and counts with the genes in another order."
    order = np.random.default_rng(seed).permutation(y.shape[1])
    other = NBHeads(heads.log_r.in_features, y.shape[1])
    genes = torch.from_numpy(order)
    other.load_state_dict({name: p[genes] for name, p in heads.state_dict().items()})
    return other, to_torch(y[:, order].sorted_indices())


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    data = str(FULL) if FULL.exists() else "kang_pbmc"
    add("csv", type=Path)
    add("--data", default=data, help="an h5ad, or the name of a data set (%(default)s)")
    add("--epochs", type=int, default=5, help="of training before (%(default)s)")
    add("--K", type=int, default=20)
    add("--pairs", type=int, default=20, help="of gradients for each choice (%(default)s)")
    dropout = "leave the decoder's and the prior's dropout on: masks of their own for each draw"
    add("--dropout", action="store_true", help=dropout)
    add("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def first_batch(model: GMVAE) -> tuple:
    "(counts, batches, indices) of one mini-batch."
    size, rng = model.preset.batch_size, np.random.default_rng(0)
    return next(iter(minibatches(model.counts, model.batch, model.train_idx, size, rng=rng)))


def half_squared_distance(pair: list[dict[str, Tensor]], part: str) -> float:
    "An unbiased estimate of the gradient's total variance."
    return 0.5 * (pair[0][part] - pair[1][part]).double().square().sum().item()


def timed_pairs(network: GMVAENetwork, y: Tensor, b: Tensor, forms: dict, n: int):
    "Rows of variances and seconds for each choice of draws; squared norms of the mean gradient."
    rows = {d: [] for d in CHOICES}
    total, n_gradients = {}, 0
    for d in CHOICES:
        gradient(network, y, b, d, *forms[d])  # warms up
    for _ in tqdm(range(n), unit="pair"):
        for d in CHOICES:
            pair, wall, cpu = [], [], []
            for _ in range(2):
                start = time.perf_counter(), time.process_time()
                pair.append(gradient(network, y, b, d, *forms[d]))
                wall.append(time.perf_counter() - start[0])
                cpu.append(time.process_time() - start[1])
            row = {part: half_squared_distance(pair, part) for part in PARTS}
            rows[d].append(row | {"seconds": np.mean(wall), "cpu_seconds": np.mean(cpu)})
            if d.variant == SHUFFLED:  # which has its heads in another order
                continue
            for g in pair:
                total = {part: g[part] + total.get(part, 0) for part in PARTS}
            n_gradients += 2
    squared_norm = {}
    for part in PARTS:
        squared_norm[part] = (total[part] / n_gradients).double().square().sum().item()
    return rows, squared_norm


def summary(rows: dict[Draws, list[dict]], squared_norm: dict[str, float]) -> pd.DataFrame:
    "One line for each choice: relative variances with standard errors, seconds with quartiles."
    table = []
    for d, pairs in rows.items():
        pairs, row = pd.DataFrame(pairs), d._asdict()
        for part in PARTS:
            relative = pairs[part] / squared_norm[part]
            row[part], row[f"{part}_se"] = relative.mean(), relative.sem()
        for clock in ("seconds", "cpu_seconds"):
            for suffix, share in (("", 0.5), ("_25", 0.25), ("_75", 0.75)):
                row[clock + suffix] = pairs[clock].quantile(share)
        table.append(row)
    return pd.DataFrame(table)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    adata = load_data(a.data)
    preset = replace(get_preset("blog"), max_epochs=a.epochs)
    model = GMVAE(adata, K=a.K, batch_key="batch", preset=preset).train()
    network = model.network.eval()
    for module in (network.decoder, network.prior):
        module.train(a.dropout)
    y, b, idx = first_batch(model)
    in_order, out_of_order = (network.heads, y), shuffled(network.heads, model.counts[idx])
    forms = {d: out_of_order if d.variant == SHUFFLED else in_order for d in CHOICES}
    torch.manual_seed(0)
    table = summary(*timed_pairs(network, y, b, forms, a.pairs))
    table.insert(0, "data", Path(a.data).stem)
    write_atomically(a.csv, lambda path: table.to_csv(path, index=False, float_format="%.4g"))
    print(
        f"{a.data}: {adata.n_vars:,} genes, K = {a.K}, {a.epochs} epochs, N = {len(b)}, "
        f"{a.pairs} pairs, {a.threads} threads, load of the machine {os.getloadavg()[0]:.1f}; "
        "variance relative to the squared norm, and the encoder's times CPU seconds"
    )
    table["encoder x cpu"] = table.encoder * table.cpu_seconds
    columns = ["M", "M_heads", "M_w", "variant", *PARTS, "seconds", "cpu_seconds", "encoder x cpu"]
    print(table[columns].to_string(index=False, float_format=lambda v: f"{v:.3g}"))


if __name__ == "__main__":
    main()
