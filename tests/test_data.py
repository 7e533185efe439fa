"""The data layer at its edges: bad input, storage formats, loaders over HTTP, the shipped file."""

import functools
import gzip
import hashlib
import http.server
import importlib.util
import shutil
import threading
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import platformdirs
import pytest
import torch
from anndata import AnnData
from gmvae_nb import data
from gmvae_nb.counts import find_counts, get_counts
from gmvae_nb.counts_on_disk import CountsOnDisk, row_blocks, shuffle_blocks
from gmvae_nb.data import (
    batch_codes,
    bmmc_cite,
    bmmc_multiome,
    count_statistics,
    get_categories,
    kang_pbmc,
    load_data,
    mean_and_std,
    minibatches,
    plot_counts_heatmap,
    split_by,
    split_cells,
)
from gmvae_nb.fractional import is_count
from gmvae_nb.h5ad import open_h5ad
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
STARTERS = ROOT.parent / "shared" / "data"  # cells of the competition, where they are at hand


def small(n_cells=30, n_genes=20, seed=0) -> AnnData:
    "Counts without an empty cell or gene."
    y = np.random.default_rng(seed).poisson(0.4, (n_cells, n_genes)).astype(np.float64)
    y[:, 0] += 1
    y[0] += 1
    obs = {
        "batch": np.resize(["b", "a"], n_cells),
        "cell_type": np.resize(["T", "B", "NK"], n_cells),
    }
    obs = pd.DataFrame(obs, index=[f"cell{i}" for i in range(n_cells)])
    return AnnData(y, obs=obs, var=pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)]))


# --- get_counts ---------------------------------------------------------------------------------

FORMATS = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
}
DTYPES = [np.float32, np.float64, np.int16, np.int64, np.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_counts_of_every_storage_format(form, dtype, tmp_path):
    a = small()
    expected = a.X.copy()
    a.X = FORMATS[form](expected.astype(dtype))
    y = get_counts(a)
    assert isinstance(y, sparse.csr_matrix) and y.dtype == np.float32
    np.testing.assert_array_equal(y.toarray(), expected)
    view = get_counts(a[3:11], allow_empty_genes=True)
    np.testing.assert_array_equal(view.toarray(), expected[3:11])
    a.layers["raw"] = a.X
    a.X = np.log1p(expected)
    np.testing.assert_array_equal(get_counts(a, "raw").toarray(), expected)

    a.X = FORMATS[form](expected.astype(dtype))
    if form == "csr_array":
        return
    a.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    y = get_counts(backed)
    assert isinstance(y, CountsOnDisk) == (form == "csr")  # only rows of CSR can be read one by one
    y = y[np.arange(len(a))]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.toarray(), expected)
    view = get_counts(backed[3:11], allow_empty_genes=True)
    np.testing.assert_array_equal(view.toarray(), expected[3:11])
    backed.file.close()


