"""Writes the golden model of the current format: python tests/golden/make.py.

Once written it stays as it is: see tests/test_promises.py.
"""

import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from gmvae_nb.model_folder import FORMAT
from gmvae_nb.network import PRESETS
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix

HERE = Path(__file__).parent
SMALL = replace(
    PRESETS["recommended"],
    n_x=2,
    encoder_hidden=(6, 4),
    decoder_hidden=(4, 6),
    batch_size=16,
    min_steps=0,
    dtype="float32",
)


def cells() -> ad.AnnData:
    "60 cells x 12 genes, two batches, from counts.csv."
    table = pd.read_csv(HERE / "counts.csv", index_col=0, dtype={"batch": str})
    genes = [name for name in table if name != "batch"]
    return ad.AnnData(
        csr_matrix(table[genes].to_numpy(dtype=np.float32)),
        obs=table[["batch"]],
        var=pd.DataFrame(index=genes),
    )


def write_counts() -> None:
    rng = np.random.default_rng(0)
    rates = rng.gamma(1.0, 3.0, (3, 12))
    y = rng.poisson(rates[np.arange(60) % 3]) + (np.arange(12) == 0)
    names, genes = [f"cell{i}" for i in range(60)], [f"gene{g}" for g in range(12)]
    table = pd.DataFrame(y, index=names, columns=genes)
    table["batch"] = np.arange(60) // 3 % 2
    table.to_csv(HERE / "counts.csv")


if __name__ == "__main__":
    folder = HERE / f"format{FORMAT}"
    if folder.exists():
        sys.exit(f"{folder} exists: a golden model is never replaced")
    if not (HERE / "counts.csv").exists():
        write_counts()
    model = GMVAE(cells(), K=4, batch_key="batch", preset=SMALL).train(8, progress=False)
    model.save(folder)
    x = model.get_latent_representation().astype(float)
    table = pd.DataFrame(x, index=cells().obs_names)
    table.to_csv(folder / "embedding.csv", float_format="%.9g")
