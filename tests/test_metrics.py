"""Scores of an embedding: against scib, against R's kBET, and what must not change them."""
import json
import random
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gmvae_nb import metrics as m

REF = Path(__file__).parents[1] / ".." / "shared" / "reference" / "kbet"
CASES = sorted(f.name.removesuffix("_ref.json") for f in REF.glob("*_ref.json"))
needs_reference = pytest.mark.skipif(not CASES, reason=f"no kBET reference files in {REF}")
seeds = st.integers(0, 2**32 - 1)


def blobs(seed, n=240, d=5, types=3, batches=2, apart=3., shift=.5):
    "A small embedding with types and batches, each present."
    rng = np.random.default_rng(seed)
    labels, batch = rng.permutation(np.arange(n) % types), rng.permutation(np.arange(n) % batches)
    X = rng.normal(size=(n, d)) + apart * rng.normal(size=(types, d))[labels]
    X += shift * rng.normal(size=(batches, d))[batch]
    return X, np.array(list("ABCDEFGH"))[labels], np.array([f"b{b}" for b in batch])


def as_adata(X, labels, batch, **obs):
    names = [f"c{i}" for i in range(len(X))]
    adata = ad.AnnData(obs=pd.DataFrame(dict(cell_type=labels, batch=batch, **obs), index=names))
    adata.obsm["X_gmvae"] = X
    return adata


def load(case):
    with np.load(REF / f"{case}_input.npz") as f: X, batch, label = f["X"], f["batch"], f["label"]
    with np.load(REF / f"{case}_ref.npz") as f: ref = dict(f)
    return X, batch, label, ref, json.loads((REF / f"{case}_ref.json").read_text())


# --- the reference: R and scib -----------------------------------------------------------------------------

@needs_reference
@pytest.mark.parametrize("case", CASES)
def test_kbet_pvalues_are_those_of_R(case):
    _, batch, label, ref, info = load(case)
    tested = [row["label"] for row in info["labels"] if row["called_R"]]
    assert tested
    for l in tested:
        p = m.kbet_pvalues(ref[f"knn_{l}"], batch[label == l])
        np.testing.assert_allclose(p, ref[f"p_{l}"], rtol=0, atol=1e-12)


@needs_reference
@pytest.mark.parametrize("case", CASES)
def test_kbet_is_close_to_the_reference(case):
    X, batch, label, _, info = load(case)
    score, table = m.kbet(X, batch, label)
    assert abs(score - np.mean(info["scib_score_seeds"])) < .03
    assert abs(score - info["score_full_population"]) < .03
    for row in info["labels"]:
        ours = table.loc[row["label"]]
        assert (ours.n, ours.n_batches) == (row["n"], row["n_batches"])
        assert np.isnan(ours.rejection) == (row["scib_rejection"] is None)
        if row["called_R"]: assert (ours.k0, ours.dropped) == (row["k0"], row["nan_knn_rows"])


@needs_reference
@pytest.mark.parametrize("case", CASES)
def test_graph_is_scanpys(case):
    X, _, _, ref, _ = load(case)
    theirs = sp.csr_matrix((ref["conn_data"], ref["conn_indices"], ref["conn_indptr"]), shape=(len(X),) * 2)
    ours = m.fuzzy_graph(*m.knn(X, 50))
    assert ours.nnz == theirs.nnz and abs(ours - theirs).max() < 1e-5


