"""Counts as the field stores them: parts beside totals, noise, other kinds of files."""

import subprocess
import sys
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from gmvae_nb.annotation import write_annotated, write_cells
from gmvae_nb.counts import find_counts, gene_features, get_counts
from gmvae_nb.fractional import is_nearly_count
from gmvae_nb.h5ad import open_h5ad, read_h5ad
from gmvae_nb.looking import main
from gmvae_nb.reading import read_input
from scipy import sparse

from hazards import every_warning_an_error


def table(n=60, G=30, seed=3) -> np.ndarray:
    "Counts; no cell and no gene is empty."
    y = np.random.default_rng(seed).poisson(1.5, (n, G)).astype(np.float32)
    y[:, 0] += 1
    y[0] += 1
    return y


def cells(X, **layers) -> AnnData:
    def form(m):
        return sparse.csr_matrix(np.asarray(m, dtype=np.float32))

    n, G = np.shape(next(m for m in (X, *layers.values()) if m is not None))
    return AnnData(
        None if X is None else form(X),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(G)]),
        layers={name: form(m) for name, m in layers.items()},
    )


@pytest.mark.parametrize("how", [None, "nearest"])
def test_x_can_be_asked_for_beside_a_layer_of_counts(how):
    y = table()
    held = cells(y + 1, counts=y)
    found = find_counts(held, "X", how)
    assert (found.layer, found.where, found.why) == (None, "X", "X was asked for")
    np.testing.assert_array_equal(found.adata.X.toarray(), y + 1)
    np.testing.assert_array_equal(get_counts(held, "X").toarray(), y + 1)
    assert read_input(held, layer="X").cells.X.sum() == (y + 1).sum()
    layer_x = cells(y + 1)
    layer_x.layers["X"] = sparse.csr_matrix(y)  # a layer of that name goes first
    np.testing.assert_array_equal(get_counts(layer_x, "X").toarray(), y)
    with pytest.raises(ValueError, match="pass layer='X', which holds counts"):
        find_counts(cells(y, counts=np.log1p(y)))
    with pytest.raises(ValueError, match="adata.X is None"):
        find_counts(cells(None, counts=y), "X")


def halves(y) -> tuple[np.ndarray, np.ndarray]:
    one = np.random.default_rng(0).binomial(y.astype(int), 0.4)
    return one, y - one


def bins(y) -> np.ndarray:
    "1 to 9 by rank within the cell; all cells have a 9."
    return np.ceil(9 * (y + 1) / (y + 1).max(axis=1, keepdims=True))


# --- which matrix -------------------------------------------------------------------------------

PARTS = [("mature", "nascent"), ("new", "old"), ("Spliced", "unspliced_counts"), ("exon", "intron")]


@pytest.mark.parametrize("names", PARTS)
def test_a_part_never_passes_for_the_whole(names):
    y = table()
    one, two = halves(y)
    found = find_counts(cells(y, **dict(zip(names, (one, two)))))
    assert found.where == "X" and "it is the sum of" in found.why
    assert all(f"layers[{name!r}]" in found.notes[0] for name in names)
    # X has been normalised: the parts must be added up, and the line for it works
    a = cells(np.log1p(y), **dict(zip(names, (one, two))))
    with pytest.raises(ValueError, match=r"parts of the counts.*adata.layers\['counts'\] = ") as e:
        find_counts(a)
    exec(str(e.value).split("add them up: ")[1].rstrip("."), {"adata": a})
    np.testing.assert_array_equal(get_counts(a, "counts").toarray(), y)
    # X is empty
    a = cells(y * 0, **dict(zip(names, (one, two))))
    with pytest.raises(ValueError, match="X holds no count at all: .*add them up"):
        find_counts(a)
    # X is one of the parts
    found = find_counts(cells(one, **dict(zip(names, (one, two)))))
    assert found.where == "X" and "to use all, adata.layers['counts'] = " in found.notes[0]
    # one of them was asked for
    assert "a part of the reads only" in find_counts(a, names[0]).notes[0]


@pytest.mark.parametrize("name", ["X_binned", "bins", "gene_ranks", "log_counts", "tokens"])
def test_what_was_computed_from_counts_is_not_taken(name):
    y = table()
    found = find_counts(cells(y, **{name: bins(y)}))
    assert found.where == "X" and "computed from counts" in found.notes[0]
    with pytest.raises(ValueError, match="pass the layer with raw counts"):
        find_counts(cells(y / 2.5, **{name: bins(y)}))


def test_bins_are_known_by_their_values():
    y = table()
    with pytest.raises(ValueError, match="adata.X holds"):
        find_counts(cells(y / 2.5, scgpt=bins(y)))
    assert find_counts(cells(y / 2.5, mine=y)).where == "layers['mine']"


