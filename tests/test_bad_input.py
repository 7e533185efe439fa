"""Bad input, hunted: everything that can be given wrongly, with the sentence that answers it."""

import gzip
import json
import re
import warnings
from dataclasses import asdict, fields, replace
from fractions import Fraction
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb.counts import get_counts
from gmvae_nb.data import load_data, minibatches, split_by, split_cells
from gmvae_nb.embed import embed_file
from gmvae_nb.network import Preset, epochs_wanted, kl_weight, learning_rate
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.train import GMVAE
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_matrix, csr_array, csr_matrix

from hazards import SMALL, TINY, cells, every_warning_an_error, model


def counts(change, form=csr_matrix):
    "Cells whose matrix was changed, in some form."
    a = cells()
    y = a.X.toarray()
    done = change(y)
    a.X = form(y if done is None else done)
    return a


def put(value):
    return lambda y: y.__setitem__((7, 3), value)


def obs(values, key="batch"):
    a = cells()
    a.obs[key] = values
    return a


def column_twice(key):
    "Cells with two columns of that name, as pd.concat leaves them."
    a = cells()
    a.obs = pd.concat([a.obs, a.obs[[key]]], axis=1)
    return a


def changed(**attributes):
    a = cells()
    for name, value in attributes.items():
        setattr(a, name, value)
    return a


def fit(a, K=3, epochs=1, **kw):
    "Construct, train and embed."
    m = GMVAE(a, K=K, **({"batch_key": "batch", "preset": SMALL} | kw))
    m.train(epochs, progress=False)
    assert np.isfinite(m.get_latent_representation()).all()
    assert np.isfinite(m.history.to_numpy()).all()
    np.testing.assert_allclose(m.predict_proba(n_samples=2).sum(1), 1, atol=1e-5)
    return m


def on_disk(a, folder):
    a.write_h5ad(folder / "a.h5ad")
    return ad.read_h5ad(folder / "a.h5ad", backed="r")


def hold_out(test_idx):
    return GMVAE(cells(), K=3, preset=SMALL).train(1, test_idx=test_idx, progress=False)


def layered(layer):
    a = cells()
    a.layers["counts"], a.X = layer, a.X * 0.5
    return a


def no_X():
    return ad.AnnData(obs=cells().obs, var=cells().var)


def only_parts_of_the_reads():
    return ad.AnnData(cells().X * 0.5, layers={"spliced": cells().X})


def stored_twice():
    "Each count in two parts, which are to be added."
    genes = np.repeat(np.arange(20), 10)
    y = csr_matrix((np.ones(200), genes, np.arange(0, 201, 2)), shape=(100, 20))
    return ad.AnnData(y, obs=cells().obs)


def with_sparse(**parts):
    "A CSR matrix whose parts no longer fit together."
    a = cells()
    for name, change in parts.items():
        change(getattr(a.X, name))
    return a


# --- given from Python ----------------------------------------------------------------------------

