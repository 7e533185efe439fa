"""Gaussian-mixture variational autoencoder for single-cell RNA-seq counts."""
import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import tl as tl
    from .train import GMVAE as GMVAE

__version__ = "0.1.0"

# OpenMP threads spin while they wait, which ruins training on a machine that has other work.
# They read this when torch is imported.
threads_spin = "torch" in sys.modules and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE"
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# anndata's progress bars ask for notebook widgets when they are imported; ours are plain text
warnings.filterwarnings("ignore", message="IProgress not found")
# torch says so of every sparse tensor; the operations used here are tested
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def __getattr__(name: str) -> Any:
    "`gmvae_nb.GMVAE` and `gmvae_nb.tl`, without importing torch before they are asked for."
    if name == "GMVAE":
        from .train import GMVAE
        return GMVAE
    if name == "tl":
        return importlib.import_module(".tl", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
