"""Inputs that were found odd one by one: each works rightly, or is one sentence."""

import json
import os
import shutil
import sys
import threading
import time
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation, files, tl, umbrella
from gmvae_nb.annotation import WRITTEN_COLUMNS, annotate_run
from gmvae_nb.comparing import compare_in_file
from gmvae_nb.cost import expected
from gmvae_nb.counts import find_counts, gene_features
from gmvae_nb.data import load_data
from gmvae_nb.embed import embed_file
from gmvae_nb.files import check_own_files, is_locked, locked_folder
from gmvae_nb.h5ad import checked_h5ad, read_h5ad
from gmvae_nb.match import match_genes
from gmvae_nb.metrics import evaluate
from gmvae_nb.model_folder import describe_again, read_model, verify
from gmvae_nb.neighbors import checked_embedding
from gmvae_nb.parts import named_files, read_files
from gmvae_nb.reading import read_input, split_subset
from gmvae_nb.report import write_report
from gmvae_nb.results import collect_runs
from gmvae_nb.runs import check_numbers, claim_folder, epochs_in_all, train_run
from gmvae_nb.scale import checked_batch_size
from gmvae_nb.stability import try_seeds
from gmvae_nb.train import GMVAE

from hazards import SMALL, cells, model

LESS = dict(K=3, preset=SMALL, max_epochs=1, progress=False)


@pytest.fixture(scope="module")
def trained():
    return model(preset=SMALL)


# --- columns that a run writes ------------------------------------------------------------------


@pytest.mark.parametrize("role", ["batch_key", "labels_key", "supervise", "categorical"])
def test_a_column_that_the_run_writes_is_no_key_of_it(tmp_path, role):
    a = cells(40)
    a.obs["gmvae_cluster"] = pd.Categorical(["0", "1"] * 20)
    key = "gmvae_cluster" if role != "categorical" else ["gmvae_cluster"]
    name = "categorical_covariate_keys" if role == "categorical" else role
    with pytest.raises(ValueError, match="gmvae_cluster.*going to be written.*another name"):
        train_run(read_input(a), tmp_path / "run", **LESS, **{name: key})
    assert not (tmp_path / "run").exists()


def test_the_columns_that_a_run_writes_are_those_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation, "umap", lambda X, seed: X[:, :2])
    a = cells(60)
    a.obs["known"] = ["a", "b", None] * 20
    data = read_input(a)
    trained = train_run(data, tmp_path, **LESS | {"K": 4}, supervise="known")
    assert set(annotate_run(trained, data, tmp_path).columns) == set(WRITTEN_COLUMNS)


def test_results_in_memory_never_replace_what_they_were_made_with(trained):
    a = cells(40)
    before = a.obs["batch"].copy()
    for key, added in (("batch", "batch"), ("batch_type", "batch")):
        a.obs["batch_type"] = before
        with pytest.raises(ValueError, match=f"batch_key='{key}' .*going to be written"):
            tl.gmvae(a, batch_key=key, key_added=added, max_epochs=1)
    assert a.obs["batch"].equals(before)


