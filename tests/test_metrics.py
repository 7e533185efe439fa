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
from gmvae_nb import metrics as m
from gmvae_nb import neighbors as nb
from gmvae_nb.after_training import gmvae_metrics
from gmvae_nb.calibration import calibration, cluster_types
from gmvae_nb.kbet import diffusion_neighbours, kbet, kbet_by_cell, kbet_pvalues
from hypothesis import given, settings
from hypothesis import strategies as st

from hazards import command

# What R's kBET says: three cases come with the tests, larger ones may lie beside the repository
SHIPPED = Path(__file__).parent / "reference/kbet"
LARGER = Path(__file__).parents[1] / "../shared/reference/kbet"
SHIPPED_CASES = {"islands", "pbmc_phase", "pbmc_shift_small"}
CASES = sorted(
    SHIPPED_CASES | {f.name.removesuffix("_ref.json") for f in LARGER.glob("*_ref.json")}
)
seeds = st.integers(0, 2**32 - 1)


def blobs(seed, n=240, d=5, types=3, batches=2, apart=3.0, shift=0.5):
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
    "Embedding, batch, labels, R's neighbours and p-values, and the summaries of one case."
    folder = SHIPPED if case in SHIPPED_CASES else LARGER
    with np.load(folder / f"{case}_input.npz") as f:
        X, batch, label = f["X"], f["batch"], f["label"]
    with np.load(folder / f"{case}_ref.npz") as f:
        ref = dict(f)
    info = json.loads((folder / f"{case}_ref.json").read_text())
    other = folder / f"{case}_scib_other.json"
    return X, batch, label, ref, info, json.loads(other.read_text()) if other.exists() else None


# --- the reference: R and scib --------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_kbet_pvalues_are_those_of_R(case):
    _, batch, label, ref, info, _ = load(case)
    tested = [row["label"] for row in info["labels"] if row["called_R"]]
    assert tested
    for l in tested:
        p = kbet_pvalues(ref[f"knn_{l}"], batch[label == l])
        np.testing.assert_allclose(p, ref[f"p_{l}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_kbet_is_close_to_the_reference(case):
    X, batch, label, _, info, _ = load(case)
    score, table = m.kbet(X, batch, label)
    assert abs(score - np.mean(info["scib_score_seeds"])) < 0.03
    assert abs(score - info["score_full_population"]) < 0.03
    for row in info["labels"]:
        ours = table.loc[row["label"]]
        assert (ours.n, ours.n_batches) == (row["n"], row["n_batches"])
        assert np.isnan(ours.rejection) == (row["scib_rejection"] is None)
        if row["called_R"]:
            assert (ours.k0, ours.dropped) == (row["k0"], row["nan_knn_rows"])


@pytest.mark.parametrize("case", ["pbmc_shift_small", *sorted(set(CASES) - SHIPPED_CASES)])
def test_graph_is_scanpys(case):
    X, _, _, ref, *_ = load(case)
    arrays = ref["conn_data"], ref["conn_indices"], ref["conn_indptr"]
    theirs = sp.csr_matrix(arrays, shape=(len(X),) * 2)
    ours = nb.fuzzy_graph(*m.knn(X, 50))
    assert ours.nnz == theirs.nnz and abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("case", ["pbmc_phase", *sorted(set(CASES) - SHIPPED_CASES)])
def test_silhouettes_and_ari_are_those_of_scib_on_the_reference(case):
    X, batch, label, *_, other = load(case)
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
    keep = ~((labels == "A") & (batch == "b0"))  # A is isolated, H has a batch per cell
    labels[np.flatnonzero(keep)[:2]] = "H"
    batch[np.flatnonzero(keep)[:2]] = ["b0", "b1"]
    X, labels, batch = X[keep].astype(dtype), labels[keep], batch[keep]
    adata = as_adata(X, labels, batch)
    keys = dict(batch_key="batch", label_key="cell_type", embed="X_gmvae", verbose=False)
    ours = [
        m.silhouette_width(X, labels),
        m.batch_silhouette_width(X, batch, labels),
        m.isolated_labels(X, labels, batch),
    ]
    theirs = [
        scib.me.silhouette(adata, "cell_type", "X_gmvae"),
        scib.me.silhouette_batch(adata, **keys),
        scib.me.isolated_labels_asw(adata, **keys),
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- silhouettes ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 6), st.integers(1, 80))
def test_silhouettes_are_sklearns_for_any_tile(seed, types, tile):
    from sklearn.metrics import silhouette_samples

    X, labels, _ = blobs(seed, n=60, types=types, apart=1.0)
    labels[0] = "H"  # a cell alone in its group
    X[1] = X[2]  # two cells in one place
    ours = m.silhouettes(X, labels, tile=tile)
    np.testing.assert_allclose(ours, silhouette_samples(X, labels), atol=1e-6)
    np.testing.assert_allclose(m.silhouettes(X + 1e6, labels, tile=tile), ours, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 7, 100])
def test_distance_sums_are_those_of_all_pairs(tile):
    from scipy.spatial.distance import cdist

    X, labels, _ = blobs(0, n=60, types=5)
    codes = pd.factorize(labels)[0]
    sums = nb.distance_sums(X, codes, tile)
    np.testing.assert_allclose(sums, cdist(X, X) @ np.eye(5)[codes], rtol=1e-12)
    alone = nb.distance_sums(X, np.arange(60), tile)  # a group per cell: to itself exactly 0
    assert (np.diag(alone) == 0).all()
    np.testing.assert_allclose(alone, cdist(X, X), atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_silhouette_scores_do_not_depend_on_scale_origin_order_or_names(seed, scale, origin):
    X, labels, batch = blobs(seed, n=90)
    order = np.random.default_rng(seed).permutation(len(X))
    Y, names = scale * X[order] + scale * origin, {"A": "z", "B": "y", "C": "x"}
    renamed = np.array([names[l] for l in labels[order]])
    swapped = np.where(batch[order] == "b0", "b9", "b1")
    asw = m.silhouette_width(X, labels)
    batch_asw = m.batch_silhouette_width(X, batch, labels)
    assert m.silhouette_width(Y, renamed) == pytest.approx(asw, abs=1e-6)
    assert m.batch_silhouette_width(Y, swapped, renamed) == pytest.approx(batch_asw, abs=1e-6)


def test_batch_silhouettes_leave_out_what_scib_leaves_out():
    X, labels, batch = blobs(0, types=3)
    batch[labels == "A"] = "b0"  # one batch
    others = labels != "A"
    without = m.batch_silhouette_width(X[others], batch[others], labels[others])
    assert m.batch_silhouette_width(X, batch, labels) == without
    assert np.isnan(m.batch_silhouette_width(X, np.full(len(X), "b"), labels))


def test_isolated_labels_need_a_label_missing_from_a_batch():
    X, labels, batch = blobs(0)
    assert np.isnan(m.isolated_labels(X, labels, batch))
    batch[labels == "B"] = "b1"
    s = m.silhouettes(X, labels)
    assert m.isolated_labels(X, labels, batch) == pytest.approx((s[labels == "B"].mean() + 1) / 2)


def silhouettes_by_pairs(X, batch, metric):
    "1 - |silhouette| from all pairs, the other distance being that to all cells of other batches."
    from scipy.spatial.distance import cdist

    D, out = cdist(X, X, metric), []
    for i in range(len(X)):
        same = (batch == batch[i]) & (np.arange(len(X)) != i)
        if not same.any():
            out.append(1.0)
            continue  # alone in its batch
        own, other = D[i, same].mean(), D[i, batch != batch[i]].mean()
        out.append(1 - abs(other - own) / max(own, other))
    return np.array(out)


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 5), st.sampled_from(["cosine", "euclidean"]))
def test_bras_is_its_definition_with_all_pairs(seed, batches, metric):
    X, labels, batch = blobs(seed, n=90, batches=batches, apart=1.0)
    batch[labels == "A"] = "b0"  # one batch: left out
    batch[np.flatnonzero(labels == "B")[0]] = "alone"
    expected = []
    for l in "BC":
        own = labels == l
        expected.append(silhouettes_by_pairs(X[own], batch[own], metric).mean())
    assert m.bras(X, batch, labels, metric=metric) == pytest.approx(np.mean(expected), abs=1e-9)


