"""What other seeds say of a run: twins, readings, ranges, and the runs themselves."""

import json
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation
from gmvae_nb.after_training import gmvae_seeds
from gmvae_nb.annotation import annotate_run
from gmvae_nb.model_folder import verify
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.stability import (
    SEED_FILES,
    chance_of_range,
    cluster_stability,
    compare_seeds,
    data_of_run,
    jaccard,
    read_by_other,
    seed_confidence,
    try_seeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hazards import SMALL, cells, no_map


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "A small network behind the name of the preset; the map is not computed."
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    monkeypatch.setattr(annotation, "umap", no_map)


def run_of(folder, adata=None, **options):
    "A finished run of two epochs, annotated."
    data = read_input(cells() if adata is None else adata, batch_key="batch", **options)
    model = train_run(data, folder, batch_key="batch", max_epochs=2, progress=False)
    annotate_run(model, data, folder)
    return folder


few = partial(try_seeds, progress=False)
two_partitions = st.integers(2, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2)
)


@given(two_partitions)
@settings(max_examples=60, deadline=None)
def test_jaccard_is_that_of_sets(partitions):
    a, b = (np.array(p) for p in partitions)
    found = jaccard(a, b)
    for i in np.unique(a):
        for j in np.unique(b):
            A, B = set(np.flatnonzero(a == i)), set(np.flatnonzero(b == j))
            assert found.loc[i, j] == len(A & B) / len(A | B)
    np.testing.assert_allclose(jaccard(b, a).to_numpy(), found.to_numpy().T)


def test_a_cluster_that_one_run_splits_is_half_as_stable_there():
    whole = np.repeat(["a", "b"], [8, 4])
    split = np.repeat(["x", "y", "z"], [4, 4, 4])
    names = cluster_stability([str(i % 12) for i in range(60)], [range(60)])
    assert list(names["cluster"]) == [str(i) for i in range(12)] and set(names["cells"]) == {5}
    table = cluster_stability(whole, [split, whole]).set_index("cluster")
    assert table.loc["a"].tolist() == [8, 0.75, 0.5]
    assert table.loc["b"].tolist() == [4, 1, 1]


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_reading_is_the_law_of_total_probability(seed):
    rng = np.random.default_rng(seed)
    N, K, L = 40, 3, 4
    prob, other = rng.dirichlet(np.ones(K), N), rng.dirichlet(np.full(L, 0.3), N)
    read = read_by_other(prob, other)
    joint = sum(np.outer(p, q) for p, q in zip(prob, other))  # of k and l
    for n in (0, N - 1):
        expected = [(joint[k] / joint.sum(0) * other[n]).sum() for k in range(K)]
        np.testing.assert_allclose(read[n], expected)
    order = rng.permutation(L)
    np.testing.assert_allclose(read_by_other(prob, other[:, order]), read)
    np.testing.assert_allclose(read.sum(1), 1)


def test_confidence_falls_where_another_run_draws_the_line_elsewhere():
    x = np.arange(100)
    one, two = np.eye(2)[(x >= 50).astype(int)], np.eye(2)[(x >= 60).astype(int)]
    found = seed_confidence(one, [two])
    # its own run says 1; the other one's first cluster has 60 cells, 50 of ours
    np.testing.assert_allclose(found[:50], (1 + 50 / 60) / 2)
    np.testing.assert_allclose(found[50:60], (1 + 10 / 60) / 2)
    np.testing.assert_allclose(found[60:], 1)
    thrice = seed_confidence(one, [two, one])
    np.testing.assert_allclose(thrice, (2 * found + 1) / 3)
    outvoted = seed_confidence(one, [two, two])  # it is of its own cluster all the same
    np.testing.assert_allclose(outvoted[50:60], (1 + 2 * 10 / 60) / 3)


def test_a_run_is_compared_with_runs_of_the_same_cells_only():
    prob = np.full((5, 2), 0.5)
    with pytest.raises(ValueError, match="no other run"):
        compare_seeds(prob, [])
    with pytest.raises(ValueError, match="4 cells and this one 5"):
        compare_seeds(prob, [prob, prob[:4]])


def test_clusters_without_cells_are_not_counted_and_pairs_are_all_pairs():
    one = np.eye(3)[np.repeat([0, 1], 10)]  # the third has no cell
    other = np.eye(2)[np.tile([0, 1], 10)]
    found = compare_seeds(one, [other, one])
    assert found.n_clusters == [2, 2, 2] and len(found.ari) == 3
    assert found.ari[1] == 1 and found.ari[0] < 0.1
    assert chance_of_range(1) == 0 and chance_of_range(39) == 0.95


def test_seeds_leave_runs_tables_and_checksums(tmp_path):
    run = run_of(tmp_path / "run")
    found = few(run, [4, 2, 4])
    assert sorted(p.name for p in (run / "seeds").iterdir()) == ["seed2", "seed4"]
    table = pd.read_csv(run / "seed_cells.csv", index_col="barcode")
    annotated = ad.read_h5ad(run / "annotated.h5ad").obs
    assert list(table.index) == list(annotated.index)
    assert (table["cluster"].astype(str) == annotated["gmvae_cluster"].astype(str)).all()
    np.testing.assert_allclose(table["confidence"], annotated["gmvae_confidence"], rtol=1e-5)
    np.testing.assert_allclose(table["seed_confidence"], found.confidence)
    clusters = pd.read_csv(run / "seed_clusters.csv")
    assert clusters["cells"].sum() == len(table)
    assert set(SEED_FILES) <= set(verify(run)["files"])
    (run / "seed_cells.csv").write_text("damaged")
    with pytest.raises(ValueError, match="seed_cells.csv"):
        verify(run)