@pytest.mark.parametrize("cell, gene", [(0, 0), (14, 7), (29, 19), (29, 0), (0, 19)])
@pytest.mark.parametrize("value", [0.5, 1e-3, -1, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMATS)
def test_one_bad_value_anywhere(form, value, cell, gene):
    a = small()
    x = a.X.copy()
    x[cell, gene] = value
    a.X = FORMATS[form](x)
    says = rf"adata\.X holds {value:g} for cell 'cell{cell}' and gene 'gene{gene}'.*: 1,"
    with pytest.raises(ValueError, match=says):
        get_counts(a)


def test_the_first_bad_value_and_the_layer_to_use():
    a = small()
    a.layers["counts"], a.layers["other"] = a.X.copy(), a.X + 0.5
    a.X = np.log1p(a.X)
    n_bad = int((a.X != np.floor(a.X)).sum())
    says = rf"cell 'cell0' and gene .*{n_bad:,}, this is the first.*layer='counts'"
    with pytest.raises(ValueError, match=says):
        get_counts(a)
    says = r"adata\.layers\['other'\] holds .*layer='counts'"
    with pytest.raises(ValueError, match=says):
        get_counts(a, "other")
    a.layers["counts"] = a.X
    with pytest.raises(ValueError, match="pass the layer with raw counts"):
        get_counts(a)
    a.X = np.ones(a.shape)
    with pytest.raises(ValueError, match="layer='X'"):
        get_counts(a, "counts")


def test_counts_leave_the_users_matrix_alone():
    # a duplicate, unsorted
    y = sparse.csr_matrix((np.ones(4), [0, 0, 1, 0], [0, 2, 4]), shape=(2, 2))
    a = AnnData(y.copy())
    np.testing.assert_array_equal(get_counts(a).toarray(), [[2, 0], [1, 1]])
    assert a.X.nnz == 4
    values = np.array([1, 0, 2], dtype=np.float32)
    stored_zero = sparse.csr_matrix((values, [0, 1, 1], [0, 2, 3]), shape=(2, 2))
    a = AnnData(stored_zero)
    assert get_counts(a).nnz == 2 and a.X.nnz == 3


@pytest.mark.parametrize("form", FORMATS)
def test_empty_cells_and_genes(form):
    a = small()
    x = a.X.copy()
    x[[4, 9]] = 0
    a.X = FORMATS[form](x)
    says = r"2 cells without a single count, the first is 'cell4': drop .*axis=1"
    with pytest.raises(ValueError, match=says) as e:
        get_counts(a)
    with pytest.raises(ValueError, match="2 cells without"):
        get_counts(a, allow_empty_genes=True)
    # the way out must work as it is written
    fixed = eval(str(e.value).split("adata = ")[1].rstrip("."), {"adata": a, "np": np})
    assert get_counts(fixed).shape == (28, 20)
    x = small().X
    x[:, 6] = 0
    a = small()
    a.X = FORMATS[form](x)
    says = r"1 gene without a single count, the first is 'gene6': drop .*axis=0"
    with pytest.raises(ValueError, match=says) as e:
        get_counts(a)
    fixed = eval(str(e.value).split("adata = ")[1].rstrip("."), {"adata": a, "np": np})
    assert get_counts(fixed).shape == (30, 19)
    assert get_counts(a, allow_empty_genes=True).shape == (30, 20)


def test_other_refusals():
    a = small()
    a.layers["counts"] = a.X
    with pytest.raises(ValueError, match=r"no 'raw': it has \['counts'\]"):
        get_counts(a, "raw")
    without_x = AnnData(layers={"counts": a.X}, shape=a.shape)
    with pytest.raises(ValueError, match=r"adata\.X is None.*'counts'"):
        get_counts(without_x)
    with pytest.raises(ValueError, match="0 cells"):
        get_counts(a[:0])
    a.X = a.X.copy()
    a.X[2, 3] = 2**24
    with pytest.raises(ValueError, match=r"'cell2', but float32"):
        get_counts(a)


# --- where the counts are -----------------------------------------------------------------------


def test_is_count():
    values = np.array([0, 1, 2.0**23, 0.5, -1, np.nan, np.inf, -np.inf])
    assert is_count(values).tolist() == [True] * 3 + [False] * 5


def places() -> dict[str, AnnData]:
    "Cells with counts in each of the four places, and halves of them elsewhere."
    y, halves = small().X, small().X / 2
    ones = (y > 0).astype(float)
    made = {}
    for name, layers in {
        "layers['counts']": {"counts": y.copy(), "a": y},
        "layers['umi']": {"spliced": y, "ones": ones, "umi": y},
        "raw.X": {"spliced": y},
        "X": {"lognorm": halves},
    }.items():
        made[name] = AnnData(y if name == "X" else halves, layers=layers)
    wider = AnnData(np.hstack([y, y]))
    wider.obs_names = made["raw.X"].obs_names
    made["raw.X"].raw = wider
    return made


@pytest.mark.parametrize("where", places())
@pytest.mark.parametrize("on_disk", [False, True])
def test_counts_are_found_in_four_places(where, on_disk, tmp_path):
    adata = places()[where]
    if on_disk:
        adata.write_h5ad(tmp_path / "a.h5ad")
        with open_h5ad(tmp_path / "a.h5ad") as (_, opened):
            check_found(opened, where)
    else:
        check_found(adata, where)


def check_found(adata, where):
    found, expected = find_counts(adata), small().X
    if where == "raw.X":
        expected = np.hstack([expected, expected])
    assert found.where == where and found.why
    y = get_counts(found.adata, found.layer)
    y = y[np.arange(len(adata))] if isinstance(y, CountsOnDisk) else y
    np.testing.assert_array_equal(y.toarray(), expected)


def test_counts_that_are_not_found():
    a = places()["layers['counts']"]
    assert find_counts(a, "a").why == "this layer was asked for"
    a.layers["counts"][3, 2] = -1  # an error, though layer a holds counts
    with pytest.raises(ValueError, match=r"holds -1 for cell '3'.*pass layer='a'"):
        find_counts(a)
    a = places()["raw.X"]
    del a.raw
    with pytest.raises(ValueError, match=r"adata.X holds 0.5 .*pass layer='spliced'"):
        find_counts(a)
    a.layers["ones"] = a.layers.pop("spliced") > 0
    with pytest.raises(ValueError, match=r"adata.X holds 0.5 "):
        find_counts(a)


# --- get_categories -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, expected",
    [
        (["b", "a", "b"], ["a", "b"]),
        ([3, 1, 3], ["1", "3"]),
        ([True, False, True], ["False", "True"]),
        (pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]), ["a", "b"]),
        ([1.5, 0.5, 1.5], ["0.5", "1.5"]),
    ],
)
def test_categories(values, expected):
    a = AnnData(np.ones((3, 1)), obs=pd.DataFrame({"key": values}, index=list("xyz")))
    c = get_categories(a, "key", "batch_key")
    assert list(c.categories) == expected and list(c.codes) == [1, 0, 1]


