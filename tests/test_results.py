"""06_results through papermill, on data of a user's own: a folder as gmvae_train makes it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation
from gmvae_nb.after_training import gmvae_report, gmvae_table, gmvae_verify
from gmvae_nb.commands import gmvae_train
from gmvae_nb.data import kang_pbmc
from gmvae_nb.results import collect_runs, plot_umaps, results_table
from gmvae_nb.tables import read_table, write_table
from gmvae_nb.train import GMVAE

from hazards import no_map

NOTEBOOK = Path(__file__).parents[1] / "nbs/06_results.ipynb"
PAPERMILL = [sys.executable, "-m", "papermill", str(NOTEBOOK)]
KEYS = {"batch_key": "donor", "labels_key": "type"}
TOLD = {"categorical_covariate_keys": "lane", "continuous_covariate_keys": "share"}
MODEL_FILES = (
    "model.safetensors config.json history.csv run.json metrics.json annotated.h5ad novelty.npz "
    ".lock"
).split()
FIGURES = ["loss.png", "umap.png", "clusters.png"]


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    "A few hundred cells under other column names, as in somebody's own h5ad."
    adata = kang_pbmc()[::16].copy()
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0][:, :400]
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    adata.obs = adata.obs.rename(columns={"batch": "donor", "cell_type": "type"})
    adata.X = adata.X * 0.5  # not counts: these are in the layer
    rng = np.random.default_rng(0)
    adata.obs = adata.obs.assign(
        lane=rng.choice(["1", "2"], adata.n_obs), share=rng.random(adata.n_obs)
    )
    path = tmp_path_factory.mktemp("own") / "mine.h5ad"
    adata.write_h5ad(path)
    return path


def train(file: Path, out: Path, max_epochs: int, **options) -> None:
    "gmvae_train with the settings of the run below; its map is not computed."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation, "umap", no_map)
        gmvae_train(
            str(file),
            out=str(out),
            K=3,
            preset="blog",
            seed=4,
            max_epochs=max_epochs,
            quiet=True,
            **KEYS,
            **{kind: [name] for kind, name in TOLD.items()},
            **options,
        )


@pytest.fixture(scope="module")
def begun(own_file):
    "The history of one epoch of gmvae_train in the folder where the notebook goes on."
    out = own_file.parent / "_runs/K3-seed4"
    train(own_file, out, 1)
    for name in ("report.html", "explore.html", "markers.csv", "clusters.csv"):
        (out / name).unlink()
    return pd.read_csv(out / "history.csv", dtype=str)


# what IPython runs before the cells: to compile UMAP takes longer than all else
NO_UMAP = """
import numpy
from gmvae_nb import annotation
annotation.umap = lambda X, seed: numpy.zeros((X.shape[0], 2), "float32")
"""


@pytest.fixture(scope="module")
def finished(own_file, begun):
    "The notebook, which trains the second epoch; its maps are not computed."
    startup = own_file.parent / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "no_umap.py").write_text(NO_UMAP)
    parameters = dict(K=3, data="mine.h5ad", layer="counts", max_epochs=2, seed=4, **KEYS, **TOLD)
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    done = subprocess.run(
        [*PAPERMILL, "out.ipynb", "--kernel", "python3", *words],
        cwd=own_file.parent,
        env={**os.environ, "IPYTHONDIR": str(own_file.parent / "ipython")},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return own_file.parent / "_runs/K3-seed4"


@pytest.fixture
def copied(finished, tmp_path):
    "A copy of the folder, to be changed."
    return Path(shutil.copytree(finished, tmp_path / "K3-seed4"))


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
    assert {p.name for p in finished.iterdir()} == {*MODEL_FILES, *FIGURES, "recommended"}
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["K"] == 3 and metrics["seed"] == 4 and metrics["epochs"] == 2
    assert set(metrics["scores"]) == {"counts", "latent"}
    for folder in (finished, finished / "recommended"):
        told = json.loads((folder / "config.json").read_text())["covariates"]
        assert [covariate["key"] for covariate in told] == ["lane", "share"]
    names = "ari_oracle asw nmi_oracle batch_asw kbet ari_clusters".split()
    assert set(names) <= set(metrics["scores"]["latent"])
    terms = metrics["test"]
    parts = terms["rec"] + terms["kl_w"] + terms["kl_z"] + terms["cond"]
    assert parts == pytest.approx(terms["neg_elbo"], rel=1e-5)


def test_the_run_beside_it_is_a_run_of_the_same_cells(finished, capsys):
    beside = finished / "recommended"
    assert {p.name for p in beside.iterdir()} == set(MODEL_FILES)
    configs = [json.loads((out / "config.json").read_text()) for out in (finished, beside)]
    assert configs[0]["test_idx"] == configs[1]["test_idx"] and configs[1]["K"] == 3
    assert configs[1]["preset"]["merge"] and configs[1]["epochs"] > 2  # max_epochs is the other's
    gmvae_table([str(finished), str(beside)])
    assert "recommended" in capsys.readouterr().out
    assert results_table([finished, beside])["preset"].tolist() == ["blog", "recommended"]
    assert gmvae_verify([str(beside)])[str(beside)]["notes"] == []


def printed_by(notebook: Path) -> str:
    "All that its cells have printed, a sentence in a line."
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [o for c in cells for o in c.get("outputs", []) if o.get("name") == "stdout"]
    return "".join("".join(o["text"]) for o in outputs).replace("\n  ", " ")


def test_the_sentences_are_those_of_the_numbers(finished):
    said = printed_by(finished.parents[1] / "out.ipynb")
    for folder, name in ((finished, "blog"), (finished / "recommended", "recommended")):
        metrics = json.loads((folder / "metrics.json").read_text())
        nats, latent = metrics["test"]["neg_elbo"], metrics["scores"]["latent"]
        assert f"{name}: -ELBO of the held-out cells ends at {nats:.1f} nats" in said
        effective = metrics["clusters"]["effective_K"]
        assert f"{name}: the effective number of its 3 components is {effective:.1f}" in said
        agree = f"ARI {latent['ari_clusters']:.2f} (0 is chance) and NMI "
        agree += f"{latent['nmi_clusters']:.2f}; 1 is perfect"
        kept = ad.read_h5ad(folder / "annotated.h5ad").obs
        kept = kept[kept["gmvae_split"] == "test"]
        n_clusters, n_types = kept["gmvae_cluster"].nunique(), kept["type"].nunique()
        where = "one cluster" if n_clusters == 1 else f"{n_clusters} clusters"
        line = next(x for x in said.splitlines() if x.startswith(name) and " cells are in " in x)
        assert where in line and f"{n_types} cell types" in line and agree in line


def test_run_again_it_trains_neither_model(finished, own_file, monkeypatch):
    monkeypatch.chdir(own_file.parent)
    monkeypatch.setattr(GMVAE, "_train_epoch", lambda *a: pytest.fail("trained"))
    run_notebook(K=3, data="mine.h5ad", layer="counts", max_epochs=2, seed=4, **KEYS, **TOLD)


def test_without_labels_batches_and_a_model_beside_it(own_file, monkeypatch, capsys):
    monkeypatch.chdir(own_file.parent)
    monkeypatch.setattr(annotation, "umap", lambda X, seed: np.zeros((X.shape[0], 2), np.float32))
    alone = dict(batch_key=None, labels_key=None, compare="", out="alone")
    run_notebook(to_the_end=True, K=1, data="mine.h5ad", layer="counts", max_epochs=1, **alone)
    assert {p.name for p in Path("alone").iterdir()} == {*MODEL_FILES, *FIGURES}
    said = capsys.readouterr().out.replace("\n  ", " ")
    assert "K = 1: the embedding is all there is to look at." in said
    assert "held-out cells are in one cluster.\n" in said and "nan" not in said
    assert "ASW" not in said and "Cause" not in said


def test_it_goes_on_with_a_run_of_gmvae_train(finished, begun):
    history = pd.read_csv(finished / "history.csv", dtype=str)
    assert len(history) == 2
    pd.testing.assert_frame_equal(history[:1], begun)  # seconds too: not trained again


def test_the_annotated_cells_are_those_of_the_saved_model(finished, own_file):
    kept, adata = ad.read_h5ad(finished / "annotated.h5ad"), ad.read_h5ad(own_file)
    model = GMVAE.load(finished)
    assert abs(model.get_latent_representation(adata) - kept.obsm["X_gmvae"]).max() < 1e-5
    assert list(model.predict(adata)) == list(kept.obs["gmvae_cluster"])
    assert (kept.obs["gmvae_split"] == "test").mean() == pytest.approx(0.15, abs=0.01)


def test_the_table_takes_it(finished, capsys, tmp_path):
    assert results_table([finished]).loc[0, "K"] == 3
    gmvae_table([str(finished)], csv=str(tmp_path / "runs.csv"))
    assert "mine.h5ad" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "runs.csv"), collect_runs([finished]))


def test_the_commands_take_its_folder(copied, own_file):
    assert gmvae_verify([str(copied)])[str(copied)]["notes"] == []
    gmvae_report(str(copied))
    checked = gmvae_verify([str(copied)])[str(copied)]
    assert checked["notes"] == [] and {"report.html", "umap.png"} <= set(checked["files"])


def test_gmvae_train_finds_it_finished_and_goes_on_with_it(copied, own_file):
    history = (copied / "history.csv").read_bytes()
    metrics = json.loads((copied / "metrics.json").read_text())
    train(own_file, copied, 2, resume=True)
    assert (copied / "history.csv").read_bytes() == history
    # what was scored before is scored again
    assert json.loads((copied / "metrics.json").read_text()) == metrics
    train(own_file, copied, 3, resume=True)
    assert (copied / "history.csv").read_bytes().startswith(history)
    assert len(pd.read_csv(copied / "history.csv")) == 3


def run_notebook(to_the_end: bool = False, **parameters) -> None:
    "Its cells up to the training, or all of them, in this process."
    space = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "nbdev_export" not in source:
            exec(source, space)
        if "parameters" in cell["metadata"].get("tags", []):
            space.update(parameters)
        if "train_run(" in source and not to_the_end:
            return


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"data": "no.h5ad"}, "no.h5ad"),
        ({"data": "mine.h5ad", "batch_key": "nobody"}, "batch_key='nobody'"),
        ({"data": "mine.h5ad", "batch_key": "donor", "labels_key": "x"}, "labels_key='x'"),
        ({"data": "mine.h5ad", "layer": "raw", **KEYS}, "has no 'raw'"),
        ({"K": 0}, "K is 0"),
        ({"compare": "better"}, "preset 'better' is unknown"),
    ],
)
def test_bad_parameters_are_told_before_training(own_file, monkeypatch, parameters, words):
    monkeypatch.chdir(own_file.parent)
    monkeypatch.setattr(GMVAE, "train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match=words):
        run_notebook(**parameters)
    assert not (own_file.parent / "_runs/K20-seed0").exists()


def test_a_file_of_somebody_else_beside_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GMVAE, "train", lambda *a, **k: pytest.fail("trained"))
    theirs = tmp_path / "out/recommended/metrics.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(ValueError, match="metrics.json was not"):
        run_notebook(out="out")
    assert theirs.read_text() == "mine"


def test_names_on_the_maps_are_text_whatever_they_are():
    "matplotlib takes $ for a formula, and leaves out of a legend what begins with _."
    odd = ["$x", "_a", "a\nb", "<b>", "x" * 300, "1.5", "", "\x1b[31m", "$\\frac{$", "\t", None]
    xy = np.random.default_rng(0).normal(size=(len(odd), 2))
    obs = pd.DataFrame({"$\\bad{$": odd, "number": range(len(odd))})
    fig = plot_umaps({"$^": xy}, obs, {"$^": "$_{$"})
    fig.canvas.draw()
    shown = [text.get_text() for text in fig.subfigs[0].legends[0].get_texts()]
    assert shown[0] == "none"
    assert {"$x", "_a", "a b", "<b>", "1.5", "$\\frac{$", "[31m"} < set(shown)
    assert max(map(len, shown)) <= 40
    assert fig.axes[0].get_title() == "$^: $\\bad{$" and fig.axes[1].get_xlabel() == "$_{$"


TEXTS = ["=1+1", "+a", "-AS1", "@sum", "\t=1", "＝1", "'=1", "''+a", "'", "CD3E", "a=b", "-1", ""]


def some_run(folder: Path, seed: int, scores: dict, **settings) -> Path:
    "The folder of a run as far as a table reads it."
    folder.mkdir()
    row = dict(data="d", preset="p", K=2, seed=seed, test={}, clusters={}, train_seconds=1.0)
    (folder / "metrics.json").write_text(json.dumps(row | {"scores": {"latent": scores}}))
    told = dict(max_epochs=settings.pop("max_epochs", 5), subset=None)
    told["settings"] = dict(K=2, seed=seed, preset={"alpha": 0.05, "max_epochs": 40}) | settings
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def test_a_score_that_some_runs_lack_says_how_many_have_it(tmp_path):
    scores = [{"asw": 0.5}, {"asw": 0.7}, {}]
    runs = [some_run(tmp_path / str(i), i, found) for i, found in enumerate(scores)]
    assert results_table(runs[1:]).loc[0, "ASW"] == "0.700 (n=1)"
    assert results_table(runs).loc[0, "ASW"] == "0.600 ± 0.141 (n=2)"
    assert results_table(runs[:2]).loc[0, "ASW"] == "0.600 ± 0.141"


def test_a_run_named_twice_counts_once_and_a_copy_is_refused(tmp_path):
    run = some_run(tmp_path / "a", 0, {})
    (tmp_path / "link").symlink_to(run)
    named = [run, f"{run}/", tmp_path / "b/../a", tmp_path / "link"]
    (tmp_path / "b").mkdir()
    assert len(collect_runs(named)) == 1
    shutil.copytree(run, tmp_path / "copy")
    both = [run, tmp_path / "copy"]
    with pytest.raises(ValueError, match="a and .*copy are one run twice .seed 0, .* leave one"):
        collect_runs(both)
    for folder in both:
        (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="a/run.json cannot be read .*gmvae_verify says"):
        collect_runs(both)
    for folder in both:
        (folder / "run.json").unlink()
    with pytest.raises(ValueError, match="are one run twice"):  # by the time that it took
        collect_runs(both)


def test_a_file_is_not_taken_for_the_folder_of_a_run(tmp_path):
    (tmp_path / "a.h5ad").touch()
    with pytest.raises(ValueError, match="a.h5ad' is a file: name the folder of a run"):
        collect_runs([tmp_path / "a.h5ad"])


def test_runs_with_other_settings_are_no_repeats(tmp_path):
    runs = [some_run(tmp_path / str(i), i, {"asw": i / 10}) for i in range(2)]
    assert "settings" not in collect_runs(runs)
    runs.append(some_run(tmp_path / "long", 0, {"asw": 0.9}, max_epochs=9))
    runs.append(some_run(tmp_path / "alpha", 0, {"asw": 0.8}, preset={"alpha": 0.2}))
    runs.append(some_run(tmp_path / "types", 0, {"asw": 0.7}, supervise={"labels_key": "t"}))
    table = results_table(runs)
    assert sorted(table["ASW"]) == ["0.050 ± 0.071", "0.700", "0.800", "0.900"]
    said = table.set_index("ASW")["settings"]
    assert "max_epochs=9" in said["0.900"] and "alpha=0.2" in said["0.800"]
    assert "max_epochs=5" in said["0.700"] and "labels_key: t" in said["0.700"]
    write_table(tmp_path / "t.csv", collect_runs(runs))
    assert len(results_table(read_table(tmp_path / "t.csv"))) == 4


def test_texts_that_are_formulas_get_an_apostrophe_and_come_back(tmp_path):
    table = pd.DataFrame(
        {"text": TEXTS, "=name": 1, "number": -np.arange(13.0), "group": pd.Categorical(TEXTS)}
    )
    write_table(tmp_path / "t.csv", table)
    plain = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert plain["number"].tolist() == table["number"].tolist()
    changed = {a: b for a, b in zip(TEXTS, plain["text"]) if a != b}
    assert changed == {text: f"'{text}" for text in TEXTS[:8]}
    again = read_table(tmp_path / "t.csv", keep_default_na=False)
    assert again["text"].tolist() == again["group"].tolist() == TEXTS
    assert list(again) == list(table)


@pytest.fixture
def clone(tmp_path):
    "A Makefile with a papermill that writes a notebook, and the run beside, at once."
    shutil.copy(NOTEBOOK.parents[1] / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "_runs").mkdir()
    beside = "_runs/K7-seed1/recommended"
    writes = (
        f"""echo '{{"papermill": "new"}}' > $2; mkdir -p {beside}; touch {beside}/metrics.json"""
    )
    for name, does in {"papermill": writes, "gmvae_table": 'echo "table of $*"'}.items():
        program = tmp_path / ".venv/bin" / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    for name in ("settings.ini", "setup.py", "constraints.txt", ".venv/.ready"):
        (tmp_path / name).touch()  # the environment is the newest: it is not made
    return tmp_path


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("there", ["nothing", "ours", "another"])
def test_make_results_replaces_no_notebook_but_its_own(clone, there):
    target = clone / "_runs/K7-seed1.ipynb"
    if there != "nothing":
        target.write_text('{"papermill": "old"}' if there == "ours" else "somebody's")
    command = ["make", "results", "K=7", "SEED=1"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    if there == "another":
        assert done.returncode and target.read_text() == "somebody's"
        assert "was not written by make results: move it away" in done.stdout
        return
    assert done.returncode == 0 and "new" in target.read_text(), done.stderr
    assert {p.name for p in (clone / "_runs").iterdir()} == {target.name, "K7-seed1"}
    assert "table of _runs/K7-seed1 _runs/K7-seed1/recommended\n" in done.stdout
    assert "beside    _runs/K7-seed1/recommended\n" in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("beside", [True, False])
def test_make_table_takes_the_runs_beside_too(clone, beside):
    (clone / "_runs/K7-seed1").mkdir()
    wanted = "table of _runs/K7-seed1/"
    if beside:
        (clone / "_runs/K7-seed1/recommended").mkdir()
        (clone / "_runs/K7-seed1/recommended/metrics.json").touch()
        wanted += " _runs/K7-seed1/recommended"
    done = subprocess.run(["make", "table"], cwd=clone, capture_output=True, text=True)
    assert f"{wanted}\n" in done.stdout, done.stderr
