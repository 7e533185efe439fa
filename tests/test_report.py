"""The page: complete in itself, small, and safe from what users call things."""

import os
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import runs
from gmvae_nb.data import kang_pbmc
from gmvae_nb.report import cluster_rows, marker_genes, on_map, remarks, unsure_pairs, write_report
from gmvae_nb.runs import annotate_run, read_input, train_run
from gmvae_nb.train import Preset
from scipy.sparse import csr_matrix

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module", params=[True, False], ids=["with batches and labels", "bare"])
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    a = kang_pbmc()[::20]
    a = a[:, np.asarray(a.X.sum(0)).ravel() > 0].copy()
    a.obs["type"] = (
        a.obs["cell_type"].astype(str).replace({"NK": NASTY, "B": '$\\frac{" onclick="x'})
    )
    a.obs["donor"] = a.obs["batch"].astype(str).replace({"stim": "</style><b>&"})
    a.var_names = ["<img src=x>", *a.var_names[1:]]
    a.obs_names = ["<i>cell</i>", *a.obs_names[1:]]
    a.write_h5ad(folder / "<u>.h5ad")
    keys = dict(batch_key="donor", labels_key="type") if request.param else {}
    given = read_input(folder / "<u>.h5ad", **keys)
    small = Preset(n_x=3, prior="parameters", encoder_hidden=(16,), decoder_hidden=(16,), M=1)
    model = train_run(
        given,
        folder / "run",
        K=3,
        preset=small,
        max_epochs=1,
        progress=False,
        command="gmvae_train '<u>.h5ad'",
        **keys,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runs, "umap", lambda X, seed: X[:, :2].astype(np.float32)
        )  # half a minute of compiling
        annotate_run(model, given, folder / "run")
    return request.param, write_report(folder / "run").read_text(encoding="utf-8"), folder / "run"


def test_it_is_one_small_file_without_an_address_outside(page):
    text = page[1]
    assert len(text.encode()) < 5e6
    assert not re.search(r"https?://|url\(|@import|<link|src=[\"'](?!data:)", text)
    assert "default-src 'none'" in text


def test_names_of_users_are_text(page):
    labelled, text, _ = page
    tags = set(re.findall(r"<(\w+)", text))
    assert not tags & {"u", "img src=x"} and "<i>cell" not in text and "<img src=x" not in text
    assert len(re.findall(r"<script", text)) == len(re.findall(r"</script>", text))
    assert NASTY not in text and "</style><b>" not in text and '" onclick="x' not in text
    if labelled:
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "$\\frac{" in text


def test_sections_are_there_when_there_is_something_to_show(page):
    labelled, text, _ = page
    assert ('id="scores"' in text) == labelled and (">batches<" in text) == labelled
    for part in ("maps", "clusters", "unsure", "training", "settings", "methods"):
        assert f'id="{part}"' in text
    assert "@article{dilokthanakul2016gmvae" in text and "200 cells" in text


def test_no_page_without_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match="run.json does not exist"):
        write_report(tmp_path)


def test_a_map_survives_any_coordinates():
    assert on_map(np.full((3, 2), np.nan)).shape == (3, 2)
    assert (on_map(np.zeros((4, 2))) < 65536).all()


def test_a_page_that_cannot_be_written_leaves_the_old_one(page, monkeypatch):
    folder, before = page[2], page[1]
    plain = os.replace

    def full_disk(source, target):
        if Path(target).name == "report.html":
            raise OSError("disk full")
        plain(source, target)

    monkeypatch.setattr("gmvae_nb.data.os.replace", full_disk)
    with pytest.raises(OSError):
        write_report(folder)
    monkeypatch.undo()
    assert (folder / "report.html").read_text(encoding="utf-8") == before and {
        p.name for p in folder.glob(".*")
    } == {".lock"}


def test_cells_without_coordinates_lie_in_the_middle():
    assert on_map(np.array([[0.0, 5], [2, 5], [np.nan, np.inf]]))[2].tolist() == [32767, 32767]


def test_markers_are_higher_in_their_cluster_and_tiny_clusters_have_none():
    rng = np.random.default_rng(0)
    y = rng.poisson(1.0, (63, 30))
    y[:20, 7] += 9
    y[:20, 8] = 0
    found = marker_genes(
        csr_matrix(y.astype(np.float32)),
        [f"g{i}" for i in range(30)],
        pd.Categorical(["a"] * 20 + ["b"] * 41 + ["c"] * 2),
    )
    of_a = found[found["cluster"] == "a"]
    assert (
        of_a["gene"].iloc[0] == "g7"
        and "g8" not in set(of_a["gene"])
        and set(found["cluster"]) == {"a", "b"}
    )
    assert (found["log2_fold_change"] > 0).all()


def test_what_goes_wrong_is_remarked():
    fine = pd.DataFrame({"effective_K": 6.0, "test_neg_elbo": [500.0, 480, 479, 479, 479, 479]})
    assert remarks(fine, 8, 7, 0.01) == []
    assert "collapsed" in remarks(fine.assign(effective_K=1.0), 8, 1, 0)[0]
    assert "20% of the cells are unsure" in remarks(fine, 8, 7, 0.2)[0]
    assert "more with a larger max_epochs" in remarks(fine[:3], 8, 7, 0)[0]
    assert "Of 8 clusters 3 are in use" in remarks(fine, 8, 3, 0)[0]


def test_rows_and_pairs_count_cells():
    obs = pd.DataFrame(
        {
            "gmvae_cluster": pd.Categorical(["0", "0", "1"]),
            "gmvae_confidence": [0.9, 0.4, 0.8],
            "gmvae_unsure": [False, True, False],
        }
    )
    markers = pd.DataFrame({"cluster": ["0"], "gene": ["g"]})
    first, second = cluster_rows(
        obs, pd.Categorical(["a", "b", "a"]), pd.Categorical(["T", "T", "B"]), markers
    )
    assert (first["cells"], first["unsure"], first["batches"], first["label"], first["genes"]) == (
        2,
        0.5,
        [0.5, 0.5],
        "T",
        ["g"],
    )
    assert second["confidence"] == 0.8 and second["genes"] == []
    assert unsure_pairs(np.array([[0.4, 0.35, 0.25], [0.9, 0.1, 0]]), np.array([True, False])) == [
        (0, 1, 1)
    ]