@pytest.mark.parametrize(
    "values",
    [["a", None, "b", None], [1.0, np.nan, 2.0, np.nan], pd.Categorical(["a", None, "b", None])],
)
def test_categories_with_gaps(values):
    a = AnnData(np.ones((4, 1)), obs=pd.DataFrame({"key": values}, index=list("wxyz")))
    says = r"batch_key='key' has no value for 2 of 4 cells, the first is 'x'"
    with pytest.raises(ValueError, match=says):
        get_categories(a, "key", "batch_key")
    with pytest.raises(ValueError, match=r"labels_key='type' is not a column .*\['key'\]"):
        get_categories(a, "type", "labels_key")


@pytest.mark.parametrize("key, n", [("key", 2), ("other", 3)])
def test_a_column_name_that_occurs_twice_is_refused(key, n):
    obs = pd.DataFrame([[1, 2] + [3] * n] * 3, index=list("xyz"))
    obs.columns = ["a", "b"] + [key] * n
    a = AnnData(np.ones((3, 1)), obs=obs)
    says = rf"batch_key='{key}' names {n} columns of adata.obs; expected one: .*duplicated"
    with pytest.raises(ValueError, match=says):
        get_categories(a, key, "batch_key")
    assert list(get_categories(a, "a", "batch_key").categories) == ["1"]


def test_batch_codes():
    codes, names = batch_codes(small(), "batch")
    assert codes.dtype == np.int64 and names == ["a", "b"]
    assert [names[c] for c in codes] == list(small().obs["batch"])
    codes, names = batch_codes(small(), None)
    assert names == ["all"] and codes.tolist() == [0] * 30


# --- splits and mini-batches --------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, size", [(2, 0.15), (7, 0.15), (4000, 0.15), (69_249, 0.15), (100, 0.5), (10, 0.99)]
)
def test_split(n, size):
    if np.ceil(n * size) >= n:
        with pytest.raises(ValueError, match="none is left to train"):
            split_cells(n, size)
        return
    train, test = split_cells(n, size, seed=3)
    assert train.dtype == test.dtype == np.int64 and len(test) == np.ceil(n * size)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(n))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    for _ in range(2):
        np.random.seed(_)  # the global state plays no part
        np.testing.assert_array_equal(split_cells(n, size, seed=3)[1], test)
    if n >= 100:
        assert (split_cells(n, size, seed=4)[1] != test).any()


@pytest.mark.parametrize("size", [0, 1, -0.1, 1.5])
def test_split_sizes_refused(size):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_cells(100, size)