def test_bras_falls_where_batch_asw_rises():
    rng = np.random.default_rng(0)
    four, labels = np.arange(1600) % 4, np.repeat(["A", "B"], 800)
    X = rng.normal(size=(1600, 2)) + 100 * (labels == "B")[:, None]
    far = [X + np.outer(four // 2, [d, 0]) for d in (1, 8)]
    near, apart = (m.batch_silhouette_width(F, four, labels) for F in far)
    assert apart > near + 0.02
    for metric in "cosine", "euclidean":
        near, apart = (m.bras(F, four, labels, metric=metric) for F in far)
        assert apart < near - 0.4
    two = four % 2  # two batches: the nearest is all
    ours = m.bras(X, two, labels, metric="euclidean")
    assert ours == pytest.approx(m.batch_silhouette_width(X, two, labels), abs=1e-12)


def test_bras_where_cells_coincide_or_lie_at_the_origin():
    X, labels, batch = np.zeros((8, 2)), np.full(8, "A"), np.array(list("aabbaabb"))
    assert m.bras(X, batch, labels) == m.bras(X + 1, batch, labels) == 1
    assert np.isnan(m.bras(X, np.full(8, "a"), labels))
    with pytest.raises(ValueError, match="metric is 'l1', expected 'cosine' or 'euclidean'"):
        m.bras(X, batch, labels, metric="l1")


# --- LISI, connectivity, PCR ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_lisi_is_that_of_the_original_given_the_same_neighbours(scale):
    scib_lisi = pytest.importorskip("scib.metrics.lisi")
    X, labels, batch = blobs(2, n=400, types=4, batches=3, apart=1.0)
    indices, distances = m.knn(scale * X, 90)
    simpson = np.empty(400)  # scib's own functions, cell by cell
    for i, codes in enumerate(pd.factorize(batch, sort=True)[0][indices[:, 1:]]):
        beta, lo, hi = 1 / scale, 0, np.inf
        H, P = scib_lisi.Hbeta(distances[i, 1:].copy(), beta)
        for _ in range(200):
            if abs(H - np.log(30)) < 1e-9:
                break
            if H > np.log(30):
                lo, beta = beta, beta * 2 if hi == np.inf else (beta + hi) / 2
            else:
                hi, beta = beta, (beta + lo) / 2
            H, P = scib_lisi.Hbeta(distances[i, 1:].copy(), beta)
        share = P @ scib_lisi.convert_to_one_hot(codes, 3)
        simpson[i] = share @ share
    ours = m.lisi(indices, m.lisi_weights(distances), batch)
    np.testing.assert_allclose(ours, 1 / simpson, rtol=1e-4)
    assert m.ilisi(scale * X, batch) == pytest.approx((np.median(1 / simpson) - 1) / 2, abs=1e-4)


def test_lisi_counts_groups():
    X, labels, batch = blobs(0, n=600, types=2, batches=2, shift=0, apart=50.0)
    assert m.ilisi(X, batch) > 0.85 and m.clisi(X, labels) == pytest.approx(1)
    assert m.ilisi(X + 1e3 * (batch == "b0")[:, None], batch) == pytest.approx(0, abs=1e-9)
    assert m.clisi(X, batch) < 0.15  # batches are no types
    assert np.isnan(m.ilisi(X, np.full(600, "b")))
    rng = np.random.default_rng(0)
    nine_to_one = np.where(rng.random(600) < 0.1, "b1", "b0")
    assert 0.1 < m.ilisi(X, nine_to_one) < 0.35


def test_lisi_with_ties_few_cells_and_cells_in_one_place():
    X, labels, batch = blobs(0, n=20)
    assert 0 <= m.ilisi(X, batch) <= 1 and 0 <= m.clisi(X, labels) <= 1
    P = m.lisi_weights(np.zeros((5, 10)))
    np.testing.assert_allclose(P, 1 / 9)
    extreme = np.array([[0, 0, 0, 1.0, 1e6], [0, 1e-300, 2e-300, 1, 2]])
    assert np.isfinite(m.lisi_weights(extreme)).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 1])
def test_graph_connectivity_is_scibs(seed, monkeypatch):
    counts = lambda values: pd.Series(values).value_counts()  # noqa: E731
    monkeypatch.setattr(pd, "value_counts", counts, raising=False)  # scib 1.1.7, pandas 3
    scib, sc = pytest.importorskip("scib"), pytest.importorskip("scanpy")
    X, labels, batch = blobs(seed, n=300, types=5, apart=0.5)
    X[labels == "A"] += 60.0 * (batch[labels == "A"] == "b0")[:, None]  # in two pieces
    adata = as_adata(X, pd.Categorical(labels), batch)
    sc.pp.neighbors(adata, use_rep="X_gmvae", n_neighbors=15)
    ours = m.graph_connectivity(X, labels)
    assert ours < 0.95
    assert ours == pytest.approx(scib.me.graph_connectivity(adata, "cell_type"), abs=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 1])
