"""One line in Python: the same as the command, and what is the user's stays."""

import warnings

import anndata as ad
import gmvae_nb
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation, tl
from gmvae_nb.commands import gmvae_train
from gmvae_nb.network import PRESETS

from hazards import SMALL, cells


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "A small network behind the name of the preset, and a map that takes no time."
    monkeypatch.setitem(PRESETS, "recommended", SMALL)

    def place(X, seed=0):
        return np.asarray(X[:, :2], dtype=np.float32) + seed

    monkeypatch.setattr(annotation, "umap", place)
    monkeypatch.setattr(tl, "umap", place)


def test_it_is_the_command_in_memory(tmp_path):
    adata = cells(n=130)
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    file, out = tmp_path / "mine.h5ad", tmp_path / "run"
    adata.write_h5ad(file)
    gmvae_train(str(file), str(out), batch_key="batch", seed=3, max_epochs=2, quiet=True)
    written = ad.read_h5ad(out / "annotated.h5ad")
    assert gmvae_nb.tl.gmvae(adata, "batch", seed=3, max_epochs=2, progress=False) is None
    assert (adata.obs["gmvae"].astype(str) == written.obs["gmvae_cluster"].astype(str)).all()
    for ours, theirs in (
        (adata.obsm["X_gmvae"], written.obsm["X_gmvae"]),
        (adata.obsm["gmvae_prob"].to_numpy(), written.obsm["gmvae_prob"]),
        (adata.obsm["X_umap"], written.obsm["X_umap"]),
        (adata.obs["gmvae_confidence"], written.obs["gmvae_confidence"]),
        (adata.obs["gmvae_novelty"], written.obs["gmvae_novelty"]),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert adata.uns["gmvae"]["counts_sha256"] == written.uns["gmvae"]["counts_sha256"]
    assert adata.uns["gmvae"]["counts"] == "layers['counts']"


def test_the_result_can_be_written_and_read(tmp_path):
    adata = cells()
    tl.gmvae(adata, "batch", max_epochs=1, progress=False)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(again.obsm["gmvae_prob"], adata.obsm["gmvae_prob"])
    assert again.uns["gmvae"]["params"]["batch_key"] == "batch"
    assert again.uns["gmvae"]["params"]["preset"] == "recommended"


def test_what_the_user_has_stays(tmp_path):
    adata = cells()
    adata.obsm["X_umap"] = np.full((adata.n_obs, 2), 7.0)
    before = adata.copy()
    tl.gmvae(adata, max_epochs=1, key_added="mine", progress=False)
    assert (adata.obsm["X_umap"] == 7).all() and adata.obsm["X_mine_umap"].shape[1] == 2
    for column in before.obs:
        pd.testing.assert_series_equal(adata.obs[column], before.obs[column])
    assert abs(adata.X - before.X).max() == 0 and adata.shape == before.shape


def test_a_map_of_its_own_is_drawn_anew():
    adata = cells()
    tl.gmvae(adata, max_epochs=1, progress=False)
    first = adata.obsm["X_umap"].copy()
    tl.gmvae(adata, max_epochs=1, seed=1, progress=False)
    assert (adata.obsm["X_umap"] != first).any()
    np.testing.assert_array_equal(adata.obsm["X_umap"], adata.obsm["X_gmvae_umap"])


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(batch_key="donor"), "is not a column"),
        (dict(layer="spliced"), "spliced"),
        (dict(preset="best"), "preset 'best' is unknown"),
        (dict(preset="blog"), "K is None"),
        (dict(K=0), "K is 0"),
        (dict(seed=-1), "seed is -1"),
        (dict(categorical_covariate_keys="xy"), r"is 'xy'; expected a list: \['xy'\]"),
        (dict(continuous_covariate_keys="xy"), r"is 'xy'; expected a list: \['xy'\]"),
    ],
)
def test_what_cannot_be_used_is_told_and_changes_nothing(options, words):
    adata = cells()
    adata.obs["x"] = adata.obs["y"] = list("ab") * (adata.n_obs // 2)
    before = set(adata.obs), set(adata.obsm), set(adata.uns)
    with pytest.raises(ValueError, match=words):
        tl.gmvae(adata, **options)
    assert (set(adata.obs), set(adata.obsm), set(adata.uns)) == before


@pytest.mark.parametrize("cells", ["a.h5ad", pd.DataFrame([[1]]), np.ones((2, 2)), None])
def test_what_is_no_AnnData_is_told(cells):
    with pytest.raises(ValueError, match="expected an AnnData with cells x genes, found"):
        tl.gmvae(cells)


def test_genes_and_names_that_are_left_out_or_changed_are_told():
    adata = cells()
    X = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X.copy()
    X[:, 3] = 0
    adata.X = X
    with pytest.warns(UserWarning, match="no count"):
        model = tl.gmvae(adata, max_epochs=1, return_model=True, progress=False)
    assert len(model.genes) == adata.n_vars - 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "the mixture has collapsed|.*mini-batch")
        tl.gmvae(
            adata[:, [g for g in adata.var_names if g in model.genes]].copy(),
            max_epochs=1,
            progress=False,
        )