@needs_reference
@pytest.mark.parametrize("case", [c for c in CASES if (REF / f"{c}_scib_other.json").exists()])
def test_silhouettes_and_ari_are_those_of_scib_on_the_reference(case):
    X, batch, label, *_ = load(case)
    other = json.loads((REF / f"{case}_scib_other.json").read_text())
    assert abs(m.silhouette_width(X, label) - other["asw"]) < 1e-5
    assert abs(m.batch_silhouette_width(X, batch, label) - other["asw_batch"]) < 1e-5
    _, curve = m.ari_kmeans(X, label, ks=range(1, 6))
    np.testing.assert_allclose(curve, other["ari_curve"][:5], atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_silhouettes_are_those_of_scib(seed, dtype):
    scib = pytest.importorskip("scib")
    X, labels, batch = blobs(seed, n=300, types=5, batches=3)
    keep = ~((labels == "A") & (batch == "b0"))                       # A is isolated, H has a batch per cell
    labels[np.flatnonzero(keep)[:2]] = "H"
    batch[np.flatnonzero(keep)[:2]] = ["b0", "b1"]
    X, labels, batch = X[keep].astype(dtype), labels[keep], batch[keep]
    adata = as_adata(X, labels, batch)
    keys = dict(batch_key="batch", label_key="cell_type", embed="X_gmvae", verbose=False)
    assert abs(m.silhouette_width(X, labels) - scib.me.silhouette(adata, "cell_type", "X_gmvae")) < 1e-5
    assert abs(m.batch_silhouette_width(X, batch, labels) - scib.me.silhouette_batch(adata, **keys)) < 1e-5
    assert abs(m.isolated_labels(X, labels, batch) - scib.me.isolated_labels_asw(adata, **keys)) < 1e-5


# --- silhouettes -------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 6), st.integers(1, 80))
def test_silhouettes_are_sklearns_for_any_chunk(seed, types, chunk):
    from sklearn.metrics import silhouette_samples
    X, labels, _ = blobs(seed, n=60, types=types, apart=1.)
    labels[0] = "H"                                                   # a cell alone in its group
    X[1] = X[2]                                                       # two cells in one place
    ours = m.silhouettes(X, labels, chunk=chunk)
    np.testing.assert_allclose(ours, silhouette_samples(X, labels), atol=1e-6)
    np.testing.assert_allclose(m.silhouettes(X + 1e6, labels, chunk=chunk), ours, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_silhouette_scores_do_not_depend_on_scale_origin_order_or_names(seed, scale, origin):
    X, labels, batch = blobs(seed, n=90)
    order = np.random.default_rng(seed).permutation(len(X))
    Y, names = scale * X[order] + scale * origin, {"A": "z", "B": "y", "C": "x"}
    renamed, swapped = np.array([names[l] for l in labels[order]]), np.where(batch[order] == "b0", "b9", "b1")
    asw, batch_asw = m.silhouette_width(X, labels), m.batch_silhouette_width(X, batch, labels)
    assert m.silhouette_width(Y, renamed) == pytest.approx(asw, abs=1e-6)
    assert m.batch_silhouette_width(Y, swapped, renamed) == pytest.approx(batch_asw, abs=1e-6)


def test_batch_silhouettes_leave_out_what_scib_leaves_out():
    X, labels, batch = blobs(0, types=3)
    batch[labels == "A"] = "b0"                                       # one batch
    rest = labels != "A"
    without = m.batch_silhouette_width(X[rest], batch[rest], labels[rest])
    assert m.batch_silhouette_width(X, batch, labels) == without
    assert np.isnan(m.batch_silhouette_width(X, np.full(len(X), "b"), labels))


def test_isolated_labels_need_a_label_missing_from_a_batch():
    X, labels, batch = blobs(0)
    assert np.isnan(m.isolated_labels(X, labels, batch))
    batch[labels == "B"] = "b1"
    s = m.silhouettes(X, labels)
    assert m.isolated_labels(X, labels, batch) == pytest.approx((s[labels == "B"].mean() + 1) / 2)


# --- neighbours and clusterings ----------------------------------------------------------------------------

@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 30))
def test_knn_is_exact_and_follows_the_cells(seed, k):
    X, *_ = blobs(seed, n=80)
    D = np.sqrt(((X[:, None] - X[None]) ** 2).sum(axis=-1))
    idx, dist = m.knn(X, k)
    assert (idx[:, 0] == np.arange(80)).all() and (dist[:, 0] == 0).all()
    np.testing.assert_allclose(dist, np.sort(D, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(D, idx, axis=1), dist, atol=1e-6)
    order = np.random.default_rng(seed).permutation(80)
    idx2, dist2 = m.knn(X[order], k)
    assert (order[idx2] == idx[order]).all() and (dist2 == dist[order]).all()


def test_clusterings_repeat_and_leave_random_state_alone():
    X, labels, _ = blobs(0, types=4, apart=1.)
    before = random.getstate(), np.random.get_state()[1].copy()
    first, curve = m.nmi_leiden(X, labels)
    best, ari_curve = m.ari_kmeans(X, labels)
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    random.seed(5); np.random.seed(5)                                 # nor does that state reach in
    pd.testing.assert_series_equal(m.nmi_leiden(X, labels)[1], curve)
    pd.testing.assert_series_equal(m.ari_kmeans(X, labels)[1], ari_curve)
    assert m.nmi_leiden(X, labels, resolutions=(1.,))[0] == curve[1.]  # each resolution on its own
    assert first == curve.max() and list(curve.index) == [i / 10 for i in range(1, 21)]
    assert best == ari_curve.max() and list(ari_curve.index) == [1, 2, 3, 4] and ari_curve[1] == 0


def test_leiden_hands_igraphs_random_numbers_back():
    import igraph
    graph = m._graph(blobs(0)[0], 15)
    random.seed(3)
    before = igraph.Graph.Erdos_Renyi(40, .2).get_edgelist()
    m.leiden(graph, (1.,))
    random.seed(3)
    assert igraph.Graph.Erdos_Renyi(40, .2).get_edgelist() == before


def test_separate_types_are_found():
    X, labels, _ = blobs(1, types=4, apart=100.)
    assert m.nmi_leiden(X, labels)[0] == pytest.approx(1) and m.ari_kmeans(X, labels)[0] == pytest.approx(1)


# --- kBET --------------------------------------------------------------------------------------------------

@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 4))
def test_kbet_does_not_depend_on_the_order_of_cells_or_on_names(seed, batches):
    X, labels, batch = blobs(seed, batches=batches, apart=1.)
    score, table = m.kbet(X, batch, labels)
    order = np.random.default_rng(seed).permutation(len(X))
    assert m.kbet(X[order], batch[order], labels[order])[0] == score
    pd.testing.assert_frame_equal(m.kbet(X[order], batch[order], labels[order])[1], table)
    names = dict(zip("ABC", "zyx"))
    renamed, turned = np.array([names[l] for l in labels]), np.array([f"n{9 - int(b[1])}" for b in batch])
    assert m.kbet(X, turned, renamed)[0] == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_kbet_does_not_depend_on_the_order_of_cells_even_with_ties(seed):
    rng = np.random.default_rng(seed)
    X = np.arange(310.)[:, None]                          # the cells to the left and to the right are as far
    batch, labels, order = rng.integers(0, 2, 310), np.full(310, "A"), rng.permutation(310)
    kbet = lambda o: m.kbet(X[o], batch[o], labels[o], n_neighbors=51, alpha=.5)[1]   # one cell moves this level
    pd.testing.assert_frame_equal(kbet(order), kbet(np.arange(310)))


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 5), st.integers(2, 12))
def test_kbet_pvalues_are_scipys_chisquare(seed, batches, k0):
    from scipy.stats import chisquare
    rng = np.random.default_rng(seed)
    n = 40
    batch = rng.permutation(np.arange(n) % batches)
    hood = np.array([rng.choice(np.delete(np.arange(n), i), k0, replace=False) for i in range(n)])
    for i, p in enumerate(m.kbet_pvalues(hood, batch)):
        observed = np.bincount(np.r_[batch[i], batch[hood[i, :k0 - 1]]], minlength=batches)
        assert p == pytest.approx(chisquare(observed, k0 * np.bincount(batch) / n).pvalue, abs=1e-12)