def test_split_by():
    a = small()
    a.obs["site"] = np.resize([1, 2, 3], a.n_obs)
    train, test = split_by(a, "site", [1, 3])
    assert set(a.obs["site"].iloc[test]) == {1, 3} and set(a.obs["site"].iloc[train]) == {2}
    np.testing.assert_array_equal(split_by(a, "site", 2)[1], train)
    with pytest.raises(ValueError, match=r"no value 9: it has \['1', '2', '3'\]"):
        split_by(a, "site", [1, 9])
    with pytest.raises(ValueError, match="no cell to train on"):
        split_by(a, "site", [1, 2, 3])
    with pytest.raises(ValueError, match="no cell to test on"):
        split_by(a, "site", [])


def on_disk_copy(a, folder):
    a = a.copy()
    a.X = sparse.csr_matrix(a.X)
    a.write_h5ad(folder / "a.h5ad")
    return ad.read_h5ad(folder / "a.h5ad", backed="r")


def test_rows_on_disk_are_those_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    expected = rng.poisson(0.2, (500, 30)).astype(np.float32)
    expected[:, 3] += 1  # no empty cell
    a = ad.AnnData(sparse.csr_matrix(expected))
    backed = on_disk_copy(a, tmp_path)
    y = get_counts(backed)
    for rows in [
        np.arange(500),
        rng.permutation(500),
        rng.integers(0, 500, 90),
        np.array([499]),
        np.array([0, 0, 7]),
    ]:
        np.testing.assert_array_equal(y[rows].toarray(), expected[rows])
    np.testing.assert_array_equal(y.read(17, 40).toarray(), expected[17:40])
    for rows in [None, np.arange(7, 500, 3)]:
        np.testing.assert_allclose(
            mean_and_std(y, rows), mean_and_std(sparse.csr_matrix(expected), rows), rtol=1e-12
        )
    pd.testing.assert_frame_equal(
        count_statistics(backed, None, None, None), count_statistics(a, None, None, None)
    )


def test_a_file_that_was_closed_is_to_be_opened_again(tmp_path):
    backed = on_disk_copy(small(), tmp_path)
    counts = get_counts(backed)
    first = next(row_blocks(counts))[1]
    backed.file.close()
    says = r"^the file '.*a\.h5ad' was closed.*open it again with adata = .*backed='r'"
    for ask in (lambda: counts.read(0, 3), lambda: counts[[5]], lambda: mean_and_std(counts)):
        with pytest.raises(ValueError, match=says):
            ask()
    again = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert (next(row_blocks(get_counts(again)))[1] != first).nnz == 0
    again.file.close()


def test_a_bad_count_on_disk_is_named_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(row_blocks, "__defaults__", (None, 7))  # several blocks
    a = small()
    a.X[11, 4], a.X[25, 1] = 2.5, -1
    says = f"2.5 for cell '{a.obs_names[11]}' and gene '{a.var_names[4]}'.*not: 2"
    with pytest.raises(ValueError, match=says):
        get_counts(on_disk_copy(a, tmp_path))
    a.X[11, 4], a.X[25, 1] = 1, 1
    a.X[26] = 0
    says = f"1 cell without a single count, the first is '{a.obs_names[26]}'"
    with pytest.raises(ValueError, match=says):
        get_counts(on_disk_copy(a, tmp_path))
    a.X[26] = 2**24
    with pytest.raises(ValueError, match=f"holds 1.67772e.07 for cell '{a.obs_names[26]}'"):
        get_counts(on_disk_copy(a, tmp_path))