FORMS = {"dense": np.asarray, "csr": csr_matrix, "csc": csc_matrix, "csr_array": csr_array}
BAD = {
    f"{value} in {form}": (
        lambda v=value, f=form: fit(counts(put(v), FORMS[f])),
        rf"adata.X holds {value:g} for cell 'cell7' and gene 'gene3'",
    )
    for value in (-1, 0.5, np.nan, np.inf)
    for form in FORMS
}
BAD |= {
    "view": (lambda: fit(counts(put(-1))[5:50]), "holds -1 for cell 'cell7' and gene 'gene3'"),
    "text": (
        lambda: fit(counts(lambda y: y.astype(str), np.asarray)),
        "has dtype <U.*counts must be numbers",
    ),
    "objects": (
        lambda: fit(counts(lambda y: y.astype(object), np.asarray)),
        "has dtype object: counts must be numbers",
    ),
    "complex": (lambda: fit(counts(lambda y: y.astype(complex))), "has dtype complex128"),
    "dates": (
        lambda: fit(counts(lambda y: y.astype("datetime64[s]"), np.asarray)),
        "has dtype datetime64",
    ),
    "masked": (
        lambda: fit(counts(lambda y: np.ma.masked_equal(y, 3), lambda y: y)),
        "is a masked array: .*filled",
    ),
    "2^24": (
        lambda: fit(counts(put(2**24))),
        "holds 1.67772e.07 for cell 'cell7', but float32 is exact only below",
    ),
    "log-normalised": (
        lambda: fit(counts(np.log1p)),
        "holds 1.09861 for cell 'cell0' .*pass the layer with raw counts",
    ),
    "layer to use": (lambda: fit(layered(cells().X)), "pass layer='counts', which holds counts"),
    "bad layer": (
        lambda: fit(layered(cells().X * 0.5), layer="counts"),
        r"adata.layers\['counts'\] holds",
    ),
    "no such layer": (lambda: fit(cells(), layer="counts"), "no 'counts': it has"),
    "layer of another kind": (lambda: fit(cells(), layer=5), "no 5: it has"),
    "no X": (lambda: fit(no_X()), "adata.X is None and there are no layers"),
    "zero cell": (
        lambda: fit(counts(lambda y: y.__setitem__(5, 0))),
        "1 cell without a single count, the first is 'cell5'",
    ),
    "all zero": (lambda: fit(counts(lambda y: y * 0)), "100 cells without a single count"),
    "no cells": (lambda: fit(cells()[:0]), "0 cells and 20 genes"),
    "no genes": (lambda: fit(cells()[:, :0]), "100 cells and 0 genes"),
    "one cell": (lambda: fit(cells()[:1].copy(), K=1), "1 cells cannot be split"),
    "indices outside": (
        lambda: fit(with_sparse(indices=lambda v: v.__setitem__(3, 10**6))),
        "adata.X is damaged .*(indices|column index values) must be < 20",
    ),
    "indices below 0": (
        lambda: fit(with_sparse(indices=lambda v: v.__setitem__(3, -5))),
        "adata.X is damaged .*(indices|column index values) must be >= 0",
    ),
    "indptr falls": (
        lambda: fit(with_sparse(indptr=lambda v: v.__setitem__(40, 0))),
        "adata.X is damaged .*indptr does not rise",
    ),
    "array": (lambda: fit(np.ones((100, 20))), "expected an AnnData .*found ndarray"),
    "data frame": (lambda: fit(cells().to_df()), "expected an AnnData .*found DataFrame"),
    "path": (lambda: fit("a.h5ad"), "expected an AnnData .*found str.*read_h5ad"),
    "nothing": (lambda: fit(None), "expected an AnnData .*found NoneType"),
    "batch with gaps": (
        lambda: fit(obs([None] + ["a"] * 99)),
        "batch_key='batch' has no value for 1 of 100 cells, the first is 'cell0'",
    ),
    "batch with NaN": (lambda: fit(obs([np.nan] + [1.0] * 99)), "no value for 1 of 100"),
    "categories with gaps": (
        lambda: fit(obs(pd.Categorical([None] + ["a"] * 99))),
        "no value for 1 of 100",
    ),
    "batch 1 and '1'": (
        lambda: fit(obs(np.resize(np.array([1, "1"], dtype=object), 100))),
        "mixes kinds of values",
    ),
    "batch 1.0 and '1'": (
        lambda: fit(obs(np.resize(np.array([1.0, "1", "a"], dtype=object), 100))),
        "mixes kinds of values",
    ),
    "categories 1.0 and '1'": (
        lambda: fit(obs(pd.Categorical(np.resize(np.array([1.0, "1"], dtype=object), 100)))),
        "mixes kinds of values",
    ),
    "batch 1 and True": (
        lambda: fit(obs(np.resize(np.array([1, True], dtype=object), 100))),
        "mixes kinds of values",
    ),
    "lists for batches": (lambda: fit(obs([[1]] * 100)), "mixes kinds of values"),
    "no such batch_key": (
        lambda: fit(cells(), batch_key="donor"),
        r"batch_key='donor' is not a column of adata.obs, which has \['batch', 'cell_type'\]",
    ),
    "batch_key a number": (lambda: fit(cells(), batch_key=5), "batch_key=5 is not a column"),
    "batch_key a list": (
        lambda: fit(cells(), batch_key=["batch"]),
        r"batch_key=\['batch'\] is not a column",
    ),
    "batch_key empty": (lambda: fit(cells(), batch_key=""), "batch_key='' is not a column"),
    "two columns named batch": (
        lambda: fit(column_twice("batch"), batch_key="batch"),
        "batch_key='batch' names 2 columns of adata.obs; expected one",
    ),
    "two columns of labels": (
        lambda: fit(column_twice("cell_type"), labels_key="cell_type"),
        "labels_key='cell_type' names 2 columns",
    ),
    "two columns of labels, read": (
        lambda: read_input(column_twice("cell_type"), labels_key="cell_type"),
        "labels_key='cell_type' names 2 columns",
    ),
    "K 0": (lambda: fit(cells(), K=0), "K is 0"),
    "K negative": (lambda: fit(cells(), K=-3), "K is -3"),
    "K text": (lambda: fit(cells(), K="3"), "K is '3'"),
    "K 2.5": (lambda: fit(cells(), K=2.5), "K is 2.5"),
    "K NaN": (lambda: fit(cells(), K=np.nan), "K is nan"),
    "K True": (lambda: fit(cells(), K=True), "K is True"),
    "K enormous": (lambda: fit(cells(), K=10**12), "from 1 to 10,000"),
    "K None": (lambda: fit(cells(), K=None, preset=TINY), "K is None; .*give K"),
    "preset unknown": (
        lambda: fit(cells(), preset="best"),
        "'best' is unknown; expected one of blog",
    ),
    "preset None": (lambda: fit(cells(), preset=None), "preset None is unknown"),
    "preset a dict": (lambda: fit(cells(), preset={"M": 1}), "is unknown; expected"),
    "preset a list": (lambda: fit(cells(), preset=["blog"]), "is unknown; expected"),
    "both warm-ups": (
        lambda: replace(SMALL, kl_warmup_epochs=2.0),
        "kl_warmup_epochs is 2.0 and kl_warmup_share 0.3; give one",
    ),
    "M_w no divisor of M": (
        lambda: replace(SMALL, M=5, M_w=2),
        "M_w is 2 and M 5; .*give a divisor of M",
    ),
    "the wrong axes with centres": (
        lambda: replace(SMALL, prior="network", original_reshape=True),
        "original_reshape is True; .*need components .*original_reshape=False",
    ),
    "seed text": (lambda: fit(cells(), seed="a"), "seed is 'a'"),
    "seed negative": (lambda: fit(cells(), seed=-1), "seed is -1"),
    "seed 1.5": (lambda: fit(cells(), seed=1.5), "seed is 1.5"),
    "seed None": (lambda: fit(cells(), seed=None), "seed is None"),
    "device unknown": (lambda: fit(cells(), device="tpu9"), "device 'tpu9' cannot be used here"),
    "mask for test_idx": (
        lambda: hold_out(np.arange(100) < 10),
        r"test_idx holds bool; .*np.flatnonzero\(mask\)",
    ),
    "fractions for test_idx": (lambda: hold_out([1.5]), "test_idx holds float64"),
    "names for test_idx": (lambda: hold_out(["cell1"]), "test_idx holds <U5"),
    "test_idx below 0": (lambda: hold_out([-1]), "names cell -1 of 100"),
    "test_idx beyond": (lambda: hold_out([100]), "names cell 100 of 100"),
    "all held out": (lambda: hold_out(range(100)), "names all 100 cells: none is left to train on"),
    "max_epochs -1": (lambda: fit(cells(), epochs=-1), "max_epochs is -1"),
    "max_epochs 1.5": (lambda: fit(cells(), epochs=1.5), "max_epochs is 1.5"),
    "max_epochs text": (lambda: fit(cells(), epochs="5"), "max_epochs is '5'"),
    "max_epochs True": (lambda: fit(cells(), epochs=True), "max_epochs is True"),
    "n_samples 0": (lambda: model(1).predict_proba(n_samples=0), "n_samples is 0"),
    "n_samples 2.5": (lambda: model(1).get_iwae(n_samples=2.5), "n_samples is 2.5"),
    "n_samples True": (lambda: model(1).get_elbo(n_samples=True), "n_samples is True"),
    "simulations 1.5": (lambda: model(1).posterior_predictive(n_samples=1.5), "n_samples is 1.5"),
    "simulations '2'": (lambda: model(1).posterior_predictive(n_samples="2"), "n_samples is '2'"),
    "n_clusters 1.0": (lambda: model(1).predict(n_clusters=1.0), "n_clusters is 1.0; expected a"),
    "n_clusters '2'": (lambda: model(1).predict_proba(n_clusters="2"), "n_clusters is '2'"),
    "n_clusters True": (lambda: model(1).predict(n_clusters=True), "n_clusters is True"),
    "genes missing": (
        lambda: model(1).get_latent_representation(cells()[:, :10].copy()),
        "10 of the model's 20 genes are in the data, fewer than 90% .10 missing: gene10",
    ),
    "batch unknown": (
        lambda: model(1).get_latent_representation(obs("z")),
        "batch 'z' was not trained on .* the model knows 0, 1",
    ),
    "batch missing, later": (
        lambda: model(1).get_latent_representation(ad.AnnData(cells().X, var=cells().var)),
        "batch_key='batch' is not a column",
    ),
    "split 0": (lambda: split_cells(100, 0), "between 0 and 1"),
    "split of one cell": (lambda: split_cells(1), "none is left"),
    "split by what is not there": (lambda: split_by(cells(), "batch", "9"), "no value 9"),
    "split by all": (lambda: split_by(cells(), "batch", ["0", "1"]), "no cell to train on"),
    "mini-batch 0": (lambda: minibatches(cells().X, np.zeros(100), [1], 0), "batch_size=0"),
    "mini-batches of CSC": (
        lambda: minibatches(cells().X.tocsc(), np.zeros(100), [1]),
        "must be CSR",
    ),
}
BAD_SETTINGS = {
    "n_x": [0, "3", True],
    "n_w": [1.5],
    "lr": [-1, 0, np.nan, np.inf],
    "dropout": [1.5, -0.1],
    "input_dropout": [1],
    "thin_to": [-1, 1, np.nan, "0.2"],
    "encoder_hidden": [(), 300, (0,)],
    "decoder_hidden": [("a",)],
    "kl_warmup_epochs": [-1, "5"],
    "kl_warmup_share": [-0.1, 1],
    "batch_size": [1.5, "16"],
    "lam": [-1],
    "min_steps": [-1],
    "most_epochs": [-1, 0.5, True],
    "patience": [-0.1, 1.0, "long"],
    "merge": ["yes"],
    "library_size": [1],
    "align": [-1],
    "label_weight": [-1, np.nan],
    "lr_factor": [0],
    "M": [1.5],
    "M_w": [0],
    "dtype": ["float16"],
    "bound": ["tight"],
    "init": [None],
}
for name, values in BAD_SETTINGS.items():
    for value in values:
        change = partial(replace, SMALL, **{name: value})
        BAD[f"{name}={value!r}"] = (change, f"^{name} is .*expected")