def test_pcr_is_scibs(seed):
    scib, sc = pytest.importorskip("scib"), pytest.importorskip("scanpy")
    X, labels, batch = blobs(seed, n=300, d=12, types=4, batches=3, shift=1.0)
    rng = np.random.default_rng(seed)
    some = (batch != "b0") | (np.arange(300) < 60)  # uneven batches
    X, labels, batch = X[some], labels[some], batch[some]
    means = pd.DataFrame(X).groupby(batch).transform("mean").to_numpy()
    adata = ad.AnnData(X, obs=as_adata(X, labels, pd.Categorical(batch)).obs)
    # some of the effect is removed
    adata.obsm["X_gmvae"] = X + 0.3 * rng.normal(size=X.shape) - 0.6 * means
    sc.pp.pca(adata, n_comps=11)
    theirs = scib.me.pcr_comparison(adata, adata, covariate="batch", embed="X_gmvae")
    assert 0.1 < theirs < 0.99
    ours = m.pcr(adata.obsm["X_gmvae"], adata.obsm["X_pca"], batch)
    assert ours == pytest.approx(theirs, abs=1e-5)
    theirs = scib.me.pcr(adata, "batch", recompute_pca=True)
    assert m.batch_variance(X, batch) == pytest.approx(theirs, abs=1e-5)


def test_pcr_at_its_ends():
    X, labels, batch = blobs(0)
    centred = X - pd.DataFrame(X).groupby(batch).transform("mean").to_numpy()
    assert m.pcr(X, X, batch) == 0 and m.pcr(centred, X, batch) == pytest.approx(1)
    assert m.pcr(X + 100.0 * (batch == "b0")[:, None], X, batch) == 0
    assert np.isnan(m.pcr(X, np.ones_like(X), batch))


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_scib_metrics():
    theirs = pytest.importorskip("scib_metrics")
    from scib_metrics.nearest_neighbors import NeighborsResults

    X, labels, batch = blobs(0, n=400, types=4, batches=3, apart=1.0)
    batch[labels == "A"] = "b0"  # isolated
    half = X - 0.5 * pd.DataFrame(X).groupby(batch).transform("mean").to_numpy()
    ours = [
        m.silhouette_width(X, labels),
        m.batch_silhouette_width(X, batch, labels),
        m.isolated_labels(X, labels, batch),
        m.pcr(half, X, batch),
    ]
    expected = [
        theirs.silhouette_label(X, labels),
        theirs.silhouette_batch(X, labels, batch),
        theirs.isolated_labels(X, labels, batch),
        theirs.pcr_comparison(X, half, batch, categorical=True),
    ]
    np.testing.assert_allclose(ours[:3], expected[:3], atol=1e-5)
    assert ours[3] == pytest.approx(expected[3], abs=1e-4)
    indices, distances = m.knn(X, 90)
    near = NeighborsResults(indices=indices, distances=distances)
    assert m.ilisi(X, batch) == pytest.approx(theirs.ilisi_knn(near, batch), abs=1e-3)
    assert m.clisi(X, labels) == pytest.approx(theirs.clisi_knn(near, labels), abs=1e-3)
    if hasattr(theirs, "bras"):
        assert m.bras(X, batch, labels) == pytest.approx(theirs.bras(X, labels, batch), abs=1e-4)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), []
    for seed in range(200):
        low, high = m.bootstrap(rng.normal(size=100), seed=seed)
        covered.append(low <= 0 <= high)
    assert 0.88 <= np.mean(covered) <= 0.99
    assert m.bootstrap([1.0, 1, 5, np.nan], [0, 0, 1, 1]) == (3, 3)
    assert np.isnan(m.bootstrap([np.nan] * 3)).all()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("level, z", [(0.95, 1.96), (0.5, 0.6745)])
def test_bootstrap_is_as_wide_as_theory_says(groups, level, z):
    values, group = np.random.default_rng(0).normal(size=2000), np.arange(2000) % groups
    low, high = m.bootstrap(values, group, n_boot=2000, level=level)
    # the mean of g means, each of n / g cells
    variance = np.mean([values[group == g].var() for g in range(groups)])
    half = z * np.sqrt(variance / 2000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)  # half the cells: 1.41 times
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


def test_bootstrap_of_clusters_is_as_wide_as_theory_says():
    n, q = 10_000, 0.1  # two groups, two clusters, a share q of errors
    truth, wrong = np.arange(n) % 2, np.arange(n) < q * n
    low, high = m.bootstrap_clusters(truth, truth ^ wrong, n_boot=2000)["ari"]
    slope = 4 * (1 - 2 * q)  # ARI is about (1 - 2 q)^2
    half = 1.96 * slope * np.sqrt(q * (1 - q) / n)
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)