@pytest.mark.parametrize(
    "name",
    ["SoupX_counts", "soupx_counts", "CellBender_counts", "counts_SoupX", "downSampleCounts"],
)
def test_counts_that_a_program_has_changed_are_not_taken_however_it_is_spelled(name):
    y = table()
    adata = cells(np.log1p(y), **{name: np.maximum(y - 1, 0)})
    adata.raw = cells(y)
    assert find_counts(adata).where == "raw.X"


def test_names_then_raw_then_X_then_other_layers():
    y = table()
    a = cells(y, raw_counts=2 * y, umi_downsampled=y * 0 + 2, other=3 * y)
    assert find_counts(a).where == "layers['raw_counts']"
    assert "layers['other'] (sum" in find_counts(a).notes[0]
    del a.layers["raw_counts"]
    a.raw = a
    assert find_counts(a).where == "raw.X"
    del a.raw
    assert find_counts(a).where == "X"
    a.X = a.X * 0.3
    assert find_counts(a).where == "layers['other']"  # the one with more in it
    a.X = (a.layers["other"] > 0).astype(np.float32)
    assert find_counts(a).where == "layers['other']"  # X says only which genes were seen


def test_raw_is_named_with_the_line_to_use_it():
    a = cells(table())
    a.raw = a
    a.X = a.X.log1p()
    with pytest.raises(ValueError, match="adata.raw holds counts") as e:
        get_counts(a)
    names = {"adata": a}
    exec(str(e.value).split("use them: ")[1].rstrip("."), names)
    np.testing.assert_array_equal(get_counts(names["adata"]).toarray(), table())
    a.X = None
    with pytest.raises(ValueError, match=r"adata.X is None.*adata.raw.to_adata\(\)"):
        get_counts(a)


# --- values -------------------------------------------------------------------------------------


def test_what_is_nearly_a_count():
    values = [0.999999, 2.0001, 4000.003, -1e-8, 1e-3, 0.9, -1, -0.9999, 90_000.4, np.nan, np.inf]
    assert is_nearly_count(values).tolist() == [True] * 4 + [False] * 7


@pytest.mark.parametrize("on_disk", [False, True])
def test_noise_is_rounded_and_said(on_disk, tmp_path):
    y = table()
    y[3, 4] = 4321
    noisy = np.expm1(np.log1p(y)) + np.where(y == 0, 1e-9, 0)
    a = cells(noisy)
    assert (noisy != y).any()
    if on_disk:
        a.write_h5ad(tmp_path / "a.h5ad")
        a = read_h5ad(tmp_path / "a.h5ad", backed=True)
    with pytest.warns(UserWarning, match="values of adata.X .* were rounded"):
        counts = get_counts(a)
    assert counts[np.arange(60)].nnz == (y > 0).sum()
    np.testing.assert_array_equal(counts[np.arange(60)].toarray(), y)
    if on_disk:
        a.file.close()
        a = tmp_path / "a.h5ad"
    else:
        np.testing.assert_array_equal(
            a.X.toarray(), noisy.astype(np.float32)
        )  # the user's is as it was
    with every_warning_an_error():
        read = read_input(a)
    assert any("were rounded" in note for note in read.notes)
    np.testing.assert_array_equal(read.cells.X.toarray(), y)
    assert read.sha256 == read_input(cells(y)).sha256


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f8", ">i4"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_numbers_that_scipy_does_not_calculate_with(dtype, form, tmp_path):
    y = table()
    a = AnnData(form(y))
    a.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        name = "X" if form is np.asarray else "X/data"
        attributes, values = dict(f[name].attrs), f[name][:]
        del f[name]
        f[name] = values.astype(dtype)
        f[name].attrs.update(attributes)
    np.testing.assert_array_equal(read_input(tmp_path / "a.h5ad").cells.X.toarray(), y)
    try:
        inside = get_counts(read_h5ad(tmp_path / "a.h5ad"))
    except ValueError as e:  # a newer anndata makes no sparse matrix of them
        assert form is not np.asarray and "is whole, but anndata cannot read" in str(e)
        return
    np.testing.assert_array_equal(inside.toarray(), y)


WHAT_IT_IS = {
    "corrected": (lambda y: y * np.linspace(0.8, 0.97, 30), "SoupX.*alevin"),
    "scaled": (lambda y: (y - y.mean(0)) / y.std(0), "looks scaled"),
    "normalised": (lambda y: y / y.sum(1, keepdims=True) * 1e4 / 3, "looks normalised to one sum"),
    "log": (lambda y: np.log1p(y / y.sum(1, keepdims=True) * 1e4), "looks log-normalised"),
    "log1p": (np.log1p, "looks like log1p of counts"),
}