@pytest.mark.parametrize(
    "n, block, fetch", [(1, 64, 8), (63, 64, 128), (1000, 64, 256), (1000, 1, 100), (129, 16, 1000)]
)
def test_shuffled_blocks_hold_every_row_once(n, block, fetch):
    idx = np.arange(n) * 3
    first, again, other = (
        shuffle_blocks(idx, np.random.default_rng(s), fetch, block) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(np.sort(first), idx)
    np.testing.assert_array_equal(first, again)
    assert n == 1 or (first != other).any()


@pytest.mark.parametrize("size", [64, 1024, 5000])
def test_what_is_read_at_a_time_does_not_grow_with_the_minibatch(size, tmp_path, monkeypatch):
    n, read = 9000, []
    y = sparse.csr_matrix((np.ones(n, "f4"), (np.arange(n), np.zeros(n, int))), shape=(n, 2))
    counts = get_counts(on_disk_copy(ad.AnnData(y), tmp_path), allow_empty_genes=True)
    get = CountsOnDisk.__getitem__
    monkeypatch.setattr(
        CountsOnDisk, "__getitem__", lambda self, rows: (read.append(len(rows)), get(self, rows))[1]
    )
    rng = np.random.default_rng(0)
    seen = [rows for *_, rows in minibatches(counts, np.zeros(n), np.arange(n), size, rng=rng)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n))
    assert max(read) == min(64 * size, 8192 // size * size or size)
    assert set(map(len, seen[:-1])) == {size}


@pytest.mark.parametrize(
    "n, size, drop_last",
    [(30, 8, False), (30, 8, True), (17, 16, False), (16, 16, True), (1, 128, False)],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_minibatches_visit_every_cell_once(n, size, drop_last, on_disk, tmp_path):
    a = small()
    y, batch = get_counts(a), get_categories(a, "batch", "batch_key").codes
    if on_disk:
        y = get_counts(on_disk_copy(a, tmp_path))
    idx = np.random.default_rng(1).permutation(a.n_obs)[:n]
    for rng in [None, np.random.default_rng(2)]:
        seen = list(minibatches(y, batch, idx, size, rng=rng, drop_last=drop_last))
        rows = np.concatenate([r for _, _, r in seen])
        for y_, b, r in seen:
            assert y_.shape == (len(r), 20) and b.shape == (len(r),)
        assert (y_.dtype, b.dtype) == (torch.float32, torch.int64)
        dense = torch.cat([y_.to_dense() for y_, _, _ in seen])
        codes = torch.cat([b for _, b, _ in seen])
        np.testing.assert_array_equal(dense.numpy(), a.X[rows])
        np.testing.assert_array_equal(codes.numpy(), batch[rows])
        assert len(rows) == (n - n % size if drop_last else n) == len(set(rows))
        assert set(rows) <= set(idx)
        if rng is None:
            np.testing.assert_array_equal(rows, idx[: len(rows)])
        elif n > 1:
            assert (rows != idx[: len(rows)]).any()
    rng = np.random.default_rng(2)
    again = [r for _, _, r in minibatches(y, batch, idx, size, rng=rng, drop_last=drop_last)]
    np.testing.assert_array_equal(np.concatenate(again), rows)


def test_minibatches_never_make_the_matrix_dense(monkeypatch):
    a = kang_pbmc()
    y = get_counts(a)
    made = []

    def spy_on(original):
        def spy(self, *args, **kwargs):
            made.append(self.shape[0])
            return original(self, *args, **kwargs)

        return spy

    for name in ["toarray", "todense"]:
        monkeypatch.setattr(sparse.csr_matrix, name, spy_on(getattr(sparse.csr_matrix, name)))
    rng = np.random.default_rng(0)
    for _ in minibatches(y, np.zeros(len(a)), np.arange(len(a)), 128, rng=rng):
        pass
    count_statistics(a)
    split_cells(len(a))
    assert not made


def test_minibatches_refused_before_the_first_one():
    y = get_counts(small())
    b = np.zeros(30)
    with pytest.raises(ValueError, match="batch_size=0"):
        minibatches(y, b, np.arange(30), 0)
    with pytest.raises(ValueError, match="0 cells do not fill"):
        minibatches(y, b, [], 8)
    says = "7 cells do not fill one mini-batch of 8.*drop_last=False"
    with pytest.raises(ValueError, match=says):
        minibatches(y, b, np.arange(7), 8, drop_last=True)
    for wrong in [y.tocsc(), y.toarray()]:
        with pytest.raises(ValueError, match=f"must be CSR.*{type(wrong).__name__}"):
            minibatches(wrong, b, [1, 2])


# --- statistics, heatmap ------------------------------------------------------------------------


def test_statistics_against_numpy():
    a = small(200, 50)
    a.X[5, 7] = 100_000  # one loud entry
    x = a.X.copy()
    a.X = sparse.csr_matrix(a.X)
    np.testing.assert_allclose(mean_and_std(get_counts(a)), [x.mean(), x.std()], rtol=1e-12)
    s = count_statistics(a).iloc[0]
    assert (s.cells, s.genes, s.batches, s.types) == (200, 50, 2, 3)
    np.testing.assert_allclose(
        [s.zeros, s["mean"], s.sd], [(x == 0).mean(), x.mean(), x.std()], rtol=1e-12
    )
    without_keys = count_statistics(a, batch_key=None, labels_key=None)
    assert list(without_keys) == ["cells", "genes", "zeros", "mean", "sd"]


def test_heatmap_colours_every_count_and_nothing_else():
    import matplotlib

    matplotlib.use("Agg")
    a = small()
    shown = plot_counts_heatmap(get_counts(a), n_cells=30, n_genes=20).images[0].get_array()
    np.testing.assert_array_equal(shown.mask, a.X == 0)
    np.testing.assert_array_equal(shown.filled(0), a.X)


# --- files --------------------------------------------------------------------------------------


def test_load_data(tmp_path):
    assert load_data("kang_pbmc").shape == (4000, 2000)
    small().write_h5ad(tmp_path / "mine.h5ad")
    np.testing.assert_array_equal(load_data(str(tmp_path / "mine.h5ad")).X, small().X)
    says = "'kang' is neither one of kang_pbmc, bmmc_multiome, bmmc_cite nor a file"
    with pytest.raises(ValueError, match=says):
        load_data("kang")
    with pytest.raises(ValueError, match="nor a file"):
        load_data(tmp_path)
    (tmp_path / "text.h5ad").write_text("not one")
    with pytest.raises(ValueError, match="text.h5ad' is no h5ad"):
        load_data(tmp_path / "text.h5ad")
    whole = (tmp_path / "mine.h5ad").read_bytes()
    (tmp_path / "half.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.h5ad' is no h5ad"):
        load_data(tmp_path / "half.h5ad")
    with h5py.File(tmp_path / "other.h5ad", "w") as f:
        f["x"] = 1
    with pytest.raises(ValueError, match="other.h5ad' is HDF5 but no"):
        load_data(tmp_path / "other.h5ad")


def test_shipped_data_set():
    spec = importlib.util.spec_from_file_location("build", ROOT / "tools" / "build_kang_pbmc.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    file = ROOT / "gmvae_nb" / "datasets" / "kang_pbmc.h5ad"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == build.OUT_SHA256
    assert file.stat().st_size < 3e6
    a = kang_pbmc()
    assert a.shape == (4000, 2000) and a.obs_names.is_unique and a.var_names.is_unique
    assert sparse.issparse(a.X) and a.X.format == "csr" and a.X.dtype == np.float32
    assert (a.X != a.layers["counts"]).nnz == 0 and a.X is not a.layers["counts"]
    assert not np.shares_memory(a.X.data, a.layers["counts"].data)
    get_counts(a), get_counts(a, "counts")
    assert a.obs["batch"].value_counts().to_dict() == {"ctrl": 2000, "stim": 2000}
    assert (a.obs["n_counts"] >= np.asarray(a.X.sum(axis=1)).ravel()).all()
    assert sorted(a.obs["cell_type"].unique()) == sorted(build.SHOWN) == sorted(a.uns["markers"])
    assert {g for genes in build.SHOWN.values() for g in genes} <= set(a.var_names)
    dropped = pd.DataFrame(a.uns["dropped"])
    assert dropped["ctrl"].sum() + 2000 == 6548 and dropped["stim"].sum() + 2000 == 7451
    # Each type's own markers are louder in it than in any other type, in both conditions.
    x = np.log1p(a.X.toarray() / a.obs["n_counts"].to_numpy()[:, None] * 1e4)
    group = [a.obs["batch"].to_numpy(), a.obs["cell_type"].astype(str).to_numpy()]
    means = pd.DataFrame(x, columns=a.var_names).groupby(group).mean()
    for gene, owner in {
        "S100A9": "CD14+ monocyte",
        "VMO1": "FCGR3A+ monocyte",
        "CCL22": "dendritic",
        "CD79A": "B",
        "LEF1": "CD4 T",
        "CD8A": "CD8 T",
        "GNLY": "NK",
        "PF4": "megakaryocyte",
    }.items():
        assert means.loc["ctrl", gene].idxmax() == means.loc["stim", gene].idxmax() == owner, gene


# --- the competition's files, in small, over HTTP -----------------------------------------------

BMMC = {"multiome": ("ATAC", bmmc_multiome), "cite": ("ADT", bmmc_cite)}
FORMS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda m: m.toarray()}


def competition_cells(name: str, form: str = "csc") -> AnnData:
    "Made-up cells in the layout of the competition's files: genes and columns of another modality."
    rng, n_cells, n_genes, n_others = np.random.default_rng(0), 90, 130, 150
    kinds = np.array(["GEX"] * n_genes + [BMMC[name][0]] * n_others)
    if name == "multiome":
        kinds = rng.permutation(kinds)  # in whatever order
    counts = sparse.csr_matrix(rng.poisson(0.4, (n_cells, len(kinds))).astype(np.float64))
    barcodes = [f"{i:016x}-1-s1d{1 + i % 2}" for i in range(n_cells)]
    names = [f"{kind}{i}" for i, kind in enumerate(kinds)]
    first, second = np.flatnonzero(kinds == "GEX")[:2]
    names[second] = names[first]  # two genes of one name
    obs = pd.DataFrame(
        {
            "pct_counts_mt": rng.random(n_cells),
            "size_factors": rng.random(n_cells) + 0.5,
            "cell_type": pd.Categorical(np.resize(["CD14+ Mono", "NK", "B1 B"], n_cells)),
            "batch": pd.Categorical(np.resize(["s1d1", "s1d2"], n_cells)),
            "is_train": True,
        },
        index=barcodes,
    )
    var = pd.DataFrame(
        {
            "gene_ids": pd.Categorical([f"ENSG{i:011d}" for i in range(len(kinds))]),
            "feature_types": pd.Categorical(kinds),
            "genome": pd.Categorical(["GRCh38"] * len(kinds)),
        },
        index=names,
    )
    normalised = sparse.diags(1 / obs["size_factors"].to_numpy()) @ counts
    return AnnData(
        FORMS[form](normalised),
        obs=obs,
        var=var,
        layers={"counts": FORMS[form](counts)},
        uns={"dataset_id": f"openproblems_bmmc_{name}_made_up", "organism": "human"},
    )


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A folder served on 127.0.0.1, its address, and a cache of its own."
    folder, cache = tmp_path / "served", tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(cache / name))
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", cache / "gmvae_nb"
    server.shutdown()
    server.server_close()


def compressed(path: Path, target: Path) -> str:
    "Compresses a file; its sha256."
    target.write_bytes(gzip.compress(path.read_bytes(), 1))
    return hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BMMC)
