"""scikit-learn's own checks of an estimator, on counts made of the numbers they bring."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb.estimator import GMVAEClusterer
from gmvae_nb.train import GMVAE
from scipy import sparse
from sklearn.utils.estimator_checks import parametrize_with_checks


class OnTheirNumbers(GMVAEClusterer):
    "The checks bring numbers of any kind: these are made whole, and no cell is left empty."

    def __init__(self, K=None, *, preset="recommended", seed=0, max_epochs=1, progress=False):
        super().__init__(K, preset=preset, seed=seed, max_epochs=max_epochs, progress=progress)

    def _cells(self, *args, **kwargs):
        adata = super()._cells(*args, **kwargs)
        y = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
        adata.X = sparse.csr_matrix(np.rint(10 * y) + 1)
        return adata


PROBABILITIES = "it takes whoever has predict_proba and reads sparse input for a classifier"
NEGATIVE = "values below 0 are refused, in other words than it looks for"
NOT_PASSED = {
    "check_estimator_sparse_array": PROBABILITIES,
    "check_estimator_sparse_matrix": PROBABILITIES,
    "check_clustering": "50 cells of two genes and one epoch are too few for any cluster",
    "check_fit_non_negative": NEGATIVE,
    "check_positive_only_tag_during_fit": NEGATIVE,
    "check_methods_sample_order_invariance": "equal to 1e-6, not to 1e-9: single precision, "
    "whose last bits depend on the place in a mini-batch",
}


CHECKS = parametrize_with_checks([OnTheirNumbers()], expected_failed_checks=lambda _: NOT_PASSED)
NAMES, GENERATED = CHECKS.args  # which pytest, of late, wants as a list


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(NAMES, list(GENERATED), **CHECKS.kwargs)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_batches_and_names_of_genes():
    rng = np.random.default_rng(0)
    y = pd.DataFrame(rng.poisson(2.0, (60, 12)), columns=[f"gene{g}" for g in range(12)])
    batch = np.repeat(["a", "b"], 30)
    fitted = GMVAEClusterer(max_epochs=1).fit(y, batch=batch)
    assert fitted.model_.genes == list(y.columns) and fitted.model_.batches == ["a", "b"]
    assert fitted.feature_names_in_.tolist() == list(y.columns)
    with pytest.raises(ValueError, match="batch has shape"):
        fitted.transform(y, batch[:5])
    with pytest.raises(ValueError, match="fitted with batches"):
        fitted.transform(y)
    with pytest.raises(ValueError, match="'c'"):
        fitted.transform(y, np.repeat("c", 60))
    assert GMVAEClusterer(max_epochs=1).fit(y).transform(y).shape == (60, 10)


def test_a_column_without_a_count_is_no_news(recwarn):
    y = np.random.default_rng(0).poisson(2.0, (60, 12))
    y[:, 3] = 0
    GMVAEClusterer(max_epochs=1).fit(y)
    assert not [w for w in recwarn if "no count in any cell" in str(w.message)]


def test_a_table_of_covariates_is_that_of_the_columns_of_obs():
    rng = np.random.default_rng(0)
    y, batch = rng.poisson(2.0, (60, 12)), np.repeat(["a", "b"], 30)
    told = pd.DataFrame({"lane": rng.choice(["1", "2"], 60), "share": rng.random(60)})
    told["old"] = rng.random(60) < 0.5
    told.index = [f"somebody {i}" for i in range(60)]
    fitted = GMVAEClusterer(K=3, max_epochs=1).fit(y, batch=batch, covariates=told)
    adata = ad.AnnData(y.astype(np.float32), obs=told.assign(batch=batch))
    adata.var_names = [f"x{g}" for g in range(12)]
    keys = dict(categorical_covariate_keys=["lane", "old"], continuous_covariate_keys=["share"])
    model = GMVAE(adata, 3, batch_key="batch", **keys).train(1, progress=False)
    np.testing.assert_array_equal(fitted.embedding_, model.get_latent_representation())
    np.testing.assert_array_equal(fitted.transform(y, batch, told), fitted.embedding_)
    for bad, words in [
        (None, "covariates is None, but the model was fitted with lane, old, share"),
        (told.drop(columns="share"), "share"),
        (told[:50], "covariates has 50 rows; expected one for each of the 60 cells"),
        (told.to_numpy(), "covariates is no DataFrame"),
    ]:
        with pytest.raises(ValueError, match=words):
            fitted.predict(y, batch, bad)


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA], ids=repr)
@pytest.mark.parametrize("kind", [list, pd.Series, pd.Categorical, pd.array])
def test_a_cell_without_a_batch_is_told(missing, kind):
    y = np.random.default_rng(0).poisson(2.0, (6, 12))
    batch = kind(["a", "b", "a", missing, "b", missing])
    words = "batch has no value for 2 of 6 cells, the first is cell 3"
    with pytest.raises(ValueError, match=words):
        GMVAEClusterer(max_epochs=1).fit(y, batch=batch)


def test_a_fit_that_is_refused_leaves_what_was_fitted(monkeypatch):
    y = np.random.default_rng(0).poisson(2.0, (60, 12))
    named = pd.DataFrame(y[:, :9], columns=[f"gene{g}" for g in range(9)])
    fitted = GMVAEClusterer(max_epochs=1).fit(y)
    before = dict(vars(fitted))
    for bad in (named / 2, named - 1):
        with pytest.raises(ValueError, match="count"):
            fitted.fit(bad)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GMVAE, "predict", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        fitted.fit(named)
    assert vars(fitted) == before
    np.testing.assert_array_equal(fitted.predict(y), fitted.labels_)
    fitted.fit(named)
    assert fitted.n_features_in_ == 9 and fitted.feature_names_in_[0] == "gene0"


def test_the_embedding_has_names_and_can_be_a_table():
    y = np.random.default_rng(0).poisson(2.0, (60, 12))
    names = [f"gmvaeclusterer{i}" for i in range(10)]
    fitted = GMVAEClusterer(max_epochs=1).set_output(transform="pandas")
    assert list(fitted.fit_transform(y)) == names == fitted.get_feature_names_out().tolist()


def test_values_that_name_the_cells_in_another_order_are_refused():
    X = pd.DataFrame(np.ones((6, 3)), index=list("abcdef"), columns=["g1", "g2", "g3"])
    batch = pd.Series(list("uuuvvv"), index=X.index)
    shifted = batch.set_axis(list("bcdefg"))  # some are of other cells
    backwards = batch[::-1]
    for other in (
        dict(batch=backwards),
        dict(batch=shifted),
        dict(covariates=backwards.to_frame("kind")),
    ):
        with pytest.raises(ValueError, match="otherwise than X does"):
            GMVAEClusterer().fit(X, **other)


@pytest.mark.parametrize(
    "X, batch, words",
    [
        (np.ones((3, 2)), [1, "1", 2], "are one text"),
        (pd.DataFrame(np.ones((3, 2)), columns=["g", "g"]), None, "more than one column 'g'"),
    ],
)
def test_names_that_would_be_one_are_refused(X, batch, words):
    with pytest.raises(ValueError, match=words):
        GMVAEClusterer().fit(X, batch=batch)
