"""A run from its input to its files: what is taken, scored, kept, and never replaced."""

import io
import json
import math
import sys
from dataclasses import replace
from functools import partial

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from gmvae_nb import annotation, commands, reading, runs
from gmvae_nb.after_training import gmvae_embed, gmvae_metrics, gmvae_report, gmvae_table
from gmvae_nb.commands import gmvae_demo, gmvae_sweep, gmvae_train
from gmvae_nb.files import nan_for_null, write_json
from gmvae_nb.model_folder import record_checksums, verify
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.results import collect_runs, results_table
from gmvae_nb.runs import compare_settings, train_run
from gmvae_nb.train import GMVAE

from hazards import SMALL, TINY, cells, no_map


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "Small networks behind the names of presets; the map is not computed."
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    monkeypatch.setitem(PRESETS, "blog", TINY)
    monkeypatch.setattr(annotation, "umap", no_map)


def strict(text: str):
    "JSON as readers other than Python read it."

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_no_file_of_a_run_holds_a_word_that_json_has_not(tmp_path, capsys):
    "With one batch or labels in all batches, scores are NaN: null in files, NaN in tables."
    keys = dict(batch_key="batch", labels_key="cell_type")
    data = read_input(cells(), **keys)
    model = train_run(data, tmp_path, K=2, preset=TINY, max_epochs=1, progress=False, **keys)
    for path in tmp_path.glob("*.json"):
        strict(path.read_text())
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]["latent"]
    assert scores["isolated_labels_asw"] is None  # every type is in both batches
    table = collect_runs([tmp_path])
    assert math.isnan(table.loc[0, "isolated_labels_asw"])
    assert table["isolated_labels_asw"].dtype == float
    gmvae_table([str(tmp_path)])
    assert " nan" not in capsys.readouterr().out
    annotation.annotate_run(model, data, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    metrics["test"] = dict.fromkeys(metrics["test"])  # a loss that is not a number
    write_json(tmp_path / "metrics.json", metrics)
    record_checksums(tmp_path, "metrics.json")
    gmvae_report(str(tmp_path), json=True)
    strict(capsys.readouterr().out)


def test_a_table_takes_runs_whose_metrics_say_nan_or_null(tmp_path):
    run = dict(data="d", preset="p", K=2, seed=0, test={}, clusters={}, train_seconds=1.0)
    for seed, score in enumerate(["NaN", "null", "0.5"]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        text = json.dumps(run | {"seed": seed, "scores": {"latent": {"asw": "here"}}})
        (folder / "metrics.json").write_text(text.replace('"here"', score))
    table = results_table([tmp_path / str(seed) for seed in range(3)])
    assert table.loc[0, "ASW"].startswith("0.500")


def test_infinity_and_nan_are_null_at_any_depth(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1.5, float("inf")], "b": {"c": (float("nan"), 2)}})
    found = strict((tmp_path / "a.json").read_text())
    assert found == {"a": [1.5, None], "b": {"c": [None, 2]}}
    assert math.isnan(nan_for_null({"x": None})["x"]) and nan_for_null({"x": 1}) == {"x": 1}


KEYS = dict(batch_key="batch", labels_key="cell_type")
QUICK = dict(K=2, preset="blog", max_epochs=1, quiet=True)


def stored(folder, change=lambda a: None, name="mine.h5ad", **kw) -> str:
    "Cells as a file."
    a = cells(**kw)
    change(a)
    a.write_h5ad(folder / name)
    return str(folder / name)


# --- labels that some cells have, and none at all -------------------------------------------------


def unlabel(a, every=3):
    a.obs["cell_type"] = a.obs["cell_type"].where(np.arange(len(a)) % every > 0)