def test_a_map_of_another_shape_is_kept_and_costs_no_training(monkeypatch):
    monkeypatch.setattr(tl, "umap", lambda X, seed: X[:, :2])
    a = cells(40)
    a.obsm["X_umap"], a.obsm["X_gmvae_umap"] = np.ones((40, 3)), np.zeros((40, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tl.gmvae(a, K=3, preset=SMALL, max_epochs=1, progress=False)
    assert (a.obsm["X_umap"] == 1).all() and a.obsm["X_gmvae_umap"].any()


# --- labels that changed ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the mixture has collapsed")
def test_a_run_is_scored_anew_when_its_labels_have_changed(tmp_path):
    def sweep(a):
        a.write_h5ad(tmp_path / "mine.h5ad")
        words = "--K 2 --max_epochs 1 --labels_key cell_type --quiet --preset blog --out"
        sys.argv = ["gmvae_sweep", str(tmp_path / "mine.h5ad"), *words.split(), str(tmp_path / "s")]
        umbrella.COMMANDS["gmvae_sweep"]()
        weights = (tmp_path / "s/K2-seed0/model.safetensors").read_bytes()
        return pd.read_csv(tmp_path / "s/results.csv")["asw"][0], weights

    a = cells(60)
    before = sweep(a)
    assert sweep(a) == before
    a.obs["cell_type"] = ["type0"] * 40 + ["type1"] * 20
    after = sweep(a)
    assert after[0] != before[0] and after[1] == before[1]
    fresh = evaluate_fresh(tmp_path, a)
    assert after[0] == pytest.approx(fresh, abs=1e-9)


def evaluate_fresh(tmp_path, a):
    "The same scores, of a run of these labels that has never had others."
    a.write_h5ad(tmp_path / "mine.h5ad")
    data = read_input(tmp_path / "mine.h5ad", labels_key="cell_type")
    options = dict(K=2, preset="blog", max_epochs=1, labels_key="cell_type", progress=False)
    train_run(data, tmp_path / "fresh", **options)
    table = json.loads((tmp_path / "fresh/metrics.json").read_text())["table"]
    return next(row["score"] for row in table if row["name"] == "asw")


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [float("nan"), -0.5, 1.5])
def test_a_share_of_the_genes_is_one_for_every_caller(share):
    with pytest.raises(ValueError, match="min_matched is .*expected a share from 0 to 1"):
        match_genes(["A", "B"], ["A", "B"], share)


@pytest.mark.parametrize("seed", [-3, 2**32, 0.5, None, "7"])
def test_a_seed_of_scores_is_named_before_anything_is_computed(seed):
    a = cells(40)
    a.obsm["X_gmvae"] = np.zeros((40, 2))
    with pytest.raises(ValueError, match="seed is .*whole number from 0 to 4,294,967,295"):
        evaluate(a, seed=seed, progress=False)


@pytest.mark.parametrize("K, seed", [("4", 0), (2.5, 0), (3, None), (3, "1"), (3, 0.5)])
def test_K_and_seed_are_whole_numbers(K, seed):
    with pytest.raises(ValueError, match="K is|seed is"):
        check_numbers(K, seed)


@pytest.mark.parametrize("epochs", [10**400, 2 * 10**9, 1.5, "3", float("inf")], ids=range(5))
def test_a_number_of_epochs_is_one_that_can_be_counted_with(epochs):
    with pytest.raises(ValueError, match="max_epochs is .*at most 1,000,000,000"):
        epochs_in_all(SMALL, 100, epochs)
    with pytest.raises(ValueError, match="max_epochs is"):
        expected(read_input(cells(40)), preset=SMALL, K=3, max_epochs=epochs)


@pytest.mark.parametrize("n", [1.5, float("nan"), "20"])
def test_so_many_variable_genes_is_a_whole_number(n):
    with pytest.raises(ValueError, match="n_top_genes is .*whole number"):
        read_input(cells(40), n_top_genes=n)


def test_a_mini_batch_that_is_too_large_is_told_how_large_it_may_be():
    with pytest.raises(ValueError, match="from 1 to 1,000,000"):
        checked_batch_size(SMALL, 10**9)


# --- pairs and notes ----------------------------------------------------------------------------


def shell(capsys, name, *words):
    sys.argv = [name, *map(str, words)]
    with pytest.raises(SystemExit) as end:
        umbrella.COMMANDS[name]()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", ["gmvae_embed", "gmvae_differential"])
def test_a_pair_without_its_sign_is_told_by_every_command(name, trained, tmp_path, capsys):
    trained.save(tmp_path / "model")
    cells(30).write_h5ad(tmp_path / "new.h5ad")
    words = tmp_path / "model", tmp_path / "new.h5ad", "--map_batch", "x", "--out"
    more = ["--group", "batch=0"] * (name == "gmvae_differential")
    code, err = shell(capsys, name, *words, tmp_path / "out.csv", *more)
    assert code == 2 and "map_batch 'x' is not of the form new=known" in err


def test_what_torch_says_of_itself_is_no_note_on_the_cells(trained, tmp_path, monkeypatch):
    cells(60).write_h5ad(tmp_path / "mine.h5ad")
    original = trained.match_cells

    def match_cells(*args, **kwargs):
        warnings.warn("Sparse CSR tensor support is in beta state.", stacklevel=2)
        warnings.warn("2 genes are missing", stacklevel=2)
        return original(*args, **kwargs)

    monkeypatch.setattr(trained, "match_cells", match_cells)
    said = compare_in_file(trained, tmp_path / "mine.h5ad", "batch=0")[1]
    assert "2 genes are missing" in said["notes"]
    assert not any("Sparse CSR" in note for note in said["notes"])


# --- things that are no cells -------------------------------------------------------------------


@pytest.mark.parametrize("thing", [np.ones((3, 2)), None, pd.DataFrame({"a": [1]}), 3])
def test_what_is_no_AnnData_is_told_so_wherever_cells_are_expected(thing, trained):
    words = "expected (an AnnData|an Input|a file, a data set or an AnnData).*found"
    calls = [read_input, evaluate, lambda x: train_run(x, "never")]
    if thing is not None:  # the cells that it was made for
        calls += [trained.predict, trained.get_latent_representation]
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call(thing)


# --- embeddings ---------------------------------------------------------------------------------

rng = np.random.default_rng(5)
ODD_EMBEDDINGS = {
    "complex": (rng.normal(size=(30, 2)) + 1j, "holds complex128.*numbers"),
    "text": (pd.DataFrame({"a": ["x"] * 30}), "numbers"),
    "no column": (np.zeros((30, 0)), "no dimension"),
    "squares overflow": (rng.normal(size=(30, 2)) * 1e30, "distances"),
    "squares overflow, float32": (np.float32(rng.normal(size=(30, 2)) * 1e22), "distances"),
}


@pytest.mark.parametrize("kind", ODD_EMBEDDINGS)
def test_an_embedding_that_has_no_distances_is_refused(kind):
    X, words = ODD_EMBEDDINGS[kind]
    with pytest.raises(ValueError, match=f"the embedding .*{words}"):
        checked_embedding(X)


def test_large_numbers_with_distances_are_scored_as_small_ones():
    a = cells(60)
    a.obsm["X_gmvae"] = rng.normal(size=(60, 2)).astype(np.float32)
    small = evaluate(a, progress=False).scores
    a.obsm["X_gmvae"] = a.obsm["X_gmvae"] * np.float32(2**40)
    large = evaluate(a, progress=False).scores
    assert large == pytest.approx(small, rel=1e-5, nan_ok=True)


# --- batches that are no batches ----------------------------------------------------------------


def test_a_batch_for_every_cell_is_told():
    a = cells(40)
    a.obs["barcode"] = a.obs_names
    a.obsm["X_gmvae"] = rng.normal(size=(40, 2))
    with pytest.raises(ValueError, match="40 batch.* for 40 cells.*shared"):
        evaluate(a, batch_key="barcode", progress=False)
    notes = read_input(a, batch_key="barcode").notes
    assert any("barcode names 40 batches for 40 cells" in note for note in notes)
    assert not any("batches for" in note for note in read_input(a, batch_key="batch").notes)


# --- files that are something else --------------------------------------------------------------

CONTENTS = {
    "page": (b"<!DOCTYPE html><html>404 Not Found", "web page"),
    "page, later": (b"\n  <html lang='en'>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(60), r"\.h5ad\.gz"),
    "zip": (b"PK\x03\x04" + bytes(60), "archive"),
    "nothing": (b"", "empty"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_a_file_is_instead_is_said_and_not_get_it_again(kind, tmp_path):
    content, words = CONTENTS[kind]
    (tmp_path / "mine.h5ad").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        checked_h5ad(tmp_path / "mine.h5ad")


def test_an_h5ad_that_a_browser_has_unpacked_is_told_by_its_content(tmp_path):
    cells(30).write_h5ad(tmp_path / "mine.h5ad")
    shutil.move(tmp_path / "mine.h5ad", tmp_path / "mine.h5ad.gz")
    with pytest.raises(ValueError, match="unpacked already.*rename it to .*mine.h5ad'"):
        checked_h5ad(tmp_path / "mine.h5ad.gz")


@pytest.mark.parametrize("where", ["X", "layers['counts']"])
def test_what_anndata_wrote_as_nothing_is_not_there(where, tmp_path):
    adata = cells(30)
    if where != "X":
        adata.layers["counts"], adata.X = adata.X, None
    with h5py.File(tmp_path / "a.h5ad", "w") as f:  # with raw, and X, as nulls
        ad.io.write_elem(f, "/", adata)
    found = read_input(tmp_path / "a.h5ad")
    assert found.where == where and found.cells.n_obs == 30


def test_a_pipe_is_not_said_to_be_missing(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "pipe.h5ad")
    with pytest.raises(ValueError, match="no regular file"):
        checked_h5ad(tmp_path / "pipe.h5ad")


# --- folders in the place of files, files in the place of folders --------------------------------


@pytest.mark.parametrize("command", ["gmvae_table", "gmvae_embed"])
def test_a_folder_is_no_table(command, trained, tmp_path, capsys):
    trained.save(tmp_path / "model")
    cells(30).write_h5ad(tmp_path / "new.h5ad")
    words = [tmp_path / "model"] + [tmp_path / "new.h5ad"] * (command == "gmvae_embed")
    code, err = shell(capsys, command, *words, "--csv", tmp_path)
    assert code == 2 and f"{tmp_path} is a folder, in the place of a file" in err


def test_a_folder_of_the_name_of_a_file_is_told_before_training(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ValueError, match="report.html is a folder"):
        check_own_files(tmp_path, overwrite=True)


def test_a_file_is_no_folder_to_train_in(tmp_path):
    (tmp_path / "run").write_text("mine")
    for folder in (tmp_path / "run", tmp_path / "run/inside"):
        with pytest.raises(OSError, match="a file is in its place"), locked_folder(folder):
            pass
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "history.csv"])
def test_new_cells_never_replace_the_model_that_they_are_embedded_with(name, trained, tmp_path):
    folder = tmp_path / "model"
    trained.save(folder)
    cells(30).write_h5ad(tmp_path / "new.h5ad")
    before = (folder / name).read_bytes()
    for out in (dict(csv=folder / name), dict(target=folder / name)):
        out = dict(target=tmp_path / "copy.h5ad") | out
        with pytest.raises(ValueError, match=f"{name} is of the model"):
            embed_file(trained, tmp_path / "new.h5ad", **out, run=folder, overwrite=True)
    assert (folder / name).read_bytes() == before


# --- a lock that is none, and a folder that nothing came of -------------------------------------

FOREIGN = {"text": b"my lock", "long": b"x" * 5000, "one byte": b"1", "binary": bytes(range(99))}


@pytest.mark.parametrize("kind", [*FOREIGN, "folder"])
def test_a_file_of_the_name_of_the_lock_is_nobody_elses(tmp_path, kind):
    lock = tmp_path / ".lock"
    if kind == "folder":
        lock.mkdir()
    else:
        lock.write_bytes(FOREIGN[kind])
    for enter in (locked_folder(tmp_path).__enter__, lambda: claim_folder(tmp_path, {}, False)):
        with pytest.raises(ValueError, match=r"\.lock (is|has) .*folder|gmvae_nb"):
            enter()
    with pytest.raises(ValueError, match=r"\.lock"):
        is_locked(tmp_path)
    assert lock.is_dir() or lock.read_bytes() == FOREIGN[kind]


def test_the_lock_of_a_run_is_one_of_ours_however_it_ended(tmp_path):
    for content in (b"", b"\0process 7 on elsewhere"):
        (tmp_path / ".lock").write_bytes(content)
        with locked_folder(tmp_path):
            pass


REFUSED = ["--device nonsense", "--max_epochs 0", "--batch_key no", "--supervise no", "--K 0"]
REFUSED += ["--genes no", "--subset a=b", "--layer no", "--batch_size 0", "--seed -1"]
REFUSED += ["--alpha 7", "--preset no", "--n_top_genes 0", "--labels_key no"]


def test_what_is_refused_leaves_no_folder(tmp_path, capsys):
    cells(40).write_h5ad(tmp_path / "mine.h5ad")
    (tmp_path / "there").mkdir()
    for words in REFUSED:
        for out in ("new/run", "there"):
            call = [tmp_path / "mine.h5ad", "--quiet", "--out", tmp_path / out, *words.split()]
            assert shell(capsys, "gmvae_train", *call)[0] == 2, words
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine.h5ad", "there"]


def test_a_folder_is_kept_with_what_is_in_it(tmp_path):
    for write in (lambda: None, lambda: (tmp_path / "a/run/mine").write_text("mine")):
        with pytest.raises(KeyboardInterrupt), locked_folder(tmp_path / "a/run"):
            write()
            raise KeyboardInterrupt
        assert (tmp_path / "a").exists() == (tmp_path / "a/run/mine").exists()
    with pytest.raises(OSError), locked_folder(tmp_path / "a/run"):  # whose lock is an old one
        raise OSError
    assert (tmp_path / "a/run/.lock").exists() and (tmp_path / "a/run/mine").exists()


def test_who_waits_for_a_folder_that_goes_away_makes_it_anew(tmp_path):
    entered, threads = [], []

    def enter():
        with locked_folder(tmp_path / "run", wait=True) as lock:
            lock.check()
            entered.append((tmp_path / "run/.lock").exists())

    with pytest.raises(KeyError), locked_folder(tmp_path / "run"):
        for _ in range(2):
            threads.append(threading.Thread(target=enter))
            threads[-1].start()
        time.sleep(0.3)
        raise KeyError
    for thread in threads:
        thread.join()
    assert entered == [True, True]


def test_a_folder_that_another_makes_anew_meanwhile_is_entered(tmp_path, monkeypatch):
    acquire, tries = files.FileLock.acquire, []

    def gone_at_first(lock, **options):
        tries.append(1)
        if len(tries) == 1:  # it went away, and another process has made it again by now
            raise FileNotFoundError(lock.lock_file)
        return acquire(lock, **options)

    monkeypatch.setattr(files.FileLock, "acquire", gone_at_first)
    with locked_folder(tmp_path / "run") as lock:
        lock.check()
    assert len(tries) == 2


# --- paths, keys and models that are none -------------------------------------------------------

NO_PATHS = [None, 3, 2.5, b"x", ["a"], {}]


@pytest.mark.parametrize("thing", NO_PATHS, ids=repr)
def test_what_is_no_path_is_told_wherever_one_is_expected(thing, trained, tmp_path):
    cells(30).write_h5ad(tmp_path / "new.h5ad")
    new, data = tmp_path / "new.h5ad", read_input(cells(40))
    calls = [GMVAE.load, trained.save, verify, read_model, describe_again, write_report]
    calls += [try_seeds, read_h5ad, load_data, lambda x: train_run(data, x, **LESS)]
    calls += [lambda x: embed_file(trained, new, x), lambda x: annotate_run(trained, data, x)]
    calls += [lambda x: locked_folder(x).__enter__(), lambda x: compare_in_file(trained, x, "b=0")]
    if thing is not None:  # for none
        calls += [lambda x: embed_file(trained, new, tmp_path / "out.h5ad", csv=x)]
        calls += [lambda x: embed_file(trained, new, tmp_path / "out.h5ad", run=x)]
        calls += [lambda x: model(preset=SMALL).train(2, out=x)]
    if not isinstance(thing, list | dict):  # of several
        calls += [collect_runs, named_files, read_files]
        calls += [lambda x: embed_file(trained, x, tmp_path / "out.h5ad")]
    for call in calls:
        with pytest.raises(ValueError, match=r"expected (a path|paths)"):
            call(thing)
    assert os.listdir(tmp_path) == ["new.h5ad"]


@pytest.mark.parametrize("thing", [3, [], b"x", ["a"], {}], ids=repr)
def test_what_is_no_name_is_told_wherever_one_is_expected(thing, trained, tmp_path):
    a = cells(40)
    a.obsm["X_gmvae"] = np.zeros((40, 2))
    data = read_input(a)
    calls = [lambda x, k=k: evaluate(a, **{k: x}) for k in ("embed", "baseline", "clusters")]
    calls += [lambda x, k=k: evaluate(a, **{k: x}) for k in ("batch_key", "labels_key")]
    calls += [lambda x, k=k: read_input(a, **{k: x}) for k in ("labels_key", "gene_key", "subset")]
    roles = ("batch_key", "labels_key", "supervise")
    calls += [lambda x, k=k: train_run(data, tmp_path / "r", **LESS, **{k: x}) for k in roles]
    calls += [lambda x, k=k: tl.gmvae(a, **{k: x}) for k in ("batch_key", "key_added")]
    calls += [lambda x: compare_in_file(trained, tmp_path / "new.h5ad", x)]
    calls += [lambda x: GMVAE(a, 3, device=x)]
    if not isinstance(thing, list | dict):  # of several
        calls += [lambda x: GMVAE(a, 3, categorical_covariate_keys=x)]
        calls += [lambda x: train_run(data, "r", **LESS, continuous_covariate_keys=x)]
    cells(30).write_h5ad(tmp_path / "new.h5ad")
    for call in calls:
        with pytest.raises(ValueError, match="expected (a text|a list|'cpu')|is not a column"):
            call(thing)
    assert os.listdir(tmp_path) == ["new.h5ad"]


def test_no_embedding_and_no_group_are_told():
    a = cells(40)
    with pytest.raises(ValueError, match="embed is None; expected a text"):
        evaluate(a, embed=None)
    with pytest.raises(ValueError, match="group is None; expected a text"):
        split_subset(None, ["a"], "group")


@pytest.mark.parametrize("thing", [None, "run", 3, {}], ids=repr)
def test_what_is_no_model_is_told(thing, tmp_path):
    cells(30).write_h5ad(tmp_path / "new.h5ad")
    with pytest.raises(ValueError, match="expected a GMVAE, found .*GMVAE.load"):
        embed_file(thing, tmp_path / "new.h5ad", tmp_path / "out.h5ad")
    with pytest.raises(ValueError, match="expected a GMVAE, found .*GMVAE.load"):
        compare_in_file(thing, tmp_path / "new.h5ad", "batch=0")


@pytest.mark.parametrize("thing", [3, "a=b", ["a=b"]], ids=repr)
def test_what_maps_no_batches_is_told(thing, trained):
    with pytest.raises(ValueError, match="map_batch is .*expected a dict"):
        trained.match_cells(cells(30), map_batch=thing)


def test_new_cells_keep_the_column_that_their_batches_are_in(trained, tmp_path, capsys):
    trained.save(tmp_path / "model")
    a = cells(30)
    a.obs["gmvae_cluster"] = a.obs["batch"]
    a.write_h5ad(tmp_path / "new.h5ad")
    words = tmp_path / "model", tmp_path / "new.h5ad", "--batch_key", "gmvae_cluster"
    code, err = shell(capsys, "gmvae_embed", *words)
    assert code == 2 and "batch_key='gmvae_cluster' is a column that is going to be" in err
    assert sorted(os.listdir(tmp_path)) == ["model", "new.h5ad"]


# --- small words --------------------------------------------------------------------------------


def test_features_without_a_kind_are_named_as_such():
    var = pd.DataFrame({"feature_types": ["Gene Expression", None, np.nan]})
    note = gene_features(var)[1][0]
    assert "np.str_" not in note and "2 'none'" in note


def test_cells_without_any_matrix_are_told_so():
    with pytest.raises(ValueError, match="X is None and there are no layers"):
        find_counts(ad.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["g"])))


def test_a_layer_with_a_slash_in_its_name_is_named(tmp_path):
    cells(30).write_h5ad(tmp_path / "mine.h5ad")
    with h5py.File(tmp_path / "mine.h5ad", "r+") as f:
        f.copy("X", f["layers"], "a/b")
    with pytest.raises(ValueError, match="layers/a is no matrix.*a/b"):
        read_input(tmp_path / "mine.h5ad")