ABSURD = [1e300, -1e300, 10**400, -(10**400), 10**5000, 2**63, 1e-320, -1, 0, True, np.nan]
ABSURD += [np.inf, -np.inf, "3", "", b"x", [3], (10**400,), (10**9,), ("a",), None, {}, object]
ABSURD += [1.5, np.float32("nan"), np.array([1, 2]), Fraction(1, 3), 3 + 0j, np.int64(2**62)]


@pytest.mark.parametrize("name", [field.name for field in fields(SMALL)])
def test_an_absurd_setting_is_refused_in_a_sentence_or_works(name):
    "Whatever is taken can be computed with and written: the schedules, the epochs, JSON."
    taken = 0
    for value in ABSURD:
        try:
            preset = replace(SMALL, **{name: value})
        except ValueError as error:
            assert re.match(r"\w+ is .*(expected|give|need)", str(error)), error
            assert len(str(error)) < 300 and "\n" not in str(error)
            continue
        taken += 1
        for schedule in ("step", "cosine"):
            preset = replace(preset, lr_schedule=schedule)
            rates = [learning_rate(epoch, preset, 100) for epoch in (0, 1.5, 10**6)]
            assert np.isfinite(rates).all()
        assert 0 <= kl_weight(10**6, preset, 100) <= 1
        assert epochs_wanted(preset, 100) > 0
        assert Preset(**json.loads(json.dumps(asdict(preset)))) == preset
    assert taken < len(ABSURD) / 2