def test_bmmc_keeps_the_genes(tmp_path, monkeypatch, name, form):
    monkeypatch.setattr(data._read_gex, "__defaults__", (64,))  # several blocks
    made = competition_cells(name, form)
    made.write_h5ad(tmp_path / "made.h5ad")
    genes = (made.var["feature_types"] == "GEX").to_numpy()
    expected = competition_cells(name, "dense").layers["counts"][:, genes]

    a = BMMC[name][1](tmp_path / "made.h5ad")
    assert a.X.format == "csr" and a.X.dtype == np.float32 and a.X is not a.layers["counts"]
    y = get_counts(a, allow_empty_genes=True)
    np.testing.assert_array_equal(y.toarray(), expected)
    np.testing.assert_array_equal(a.layers["counts"].toarray(), expected)
    assert a.var_names.is_unique and list(a.var["gene_ids"]) == list(made.var["gene_ids"][genes])
    assert set(a.var["feature_types"]) == {"GEX"} and list(a.obs_names) == list(made.obs_names)
    for key in ["batch", "cell_type"]:
        assert list(a.obs[key]) == list(made.obs[key])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("name", BMMC)
def test_bmmc_is_downloaded_once_and_checked(served, tmp_path, monkeypatch, capsys, name):
    folder, url, cache = served
    load, file = BMMC[name][1], tmp_path / f"{name}.h5ad"
    competition_cells(name).write_h5ad(file)
    sha256 = compressed(file, folder / f"{name}.h5ad.gz")

    # no checksum known: the sum is printed, and nobody claims to have checked it
    monkeypatch.setitem(data.BMMC_FILES, name, (f"{url}{name}.h5ad.gz", None))
    a = load()
    said = capsys.readouterr().out
    assert sha256 in said and "NOT checked" in said and "as expected" not in said
    assert [p.name for p in cache.iterdir()] == [f"{name}.h5ad"]

    # the second call reads the cache; load_data knows the name; a local path needs no network
    (folder / f"{name}.h5ad.gz").rename(tmp_path / "kept.h5ad.gz")
    assert (load().X != a.X).nnz == 0 and capsys.readouterr().out == ""
    assert (load_data(f"bmmc_{name}").X != a.X).nnz == 0
    assert (load(tmp_path / "kept.h5ad.gz").X != a.X).nnz == 0

    # a known checksum is checked
    (tmp_path / "kept.h5ad.gz").rename(folder / f"{name}.h5ad.gz")
    for known in [sha256, "0" * 64]:
        shutil.rmtree(cache)
        monkeypatch.setitem(data.BMMC_FILES, name, (f"{url}{name}.h5ad.gz", known))
        if known == sha256:
            load()
            assert "as expected" in capsys.readouterr().out
            continue
        with pytest.raises(ValueError, match=f"does not match the known hash: sha256 {sha256}"):
            load()
        assert not list(cache.iterdir())


