"""06_results through papermill, on data of a user's own."""

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb.data import kang_pbmc
from gmvae_nb.results import collect_runs, gmvae_table, results_table
from gmvae_nb.train import GMVAE

NOTEBOOK = Path(__file__).parents[1] / "nbs/06_results.ipynb"
PAPERMILL = [sys.executable, "-m", "papermill", str(NOTEBOOK)]


def papermill(folder, *parameters):
    pairs = [word for name, value in parameters for word in ("-p", name, str(value))]
    return subprocess.run(
        [*PAPERMILL, "out.ipynb", "--kernel", "python3", *pairs],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    "A few hundred cells under other column names, as in somebody's own h5ad."
    adata = kang_pbmc()[::10].copy()
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0][:, :400]
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    adata.obs = adata.obs.rename(columns={"batch": "donor", "cell_type": "type"})
    adata.X = adata.X * 0.5  # not counts: these are in the layer
    path = tmp_path_factory.mktemp("own") / "mine.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def finished(own_file):
    "One run of the notebook."
    done = papermill(
        own_file.parent,
        ("K", 3),
        ("data", "mine.h5ad"),
        ("batch_key", "donor"),
        ("labels_key", "type"),
        ("layer", "counts"),
        ("max_epochs", 2),
        ("seed", 4),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return own_file.parent / "_runs/K3-seed4"


def test_the_parameters_cell_is_tagged_and_explained():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    help_text = subprocess.run(
        [*PAPERMILL, "--help-notebook"], capture_output=True, text=True
    ).stdout
    for line in filter(None, "".join(tagged[0]["source"]).split("\n")):
        name, comment = line.split(" = ")[0], line.split("  # ")[1]
        assert name in help_text and " ".join(comment.split()[:3]) in " ".join(help_text.split())


def test_a_run_leaves_everything_it_promises(finished):
    assert {p.name for p in finished.iterdir()} == {
        "model.safetensors",
        "config.json",
        "history.csv",
        "metrics.json",
        "embedding.h5ad",
        "loss.png",
        "umap.png",
    }
    found = json.loads((finished / "metrics.json").read_text())
    assert found["K"] == 3 and found["seed"] == 4 and found["epochs"] == 2
    assert {"ari_oracle", "asw", "nmi_oracle", "batch_asw", "kbet", "ari_clusters"} <= set(
        found["scores"]["latent"]
    )
    terms = found["test"]
    assert terms["rec"] + terms["kl_w"] + terms["kl_z"] + terms["cond"] == pytest.approx(
        terms["neg_elbo"], rel=1e-5
    )
    assert len(pd.read_csv(finished / "history.csv")) == 2


def test_the_embedding_is_that_of_the_saved_model(finished, own_file):
    kept, adata = ad.read_h5ad(finished / "embedding.h5ad"), ad.read_h5ad(own_file)
    model = GMVAE.load(finished)
    assert abs(model.get_latent_representation(adata) - kept.obsm["X_gmvae"]).max() < 1e-5
    assert list(model.predict(adata)) == list(kept.obs["gmvae_cluster"])
    assert (kept.obs["split"] == "test").mean() == pytest.approx(0.15, abs=0.01)


def test_the_table_takes_it(finished, capsys, tmp_path):
    assert results_table([finished]).loc[0, "K"] == 3
    gmvae_table([str(finished)], csv=str(tmp_path / "runs.csv"))
    assert "mine.h5ad" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "runs.csv"), collect_runs([finished]))


@pytest.mark.parametrize(
    "parameters, words",
    [
        ([("data", "no.h5ad")], "no.h5ad"),
        ([("data", "mine.h5ad"), ("layer", "counts")], "batch_key='batch'"),
        (
            [("data", "mine.h5ad"), ("layer", "counts"), ("batch_key", "donor")],
            "labels_key='cell_type'",
        ),
        ([("data", "mine.h5ad"), ("batch_key", "donor"), ("labels_key", "type")], "layer='counts'"),
        ([("K", 0)], "K is 0"),
    ],
)
def test_bad_parameters_are_told_before_training(own_file, parameters, words):
    done = papermill(own_file.parent, *parameters)
    assert done.returncode != 0
    assert words in done.stderr.strip().split("\n")[-1], done.stderr[-500:]