@pytest.mark.parametrize("kind", WHAT_IT_IS)
def test_the_sentence_names_what_it_is(kind):
    change, says = WHAT_IT_IS[kind]
    a = cells(change(table()))
    with pytest.raises(ValueError, match=says) as e:
        get_counts(a)
    assert "pass the layer with raw counts" in str(e.value)
    if "with adata.X = " in str(e.value):  # the line works as it is written
        line = str(e.value).split("with adata.X = ")[1].split(", save")[0].rstrip(".")
        exec(f"adata.X = {line}", {"adata": a, "np": np})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert get_counts(a, allow_empty_genes=True).nnz


# --- features and genes -------------------------------------------------------------------------


@pytest.mark.parametrize("gene", ["Gene Expression", "GEX", "rna"])
def test_only_genes_are_trained_on(gene):
    a = cells(table())
    a.var["feature_types"] = pd.Categorical([gene] * 22 + ["Antibody Capture"] * 8)
    read = read_input(a)
    assert list(read.cells.var_names) == [f"g{i}" for i in range(22)]
    assert any("8 'Antibody Capture'" in note for note in read.notes)
    with pytest.warns(UserWarning, match="8 'Antibody Capture'"):
        assert get_counts(a).shape == a.shape
    for same in ("Antibody Capture", gene):
        a.var["feature_types"] = same
        assert gene_features(a.var)[0].all() and not gene_features(a.var)[1]


def test_genes_that_a_subset_leaves_empty_are_left_out():
    a = cells(table())
    a.X = sparse.csr_matrix(a.X.toarray() * ((np.arange(60) < 10)[:, None] | (np.arange(30) < 20)))
    part = a[20:]
    read = read_input(part)
    assert read.cells.n_vars == 20 and any("left out" in note for note in read.notes)
    assert get_counts(read.cells).shape == (40, 20)
    with pytest.raises(ValueError, match="10 genes without a single count"):
        get_counts(part)


# --- other files --------------------------------------------------------------------------------


def old_file(path) -> np.ndarray:
    "As anndata 0.6 wrote it."
    y = table()
    with h5py.File(path, "w") as f:
        for name, m in (("X", np.log1p(y)), ("raw.X", y)):
            m, g = sparse.csr_matrix(m), f.create_group(name)
            g.attrs["h5sparse_format"], g.attrs["h5sparse_shape"] = "csr", np.array(m.shape)
            g["data"], g["indices"], g["indptr"] = m.data, m.indices, m.indptr
        index = [("index", "S9")]
        f["var"] = np.array([(f"g{i}".encode(),) for i in range(30)], dtype=index)
        f["raw.var"] = f["var"][:]
        rows = [(f"c{i}".encode(), i % 2) for i in range(60)]
        f["obs"] = np.array(rows, dtype=[*index, ("donor", "i1")])
        f["uns/donor_categories"] = np.array([b"A", b"B"])
    return y


def test_files_of_anndata_before_0_7(tmp_path):
    y = old_file(tmp_path / "old.h5ad")
    read = read_input(tmp_path / "old.h5ad", batch_key="donor")
    assert read.where == "raw.X" and set(read.cells.obs["donor"]) == {"A", "B"}
    np.testing.assert_array_equal(read.cells.X.toarray(), y)
    new = tmp_path / "new.h5ad"
    write_annotated(tmp_path / "old.h5ad", new, {"c": np.arange(60)}, {}, {})
    with open_h5ad(new) as (_, kept):
        assert list(kept.obs["c"]) == list(range(60)) and kept.raw.shape == (60, 30)


def loom(path):
    with h5py.File(path, "w") as f:
        f["row_attrs/Gene"], f["col_attrs/CellID"], f["matrix"] = [b"g"], [b"c"], [[1]]


def ten_x(path):
    with h5py.File(path, "w") as f:
        f["matrix/barcodes"], f["matrix/data"] = [b"AAAC-1"], [1]


def ten_x_v2(path):
    with h5py.File(path, "w") as f:
        f["GRCh38/barcodes"], f["GRCh38/genes"] = [b"AAAC-1"], [b"g"]