def test_kbet_pvalues_accept_missing_neighbours_as_nan_or_negative():
    hood = np.array([[1., 2], [np.nan, np.nan], [3, 0], [2, 0]])
    negative = m.kbet_pvalues(np.nan_to_num(hood, nan=-1), list("aabb"))
    np.testing.assert_array_equal(m.kbet_pvalues(hood, list("aabb")), negative)
    with pytest.raises(ValueError, match="index 7, but there are 2 cells"):
        m.kbet_pvalues([[1, 0], [7, 0]], list("ab"))


def islands(apart):
    "One type: 400 cells, batches `apart`, and an island of 40 cells, all b0, that is too small to be tested."
    rng = np.random.default_rng(0)
    batch = np.where(np.arange(440) % 2, "b1", "b0")
    X = rng.normal(size=(440, 4))
    X[:, 1] += apart * (batch == "b1")
    X[:40, 0] -= 1000
    batch[:40] = "b0"
    return X, batch, np.full(440, "A")


@pytest.mark.parametrize("apart", [0, 50])
def test_kbet_with_dropped_cells(apart):
    X, batch, labels = islands(apart)
    score, table = m.kbet(X, batch, labels)
    assert table.dropped["A"] == 40 and table.k0["A"] == 55
    if apart: assert table.rejection["A"] == 1                       # neighbours are looked up where they are
    else: assert table.rejection["A"] < m.kbet(X[40:], batch[40:], labels[40:])[1].rejection["A"] + .1
    for order in np.r_[40:440, :40], np.argsort(batch, kind="stable"):
        assert m.kbet(X[order], batch[order], labels[order])[0] == score