def test_cells_without_a_label_are_trained_on_and_not_scored(tmp_path):
    path, out = stored(tmp_path, lambda a: unlabel(a, 2)), tmp_path / "run"
    result = gmvae_train(path, out=str(out), **KEYS, **QUICK)
    labelled = ad.read_h5ad(path).obs["cell_type"].notna()
    kept = ad.read_h5ad(out / "annotated.h5ad")
    held_out = (kept.obs["gmvae_split"] == "test").to_numpy()
    said = f"{(held_out & labelled).sum()} of {held_out.sum()} cells that have a label"
    assert said in result["note"] and said in (out / "report.html").read_text()
    assert sum(result["clusters"].values()) == len(labelled) and result["scores"]["asw"] > 0
    page = (out / "report.html").read_text()
    assert "#cccccc" in page and "nan (" not in page
    alone = ad.read_h5ad(path)[labelled.to_numpy() & held_out].copy()
    alone.obsm["X_gmvae"] = kept[alone.obs_names].obsm["X_gmvae"]
    from gmvae_nb.metrics import evaluate

    scores = evaluate(alone, progress=False).scores
    assert result["scores"]["asw"] == pytest.approx(scores["asw"], abs=1e-5)


def test_a_batch_that_is_missing_and_labels_that_all_are_stay_refused(tmp_path):
    def no_labels(a):
        a.obs["cell_type"] = pd.Series([None] * len(a), index=a.obs_names, dtype=object)
        a.obs["batch"] = a.obs["batch"].where(np.arange(len(a)) > 0)

    a = cells()
    no_labels(a)
    with pytest.raises(ValueError, match="0 of 100 cells"):
        read_input(a, labels_key="cell_type")
    with pytest.raises(ValueError, match="batch_key='batch' has no value for 1 of"):
        read_input(a, batch_key="batch")


def test_batches_are_scored_without_labels(tmp_path):
    def embed(a):
        a.obsm["X_gmvae"] = np.random.default_rng(0).normal(size=(len(a), 3))
        del a.obs["cell_type"]

    path = stored(tmp_path, embed)
    scores = gmvae_metrics(path)["scores"]
    assert 0 < scores["ilisi"]["score"] <= 1 and scores["asw"]["score"] is None
    assert scores["batch_asw"]["note"].startswith("no labels")
    with pytest.raises(ValueError, match="no column 'type'"):
        gmvae_metrics(path, labels_key="type")
    with pytest.raises(ValueError, match="nothing to compare"):
        gmvae_metrics(path, batch_key="")
    one = ad.read_h5ad(path)
    one.obs["kind"] = "T"
    one.write_h5ad(path)
    scores = gmvae_metrics(path, labels_key="kind")["scores"]
    assert scores["bras"]["score"] > 0 and scores["nmi_oracle"]["note"].startswith("one label")


def test_a_run_that_is_repeated_with_labels_is_scored_and_not_trained(tmp_path, monkeypatch):
    path = stored(tmp_path)
    words = dict(out=str(tmp_path / "s"), K=[2], batch_key="batch", max_epochs=1, quiet=True)
    gmvae_sweep(path, **words)
    history = (tmp_path / "s/K2-seed0/history.csv").read_bytes()
    assert "asw" not in pd.read_csv(tmp_path / "s/results.csv")
    gmvae_sweep(path, labels_key="cell_type", **words)
    assert pd.read_csv(tmp_path / "s/results.csv")["asw"].notna().all()
    assert (tmp_path / "s/K2-seed0/history.csv").read_bytes() == history
    assert runs.finished_run(tmp_path / "s/K2-seed0", 1, "cell_type")
    assert runs.finished_run(tmp_path / "s/K2-seed0", 1)
    assert not runs.finished_run(tmp_path / "s/K2-seed0", 1, "other")


# --- inputs ---------------------------------------------------------------------------------------


