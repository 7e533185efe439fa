"""How many of the genes named are wrong? Simulated counts, of which the truth is known.

    python tests/bench/differential.py nbs/differential.csv

1,500 cells and 1,000 genes, negative binomial, two batches with effects of their own. Scenario
`types`: four types, 40 to 10 % of the cells, each with 100 genes changed two- to eightfold; each
type is compared with the rest. Scenario `many`: 800 of the genes of each type are changed, by a
normal draw with a standard deviation of 1 in log2. Scenario `one`: one population, cut in two along
the first principal component of the embedding, so that every gene named is wrong.

Methods, all at a false discovery rate of 0.05: `model` (differential_expression), `pairs` (pairs of
cells, as scvi-tools' change mode draws them, and the same expected rate), `wilcoxon` (rank sum
within batches on all counts), `split` (split_markers, on held-out cells), `split_all` (the same on
all cells). One row for each scenario, method and seed, the mean over comparisons: named, the number
of genes; wrong, the share of them that change by at most 0.25 in log2 (0 if none is named); power,
the share of the others that is named; of scenario `one`, wrong is 1 if any gene is named.
"""

import argparse
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from gmvae_nb.differential import differential_expression, expected_fdr, rank_sum_p, split_markers
from gmvae_nb.inference import cells_in_order
from gmvae_nb.train import GMVAE
from peers import read, write_rows
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control
from tqdm import tqdm

FDR, DELTA, N_PAIRS = 0.05, 0.25, 2000