def test_a_second_run_without_labels_leaves_no_types_of_the_first():
    adata = cells()
    some = dict(max_epochs=1, progress=False, K=5)
    tl.gmvae(adata, labels_key="cell_type", **some)
    of_types = {"gmvae_type", "gmvae_type_probability"}
    assert of_types < set(adata.obs) and "gmvae_type_prob" in adata.obsm
    tl.gmvae(adata, **some)
    assert not of_types & set(adata.obs) and "gmvae_type_prob" not in adata.obsm
    adata.obs["gmvae_type"] = "mine"  # the run before had no labels
    tl.gmvae(adata, **some)
    assert (adata.obs["gmvae_type"] == "mine").all()


@pytest.mark.parametrize(
    "key, words",
    [
        ("a/b", "no name in an .h5ad file holds a '/': write 'a_b'"),
        ("", "key_added is ''; expected a text"),
        ("umap", "where scanpy looks for the map"),
        ("pca", r"adata.obsm\['X_pca'\] is there and no result of an earlier run"),
        ("cell_type", r"adata.obs\['cell_type'\] is there"),
        ("log1p", r"del adata.uns\['log1p'\]"),
    ],
)
def test_a_name_that_is_somebody_elses_is_refused_before_training(key, words, monkeypatch):
    monkeypatch.setattr(tl, "GMVAE", None)
    adata = cells()
    adata.obsm["X_pca"], adata.uns["log1p"] = np.ones((adata.n_obs, 2)), {"base": None}
    with pytest.raises(ValueError, match=words):
        tl.gmvae(adata, key_added=key)
    assert "gmvae" not in adata.obs and (adata.obsm["X_pca"] == 1).all()


def test_a_name_of_an_earlier_run_is_used_again():
    adata = cells()
    for seed in (0, 1):
        tl.gmvae(adata, key_added="mine", seed=seed, max_epochs=1, progress=False)
    assert adata.uns["mine"]["params"]["seed"] == 1


@pytest.mark.parametrize("name", ["CD4/CD8", "", ".", "_index"])
def test_types_that_no_file_can_name_are_written_all_the_same(tmp_path, name):
    adata = cells()
    adata.obs["sort"] = np.where(np.arange(adata.n_obs) % 2, name, "CD4")
    tl.gmvae(adata, "batch", labels_key="sort", max_epochs=1, progress=False)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert again.obsm["gmvae_type_prob"].shape == (adata.n_obs, 3)
    assert list(again.uns["gmvae"]["types"]) == [*sorted(["CD4", name]), "none of these"]


def test_an_index_may_have_any_name(tmp_path):
    adata = cells()
    adata.obs.index.name = "0"  # as the first cluster
    tl.gmvae(adata, "batch", max_epochs=1, progress=False)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert len(ad.read_h5ad(tmp_path / "a.h5ad").obsm["gmvae_prob"]) == adata.n_obs


def test_a_cell_may_lack_a_name():
    adata = cells()
    names = list(adata.obs_names)
    names[3] = np.nan
    adata.obs.index = pd.Index(names, dtype=object)
    tl.gmvae(adata, "batch", max_epochs=1, progress=False)
    assert adata.obs["gmvae"].notna().all()


@pytest.mark.parametrize("kind", [tuple, pd.Index, dict.fromkeys])
def test_names_of_covariates_come_in_any_container(tmp_path, kind):
    adata = cells()
    adata.obs["sort"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    keys = dict(categorical_covariate_keys=kind(["sort"]))
    tl.gmvae(adata, "batch", **keys, max_epochs=1, progress=False)
    adata.write_h5ad(tmp_path / "a.h5ad")
    params = ad.read_h5ad(tmp_path / "a.h5ad").uns["gmvae"]["params"]
    assert list(params["categorical_covariate_keys"]) == ["sort"]


def test_a_part_of_cells_on_disk_is_refused_at_once(tmp_path, monkeypatch):
    cells().write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr(tl, "read_input", lambda *a, **kw: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="adata.to_memory"):
        tl.gmvae(ad.read_h5ad(tmp_path / "a.h5ad", backed="r")[:40])


def test_a_column_of_the_default_name_that_is_not_ours_stays():
    adata = cells()
    adata.obs["gmvae"] = "mine"
    with pytest.raises(ValueError, match=r"adata.obs\['gmvae'\] is there"):
        tl.gmvae(adata, "batch", progress=False)
    del adata.obs["gmvae"]
    tl.gmvae(adata, "batch", max_epochs=1, progress=False)
    tl.gmvae(adata, "batch", max_epochs=1, progress=False)  # its own may be replaced
    del adata.uns["gmvae"]  # as where cells were joined
    tl.gmvae(adata, "batch", max_epochs=1, progress=False)
    adata.uns["gmvae"] = "mine"
    with pytest.raises(ValueError, match=r"adata.uns\['gmvae'\] is there"):
        tl.gmvae(adata, "batch", progress=False)