def test_the_table_of_a_sweep_keeps_earlier_runs_of_the_same_settings(tmp_path):
    path, out = stored(tmp_path), tmp_path / "s"
    words = dict(out=str(out), batch_key="batch", max_epochs=1, quiet=True)
    gmvae_sweep(path, K=[2], **words)
    gmvae_sweep(path, K=[3], **words)
    before = pd.read_csv(out / "results.csv")
    assert list(before["K"]) == [2, 3] and "settings" not in before
    for other, said in [
        (dict(preset="blog"), "K2-seed0 holds a run with other settings"),
        (dict(batch_key=None), "K2-seed0 holds a run with other"),
        (dict(max_epochs=2), r"another max_epochs \(1, now 2\): ask for its K and seed too"),
        (dict(labels_key="cell_type"), "another labels_key"),
    ]:
        with pytest.raises(ValueError, match=said):
            gmvae_sweep(path, K=[4], **words | other)
    assert not (out / "K4-seed0").exists()
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), before)
    (out / "K2-seed0/metrics.json").write_text("{}")  # not finished, as it is
    gmvae_sweep(path, K=[3], **words)
    assert list(pd.read_csv(out / "results.csv")["K"]) == [3]


def test_fewer_cells_than_a_mini_batch_shrink_it_and_that_is_said(tmp_path, capsys):
    path = stored(tmp_path, n=17)
    gmvae_train(path, out=str(tmp_path / "run"), **{**QUICK, "quiet": False})
    note = "14 cells to train on are fewer than a mini-batch of 16"
    assert note in capsys.readouterr().err
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert note in run["notes"][-1] and run["settings"]["preset"]["batch_size"] == 14
    gmvae_train(path, out=str(tmp_path / "run"), resume=True, **{**QUICK, "max_epochs": 2})
    gmvae_train(path, dry_run=True, **QUICK)
    gmvae_sweep(path, out=str(tmp_path / "s"), K=[2], max_epochs=1, quiet=True)
    gmvae_sweep(path, out=str(tmp_path / "s"), K=[2], max_epochs=1, quiet=True)
    assert runs.fitting_preset(TINY, 100) == (TINY, [])


def test_a_choice_of_genes_that_leaves_a_cell_empty_says_what_to_do(monkeypatch):
    a = cells(n=60, G=30)
    y = a.X.toarray()
    y[7], y[7, 29] = 0, 1
    a.X = y
    first = lambda counts, batch, n: np.arange(counts.shape[1]) < n  # noqa: E731
    monkeypatch.setattr(reading, "variable_genes", first)
    with pytest.raises(ValueError, match="1 of 60 cells .* 'cell7': raise n_top_genes"):
        read_input(a, n_top_genes=5)
    assert read_input(a).cells.shape == (60, 30)
    a.var["feature_types"] = np.where(np.arange(30) < 29, "Gene Expression", "Antibody Capture")
    with pytest.raises(ValueError, match="1 of 60 cells .* 29 chosen genes.* 'cell7': drop such"):
        read_input(a)


def test_cells_that_a_mask_leaves_empty_are_counted_over_all_blocks_of_a_file(
    tmp_path, monkeypatch
):
    a = cells(n=60, G=30)
    y = a.X.toarray()
    y[[7, 41]], y[[7, 41], 29] = 0, 1
    a.X, a.var["chosen"] = sp.csr_matrix(y), np.arange(30) < 29
    a.write_h5ad(tmp_path / "a.h5ad")
    blocks = partial(reading.row_blocks, size=20)
    monkeypatch.setattr(reading, "row_blocks", blocks)
    on_disk = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for of in (a, on_disk):
        with pytest.raises(ValueError, match="2 of 60 cells .* 'cell7': choose more with chosen"):
            GMVAE(of, K=2, mask_var="chosen", preset=TINY)


def test_gene_names_are_found_beside_counts_in_raw(tmp_path):
    train_run(
        read_input(cells(), batch_key="batch"),
        tmp_path / "run",
        K=2,
        batch_key="batch",
        preset=TINY,
        max_epochs=1,
        progress=False,
    )

    def as_atlas(a, of_raw):
        names = pd.Categorical(a.var_names)
        a.var_names = [f"ENSG{i}" for i in range(a.n_vars)]
        if of_raw:
            a.var["symbol"] = names
        a.raw = a
        a.var["symbol"] = names
        a.X = a.X.log1p()

    for of_raw in (True, False):
        path = stored(tmp_path, partial(as_atlas, of_raw=of_raw), f"atlas{of_raw}.h5ad")
        with pytest.raises(ValueError, match="gene_key='symbol'"):
            gmvae_embed(str(tmp_path / "run"), path, quiet=True)
        found = gmvae_embed(str(tmp_path / "run"), path, gene_key="symbol", quiet=True)
        assert found["matched"] == 20 and found["counts"] == "raw.X"


