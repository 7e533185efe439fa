"""What is read, and what becomes of it: kinds of input that are not as one would wish."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from gmvae_nb.data import find_counts, get_counts
from gmvae_nb.reading import read_input
from scipy import sparse


def table(n=60, G=30, seed=3) -> np.ndarray:
    "Counts; no cell and no gene is empty."
    y = np.random.default_rng(seed).poisson(1.5, (n, G)).astype(np.float32)
    y[:, 0] += 1
    y[0] += 1
    return y


def cells(X, **layers) -> AnnData:
    form = sparse.csr_matrix
    return AnnData(
        None if X is None else form(np.asarray(X, dtype=np.float32)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(60)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(30)]),
        layers={name: form(np.asarray(m, dtype=np.float32)) for name, m in layers.items()},
    )


# --- anndata 0.13 lists X among the layers, under None --------------------------------------------


@pytest.fixture
def lists_X(monkeypatch):
    stored = AnnData.layers

    def layers(self):
        return {None: self.X, **dict(stored.__get__(self))}

    monkeypatch.setattr(AnnData, "layers", property(layers, stored.__set__))


def test_X_is_no_layer_though_it_is_listed(lists_X):
    y = table()
    assert find_counts(cells(y)).where == "X"
    assert find_counts(cells(np.log1p(y), counts=y)).where == "layers['counts']"
    assert find_counts(cells(y * 0.5, b=y, a=y * 2)).layer == "a"
    with pytest.raises(ValueError, match=r"has no 'umi': it has \['a', 'b'\];"):
        get_counts(cells(y, b=y, a=y), "umi")
    with pytest.raises(ValueError, match=r"X is None: name the layer .* one of \['a'\]"):
        get_counts(cells(None, a=y))
    raw = cells(y)
    raw.raw = raw
    del raw.X
    with pytest.raises(ValueError, match="take the matrix of raw"):
        get_counts(raw)
    assert read_input(cells(y)).where == "X"