@pytest.mark.parametrize("seed", [0, 1])
def test_bootstrap_of_clusters_is_that_of_the_cells(seed):
    X, labels, _ = blobs(seed, n=400, types=4)
    clusters = np.where(np.random.default_rng(seed).random(400) < 0.2, "A", labels)
    found = m.bootstrap_clusters(labels, clusters, n_boot=2000)
    rng, scores = np.random.default_rng(seed), []
    for _ in range(500):  # the slow way, with scikit-learn
        cells = rng.integers(0, 400, 400)
        drawn = labels[cells], clusters[cells]
        scores.append((m.nmi(*drawn), m.ari(*drawn)))
    own = m.nmi(labels, clusters), m.ari(labels, clusters)
    expected = np.quantile(scores - np.mean(scores, axis=0) + own, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(np.transpose([found["nmi"], found["ari"]]), expected, atol=0.012)
    same = m.bootstrap_clusters(labels, labels)
    np.testing.assert_allclose([same["nmi"], same["ari"]], 1)
    nothing = m.bootstrap_clusters(labels, np.zeros(400))
    np.testing.assert_allclose([nothing["nmi"], nothing["ari"]], 0, atol=1e-12)


def test_the_interval_holds_the_score_itself_where_agreement_is_by_chance():
    for seed in range(10):
        labels, clusters = np.random.default_rng(seed).integers(5, size=(2, 200))
        found = m.bootstrap_clusters(labels, clusters, seed=seed)
        for name, score in (("ari", m.ari), ("nmi", m.nmi)):
            low, high = found[name]
            assert low < score(labels, clusters) < high <= 1


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_agreement_of_missing_names_is_refused(missing):
    labels, clusters = ["a", "a", missing, "b"], [0, 0, 1, 1]
    asked = labels, np.array(labels, dtype=object), pd.Series(labels)
    for score in m.nmi, m.ari, m.bootstrap_clusters:
        for names in asked:
            with pytest.raises(ValueError, match=r"labels is missing \(NaN\) in 1 of 4 cells"):
                score(names, clusters)
            with pytest.raises(ValueError, match="clusters is missing"):
                score(clusters, names)
    with pytest.raises(ValueError, match="groups is missing"):
        m.bootstrap([1.0, 2, 3, 4], labels)
    with pytest.raises(ValueError, match=r"clusters has shape \(3,\), expected \(4,\)"):
        m.ari(list("abab"), [0, 1, 1])


def test_cells_counted_several_times_are_several_cells():
    X, _, batch = blobs(0, n=300, batches=3, shift=1.0)
    times = np.random.default_rng(0).integers(0, 4, 300)
    often = m.batch_variance(np.repeat(X, times, axis=0), np.repeat(batch, times))
    counted = m._variance_share(X, pd.factorize(batch)[0], times.astype(float))
    assert counted == pytest.approx(often, abs=1e-12)


def test_bootstrap_of_pcr_is_that_of_the_cells():
    X, _, batch = blobs(0, n=300, batches=3, shift=1.0)
    half = X - 0.5 * pd.DataFrame(X).groupby(batch).transform("mean").to_numpy()
    rng, scores = np.random.default_rng(1), []
    for _ in range(2000):
        cells = rng.integers(0, 300, 300)
        scores.append(m.pcr(half[cells], X[cells], batch[cells]))
    own = m.pcr(half, X, batch)
    expected = np.quantile(scores - (np.mean(scores) - own), [0.025, 0.975])
    low, high = m._bootstrap_pcr(half, X, batch, n_boot=2000)
    np.testing.assert_allclose([low, high], expected, atol=0.015)
    assert high - low == pytest.approx(np.ptp(expected), rel=0.12)


def test_the_interval_of_pcr_holds_the_score_also_of_few_cells():
    "Means of six batches of 50 cells lie apart by chance, and those of drawn cells further."
    X, _, batch = blobs(0, n=300, batches=6, shift=1.0)
    means = pd.DataFrame(X).groupby(batch).transform("mean").to_numpy()
    for left in (0.0, 0.2):
        after = X - (1 - left) * means
        low, high = m._bootstrap_pcr(after, X, batch)
        assert 0 <= low <= m.pcr(after, X, batch) <= high <= 1


def test_over_seeds_is_mean_and_sd_over_runs():
    runs = [m.evaluate(as_adata(*blobs(seed, apart=1.0)), progress=False) for seed in range(3)]
    t = m.over_seeds(runs)
    asw = [run.scores["asw"] for run in runs]
    expected = [np.mean(asw), np.std(asw, ddof=1), min(asw), max(asw), 3]
    assert t.loc["asw"].tolist() == pytest.approx(expected)
    assert list(t.index) == list(runs[0].scores) and t.n["isolated_labels_asw"] == 0
    pd.testing.assert_frame_equal(m.over_seeds([run.scores for run in runs]), t)
    with pytest.raises(ValueError, match="found 1 run"):
        m.over_seeds(runs[:1])
    with pytest.raises(ValueError, match="run 1 and run 0 .* pcr in one"):
        m.over_seeds([runs[0], runs[1].scores | {"pcr": 1}])


# --- neighbours and clusterings -------------------------------------------------------------------


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


def test_knn_with_many_cells_in_one_place():
    X = np.r_[np.zeros((50, 2)), [[0, 1], [0, 2]]]
    idx, dist = m.knn(X, 10)
    assert (idx[:, 0] == np.arange(52)).all() and (dist[:50] == 0).all()
    assert all(len(set(row)) == 10 for row in idx) and idx[:50].max() < 50
    assert idx[50, 1] != 50 and dist[51, 1] == 1


@pytest.mark.parametrize("origin", [1e7, 1e8])
def test_knn_is_exact_far_from_the_origin(origin):
    X = blobs(0, n=200)[0].astype(np.float64) + origin
    idx, dist = m.knn(X, 15)
    D = np.sqrt(((X[:, None] - X[None]) ** 2).sum(axis=-1))
    np.testing.assert_array_equal(idx, np.argsort(D, axis=1)[:, :15])
    np.testing.assert_allclose(dist, np.sort(D, axis=1)[:, :15], atol=1e-7)


def test_knn_in_blocks_is_scikit_learns():
    from sklearn.neighbors import NearestNeighbors

    X = np.random.default_rng(0).normal(size=(9000, 3))  # two blocks
    idx, dist = m.knn(X, 6)
    theirs = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(X).kneighbors()
    np.testing.assert_array_equal(idx[:, 1:], theirs[1])
    np.testing.assert_allclose(dist[:, 1:], theirs[0], atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_graph_is_umaps_where_many_neighbours_are_as_near_as_the_nearest():
    umap_ = pytest.importorskip("umap.umap_")
    rng, n, k = np.random.default_rng(0), 60, 15
    indices = np.array([[i, *rng.permutation(np.delete(np.arange(n), i))[:14]] for i in range(n)])
    distances = np.zeros((n, k))
    distances[:, 1:] = rng.uniform(0.5, 2, size=(n, 1))
    distances[:, 6:] *= 1 + 1e-3 * np.arange(1, 10)  # five ties: no sigma is small enough
    distances[:10, :8] = 0  # seven copies, and the nearest distinct cell farther than they
    distances[10] = 0  # copies only
    theirs, *_ = umap_.fuzzy_simplicial_set(
        np.zeros((n, 2)),
        k,
        np.random.RandomState(0),
        "euclidean",
        knn_indices=indices,
        knn_dists=distances.astype(np.float32),
    )
    ours = nb.fuzzy_graph(indices, distances)
    np.testing.assert_allclose(ours.toarray(), theirs.toarray(), atol=1e-3)
    between = theirs.data[(theirs.data > 0.1) & (theirs.data < 0.9)]
    assert len(between) > 50  # the floor leaves weights that are neither 0 nor 1


def test_clusterings_repeat_and_leave_random_state_alone():
    X, labels, _ = blobs(0, types=4, apart=1.0)
    before = random.getstate(), np.random.get_state()[1].copy()
    first, curve = m.nmi_leiden(X, labels)
    best, ari_curve = m.ari_kmeans(X, labels)
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    random.seed(5)
    np.random.seed(5)  # nor does that state reach in
    pd.testing.assert_series_equal(m.nmi_leiden(X, labels)[1], curve)
    pd.testing.assert_series_equal(m.ari_kmeans(X, labels)[1], ari_curve)
    alone, _ = m.nmi_leiden(X, labels, resolutions=(1.0,))
    assert alone == curve[1.0]  # no resolution depends on the others
    assert first == curve.max() and list(curve.index) == [i / 10 for i in range(1, 21)]
    assert best == ari_curve.max() and list(ari_curve.index) == [1, 2, 3, 4]
    assert ari_curve[1] == 0


def test_leiden_hands_igraphs_random_numbers_back():
    import igraph

    graph = nb.neighbor_graph(blobs(0)[0], 15)
    random.seed(3)
    before = igraph.Graph.Erdos_Renyi(40, 0.2).get_edgelist()
    m.leiden(graph, (1.0,))
    random.seed(3)
    assert igraph.Graph.Erdos_Renyi(40, 0.2).get_edgelist() == before


def test_separate_types_are_found():
    X, labels, _ = blobs(1, types=4, apart=100.0)
    assert m.nmi_leiden(X, labels)[0] == pytest.approx(1)
    assert m.ari_kmeans(X, labels)[0] == pytest.approx(1)


# --- kBET -----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 4))
def test_kbet_does_not_depend_on_the_order_of_cells_or_on_names(seed, batches):
    X, labels, batch = blobs(seed, batches=batches, apart=1.0)
    score, table = m.kbet(X, batch, labels)
    order = np.random.default_rng(seed).permutation(len(X))
    assert m.kbet(X[order], batch[order], labels[order])[0] == score
    pd.testing.assert_frame_equal(m.kbet(X[order], batch[order], labels[order])[1], table)
    names = dict(zip("ABC", "zyx"))
    renamed = np.array([names[l] for l in labels])
    turned = np.array([f"n{9 - int(b[1])}" for b in batch])
    assert m.kbet(X, turned, renamed)[0] == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_kbet_does_not_depend_on_the_order_of_cells_even_with_ties(seed):
    rng = np.random.default_rng(seed)
    X = np.arange(310.0)[:, None]  # the cells to the left and to the right are as far
    batch, labels, order = rng.integers(0, 2, 310), np.full(310, "A"), rng.permutation(310)
    options = dict(n_neighbors=51, alpha=0.5)  # one cell moves this level
    _, shuffled = m.kbet(X[order], batch[order], labels[order], **options)
    _, table = m.kbet(X, batch, labels, **options)
    pd.testing.assert_frame_equal(shuffled, table)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 5), st.integers(2, 12))