# --- annotated.h5ad -------------------------------------------------------------------------------


def test_texts_of_which_some_may_be_missing_stay_as_they_are(tmp_path):
    def as_text(a):
        a.obs.index = a.obs.index.astype("string")
        a.obs["note"] = pd.array(["x", None] * 50, dtype="string")

    with ad.settings.override(allow_write_nullable_strings=True):
        path = stored(tmp_path, as_text)
    gmvae_train(path, out=str(tmp_path / "run"), **QUICK)
    kept, before = ad.read_h5ad(tmp_path / "run/annotated.h5ad"), ad.read_h5ad(path)
    pd.testing.assert_frame_equal(kept.obs[before.obs.columns], before.obs)
    assert list(kept.obs.columns[: before.obs.shape[1]]) == list(before.obs.columns)
    assert "gmvae_cluster" in kept.obs


def test_what_cannot_be_written_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.GMVAE, "train", lambda *a, **k: pytest.fail("trained"))
    a = cells()
    a.uns["model"] = object()
    with pytest.raises(ValueError, match="cannot be written as h5ad .*'model'"):
        annotation.check_annotation(read_input(a), tmp_path / "annotated.h5ad")
    path = stored(tmp_path)
    with h5py.File(path, "r+") as f:
        f.copy("obs", f, "old")
        del f["obs"].attrs["column-order"]
    with h5py.File(path) as f, pytest.raises(ValueError, match="old versions of anndata"):
        annotation.add_columns(f, {})
    path = stored(tmp_path, name="annotated.h5ad")
    before = (tmp_path / "annotated.h5ad").read_bytes()
    with pytest.raises(ValueError, match="is the input|not written by a run"):
        gmvae_train(path, out=str(tmp_path), **QUICK)
    with pytest.raises(ValueError, match="is the input"):
        gmvae_train(path, out=str(tmp_path), overwrite=True, **QUICK)
    assert (tmp_path / "annotated.h5ad").read_bytes() == before


def test_scanpy_draws_the_map_and_a_users_own_map_stays(tmp_path):
    import scanpy as sc
    from matplotlib import pyplot as plt

    path = stored(tmp_path)
    gmvae_train(path, out=str(tmp_path / "run"), **QUICK)
    kept = ad.read_h5ad(tmp_path / "run/annotated.h5ad")
    sc.pl.umap(kept, color="gmvae_cluster", show=False)
    plt.close("all")
    np.testing.assert_array_equal(kept.obsm["X_umap"], kept.obsm["X_gmvae_umap"])

    def own(a):
        a.obsm["X_umap"] = np.arange(200.0).reshape(100, 2)

    path = stored(tmp_path, own)
    gmvae_train(path, out=str(tmp_path / "own"), **QUICK)
    kept = ad.read_h5ad(tmp_path / "own/annotated.h5ad")
    np.testing.assert_array_equal(kept.obsm["X_umap"], np.arange(200.0).reshape(100, 2))
    # annotated again, the map of the run before goes with it
    again = str(tmp_path / "run/annotated.h5ad")
    gmvae_train(again, out=str(tmp_path / "again"), seed=1, **QUICK)
    kept = ad.read_h5ad(tmp_path / "again/annotated.h5ad")
    np.testing.assert_array_equal(kept.obsm["X_umap"], kept.obsm["X_gmvae_umap"])