def test_kbet_does_not_count_dropped_cells_as_R_does():
    X, batch, labels = islands(0)
    G = m._graph(X[40:], 50)
    hood = np.full((440, 55), -1)
    hood[40:] = 40 + m.diffusion_neighbours(G, 55)
    p = m.kbet_pvalues(hood, batch)
    assert (p[:40] < .05).all()                                       # R: a lone cell where 55 are expected
    assert m.kbet(X, batch, labels)[1].rejection["A"] == pytest.approx((p[40:] < .05).mean(), abs=1e-12)


def test_kbet_rules_per_label():
    rng = np.random.default_rng(0)
    sizes = [200, 9, 40, 10]
    X = rng.normal(size=(sum(sizes), 3)) + np.repeat([0, 50, 100, 150], sizes)[:, None]
    labels = np.repeat(["ok", "small", "single", "ten"], sizes)
    batch = np.where(np.arange(len(X)) % 2, "b1", "b0")
    batch[labels == "single"] = "b0"
    score, table = m.kbet(X, batch, labels)
    assert np.isnan(table.rejection[["small", "single"]]).all() and table.rejection["ten"] == 1
    assert table.note["small"] == "skipped: fewer than 10 cells"
    assert table.note["single"] == "skipped: one batch"
    assert "no 10 neighbours" in table.note["ten"] and table.k0["ok"] == 25
    assert score == pytest.approx(1 - (table.rejection["ok"] + 1) / 2)
    only = labels == "single"
    assert np.isnan(m.kbet(X[only], batch[only], labels[only])[0])


def test_kbet_sees_separate_batches_and_their_mixing():
    X, labels, batch = blobs(0, n=600, shift=0)
    assert m.kbet(X, batch, labels)[0] > .85
    assert m.kbet(X + 20. * (batch == "b0")[:, None], batch, labels)[0] == 0


@pytest.mark.parametrize("budget", [1, 500, 2**23])
def test_diffusion_neighbours_are_the_largest_entries_of_M_in_order(budget):
    X, *_ = blobs(3, n=70)
    G = m.fuzzy_graph(*m.knn(X, 12))
    T = G.toarray() / G.sum(axis=1)
    M = np.asarray(T + T @ T + T @ T @ T)
    np.fill_diagonal(M, -1)
    np.testing.assert_array_equal(m.diffusion_neighbours(G, 8, budget=budget), np.argsort(-M, axis=1)[:, :8])


def test_diffusion_takes_the_same_walks_for_all_cells():
    X = np.r_[np.random.default_rng(0).normal(size=(60, 2)), 5. + np.outer(np.arange(20), [1, 0])]   # a tail
    G = m.fuzzy_graph(*m.knn(X, 4))
    at_once = m.diffusion_neighbours(G, 14)
    assert at_once is not None and m.diffusion_neighbours(G, 14, max_steps=4) is None
    np.testing.assert_array_equal(m.diffusion_neighbours(G, 14, budget=800), at_once)