def test_kbet_pvalues_are_scipys_chisquare(seed, batches, k0):
    from scipy.stats import chisquare

    rng = np.random.default_rng(seed)
    n = 40
    batch = rng.permutation(np.arange(n) % batches)
    hood = np.array([rng.choice(np.delete(np.arange(n), i), k0, replace=False) for i in range(n)])
    expected = k0 * np.bincount(batch) / n
    for i, p in enumerate(kbet_pvalues(hood, batch)):
        observed = np.bincount(np.r_[batch[i], batch[hood[i, : k0 - 1]]], minlength=batches)
        assert p == pytest.approx(chisquare(observed, expected).pvalue, abs=1e-12)


def test_kbet_pvalues_accept_missing_neighbours_as_nan_or_negative():
    hood = np.array([[1.0, 2], [np.nan, np.nan], [3, 0], [2, 0]])
    negative = kbet_pvalues(np.nan_to_num(hood, nan=-1), list("aabb"))
    np.testing.assert_array_equal(kbet_pvalues(hood, list("aabb")), negative)
    with pytest.raises(ValueError, match="index 7, but there are 2 cells"):
        kbet_pvalues([[1, 0], [7, 0]], list("ab"))


def islands(apart):
    "One type: 400 cells, batches `apart`, and an island of 40, all b0, too small to be tested."
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
    if apart:
        assert table.rejection["A"] == 1  # neighbours are looked up where they are
    else:
        _, without = m.kbet(X[40:], batch[40:], labels[40:])
        assert table.rejection["A"] < without.rejection["A"] + 0.1
    for order in np.r_[40:440, :40], np.argsort(batch, kind="stable"):
        assert m.kbet(X[order], batch[order], labels[order])[0] == score


def test_kbet_does_not_count_dropped_cells_as_R_does():
    X, batch, labels = islands(0)
    G = nb.neighbor_graph(X[40:], 50)
    hood = np.full((440, 55), -1)
    hood[40:] = 40 + diffusion_neighbours(G, 55)
    p = kbet_pvalues(hood, batch)
    assert (p[:40] < 0.05).all()  # R: a lone cell where 55 are expected
    _, table = m.kbet(X, batch, labels)
    assert table.rejection["A"] == pytest.approx((p[40:] < 0.05).mean(), abs=1e-12)


@pytest.mark.parametrize("pieces, dropped", [((59,), 59), ((60,), 0), ((40, 40), 80)])
def test_kbet_drops_pieces_of_fewer_than_3_k0_cells(pieces, dropped):
    X, batch = np.random.default_rng(0).normal(size=(320, 3)), np.arange(320) % 4
    for i, size in enumerate(pieces):
        X[i * 40 : i * 40 + size] += 1000.0 * (i + 1)
    _, table = m.kbet(X, batch, np.full(320, "A"))
    assert (table.k0["A"], table.dropped["A"], table.note["A"]) == (20, dropped, "")
    assert table.rejection["A"] < 0.5


def test_kbet_rejects_a_type_that_loses_more_than_a_quarter():
    X, batch = np.random.default_rng(0).normal(size=(320, 3)), np.arange(320) % 4
    X[:40], X[40:81] = X[:40] + 1000, X[40:81] + 2000
    _, table = m.kbet(X, batch, np.full(320, "A"))
    assert table.rejection["A"] == 1
    assert table.note["A"] == "set to 1: 81 cells in components under 60 cells"


@pytest.mark.parametrize("n, batches, k0", [(60, 2, 10), (240, 3, 20), (700, 2, 70)])
def test_kbet_is_its_definition_with_whole_matrices(n, batches, k0):
    from scipy.stats import chisquare

    X, _, batch = blobs(n, n=n, types=1, batches=batches, shift=0.3)
    G = nb.neighbor_graph(X, 50).toarray()
    T = G / G.sum(axis=1, keepdims=True)
    M = T + T @ T + T @ T @ T
    np.fill_diagonal(M, -1)
    nearest = np.argsort(-M, axis=1, kind="stable")[:, : k0 - 1]
    codes = pd.factorize(batch)[0]
    expected, rejected = k0 * np.bincount(codes) / n, 0
    for i in range(n):  # the cell itself and its k0 - 1 nearest
        observed = np.bincount(codes[np.r_[i, nearest[i]]], minlength=batches)
        rejected += chisquare(observed, expected).pvalue < 0.05
    _, table = m.kbet(X, batch, np.full(n, "A"))
    assert table.k0["A"] == k0 and 0.02 < rejected / n < 0.98
    assert table.rejection["A"] == pytest.approx(rejected / n, abs=1e-12)


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
    assert m.kbet(X, batch, labels)[0] > 0.85
    assert m.kbet(X + 20.0 * (batch == "b0")[:, None], batch, labels)[0] == 0


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_diffusion_neighbours_are_the_largest_entries_of_M_in_order(chunk):
    X, *_ = blobs(3, n=70)
    G = nb.fuzzy_graph(*m.knn(X, 12))
    T = G.toarray() / G.sum(axis=1)
    M = np.asarray(T + T @ T + T @ T @ T)
    np.fill_diagonal(M, -1)
    nearest = diffusion_neighbours(G, 8, chunk=chunk)
    np.testing.assert_array_equal(nearest, np.argsort(-M, axis=1)[:, :8])