def simulated(
    scenario: str, seed: int, n: int = 1500, G: int = 1000
) -> tuple[ad.AnnData, np.ndarray]:
    "Cells, and the share of each gene in each type."
    rng, types = np.random.default_rng(seed), 1 if scenario == "one" else 4
    mean, lfc = rng.lognormal(0, 1.5, G), np.zeros((types, G))
    for k in range(types if scenario == "many" else 0):
        lfc[k] = rng.normal(size=G) * (rng.random(G) < 0.8)
    for k in range(types if scenario == "types" else 0):
        changed = rng.choice(G, G // 10, replace=False)
        lfc[k, changed] = rng.uniform(1, 3, G // 10) * rng.choice([-1, 1], G // 10, p=[0.3, 0.7])
    of_batch = np.exp(rng.normal(0, 0.4, (2, G)) * (rng.random(G) < 0.3))
    sizes = np.array([0.4, 0.3, 0.2, 0.1])[:types]
    of, batch = rng.choice(types, n, p=sizes / sizes.sum()), rng.integers(2, size=n)
    share = mean * 2**lfc
    mu = share[of] * of_batch[batch]
    mu *= (rng.lognormal(np.log(2000), 0.4, n) / mu.sum(1))[:, None]
    r = rng.lognormal(0.7, 0.5, G)
    y = csr_matrix(rng.poisson(rng.gamma(r, mu / r)).astype(np.float32))
    obs = pd.DataFrame({"batch": batch.astype(str), "type": of.astype(str)})
    adata = ad.AnnData(y, obs=obs.set_axis([f"cell{i}" for i in range(n)]))
    seen = np.asarray(y.sum(0)).ravel() > 0
    share = share[:, seen] / share[:, seen].sum(1, keepdims=True)
    return adata[:, seen].copy(), share


@torch.no_grad()
def pairs(model: GMVAE, adata: ad.AnnData, inside: np.ndarray) -> np.ndarray:
    "The probability of a change, from pairs of cells, decoded as of one batch."
    rng, cells, draws = np.random.default_rng(0), model.match_cells(adata), []
    for rows in (np.flatnonzero(inside), np.flatnonzero(~inside)):
        chosen, found = np.sort(rng.choice(rows, N_PAIRS)), []
        for y, b, _ in cells_in_order(model.network, cells, chosen):
            q = model.network.encode(y, b)
            x = q.x_mean + q.x_log_std.exp() * torch.randn(q.x_mean.shape)
            shares = 0
            for code in range(len(model.batches)):
                as_of = torch.full_like(b, code)
                log_r, logits = model.network.likelihood_params(y, as_of, x[None])
                shares = shares + (log_r + logits)[0].softmax(-1) / len(model.batches)
            found.append(shares)
        draws.append(torch.cat(found)[torch.randperm(N_PAIRS)])
    eps = 0.5 / min(adata.X[inside].sum(), adata.X[~inside].sum())
    lfc = (draws[0] + eps).log2() - (draws[1] + eps).log2()
    return (lfc.abs() > DELTA).double().mean(0).numpy()


def named_by_model(model: GMVAE, adata: ad.AnnData, inside: np.ndarray) -> np.ndarray:
    options = dict(delta=DELTA, fdr_target=FDR)
    groups = np.where(inside, "in", "out")
    table = differential_expression(model, adata, groups, "in", "out", **options)
    is_de = table.set_index("gene")["is_de"]  # of the genes that are found
    return is_de.reindex(model.genes, fill_value=False).to_numpy()


def named_by_wilcoxon(adata: ad.AnnData, inside: np.ndarray) -> np.ndarray:
    shares = adata.X.toarray() / np.asarray(adata.X.sum(1))
    p = rank_sum_p(shares, inside, adata.obs["batch"].astype(int).to_numpy())
    return false_discovery_control(p) <= FDR


def named_by_split(model: GMVAE, adata: ad.AnnData, assign) -> dict[str, np.ndarray]:
    "Of each cluster."
    table = split_markers(model, adata, assign=assign)
    named = {}
    for k, of in table.groupby("cluster"):
        named[k] = of.set_index("gene").loc[model.genes, "q"].to_numpy() <= FDR
    return named


def scores(named: np.ndarray, change: np.ndarray) -> dict[str, float]:
    is_de = np.abs(change) > DELTA
    return dict(
        named=named.sum(),
        wrong=float((~is_de[named]).mean()) if named.any() else 0.0,
        power=float((named & is_de).sum() / is_de.sum()) if is_de.any() else np.nan,
    )


def fit(scenario: str, seed: int) -> dict[str, dict]:
    "method -> mean scores."
    torch.manual_seed(seed)
    adata, share = simulated(scenario, seed)
    model = GMVAE(adata, batch_key="batch", seed=seed).train(progress=False)
    held_out, rows = adata[model.test_idx].copy(), {}

    def add(method: str, named: np.ndarray, change: np.ndarray) -> None:
        rows.setdefault(method, []).append(scores(named, change))

    if scenario == "one":
        x = model.get_latent_representation()
        direction = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0]

        def side(of) -> np.ndarray:
            return ((model.get_latent_representation(of) - x.mean(0)) @ direction > 0).astype(int)

        labels, nothing = side(None), np.zeros(adata.n_vars)
        comparisons = [(labels == 1, nothing)]
        split = {
            name: [(named_by_split(model, part, side)["1"], nothing)]
            for name, part in (("split", held_out), ("split_all", adata))
        }
    else:
        of = adata.obs["type"].to_numpy().astype(int)
        changes = [np.log2(share[k] / share[of[of != k]].mean(0)) for k in range(len(share))]
        comparisons = [(of == k, changes[k]) for k in range(len(share))]
        split, clusters = {}, np.asarray(model.predict()).astype(str)
        for name, part in (("split", held_out), ("split_all", adata)):
            named = named_by_split(model, part, None)
            main = {k: pd.Series(of[clusters == k]).mode().iloc[0] for k in named}
            split[name] = [(named[k], changes[main[k]]) for k in named]
    for inside, change in comparisons:
        add("model", named_by_model(model, adata, inside), change)
        add("pairs", expected_fdr(pairs(model, adata, inside)) <= FDR, change)
        add("wilcoxon", named_by_wilcoxon(adata, inside), change)
    for name, of_clusters in split.items():
        for named, change in of_clusters:
            add(name, named, change)
    return {method: pd.DataFrame(of).mean().to_dict() for method, of in rows.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    todo = [(scenario, seed) for seed in args.seeds for scenario in ("types", "many", "one")]
    for scenario, seed in tqdm(todo, unit="run"):
        done = read(args.csv)
        if not done.empty and ((done["scenario"] == scenario) & (done["seed"] == seed)).any():
            continue
        found = fit(scenario, seed)
        rows = [dict(scenario=scenario, method=m, seed=seed, **of) for m, of in found.items()]
        write_rows(args.csv, pd.concat([done, pd.DataFrame(rows)], ignore_index=True))
    by = read(args.csv).groupby(["scenario", "method"], sort=False)
    print(by[["named", "wrong", "power"]].mean().round(3).to_string())


if __name__ == "__main__":
    main()