def test_results_of_an_earlier_model_do_not_stay(tmp_path):
    def annotated(a):
        a.obs["gmvae_type"] = pd.Categorical(["T"] * a.n_obs)
        a.obs["gmvae_split"] = a.obs["mine"] = "test"
        for name in ("X_gmvae", "X_gmvae_umap", "X_umap", "gmvae_type_prob", "X_pca"):
            a.obsm[name] = np.ones((a.n_obs, 2))
        a.uns["gmvae"] = {"K": 3}

    new = {"gmvae_cluster": np.arange(100)}, {"X_gmvae": np.zeros((100, 3))}, {"K": 2}
    annotation.write_annotated(stored(tmp_path, annotated), tmp_path / "b.h5ad", *new)
    found = ad.read_h5ad(tmp_path / "b.h5ad")
    assert [c for c in found.obs if c.startswith("gmvae")] == ["gmvae_cluster"]
    assert set(found.obsm) == {"X_gmvae", "X_pca"} and (found.obs["mine"] == "test").all()
    assert found.obsm["X_gmvae"].shape == (100, 3)

    def own_map(a):
        annotated(a)
        a.obsm["X_umap"] = np.zeros((a.n_obs, 2))

    annotation.write_annotated(stored(tmp_path, own_map), tmp_path / "c.h5ad", *new)
    assert set(ad.read_h5ad(tmp_path / "c.h5ad").obsm) == {"X_gmvae", "X_pca", "X_umap"}

    def of_a_user(a):  # no model of ours has been here
        annotated(a)
        del a.uns["gmvae"]

    annotation.write_annotated(stored(tmp_path, of_a_user), tmp_path / "d.h5ad", *new)
    assert "gmvae_type" in ad.read_h5ad(tmp_path / "d.h5ad").obs


@pytest.mark.parametrize("n, k", [(5, 4), (90, 15)])
def test_the_map_is_given_the_exact_neighbours(n, k, monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.undo()  # the real umap, on a stand-in for UMAP
    given = {}

    class Placed:
        def __init__(self, **options):
            given.update(options)

        def fit_transform(self, X):
            return X[:, :2]

    monkeypatch.setattr("umap.UMAP", Placed)
    X = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    annotation.umap(X)
    distances, near = NearestNeighbors(n_neighbors=k).fit(X).kneighbors(X)
    np.testing.assert_array_equal(given["precomputed_knn"][0], near)
    np.testing.assert_allclose(given["precomputed_knn"][1], distances, rtol=1e-4, atol=1e-6)


def test_the_map_of_few_cells_asks_for_no_distance_of_each_pair(monkeypatch):
    import umap.umap_

    monkeypatch.undo()
    monkeypatch.setattr(umap.umap_, "pairwise_distances", lambda *a, **k: pytest.fail("asked"))
    for n in (4, 60, 200):
        X = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
        place = annotation.umap(X)
        assert place.shape == (n, 2) and np.isfinite(place).all()


def test_clusters_without_cells_reach_no_test():
    from gmvae_nb.findings import marker_genes

    clusters = pd.Categorical(["0", "4"] * 50, categories=list("01234"))
    counts = cells().X
    found = marker_genes(counts, [f"g{i}" for i in range(20)], clusters)
    assert set(found["cluster"]) <= {"0", "4"}


# --- nobody else's file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["annotated.h5ad", "report.html", "explore.html", "markers.csv", "metrics.json"]
)
def test_a_file_of_somebody_else_is_not_replaced(tmp_path, name):
    path, out = stored(tmp_path), tmp_path / "run"

    def put():
        if name.endswith(".h5ad"):
            cells(seed=1).write_h5ad(out / name)
        else:
            (out / name).write_text('{"mine": 1}')
        return (out / name).read_bytes()

    out.mkdir()
    before = put()
    with pytest.raises(ValueError, match=f"{name} was not written by a run.*--overwrite"):
        gmvae_train(path, out=str(out), **QUICK)
    assert (out / name).read_bytes() == before and len(list(out.iterdir())) == 1
    gmvae_train(path, out=str(out), overwrite=True, **QUICK)
    assert (out / name).read_bytes() != before
    put()  # in the folder of a finished run
    with pytest.raises(ValueError, match=f"{name} was not written by a run"):
        gmvae_train(path, out=str(out), resume=True, **QUICK)
    if name in ("report.html", "explore.html", "markers.csv"):
        with pytest.raises(ValueError, match=f"{name} was not written by a run"):
            gmvae_report(str(out))
    (out / name).unlink()
    gmvae_train(path, out=str(out), resume=True, **QUICK)
    if name.endswith(".h5ad"):  # damaged, it is made again
        (out / name).write_bytes((out / name).read_bytes()[:3000])
        gmvae_train(path, out=str(out), resume=True, **QUICK)
        assert "gmvae_cluster" in ad.read_h5ad(out / name).obs