def test_bmmc_refused(served, tmp_path, monkeypatch):
    folder, url, cache = served
    # the file is not there, or the server is not
    monkeypatch.setitem(data.BMMC_FILES, "cite", (f"{url}none.h5ad.gz", None))
    with pytest.raises(OSError, match="could not download .*none.h5ad.gz.*pass its path"):
        bmmc_cite()
    with pytest.raises(ValueError, match="there is no file 'gone.h5ad'"):
        bmmc_cite("gone.h5ad")
    # half a gzip file leaves nothing behind that a second call would take for the whole
    small().write_h5ad(tmp_path / "mine.h5ad")
    whole = gzip.compress((tmp_path / "mine.h5ad").read_bytes(), 1)
    (folder / "half.h5ad.gz").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setitem(data.BMMC_FILES, "cite", (f"{url}half.h5ad.gz", None))
    for _ in range(2):
        with pytest.raises(ValueError, match="not a whole gzip file"):
            bmmc_cite()
        assert not list(cache.iterdir())
    # a file that is not the competition's
    with pytest.raises(ValueError, match="not a file of the competition"):
        bmmc_cite(tmp_path / "mine.h5ad")
    a = small()
    a.layers["counts"], a.var["feature_types"] = a.X, "ATAC"
    a.write_h5ad(tmp_path / "atac.h5ad")
    with pytest.raises(ValueError, match="no gene with"):
        bmmc_cite(tmp_path / "atac.h5ad")


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
@pytest.mark.skipif(not STARTERS.is_dir(), reason="the competition's own cells are not here")
@pytest.mark.parametrize("name, shape", [("multiome", (500, 600)), ("cite", (600, 1000))])
def test_bmmc_of_the_competitions_own_cells(name, shape):
    file = STARTERS / f"bmmc_{name}_starter.h5ad"
    a = BMMC[name][1](file)
    expected = ad.read_h5ad(file).layers["counts"].toarray()
    assert a.shape == shape and set(a.obs["batch"]) == {"s1d1", "s1d2"}
    np.testing.assert_array_equal(a.X.toarray(), expected)


def test_the_cache_is_where_it_has_always_been(tmp_path, monkeypatch):
    "A file that an earlier version has downloaded is found."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(platformdirs.user_cache_dir("gmvae_nb"))
    if tmp_path not in folder.parents:
        pytest.skip("another system, another variable")
    assert folder == tmp_path / "gmvae_nb"
    folder.mkdir()
    (folder / "a.h5ad").touch()
    assert data.download_h5ad("http://127.0.0.1:9/a.h5ad.gz") == folder / "a.h5ad"


def test_addresses_and_checksum_of_the_competition():
    sums = {name: sha256 for name, (_, sha256) in data.BMMC_FILES.items()}
    assert sums == {
        "multiome": None,
        "cite": "b9b50fade9349719cba23c97c6515d3501a32ee3735fe95fe51221d2e8a5f361",
    }
    for name, (url, _) in data.BMMC_FILES.items():
        assert url == (
            "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE194nnn/GSE194122/suppl/"
            f"GSE194122_openproblems_neurips2021_{name}_BMMC_processed.h5ad.gz"
        )
