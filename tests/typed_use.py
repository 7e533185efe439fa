"""The public API as a program with types uses it; never run.

`mypy --strict` must agree (test_typed.py).
"""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from gmvae_nb.annotation import annotate_run
from gmvae_nb.calibration import Calibration, calibration, cluster_types
from gmvae_nb.count_splitting import Halves, agreement_p, halve_cells, split_counts
from gmvae_nb.counts import get_counts
from gmvae_nb.data import kang_pbmc, load_data, split_cells
from gmvae_nb.embed import embed_file
from gmvae_nb.files import write_atomically
from gmvae_nb.h5ad import open_h5ad
from gmvae_nb.match import Cells, GeneMatch
from gmvae_nb.metrics import evaluate
from gmvae_nb.nb_heads import NBHeads
from gmvae_nb.network import PRESETS, Preset, get_preset
from gmvae_nb.reading import Input, read_input
from gmvae_nb.results import collect_runs, results_table
from gmvae_nb.runs import train_run
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix
from torch import Tensor


def fit(adata: AnnData, folder: Path) -> GMVAE:
    preset: Preset = PRESETS["recommended"] if adata.n_obs else get_preset("blog")
    model: GMVAE = GMVAE(adata, K=None, batch_key="batch", layer="counts", preset=preset, seed=1)
    on_cpu: GMVAE = GMVAE(adata, K=20, device="cpu")
    print(on_cpu)
    model = model.train(10, out=folder, progress=False)
    saved: Path = model.save(folder)
    return GMVAE.load(saved, adata)


def use(model: GMVAE, new: AnnData) -> dict[str, float]:
    cells: Cells = model.match_cells(new, map_batch={"donor7": "donor1"}, min_matched=0.8)
    genes: GeneMatch = cells.genes
    missing: list[str] = genes.missing
    history: pd.DataFrame = model.history
    rows: np.ndarray | None = model.test_idx
    X: np.ndarray = model.get_latent_representation(cells)
    prob: np.ndarray = model.predict_proba(new, n_samples=20, map_batch={"*": "donor1"})
    clusters: pd.Categorical = model.predict(cells, n_clusters=5)
    forks: pd.DataFrame = model.cluster_tree()
    elbo: np.ndarray = model.get_elbo(new)
    iwae: np.ndarray = model.get_iwae()
    shares: pd.DataFrame = model.get_normalized_expression(
        cells, transform_batch=["a", "b"], gene_list=["CD3D"], library_size="latent", n_samples=3
    )
    drawn: list[csr_matrix] = model.posterior_predictive(n_samples=2)
    report = model.cluster_report(cells)
    n: int = model.n_clusters + model.K + len(missing) + len(model.genes)
    print(X.shape, clusters, forks, shares, report, rows, len(history), len(drawn))
    return {
        "elbo": float(elbo.mean()),
        "iwae": float(iwae.mean()),
        "confidence": float(prob.max(1).mean()),
        "n": float(n),
    }


def two_clusters(model: GMVAE, new: AnnData, log_r: np.ndarray) -> float:
    divided: Halves = halve_cells(model.network, model.match_cells(new), 0, model.test_idx)
    one, two = (model.predict_proba(half).argmax(1) for half in (divided.first, divided.second))
    counts: csr_matrix = get_counts(new, "counts")
    first, second = split_counts(counts, log_r, 0.5, np.random.default_rng(0))
    print(first.shape, second.shape, divided.rows)
    return agreement_p([[((one == i) & (two == j)).sum() for j in (0, 1)] for i in (0, 1)])


def heads(h: Tensor, y: Tensor) -> Tensor:
    return NBHeads(8, 20).log_prob(h, y, impl="fused", reduction="mean")


def run(path: str, out: str) -> Calibration:
    cells: Input = read_input(path, batch_key="donor", n_top_genes=2000)
    model: GMVAE = train_run(cells, out, K=20, batch_key="donor")
    obs: pd.DataFrame = annotate_run(model, cells, out)
    matched: int = embed_file(model, path, f"{out}/copy.h5ad", map_batch=None)["matched"]
    with open_h5ad(path) as (where, adata):
        print(where, adata.n_obs, matched, get_counts(adata, None).shape)
    train, test = split_cells(4000, 0.15)
    write_atomically(Path(out) / "a.txt", Path.touch)
    print(results_table(collect_runs([out])), evaluate(load_data("kang_pbmc")).scores, kang_pbmc())
    types = cluster_types(obs["gmvae_cluster"], obs["cell_type"])
    right = obs["gmvae_cluster"].map(types) == obs["cell_type"]
    return calibration(obs["gmvae_confidence"].to_numpy(), right.to_numpy())