@pytest.mark.parametrize("case", BAD)
def test_refused_in_a_sentence(case):
    do, says = BAD[case]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        with pytest.raises(ValueError, match=says) as error:
            do()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_there_are_enough_of_them():
    assert len(BAD) + len(FILES) > 130


GOOD = {
    "bool": lambda: fit(counts(lambda y: y > 0)),
    "int64": lambda: fit(counts(lambda y: y.astype(np.int64), np.asarray)),
    "uint8 CSC": lambda: fit(counts(lambda y: y.astype(np.uint8), csc_matrix)),
    "10^7": lambda: fit(counts(put(1e7))),
    "one gene": lambda: fit(cells()[:, :1].copy()),
    "two cells": lambda: fit(cells()[:2, :1].copy(), K=1, preset=replace(SMALL, batch_size=1)),
    "one batch": lambda: fit(obs("a")),
    "a batch with one cell": lambda: fit(obs(["a"] + ["b"] * 99)),
    "each cell a batch": lambda: fit(obs([str(i) for i in range(100)])),
    "numbers": lambda: fit(obs(np.arange(100) % 2 * 1.5)),
    "booleans": lambda: fit(obs(np.arange(100) % 2 == 0)),
    "unicode": lambda: fit(obs(np.resize(["😀", "é\n\t", ""], 100))),
    "categories without cells": lambda: fit(
        obs(pd.Categorical(["a"] * 100, categories=["z", "a"]))
    ),
    "K of numpy": lambda: fit(cells(), K=np.int64(3)),
    "K above cells": lambda: fit(cells(), K=120),
    "K above cells, by itself": lambda: fit(cells()[:20].copy(), K=None),
    "no one held out": lambda: hold_out([]),
    "lists in the preset": lambda: replace(SMALL, encoder_hidden=[8]).encoder_hidden,
    "stored twice": lambda: fit(stored_twice()),
}