def test_diffusion_takes_the_same_walks_for_all_cells():
    tail = 5.0 + np.outer(np.arange(20), [1, 0])
    X = np.r_[np.random.default_rng(0).normal(size=(60, 2)), tail]
    G = nb.fuzzy_graph(*m.knn(X, 4))
    at_once = diffusion_neighbours(G, 14)
    assert at_once is not None and diffusion_neighbours(G, 14, max_steps=4) is None
    np.testing.assert_array_equal(diffusion_neighbours(G, 14, chunk=11), at_once)


def test_diffusion_neighbours_holds_no_square_matrix():
    code = """if True:
        import resource
        import scipy.sparse as sp
        from gmvae_nb.kbet import diffusion_neighbours
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        near = [*range(1, 26), *range(-25, 0)]
        band = lambda n: sp.diags([1 / abs(d) for d in near], near, shape=(n, n))
        diffusion_neighbours(band(300), 70)  # compiled
        before = peak()
        assert diffusion_neighbours(band(10_000), 70).shape == (10_000, 70)
        print(peak() - before)"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100  # MB; 10,000 x 10,000 are 800


def test_diffusion_ranks_equals_by_their_index():
    # chances of 1 in 64: sums without rounding
    clique = sp.csr_matrix(np.ones((65, 65)) - np.eye(65))
    found = diffusion_neighbours(clique, 10)
    for i in range(65):
        assert found[i].tolist() == [j for j in range(65) if j != i][:10]


# --- all at once ----------------------------------------------------------------------------------


def test_evaluate_agrees_with_the_functions_beneath():
    X, labels, batch = blobs(0, apart=1.0)
    batch[labels == "A"] = "b0"
    e = m.evaluate(as_adata(X, labels, batch, mine=labels), clusters="mine", progress=False)
    assert e.scores == {
        "ari_oracle": m.ari_kmeans(X, labels)[0],
        "asw": m.silhouette_width(X, labels),
        "nmi_oracle": m.nmi_leiden(X, labels)[0],
        "batch_asw": m.batch_silhouette_width(X, batch, labels),
        "kbet": m.kbet(X, batch, labels)[0],
        "isolated_labels_asw": m.isolated_labels(X, labels, batch),
        "nmi_leiden1": m.nmi_leiden(X, labels, resolutions=(1.0,))[0],
        "ari_leiden1": e.scores["ari_leiden1"],
        "bras": m.bras(X, batch, labels),
        "ilisi": m.ilisi(X, batch),
        "clisi": m.clisi(X, labels),
        "graph_connectivity": m.graph_connectivity(X, labels),
        "ari_kmeans": m.ari_kmeans(X, labels, ks=[3])[0],
        "ari_clusters": 1.0,
        "nmi_clusters": 1.0,
    }
    one = m.leiden(nb.neighbor_graph(X, 15), (1.0,))[0]
    assert e.scores["ari_leiden1"] == m.ari(labels, one)
    assert list(e.table.index) == list(e.scores)
    assert (e.table.meaning != "").all() and "ari_oracle" in repr(e)
    assert all(type(v) is float for v in e.scores.values())
    plain = m.evaluate(as_adata(X, labels, batch), progress=False).scores
    assert set(e.scores) - set(plain) == {"ari_clusters", "nmi_clusters", "ari_kmeans"}


def test_evaluate_with_a_baseline_and_a_number_of_clusters():
    X, labels, batch = blobs(0, apart=1.0)
    adata = as_adata(X, labels, batch)
    adata.obsm["X_pca"] = X + 3.0 * (batch == "b0")[:, None]
    e = m.evaluate(adata, baseline="X_pca", n_clusters=7, progress=False)
    assert e.scores["pcr"] == m.pcr(X, adata.obsm["X_pca"], batch) > 0.5
    assert e.scores["ari_kmeans"] == m.ari_kmeans(X, labels, ks=[7])[0]
    assert list(e.ari_curve.index) == [1, 2, 3] and e.scores["ari_oracle"] == e.ari_curve.max()
    with pytest.raises(ValueError, match="n_clusters is 0"):
        m.evaluate(adata, n_clusters=0, progress=False)
    with pytest.raises(ValueError, match="obsm has no 'pca'.*baseline="):
        m.evaluate(adata, baseline="pca", progress=False)


def test_intervals_hold_the_score_and_shrink_with_more_cells():
    few = m.evaluate(as_adata(*blobs(0, n=240, apart=1.0)), progress=False).table
    many = m.evaluate(as_adata(*blobs(0, n=2400, apart=1.0)), progress=False).table
    for key in "asw", "batch_asw", "bras", "ilisi", "clisi", "kbet":
        assert few.low[key] <= few.score[key] <= few.high[key] and few.low[key] < few.high[key]
        assert many.high[key] - many.low[key] < 0.6 * (few.high[key] - few.low[key])
    plain = ["nmi_oracle", "ari_oracle", "nmi_leiden1", "ari_leiden1", "graph_connectivity"]
    assert (few.low[plain] <= few.score[plain]).all()
    assert (few.score[plain] <= few.high[plain]).all()
    assert (few.low[plain] < few.high[plain]).any()
    X, labels, batch = blobs(0, n=600, shift=0.2)
    score, _, accepted = kbet_by_cell(X, batch, labels)  # the cells make up the score
    again = m._mean_of_labels(accepted, pd.factorize(labels)[0])
    assert score > 0.6 and again == pytest.approx(score, abs=1e-12)


def test_baselines_stand_around_the_embedding():
    X, labels, batch = blobs(0, n=600, apart=3.0)
    batch[:60] = "b1"  # batches need not be even
    adata = as_adata(X + 0.5 * (batch == "b0")[:, None], labels, batch)
    adata.obsm["X_pca"] = X + 4.0 * (batch == "b0")[:, None]
    t = m.baselines(adata, progress=False)
    assert list(t.index) == ["X_pca", "X_gmvae", "X_gmvae, shuffled"]
    for key in "batch_asw", "bras", "ilisi", "kbet", "pcr":
        assert t.loc["X_pca", key] < t.loc["X_gmvae", key] < t.loc["X_gmvae, shuffled", key]
    for key in "asw", "clisi", "nmi_oracle", "ari_oracle", "graph_connectivity":
        assert t.loc["X_gmvae", key] == t.loc["X_gmvae, shuffled", key]
    mixed = m._shuffle_within(batch, labels, 0)
    pd.testing.assert_frame_equal(pd.crosstab(labels, mixed), pd.crosstab(labels, batch))


def test_baselines_leave_cells_without_a_label_out():
    X, labels, batch = blobs(0)
    adata = as_adata(X, labels, batch)
    adata.obsm["X_pca"] = X + 4.0 * (batch == "b0")[:, None]
    adata.obs["cell_type"] = pd.Categorical(adata.obs["cell_type"].where(np.arange(240) > 9))
    found = m.baselines(adata, progress=False)
    pd.testing.assert_frame_equal(found, m.baselines(adata[10:].copy(), progress=False))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("names", [[1, "a", "b"], [0.5, 1.5, 2.0]])
def test_labels_may_be_of_any_kind(names):
    X, labels, batch = blobs(0)
    adata = as_adata(X, labels, batch)
    adata.obs["odd"] = pd.Categorical.from_codes(pd.factorize(labels, sort=True)[0], names)
    options = dict(progress=False, labels_key="odd", clusters="odd")
    scores = m.evaluate(adata, **options).scores
    assert scores["nmi_clusters"] == 1
    usual = m.evaluate(adata, progress=False).scores
    assert {k: scores[k] for k in usual} == pytest.approx(usual, nan_ok=True)


@pytest.mark.parametrize("batch_key", ["batch", None])
def test_evaluate_without_batches(batch_key):
    X, labels, batch = blobs(0)
    e = m.evaluate(as_adata(X, labels, np.full(len(X), "b")), batch_key=batch_key, progress=False)
    for key in "batch_asw", "kbet", "bras", "ilisi", "isolated_labels_asw":
        assert np.isnan(e.scores[key])
        assert e.table.note[key] == "one batch: nothing to compare"
    for key in "asw", "ari_oracle", "nmi_oracle", "nmi_leiden1":
        assert not np.isnan(e.scores[key])


def test_evaluate_accepts_sparse_categorical_and_repeats():
    X, labels, batch = blobs(0)
    X[np.abs(X) < 0.5] = 0
    dense = as_adata(X, labels, batch)
    with_unused = pd.Categorical(batch, categories=["b1", "unused", "b0"])
    other = as_adata(X, pd.Categorical(labels), with_unused)
    other.obsm["X_gmvae"] = sp.csr_matrix(X)
    e = m.evaluate(dense, progress=False)
    assert e.scores["kbet"] == m.evaluate(other, progress=False).scores["kbet"]
    assert repr(e) == repr(m.evaluate(dense, progress=False))


@pytest.mark.parametrize(
    "fault, message",
    [
        (lambda a: dict(embed="X_pca"), r"obsm has no 'X_pca'; found \['X_gmvae'\]"),
        (lambda a: dict(batch_key="donor"), "obs has no column 'donor'.*batch_key="),
        (lambda a: dict(labels_key="type"), "obs has no column 'type'.*labels_key="),
        (lambda a: dict(clusters="leiden"), "obs has no column 'leiden'.*clusters="),
        (
            lambda a: a.obsm["X_gmvae"].__setitem__((3, 1), np.nan),
            r"1 of 240 cells \(first: row 3\)",
        ),
        (lambda a: a.obsm["X_gmvae"].__setitem__((3, 1), np.inf), "NaN or infinite"),
        (
            lambda a: a.obs.__setitem__("cell_type", [None] * 240),
            r"'cell_type'\] has a label for 0 of 240 cells",
        ),
        (
            lambda a: a.obs.__setitem__("batch", [np.nan] + ["b"] * 239),
            r"'batch'\] is missing .* 1 of 240",
        ),
        (
            lambda a: a.obs.__setitem__("cell_type", "A") or dict(batch_key=None),
            "nothing to compare: one label",
        ),
        (lambda a: a.obs.__setitem__("cell_type", list(a.obs_names)), "holds 240 label"),
    ],
)
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
    with pytest.raises(ValueError, match="ks runs from 0"):
        m.ari_kmeans(X, labels, ks=[0, 1])


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def metrics(capsys):
    "Calls gmvae_metrics: its exit status, stdout, stderr."

    def call(*words) -> tuple[int, str, str]:
        capsys.readouterr()
        return command(gmvae_metrics, *map(str, words)), *capsys.readouterr()

    return call


def test_command_scores_a_file(tmp_path, metrics):
    X, labels, batch = blobs(0, apart=1.0)
    adata = as_adata(X, labels, batch, mine=labels)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    e = m.evaluate(adata, clusters="mine", progress=False)
    code, out, _ = metrics(tmp_path / "cells.h5ad", "--clusters", "mine")
    assert code == 0 and out.strip() == repr(e).strip()
    _, out, _ = metrics(tmp_path / "cells.h5ad", "--clusters", "mine", "--json")
    found = json.loads(out)["scores"]
    expected = {k: None if np.isnan(v) else v for k, v in e.scores.items()}
    assert {k: v["score"] for k, v in found.items()} == expected
    assert found["asw"]["low"] < found["asw"]["high"]
    _, out, _ = metrics(tmp_path / "cells.h5ad", "--batch_key", "", "--json")
    kbet = json.loads(out)["scores"]["kbet"]
    assert kbet["score"] is None and kbet["note"] == "one batch: nothing to compare"


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.h5ad"], "there is no file"),
        (["text.h5ad"], "text.h5ad' is no h5ad file"),
        (["cells.h5ad", "--embed", "X_umap"], "obsm has no 'X_umap'; found ['X_gmvae']"),
        (["cells.h5ad", "--batch_key", "donor"], "obs has no column 'donor'"),
        (["cells.h5ad", "--n_clusters", "0"], "n_clusters is 0"),
    ],
)
def test_command_refuses_bad_input_in_one_sentence(tmp_path, metrics, words, message):
    as_adata(*blobs(0)).write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "text.h5ad").write_text("no h5ad")
    code, out, err = metrics(tmp_path / words[0], *words[1:])
    assert code == 2 and out == "" and message in err
    assert err.startswith("gmvae_metrics: ") and err.count("\n") == 1


def test_command_helps(metrics):
    out = metrics("--help")[1]
    for word in "--embed --batch_key --labels_key --clusters --json .h5ad".split():
        assert word in out
    assert "default: X_gmvae" in out


def test_import_is_light():
    heavy = {"scib", "scanpy", "sklearn", "igraph", "torch"}
    code = f"import sys, gmvae_nb.metrics; print(sorted({heavy} & set(sys.modules)))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- calibration ----------------------------------------------------------------------------------


def test_calibration_is_its_definition():
    rng = np.random.default_rng(0)
    confidence = np.r_[rng.uniform(size=500), 0, 0.5, 1]  # on the edges of bins too
    right = rng.random(503) < confidence**2
    exact = calibration([0.29, 0.57, 0.58], [1, 1, 1], n_bins=100).bins
    assert list(exact.index) == [29, 57, 58] and exact["low"].min() >= 0
    found = calibration(confidence, right, n_bins=4)
    gaps = []
    for i, (low, high) in enumerate([(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)]):
        own = (confidence >= low) & (confidence < high)
        row = found.bins.loc[i]
        assert row.cells == own.sum()
        assert row.confidence == pytest.approx(confidence[own].mean())
        assert row.accuracy == pytest.approx(right[own].mean())
        gaps.append(own.mean() * abs(right[own].mean() - confidence[own].mean()))
    assert found.ece == pytest.approx(sum(gaps)) and found.ece > 0.1


@pytest.mark.parametrize("right, cells", [(0, 1), (1, 1), (3, 7), (9, 10), (480, 500), (500, 500)])
def test_the_interval_of_a_bin_is_wilsons(right, cells):
    from scipy.stats import binomtest

    found = calibration(np.full(cells, 0.95), np.arange(cells) < right).bins.iloc[0]
    theirs = binomtest(right, cells).proportion_ci(method="wilson")
    # scipy's z has more digits than 1.96
    np.testing.assert_allclose([found.low, found.high], [theirs.low, theirs.high], atol=1e-5)


def test_a_cluster_stands_for_the_type_of_most_of_its_cells():
    clusters, labels = np.array([0, 0, 0, 7, 7]), ["b", "b", "a", "d", "c"]
    assert cluster_types(clusters, labels) == {"0": "b", "7": "c"}
    for confidence, right in ([1.2], [True]), ([np.nan], [True]), ([0.5], [True, True]), ([], []):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            calibration(confidence, right)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_cells_of_no_type_do_not_count(missing):
    labels = ["B", missing, missing, missing, "B", "T", "T", missing, missing]
    clusters = ["0"] * 5 + ["1"] * 3 + ["2"]
    for names in labels, pd.Series(labels), pd.Categorical(labels):
        assert cluster_types(clusters, names) == {"0": "B", "1": "T"}
    assert cluster_types(["0"], [missing]) == {}
    for odd in missing, 2, "True":
        with pytest.raises(ValueError, match=r"right is neither .* in 1 of 3 cells \(first: row 1"):
            calibration([0.9, 0.9, 0.3], [1, odd, 0])
    assert calibration([0.9, 0.3], [1.0, 0.0]).ece == calibration([0.9, 0.3], [True, False]).ece


# --- where things live ----------------------------------------------------------------------------


def test_what_metrics_had_is_had_still():
    before = """RESOLUTIONS silhouettes silhouette_width batch_silhouette_width bras isolated_labels
        knn leiden nmi ari nmi_leiden kmeans ari_kmeans kbet lisi_weights lisi ilisi clisi
        graph_connectivity batch_variance pcr bootstrap bootstrap_clusters Evaluation evaluate
        baselines over_seeds"""
    assert set(before.split()) <= set(m.__all__) and all(hasattr(m, name) for name in m.__all__)


@pytest.mark.parametrize(
    "shape, words",
    [
        (lambda x: 0 * x, "all 60 cells lie at one point"),
        (lambda x: 0 * x + 3.7, "all 60 cells lie at one point"),
        (lambda x: 50 + 1e-6 * x, "all 60 cells lie at one point"),
        (lambda x: x * (np.arange(60) < 20)[:, None], "40 of 60 cells lie at one and the same"),
        (lambda x: x[:, :1] * [1.0, -2, 0.5, 0], "on a line"),
        (lambda x: x * [1, 0.01, 0, 0], "on a line"),
        (lambda x: x, None),
        (lambda x: x * [1, 1, 0, 0], None),  # two of four dimensions are used
        (lambda x: 1e3 + x, None),
        (lambda x: x[:, :1], None),  # a single dimension, as it was asked for
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_collapsed_embedding_is_said_to_be_one_beside_its_scores(shape, words, dtype):
    rng = np.random.default_rng(0)
    types = np.repeat(["a", "b", "c"], 20)
    x = (rng.normal(size=(60, 4)) + 4 * (types == "b")[:, None]).astype(dtype)
    cells = ad.AnnData(
        np.ones((60, 1), dtype=np.float32),
        obs=pd.DataFrame({"cell_type": types, "batch": rng.choice(["x", "y"], 60)}).set_axis(
            [f"c{i}" for i in range(60)]
        ),
    )
    cells.obsm["X_gmvae"] = shape(x).astype(dtype)
    found = m.evaluate(cells, progress=False)
    assert ("collapsed" in found.note) == (words is not None)
    assert words is None or (words in found.note and words in repr(found))
    assert words is None or words in found._repr_html_()
    cells.obs.loc["c0", "cell_type"] = None  # both notes, if there are two
    note = m.evaluate(cells, progress=False).note
    assert "59 of 60 cells" in note and (words is None or "collapsed" in note)


def test_a_number_that_cannot_be_is_refused():
    X, labels = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
    for alpha in (0, 1, 2, -1, "0.05", np.nan):
        with pytest.raises(ValueError, match="alpha is .* expected a level between 0 and 1"):
            kbet(X, labels, labels, alpha=alpha)
    for score in (m.ari, m.nmi):
        with pytest.raises(ValueError, match="there are no cells"):
            score([], [])
    for n_boot in (0, 1.5):
        with pytest.raises(ValueError, match="n_boot is .* 1 or more"):
            m.bootstrap([1.0, 2], n_boot=n_boot)
        with pytest.raises(ValueError, match="n_boot is .* 1 or more"):
            m.bootstrap_clusters(labels, labels, n_boot=n_boot)
    for keys in (dict(batch_key=None), dict(labels_key=None)):
        with pytest.raises(ValueError, match="name both columns"):
            m.baselines(None, **keys)