def test_seeds_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run")
    first = few(run)  # the two after its own
    assert sorted(p.name for p in (run / "seeds").iterdir()) == ["seed1", "seed2"]

    def never(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr("gmvae_nb.train.GMVAE._train_epoch", never)
    again = few(run)
    np.testing.assert_array_equal(again.confidence, first.confidence)
    pd.testing.assert_frame_equal(again.clusters, first.clusters)


def test_the_cells_are_those_of_the_run_whatever_it_took_of_the_file(tmp_path):
    adata = cells(n=120)
    adata.obs["part"] = np.where(np.arange(120) < 90, "in", "out")
    adata.layers["spliced"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    file = tmp_path / "mine.h5ad"
    adata.write_h5ad(file)
    options = dict(layer="spliced", n_top_genes=12, subset="part=in")
    run = run_of(tmp_path / "run", str(file), **options)
    model, data = data_of_run(run)
    assert data.cells.shape == (90, 12) and list(data.cells.var_names) == model.genes
    told = json.loads((run / "run.json").read_text())
    assert data.sha256 == told["settings"]["counts_sha256"]
    assert few(run, [7]).confidence.shape == (90,)


def test_other_counts_than_those_that_were_trained_on_are_refused(tmp_path):
    run = run_of(tmp_path / "run")
    file = run / "annotated.h5ad"
    adata = ad.read_h5ad(file)
    adata.X[0, 0] += 1
    adata.write_h5ad(file)
    with pytest.raises(ValueError, match="does not hold the counts"):
        few(run)
    adata[:, 1:].copy().write_h5ad(file)
    with pytest.raises(ValueError, match="does not hold the counts"):
        few(run)
    file.unlink()
    with pytest.raises(ValueError, match="annotated.h5ad is not there"):
        few(run)
    assert not (run / "seeds").exists()


def test_the_runs_own_seed_and_foreign_tables_are_refused_before_training(tmp_path):
    run = run_of(tmp_path / "run")
    with pytest.raises(ValueError, match="not the run's own, which is 0"):
        few(run, [0, 1])
    with pytest.raises(ValueError, match="seed"):
        few(run, [-1])
    foreign = run / "seed_cells.csv"
    foreign.write_text("my,own,table\n")
    with pytest.raises(ValueError, match="was not written by a run"):
        few(run)
    assert foreign.read_text() == "my,own,table\n" and not (run / "seeds").exists()
    few(run, overwrite=True)
    assert foreign.read_text().startswith("barcode,cluster,confidence,seed_confidence")


def test_the_command_says_what_the_tables_say(tmp_path, capsys):
    run = run_of(tmp_path / "run")
    capsys.readouterr()
    result = gmvae_seeds(str(run), seeds=[5], quiet=True, json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result))
    assert len(result["n_clusters"]) == 2 and len(result["ari"]) == 1
    written = pd.read_csv(run / "seed_clusters.csv")
    np.testing.assert_allclose(
        written["stability"], [row["stability"] for row in result["clusters"]]
    )
    gmvae_seeds(str(run), seeds=[5], quiet=True)
    said = capsys.readouterr().out
    low, high = min(result["n_clusters"]), max(result["n_clusters"])
    assert f"{low} to {high} with 2 seeds" in said and "33% or more" in said


@pytest.mark.parametrize("column", ["batch", "sort"])
def test_other_batches_and_labels_than_those_that_were_trained_on_are_refused(tmp_path, column):
    "A change of theirs would be told as a cluster that does not come again."
    adata, run = cells(), tmp_path / "run"
    adata.obs["sort"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    data = read_input(adata, batch_key="batch")
    options = dict(batch_key="batch", supervise="sort", max_epochs=2, progress=False)
    annotate_run(train_run(data, run, **options), data, run)
    written = ad.read_h5ad(run / "annotated.h5ad")
    written.obs["new"] = 1.0  # does no harm
    written.write_h5ad(run / "annotated.h5ad")
    assert len(few(run, [7]).confidence) == adata.n_obs
    written.obs[column] = written.obs[column].astype(str).to_numpy()[::-1]
    written.write_h5ad(run / "annotated.h5ad")
    with pytest.raises(ValueError, match="does not hold the cells that the run was trained on"):
        few(run, [8])
    assert not (run / "seeds/seed8").exists()


def test_a_cell_without_a_cluster_is_refused_and_not_left_out():
    for a, b in ((["a", "a", None], [1, 1, 1]), ([1, 1, 1], np.array([1.0, np.nan, 1]))):
        with pytest.raises(ValueError, match="clusters is missing .* in 1 of 3 cells"):
            jaccard(a, b)
    with pytest.raises(ValueError, match="one value per cell"):
        cluster_stability([0, 0, 1], [[0, 1]])


def test_seeds_are_looked_at_before_the_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("gmvae_nb.stability.data_of_run", None)
    (tmp_path / "run.json").write_text('{"settings": {"seed": 3}}')
    with pytest.raises(ValueError, match="not the run's own, which is 3"):
        try_seeds(tmp_path, [3])