def test_kbet_holds_no_square_matrix():
    import tracemalloc
    X, labels, batch = blobs(0, n=3000, types=1)
    neighbors = m.knn(X, 50)
    tracemalloc.start()
    G = m._graph(X, 50, neighbors)
    found = m.diffusion_neighbours(G, 70, budget=2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (3000, 70) and peak < 3000**2 * 8 / 3


# --- all at once -------------------------------------------------------------------------------------------

def test_evaluate_agrees_with_the_functions_beneath():
    X, labels, batch = blobs(0, apart=1.)
    batch[labels == "A"] = "b0"
    e = m.evaluate(as_adata(X, labels, batch, mine=labels), clusters="mine", progress=False)
    assert e.scores == {
        "ari_oracle": m.ari_kmeans(X, labels)[0], "asw": m.silhouette_width(X, labels),
        "nmi_oracle": m.nmi_leiden(X, labels)[0], "batch_asw": m.batch_silhouette_width(X, batch, labels),
        "kbet": m.kbet(X, batch, labels)[0], "isolated_labels_asw": m.isolated_labels(X, labels, batch),
        "nmi_leiden1": m.nmi_leiden(X, labels, resolutions=(1.,))[0], "ari_leiden1": e.scores["ari_leiden1"],
        "ari_clusters": 1., "nmi_clusters": 1.}
    one = m.leiden(m._graph(X, 15), (1.,))[0]
    assert e.scores["ari_leiden1"] == m.ari(labels, one)
    assert list(e.table.index) == list(e.scores) and (e.table.meaning != "").all() and "ari_oracle" in repr(e)
    assert all(type(v) is float for v in e.scores.values())
    assert "ari_clusters" not in m.evaluate(as_adata(X, labels, batch), progress=False).scores


@pytest.mark.parametrize("batch_key", ["batch", None])
def test_evaluate_without_batches(batch_key):
    X, labels, batch = blobs(0)
    e = m.evaluate(as_adata(X, labels, np.full(len(X), "b")), batch_key=batch_key, progress=False)
    for key in "batch_asw", "kbet", "isolated_labels_asw":
        assert np.isnan(e.scores[key]) and e.table.note[key] == "one batch: nothing to compare"
    assert not any(np.isnan(e.scores[k]) for k in ("asw", "ari_oracle", "nmi_oracle", "nmi_leiden1"))


def test_evaluate_accepts_sparse_categorical_and_repeats():
    X, labels, batch = blobs(0)
    X[np.abs(X) < .5] = 0
    dense = as_adata(X, labels, batch)
    other = as_adata(X, pd.Categorical(labels), pd.Categorical(batch, categories=["b1", "unused", "b0"]))
    other.obsm["X_gmvae"] = sp.csr_matrix(X)
    e = m.evaluate(dense, progress=False)
    assert e.scores["kbet"] == m.evaluate(other, progress=False).scores["kbet"]
    assert repr(e) == repr(m.evaluate(dense, progress=False))


@pytest.mark.parametrize("fault, message", [
    (lambda a: dict(embed="X_pca"), r"obsm has no 'X_pca'; found \['X_gmvae'\]"),
    (lambda a: dict(batch_key="donor"), "obs has no column 'donor'.*batch_key="),
    (lambda a: dict(labels_key="type"), "obs has no column 'type'.*labels_key="),
    (lambda a: dict(clusters="leiden"), "obs has no column 'leiden'.*clusters="),
    (lambda a: a.obsm["X_gmvae"].__setitem__((3, 1), np.nan), r"1 of 240 cells \(first: row 3\)"),
    (lambda a: a.obsm["X_gmvae"].__setitem__((3, 1), np.inf), "NaN or infinite"),
    (lambda a: a.obs.__setitem__("cell_type", ["A", None] * 120), r"'cell_type'\] is missing .* 120 of 240"),
    (lambda a: a.obs.__setitem__("batch", [np.nan] + ["b"] * 239), r"'batch'\] is missing .* 1 of 240"),
    (lambda a: a.obs.__setitem__("cell_type", "A"), "holds 1 label"),
    (lambda a: a.obs.__setitem__("cell_type", list(a.obs_names)), "holds 240 label"),
])
def test_bad_input_gets_one_sentence(fault, message):
    adata = as_adata(*blobs(0))
    with pytest.raises(ValueError, match=message) as e:
        m.evaluate(adata, progress=False, **(fault(adata) or {}))
    assert "\n" not in str(e.value)


def test_lengths_must_match():
    X, labels, batch = blobs(0)
    with pytest.raises(ValueError, match=r"batch has shape \(239,\), expected \(240,\)"):
        m.kbet(X, batch[1:], labels)
    with pytest.raises(ValueError, match="neighbors has shape"):
        m.kbet(X, batch, labels, neighbors=m.knn(X, 15))
    with pytest.raises(ValueError, match="ks runs from 0"): m.ari_kmeans(X, labels, ks=[0, 1])


def test_import_is_light():
    heavy = {"scib", "scanpy", "sklearn", "igraph", "torch"}
    code = f"import sys, gmvae_nb.metrics; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