@pytest.mark.parametrize("case", GOOD)
def test_unusual_but_sound(case):
    with every_warning_an_error():
        GOOD[case]()


# --- given as files -------------------------------------------------------------------------------


def written(a, folder, name="a.h5ad"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.write_h5ad(folder / name)
    return folder / name


def text(content, name="t.h5ad"):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def embed(a, folder, **kw):
    model(1).save(folder / "model")
    return embed_file(GMVAE.load(folder / "model"), written(a, folder), folder / "out.h5ad", **kw)


def embed_over_itself(folder):
    return embed_file(model(1), written(cells(), folder), folder / "a.h5ad")


def train_for_no_epochs(folder):
    read = read_input(written(cells(), folder))
    return train_run(read, folder / "run", K=3, preset=TINY, max_epochs=0, progress=False)


FILES = {
    "not there": (lambda t: read_input(t / "gone.h5ad"), "there is no file"),
    "a folder": (lambda t: read_input(t), "there is no file"),
    "text": (lambda t: read_input(text(b"hello")(t)), "is no h5ad file"),
    "empty": (lambda t: read_input(text(b"")(t)), "is empty: get it again"),
    "a table": (lambda t: read_input(text(b"a,b\n1,2", "t.csv")(t)), "is no h5ad file"),
    "half a gzip": (
        lambda t: load_data(text(gzip.compress(bytes(9999))[:30], "g.h5ad.gz")(t)),
        "is not a whole gzip",
    ),
    "no gzip": (lambda t: load_data(text(b"hello", "g.h5ad.gz")(t)), "is not a whole gzip"),
    "gzip of text": (
        lambda t: load_data(text(gzip.compress(b"hello"), "g.h5ad.gz")(t)),
        "g.h5ad' is no h5ad file",
    ),
    "unknown name": (lambda t: load_data("kang"), "'kang' is neither one of kang_pbmc"),
    "fractions": (lambda t: read_input(written(counts(np.log1p), t)), "holds 1.09861"),
    "only parts of the reads": (
        lambda t: read_input(written(only_parts_of_the_reads(), t)),
        "pass layer='spliced'",
    ),
    "no such batch_key": (
        lambda t: read_input(written(cells(), t), batch_key="donor"),
        "batch_key='donor' is not",
    ),
    "no such labels_key": (
        lambda t: read_input(written(cells(), t), labels_key="x"),
        "labels_key='x' is not",
    ),
    "labels of no cell": (
        lambda t: read_input(written(obs([np.nan] * 100, "cell_type"), t), labels_key="cell_type"),
        "labels_key='cell_type' has a label for 0 of 100 cells",
    ),
    "n_top_genes 0": (lambda t: read_input(written(cells(), t), n_top_genes=0), "n_top_genes is 0"),
    "genes ranked in a batch of one": (
        lambda t: read_input(written(obs(["a"] + ["b"] * 99), t), batch_key="batch", n_top_genes=5),
        "batch 'a' has 1 cell",
    ),
    "no cells": (lambda t: read_input(written(cells()[:0].copy(), t)), "0 cells"),
    "no X": (lambda t: read_input(written(no_X(), t)), "X is None"),
    "half the genes": (
        lambda t: embed(cells()[:, :10].copy(), t),
        "10 of the model's 20 genes are in the data, fewer than 90%",
    ),
    "unknown batch": (lambda t: embed(obs("z"), t), "batch 'z' was not trained on"),
    "no such gene_key": (lambda t: embed(cells(), t, gene_key="ids"), "gene_key='ids' is not"),
    "map from nothing": (
        lambda t: embed(cells(), t, map_batch={"q": "0"}),
        "the data have no batch 'q'",
    ),
    "map to nothing": (
        lambda t: embed(cells(), t, map_batch={"0": "q"}),
        "the model has no batch 'q'",
    ),
    "a cell without the model's genes": (
        lambda t: embed(counts(lambda y: y.__setitem__(3, 0)), t),
        "'cell3'",
    ),
    "over itself": (embed_over_itself, "is the input, which is never changed"),
    "no model": (
        lambda t: GMVAE.load(t),
        "does not exist; expected a folder written by GMVAE.save",
    ),
    "no epochs": (train_for_no_epochs, "max_epochs is 0"),
    "negative on disk": (
        lambda t: fit(on_disk(counts(put(-1)), t)),
        "holds -1 for cell 'cell7' and gene 'gene3'",
    ),
    "indices outside, on disk": (
        lambda t: fit(on_disk(with_sparse(indices=lambda v: v.__setitem__(3, 10**6)), t)),
        "is damaged .*(indices|column index values) must be < 20",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_refused_in_a_sentence(case, tmp_path):
    do, says = FILES[case]
    with pytest.raises(ValueError, match=says) as error:
        do(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert not (tmp_path / "out.h5ad").exists() and not list(tmp_path.glob(".*"))


def test_nobody_hears_of_what_she_cannot_change(tmp_path):
    "From a file to an embedding, every warning an error."
    path = written(cells(), tmp_path)
    options = dict(K=3, batch_key="batch", preset=SMALL, max_epochs=2, progress=False)
    with every_warning_an_error():
        embed(cells(), tmp_path)
        train_run(read_input(path, batch_key="batch"), tmp_path / "run", **options)


# --- shapes nobody thought of ---------------------------------------------------------------------


BATCHES = [["a", "b"], ["é", "😀", ""], [1, 2.5], [True, False], [None, "a"]]


@st.composite
def anndatas(draw):
    n, G = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    rate = draw(st.sampled_from([0.05, 1, 300]))
    kind = draw(st.sampled_from(["f4", "f8", "i2", "u4", "i8"]))
    y = rng.poisson(rate, (n, G)).astype(kind)
    if draw(st.booleans()):
        y[:, 0] += 1
    if draw(st.booleans()):
        y[0] += 1
    if draw(st.integers(0, 4)) == 0 and y.dtype.kind == "f":
        cell, gene = draw(st.integers(0, n - 1)), draw(st.integers(0, G - 1))
        y[cell, gene] = draw(st.sampled_from([-1, 0.25, np.nan, np.inf]))
    names = st.sampled_from(draw(st.sampled_from(BATCHES)))
    batch = pd.Series(draw(st.lists(names, min_size=n, max_size=n)), dtype=object)
    obs = pd.DataFrame({"batch": batch.to_numpy()}, index=[f"c{i}" for i in range(n)])
    form = draw(st.sampled_from(list(FORMS.values())))
    return ad.AnnData(form(y), obs=obs), y


@settings(max_examples=25, deadline=None, derandomize=True)
@given(anndatas(), st.sampled_from([1, 3, None]), st.sampled_from([1, 8]))
def test_any_shape_trains_or_is_refused_in_a_sentence(made, K, batch_size):
    a, y = made
    whole = np.isfinite(y).all() and (y >= 0).all() and (y == np.floor(y)).all()
    none_empty = y.any(0).all() and y.any(1).all()
    sound = whole and none_empty and a.obs["batch"].notna().all()
    try:
        np.testing.assert_array_equal(get_counts(a).toarray(), y)
        fit(a, K=K, preset=replace(SMALL, batch_size=batch_size))
    except ValueError as error:
        assert "\n" not in str(error)
        enough = a.n_obs > 1  # a smaller mini-batch does
        assert not (sound and enough), error
    else:
        assert sound