OTHERS = {
    "a.h5": (ten_x, r"of Cell Ranger.*sc.read_10x_h5\("),
    "b.h5": (ten_x_v2, r"of Cell Ranger.*sc.read_10x_h5\("),
    "a.loom": (loom, r"a loom file.*read_loom\("),
    "a.csv": (lambda p: p.write_text("a,b"), r"a table.*read_csv\("),
    "a.csv.gz": (lambda p: p.write_bytes(b"x"), r"a table.*read_csv\("),
    "a.rds": (lambda p: p.write_text("RDS"), "a file of R.*writeH5AD"),
    "a.tar.gz": (lambda p: p.write_text("x"), "an archive: unpack it"),
    "nothing": (lambda p: p.mkdir(), "there is no file .*a folder"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_files_are_called_what_they_are(name, tmp_path):
    make, says = OTHERS[name]
    make(tmp_path / name)
    for read in (read_h5ad, read_input):
        with pytest.raises(ValueError, match=says) as e:
            read(tmp_path / name)
        assert "get it again" not in str(e.value) and "\n" not in str(e.value)


def test_a_file_that_is_open_for_writing_elsewhere(tmp_path):
    cells(table()).write_h5ad(tmp_path / "a.h5ad")
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); input()"
    words = [sys.executable, "-c", code, str(tmp_path / "a.h5ad")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(words, **pipes) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match="open for writing elsewhere, in another process"):
            read_input(tmp_path / "a.h5ad")
        writer.communicate("\n")
    assert read_input(tmp_path / "a.h5ad").cells.n_obs == 60


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    main(str(tmp_path / "a.h5ad"))
    assert '"no_right"' in capsys.readouterr().out
    found = {"no_right": "Permission denied"}
    monkeypatch.setattr("gmvae_nb.h5ad._look_through", lambda path: found)
    (tmp_path / "a.h5ad").touch()
    with pytest.raises(ValueError, match="may not be read by this user.*chmod"):
        read_h5ad(tmp_path / "a.h5ad")


def test_a_compression_that_is_not_here(tmp_path, monkeypatch, capsys):
    a = cells(table())
    a.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: False)
    main(str(tmp_path / "a.h5ad"))
    assert "by filter 1, deflate" in capsys.readouterr().out
    found = {"compressed": "/X/data by filter 32015, zstd"}
    monkeypatch.setattr("gmvae_nb.h5ad._look_through", lambda path: found)
    with pytest.raises(ValueError, match="filter 32015, zstd.*pip install hdf5plugin") as e:
        read_h5ad(tmp_path / "a.h5ad")
    assert "get it again" not in str(e.value)


# --- texts as R's readers know them ---------------------------------------------------------------


def test_texts_are_written_without_masks_where_none_is_missing(tmp_path):
    "pandas 3 makes every text one that can be missing; hdf5r and anndataR open plain ones."
    a = cells(table(6))
    for name, values in {"donor": list("aabbcc"), "plate": list("abcdef")}.items():
        a.obs[name] = pd.array(values, dtype="string")
    a.obs.index, a.var.index = (pd.Index(x, dtype="string") for x in (a.obs_names, a.var_names))
    for name, words in {"whole": ["a", "b"], "some": ["a", None]}.items():
        a.uns[name] = pd.DataFrame({"word": pd.array(words, dtype="string")})
    write_cells(a, tmp_path / "a.h5ad")
    write_annotated(tmp_path / "a.h5ad", tmp_path / "b.h5ad", {"new": list("uvwxyz")}, {}, {})
    for name in ("a.h5ad", "b.h5ad"):
        at = []
        with h5py.File(tmp_path / name) as f:
            f.visit(at.append)
            assert [path for path in at if path.endswith("/mask")] == ["uns/some/word/mask"]
            for axis, names in {"obs": a.obs_names, "var": a.var_names}.items():
                index = f[axis][f[axis].attrs["_index"]]
                assert index.asstr()[()].tolist() == list(names)
        again = read_h5ad(tmp_path / name)
        assert list(again.obs["plate"]) == list("abcdef")
        assert list(again.uns["whole"]["word"]) == ["a", "b"]
        assert again.uns["some"]["word"].isna().tolist() == [False, True]


def test_a_bad_value_far_down_is_named_however_counts_are_stored():
    y = np.ones((9000, 3), dtype=np.float32)
    y[8500, 2] = 0.3
    for kind in (sparse.csr_matrix, sparse.csc_matrix, np.asarray):
        a = AnnData(kind(y))
        with pytest.raises(ValueError, match="0.3 for cell '8500' and gene '2'"):
            get_counts(a)
        with pytest.raises(ValueError, match="0.3 for cell '8500' and gene '2'"):
            find_counts(a)
    y[8500, 2] = 7
    assert find_counts(AnnData(sparse.csr_matrix(y))).where == "X"
    y[8500] = 0
    with pytest.raises(ValueError, match="1 cell without a single count, the first is '8500'"):
        get_counts(AnnData(sparse.csr_matrix(y)))
