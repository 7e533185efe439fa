"""What is read, and what becomes of it: kinds of input that are not as one would wish."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from gmvae_nb import annotation, fractional
from gmvae_nb.after_training import gmvae_embed
from gmvae_nb.commands import gmvae_train
from gmvae_nb.counts import find_counts, get_counts
from gmvae_nb.reading import read_input
from scipy import sparse

from hazards import command, no_map
from test_counts import cells, table

# --- anndata 0.13 lists X among the layers, under None --------------------------------------------


@pytest.fixture
def lists_X(monkeypatch):
    if None in AnnData(np.ones((1, 1))).layers:
        return
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


def test_a_file_with_X_and_layers_is_trained_on_and_annotated(tmp_path, capsys):
    y = table()
    cells(np.log1p(y), counts=y, spliced=y * 0.5).write_h5ad(tmp_path / "a.h5ad")
    words = [tmp_path / "a.h5ad", "--out", tmp_path / "run", "--K", 2, "--max_epochs", 1, "--json"]
    assert command(gmvae_train, *map(str, words)) == 0
    out, err = capsys.readouterr()
    assert "counts from layers['counts']" in err and "None" not in out
    annotated = ad.read_h5ad(json.loads(out)["annotated"])
    assert "gmvae_cluster" in annotated.obs
    np.testing.assert_array_equal(sparse.csr_matrix(annotated.layers["counts"]).toarray(), y)
    np.testing.assert_allclose(sparse.csr_matrix(annotated.X).toarray(), np.log1p(y))
    words = [tmp_path / "run", tmp_path / "a.h5ad", "--out", tmp_path / "b.h5ad", "--json"]
    assert command(gmvae_embed, *map(str, words)) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == "layers['counts']"


# --- fractional counts ----------------------------------------------------------------------------


def corrected(y) -> np.ndarray:
    "As after SoupX: what is left of each count, and no cell is empty."
    return y * np.random.default_rng(5).uniform(0.8, 1, y.shape)


def test_fractional_counts_are_refused_and_the_option_is_named():
    with pytest.raises(
        ValueError, match="--round_counts nearest or stochastic .*round_counts='near"
    ):
        read_input(cells(corrected(table())))


@pytest.mark.parametrize("how", ["nearest", "stochastic"])
def test_fractional_counts_are_made_whole_if_asked(how):
    x = corrected(table())
    read = read_input(cells(x), round_counts=how)
    y = read.cells.X.toarray()
    assert (np.abs(y - x) < 1).all() and (y == np.floor(y)).all()
    if how == "nearest":
        np.testing.assert_array_equal(y, np.rint(x))
    assert read.round_counts == how and "were rounded" in read.notes[0]
    again = read_input(cells(x), round_counts=how)
    assert again.sha256 == read.sha256
    # what is whole already is what is read, and is not called rounded
    whole = read_input(cells(y), round_counts=how)
    assert whole.sha256 == read.sha256 and whole.round_counts is None
    assert not whole.notes


def test_the_same_cell_is_rounded_alike_in_any_order_and_company():
    x = cells(corrected(table()))
    y = read_input(x, round_counts="stochastic").cells
    part = read_input(x[20:5:-1, ::-1].copy(), round_counts="stochastic").cells
    both = y[part.obs_names, part.var_names]
    np.testing.assert_array_equal(part.X.toarray(), both.X.toarray())


def test_stochastic_rounding_is_right_on_average():
    "A value of 0.3 in each of 200,000 entries: 60,000 ones, give or take."
    x = sparse.csr_matrix(np.full((2000, 100), 0.3))
    names = [f"c{i}" for i in range(2000)], [f"g{i}" for i in range(100)]
    y = fractional.round_fractions(x, "stochastic", *names)
    assert set(y.data) == {1} and abs(y.sum() - 60_000) < 5 * np.sqrt(200_000 * 0.21)
    spread = np.asarray(y.sum(axis=1)).ravel().var() / (100 * 0.21)
    assert 0.85 < spread < 1.15  # as many as if each were drawn by itself
    assert fractional.round_fractions(x, "nearest", *names).nnz == 0


def test_of_several_places_whole_counts_are_taken_before_fractional_ones():
    y = table()
    found = find_counts(cells(corrected(y), counts=y), round_counts="nearest")
    assert (found.where, found.round_counts) == ("layers['counts']", None)
    found = find_counts(cells(np.log1p(y), soupx=corrected(y)), round_counts="nearest")
    assert (found.where, found.round_counts) == ("layers['soupx']", "nearest")
    a = cells(np.log1p(y))
    a.raw = cells(corrected(y))
    found = find_counts(a, round_counts="nearest")
    assert found.where == "raw.X" and found.adata.n_vars == 30


size = table().sum(1, keepdims=True) / 1e4
HALF = slice(0, 15)  # genes chosen after all else
NOT_ROUNDED = {
    "scaled": ((table() - table().mean(0)) / table().std(0), "looks scaled"),
    "one value below 0": (np.where(np.arange(1800).reshape(60, 30) == 7, -2, table()), "pass the"),
    "normalised": (table() / size, "looks normalised"),
    "log-normalised": (np.log1p(table() / size), "looks log-normalised"),
    "normalised, then some genes": ((table() / size)[:, HALF], "looks normalised"),
    "log-normalised, then some genes": (np.log1p(table() / size)[:, HALF], "log-normalised"),
    "of base 2, then some genes": (np.log2(1 + table() / size)[:, HALF], "log-normalised"),
    "log1p": (np.log1p(table()), "looks like log1p"),
    "not a number": (
        np.where(table() > 4, np.nan, corrected(table())),
        "pass the layer with raw counts",
    ),
}


@pytest.mark.parametrize("kind", NOT_ROUNDED)
@pytest.mark.parametrize("layer", [None, "counts"])
def test_what_is_no_fractional_count_is_never_rounded(kind, layer):
    x, words = NOT_ROUNDED[kind]
    a = AnnData(sparse.csr_matrix(x.astype(np.float32)))
    if layer:
        a = AnnData(layers={layer: a.X})
    with pytest.raises(ValueError, match=words):
        read_input(a, round_counts="nearest")


def test_cells_that_rounding_leaves_empty_are_named():
    x = corrected(table())
    x[[3, 5]] = 0.4
    with pytest.raises(ValueError, match=r"2 cells have no count left .*\('c3', 'c5'\)"):
        read_input(cells(x), round_counts="nearest")
    with pytest.raises(ValueError, match="expected nearest or stochastic"):
        read_input(cells(x), round_counts="up")


def test_the_commands_round_and_say_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(annotation, "umap", no_map)
    a, run = cells(corrected(table())), tmp_path / "run"
    a.write_h5ad(tmp_path / "a.h5ad")
    words = [str(tmp_path / "a.h5ad"), "--out", str(run), "--K", "2", "--quiet"]
    status = command(gmvae_train, *words, "--max_epochs", "2")
    assert status == 2 and "--round_counts nearest" in capsys.readouterr().err
    words += ["--round", "stochastic"]
    assert command(gmvae_train, *words, "--max_epochs", "2") == 0
    told = json.loads((run / "run.json").read_text())
    assert told["settings"]["round_counts"] == "stochastic"
    assert "stochastically" in told["notes"][0]
    assert "rounded stochastically" in (run / "report.html").read_text(encoding="utf-8")
    kept = ad.read_h5ad(run / "annotated.h5ad")
    assert kept.uns["gmvae"]["round_counts"] == "stochastic"
    np.testing.assert_array_equal(kept.X.toarray(), a.X.toarray())
    # going on is with the same rounding, or not at all
    assert command(gmvae_train, *words, "--resume", "--max_epochs", "2") == 0
    words[-1] = "nearest"
    assert command(gmvae_train, *words, "--resume", "--max_epochs", "3") == 2
    said = capsys.readouterr().err
    assert "round_counts was 'stochastic', now 'nearest'" in said
    # other cells, and the same ones
    new = [str(run), str(tmp_path / "a.h5ad"), "--out", str(tmp_path / "b.h5ad"), "--quiet"]
    assert command(gmvae_embed, *new) == 2
    assert command(gmvae_embed, *new, "--round", "stochastic") == 0
    told = capsys.readouterr()
    assert "rounded stochastically" in told.out
    again = ad.read_h5ad(tmp_path / "b.h5ad").obsm["X_gmvae"]
    kept = ad.read_h5ad(run / "annotated.h5ad").obsm["X_gmvae"]
    np.testing.assert_allclose(again, kept, atol=1e-5)


# --- kinds of files -------------------------------------------------------------------------------


def test_a_layer_with_all_is_taken_before_X_with_a_part():
    "What scanpy makes of velocyto's loom: X is the spliced part, layers['matrix'] has all."
    y = table()
    part = np.random.default_rng(0).binomial(y.astype(int), 0.4)
    layers = dict(matrix=y, spliced=part, unspliced=y - part, ambiguous=y * 0)
    found = find_counts(cells(part, **layers))
    assert found.where == "layers['matrix']" and "X holds only what a part holds" in found.why
    del layers["matrix"]
    assert find_counts(cells(part, **layers)).where == "X"


LAYERS = ["counts_raw", "X_counts", "rawCounts", "UMIs", "n_umi", "soupx_counts", "gene_counts"]


@pytest.mark.parametrize("name", LAYERS)
def test_counts_in_a_layer_of_any_such_name(name):
    y = table()
    assert find_counts(cells(np.log1p(y), **{name: y})).layer == name


@pytest.mark.parametrize(
    "name", ["spliced_counts", "umi_spliced", "countsUnspliced", "premrna_umi"]
)
def test_a_part_is_a_part_though_it_is_called_counts(name):
    y = table()
    half = np.random.default_rng(0).binomial(y.astype(int), 0.4)
    assert find_counts(cells(y, **{name: half})).where == "X"
    with pytest.raises(ValueError, match="looks like log1p|pass layer"):
        find_counts(cells(np.log1p(y), **{name: half}))


FORMS = {
    "uint8": lambda y: sparse.csr_matrix(y.astype("u1")),
    "uint16": lambda y: sparse.csr_matrix(y.astype("u2")),
    "uint64, dense": lambda y: y.astype("u8"),
    "by columns": sparse.csc_matrix,
    "Fortran's order": np.asfortranarray,
    "float16, dense": lambda y: y.astype("f2"),
}


@pytest.mark.parametrize("form", FORMS)
def test_counts_of_every_form_are_the_same_cells(tmp_path, form):
    a = AnnData(FORMS[form](table()), obs=cells(table()).obs, var=cells(table()).var)
    a.write_h5ad(tmp_path / "a.h5ad")
    expected = read_input(cells(table())).sha256
    assert read_input(a).sha256 == expected
    assert read_input(tmp_path / "a.h5ad").sha256 == expected


@pytest.mark.parametrize("most", [2**31 + 5, 2**63 + 5])
def test_a_number_too_large_to_be_a_count_is_told(most):
    y = table().astype("u8")
    y[3, 4] = most
    with pytest.raises(ValueError, match="for cell '3'.*float32 is exact only below"):
        read_input(AnnData(sparse.csr_matrix(y)))


def test_only_zeros_and_ones_are_told():
    assert "no value of X is above 1" in read_input(cells(table() > 0)).notes[0]


@pytest.mark.parametrize("value", ["nan", "", "NA", "None", " NaN "])
@pytest.mark.parametrize("key", ["batch_key", "labels_key"])
def test_a_name_that_looks_like_a_missing_value_is_told(value, key):
    a = cells(table())
    a.obs["b"] = pd.Categorical([value, "x"] * 30)
    notes = read_input(a, **{key: "b"}).notes
    assert notes == [
        f"30 cells have b {value!r}, which is taken for a name, not for a missing value"
    ]


def test_cell_names_that_occur_again_are_told():
    a = cells(table())
    a.obs_names = ["c0", *a.obs_names[:-1]]
    assert read_input(a).notes == [
        "1 cell names occur again (the first is 'c0'): they stay as they are"
    ]


# --- names on a terminal --------------------------------------------------------------------------

NASTY = "\x1b[2J\x9b31m\u202e"  # clears the screen, colours, turns the text around


def test_names_never_reach_the_terminal_as_commands(tmp_path, capsys):
    a = cells(table())
    a.obs[f"l{NASTY}"] = np.where(np.arange(60) > 9, f"T{NASTY}", None)
    a.var_names = [f"g{NASTY}{i // 2}" for i in range(30)]
    a.write_h5ad(tmp_path / "a.h5ad")
    words = [str(tmp_path / "a.h5ad"), "--dry_run", "--labels_key", f"l{NASTY}"]
    assert command(gmvae_train, *words) == 0
    assert command(gmvae_train, *words[:-1], f"no{NASTY}") == 2
    assert command(gmvae_train, f"{tmp_path}/{NASTY}.h5ad", "--dry_run") == 2
    told = "".join(capsys.readouterr())
    assert "have a label in l\\u001b[2J" in told
    assert not set(told) & set("\x1b\x9b\u202e")


# --- some of the cells, and names of genes --------------------------------------------------------


def grouped():
    a = cells(table())
    a.obs["group"] = pd.Categorical(np.resize(["a", "b", "c", None], a.n_obs))
    a.obs["n"] = np.resize([1, 2, 3], a.n_obs)
    a.obs["x=y"] = np.resize(["T, CD4", "B"], a.n_obs)
    a.var["symbol"] = np.resize(["CD4", "CD8", None, "CD4"], a.n_vars)
    return a


@pytest.mark.parametrize(
    "subset, chosen",
    [
        ("group=a", lambda obs: obs["group"] == "a"),
        ("group=a,c", lambda obs: obs["group"].isin(["a", "c"])),
        ("n=2", lambda obs: obs["n"] == 2),
        ("x=y=T, CD4", lambda obs: obs["x=y"] == "T, CD4"),
    ],
)
@pytest.mark.parametrize("stored", [False, "csr", "csc", "dense", "raw"])
def test_some_cells_are_read_as_if_there_were_no_others(subset, chosen, stored, tmp_path):
    a = grouped()
    part = a[chosen(a.obs).to_numpy()].copy()
    if stored == "dense":
        a.X = sparse.csr_matrix(a.X).toarray()
    if stored == "csc":
        a.X = sparse.csc_matrix(a.X)
    if stored == "raw":
        a.raw = a.copy()
        a.X = a.X * 0.5
    data = a
    if stored:
        data = tmp_path / "a.h5ad"
        a.write_h5ad(data)
    read = read_input(data, subset=subset, batch_key="x=y")
    assert read.sha256 == read_input(part, batch_key="x=y").sha256
    assert read.cells.obs_names.tolist() == part.obs_names.tolist()
    assert read.subset == subset and read.notes[0].startswith(f"{part.n_obs} of {a.n_obs} cells")
    assert (read.source is None) == bool(stored) and (read.rows is None) != bool(stored)


def test_a_cell_without_counts_that_is_not_asked_for_is_no_hindrance():
    a = grouped()
    y = sparse.csr_matrix(a.X).tolil()
    y[1] = 0  # of group b
    a.X = y.tocsr()
    with pytest.raises(ValueError, match="count"):
        read_input(a)
    assert read_input(a, subset="group=a").cells.n_obs == (a.obs["group"] == "a").sum()


@pytest.mark.parametrize(
    "subset, words",
    [
        ("group", "not of the form column=value"),
        ("", "not of the form column=value"),
        ("nobody=a", "'nobody' is not a column of obs, which has .*'group'"),
        ("group=z", "no cell has group 'z'; there are a, b, c$"),
        ("group=a,z", "no cell has group 'z'; there are a, b, c$"),
        ("group=nan", "no cell has group 'nan'"),
        ("group=", "no cell has group ''"),
    ],
)
def test_cells_that_are_not_there_are_refused_with_what_there_is(subset, words):
    with pytest.raises(ValueError, match=words):
        read_input(grouped(), subset=subset)


def test_genes_get_their_names_from_the_column_that_is_asked_for():
    a = grouped()
    read = read_input(a, gene_key="symbol")
    names = read.cells.var_names.tolist()
    assert names[:4] == ["CD4", "CD8", a.var_names[2], "CD4-1"]  # unique, and none is without
    assert read.gene_key == "symbol" and any("occur again" in note for note in read.notes)
    np.testing.assert_array_equal(read.cells.X.toarray(), read_input(a).cells.X.toarray())
    with pytest.raises(ValueError, match=r"gene_key='id' is not a column of var.*'symbol'"):
        read_input(a, gene_key="id")