def test_embedding_replaces_its_own_copies_alone(tmp_path):
    path, out = stored(tmp_path), tmp_path / "run"
    gmvae_train(path, out=str(out), **QUICK)
    embed = {"quiet": True}
    for _ in range(2):
        gmvae_embed(str(out), path, **embed)  # mine_gmvae.h5ad, and again
    foreign = stored(tmp_path, name="mine_gmvae.h5ad")
    targets = [foreign, str(out / "model.safetensors"), str(out / "annotated.h5ad")]
    for target in targets:
        before = open(target, "rb").read()
        said = "was not written by gmvae_embed: .*--overwrite"
        if target != foreign:
            said = "is of the model, or of the run"
            with pytest.raises(ValueError, match=said):
                gmvae_embed(str(out), path, out=target, overwrite=True, **embed)
        with pytest.raises(ValueError, match=said):
            gmvae_embed(str(out), path, out=target, **embed)
        assert open(target, "rb").read() == before
    with pytest.raises(ValueError, match="not written by gmvae_embed"):
        gmvae_embed(str(out), path, **embed)
    with pytest.raises(ValueError, match="is a folder"):
        gmvae_embed(str(out), path, out=str(out), **embed)
    gmvae_embed(str(out), path, out=foreign, overwrite=True, **embed)
    assert "X_gmvae" in ad.read_h5ad(foreign).obsm


def test_tables_replace_tables_alone(tmp_path):
    path = stored(tmp_path)
    words = dict(out=str(tmp_path / "s"), K=[2], max_epochs=1, quiet=True)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/results.csv").write_text("gene,p\n")
    with pytest.raises(ValueError, match="results.csv is there and is no table of runs"):
        gmvae_sweep(path, **words)
    (tmp_path / "s/results.csv").unlink()
    gmvae_sweep(path, **words)
    run, csv = str(tmp_path / "s/K2-seed0"), tmp_path / "runs.csv"
    for _ in range(2):
        gmvae_table([run], csv=str(csv))
    history = tmp_path / "s/K2-seed0/history.csv"
    before = history.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="history.csv is of the model"):
            gmvae_table([run], csv=str(history), overwrite=overwrite)
    assert history.read_bytes() == before
    csv.write_text("mine\n")
    gmvae_table([run], csv=str(csv), overwrite=True)
    assert csv.read_text().startswith("data,preset,K,seed,")


def test_a_refusal_to_replace_ends_with_code_2(tmp_path, monkeypatch, capsys):
    path = stored(tmp_path)
    (tmp_path / "markers.csv").write_text("mine\n")
    monkeypatch.setattr(sys, "argv", ["gmvae_train", path, "--out", str(tmp_path), "--quiet"])
    with pytest.raises(SystemExit) as end:
        gmvae_train()
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_demo_does_not_replace_other_data(tmp_path):
    stored(tmp_path, name="kang_pbmc.h5ad")
    with pytest.raises(ValueError, match="does not hold the shipped data"):
        gmvae_demo(out=str(tmp_path), quiet=True)


def test_the_demo_that_is_called_again_goes_on(tmp_path, monkeypatch):
    few, asked = cells(n=60), []
    monkeypatch.setattr("gmvae_nb.data.kang_pbmc", lambda: few)
    whole = commands.train_and_annotate
    fewer = partial(whole, K=2)

    def quickly(*args, **options):
        asked.append(options["resume"])
        return fewer(*args, **options | {"max_epochs": 1})

    monkeypatch.setattr(commands, "train_and_annotate", quickly)
    first, second = (gmvae_demo(out=str(tmp_path), quiet=True) for _ in range(2))
    assert asked == [True, True] and first == second


# --- consoles -------------------------------------------------------------------------------------


def test_a_console_that_lacks_a_character_gets_another(monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    commands.take_every_character()
    print("0.1 \u2013 0.2")
    print("\u00b1", file=sys.stderr)
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().split() == [b"0.1", b"?", b"0.2"]


def test_a_plan_that_is_not_kept_to_changes_nothing_in_the_folder(tmp_path):
    data, out = read_input(cells(n=60)), tmp_path / "run"
    options = dict(K=2, preset=replace(TINY, lr_schedule="cosine"), progress=False)
    runs.train_run(data, out, max_epochs=1, **options)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="planned for 1 epochs.* for 2 in another folder"):
        runs.train_run(data, out, max_epochs=2, resume=True, **options)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not verify(out)["notes"]
    runs.train_run(data, out, max_epochs=1, resume=True, **options)


def test_the_map_of_many_cells_is_that_of_a_sample_and_says_so(tmp_path, monkeypatch):
    seen = []

    class Placed:
        def __init__(self, **options):
            pass

        def fit_transform(self, X):
            seen.append(len(X))
            return X[:, :2] * 2

    monkeypatch.undo()  # the real umap, on a stand-in for UMAP
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    monkeypatch.setattr("umap.UMAP", Placed)
    monkeypatch.setattr(annotation, "MAP_CELLS", 40)
    X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    place = annotation.umap(X, seed=1)
    assert seen == [40] and place.shape == (200, 2) and np.isfinite(place).all()
    exact = (place == X[:, :2] * 2).all(1)
    assert exact.sum() == 40  # the sample lies where it was put
    np.testing.assert_array_equal(place, annotation.umap(X, seed=1))
    assert (place != annotation.umap(X, seed=2)).any()
    far = np.concatenate([X[:100], X[100:] + 100])
    place = annotation.umap(far)
    assert (place[:100, 0] < 50).all() and (place[100:, 0] > 150).all()

    file = tmp_path / "mine.h5ad"
    cells().write_h5ad(file)
    gmvae_train(str(file), str(tmp_path / "run"), max_epochs=1, quiet=True)
    page = (tmp_path / "run/report.html").read_text()
    assert "of 40 cells drawn at" in " ".join(page.split())
    monkeypatch.setattr(annotation, "MAP_CELLS", 50_000)
    gmvae_train(str(file), str(tmp_path / "all"), max_epochs=1, quiet=True)
    assert "drawn at random; every other" not in " ".join(
        (tmp_path / "all/report.html").read_text().split()
    )


@pytest.mark.parametrize("column", ["sort", "pct"])
def test_a_sweep_of_other_labels_or_covariates_is_another(tmp_path, column):
    adata, out = cells(), tmp_path / "s"
    rng = np.random.default_rng(0)
    adata.obs["sort"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    adata.obs["pct"] = rng.random(adata.n_obs)
    adata.write_h5ad(tmp_path / "mine.h5ad")
    words = dict(supervise="sort", continuous_covariate_keys=["pct"], batch_key="batch")
    words |= dict(out=str(out), K=[8], max_epochs=1, quiet=True)
    gmvae_sweep(str(tmp_path / "mine.h5ad"), **words)
    settings = json.loads((out / "K8-seed0/run.json").read_text())["settings"]
    adata.obs[column] = adata.obs[column].to_numpy()[::-1]
    adata.write_h5ad(tmp_path / "mine.h5ad")
    for repeats in (1, 2):
        with pytest.raises(ValueError, match="K8-seed0 holds a run with other (labels|covariates)"):
            gmvae_sweep(str(tmp_path / "mine.h5ad"), repeats=repeats, **words)
    assert not (out / "K8-seed1").exists()
    noted = {"supervise_sha256", "covariates_sha256"}
    assert noted <= settings.keys()
    older = {key: value for key, value in settings.items() if key not in noted}
    compare_settings(out, older, settings)  # of a run that did not note them
