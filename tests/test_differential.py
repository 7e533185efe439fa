"""Differential expression: what is averaged, what is named, and which counts are looked at."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb import differential
from gmvae_nb.differential import differential_expression as de
from gmvae_nb.differential import expected_fdr, group_means, pseudobulk, shrink, split_markers
from gmvae_nb.train import GMVAE

from hazards import SMALL, cells, every_warning_an_error


@pytest.fixture(scope="module")
def trained():
    adata = cells(200, 30)
    return GMVAE(adata, batch_key="batch", preset=SMALL).train(2, progress=False), adata


def test_a_share_is_averaged_over_cells_and_batches(trained):
    model, adata = trained
    matched, net = model.match_cells(adata), model.network
    group = np.arange(200) % 3 - 1  # -1: not looked at
    rows = np.flatnonzero(group >= 0)
    found = group_means(net, matched, group, [{0: 0}, {0: 1}], rows)
    x = torch.from_numpy(model.get_latent_representation())[None]
    y = torch.from_numpy(adata.X.toarray()).to_sparse_csr()
    with torch.no_grad():
        params = [net.likelihood_params(y, torch.full((200,), b), x) for b in (0, 1)]
        own = net.likelihood_params(y, torch.from_numpy(matched.batch), x)
    shares = np.mean([(r + logits)[0].softmax(-1).numpy() for r, logits in params], 0)
    r, mu = own[0][0].exp().double().numpy(), (own[0] + own[1])[0].exp().double().numpy()
    for k in (0, 1):
        of = group == k
        np.testing.assert_allclose(found.share[k], shares[of].mean(0), rtol=1e-4)
        variance = (mu + mu**2 / r)[of].sum(0) / mu[of].sum(0) ** 2
        np.testing.assert_allclose(found.variance[k], variance, rtol=1e-3)
        assert found.depth[k] == adata.X[of].sum()
    again = group_means(net, matched, group, [{0: 0}, {0: 1}], rows[::-1])
    np.testing.assert_allclose(again.share, found.share, rtol=1e-5)


def test_the_error_is_that_of_counts():
    "Simulated totals of negative binomial counts: their logs vary as the formula says."
    rng = np.random.default_rng(0)
    mu, r = rng.lognormal(0, 0.5, 60), 2.0
    totals = rng.poisson(rng.gamma(r, mu / r, (20_000, 60))).sum(1)
    variance = (mu + mu**2 / r).sum() / mu.sum() ** 2
    means = differential.GroupMeans(
        np.full((2, 1), 0.01), np.full((2, 1), variance), np.full(2, 1e9)
    )
    error = differential.log_fold_change(means, 0, 1)[1]
    of_two = np.log2(totals[:10_000]) - np.log2(totals[10_000:])
    np.testing.assert_allclose(error, of_two.std(), rtol=0.05)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_no_more_of_the_named_genes_are_wrong_than_was_asked_for(share):
    wrong, named = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        error = rng.lognormal(-1.5, 1, 1000)
        truth = rng.choice([-1, 1], 1000) * rng.uniform(0.7, 3, 1000) * (rng.random(1000) < share)
        lfc = truth + error * rng.normal(size=1000)
        shrunk = shrink(lfc, differential.SLACK * error, 0.25)
        assert ((shrunk.mean - truth) ** 2).mean() < 0.9 * ((lfc - truth) ** 2).mean()
        sure = expected_fdr(shrunk.proba) <= 0.05
        wrong, named = wrong + (sure & (truth == 0)).sum(), named + sure.sum()
    assert wrong <= 0.05 * named + 2 and (named > 300) == (share > 0)


def test_at_delta_0_noise_is_not_named():
    lfc = np.random.default_rng(0).normal(0, 0.1, 500)
    at_0, near_0 = (shrink(lfc, np.full(500, 0.1), delta).proba for delta in (0.0, 1e-9))
    assert (expected_fdr(at_0) <= 0.05).sum() == 0
    np.testing.assert_allclose(at_0, near_0, atol=1e-6)
    changed = shrink(np.r_[lfc, 3.0], np.full(501, 0.1), 0.0).proba
    assert np.flatnonzero(expected_fdr(changed) <= 0.05).tolist() == [500]


def test_own_clusters_and_own_cells_are_the_default(trained):
    model, adata = trained
    groups = np.asarray(model.predict(adata)).astype(str)
    if len(set(groups)) == 1:
        with pytest.raises(ValueError, match="one group"):
            de(model)
        return
    pd.testing.assert_frame_equal(de(model), de(model, adata, groups), rtol=1e-4)


def test_cells_without_a_group_are_left_out(trained):
    model, adata = trained
    some = adata[:150].copy()
    labels = adata.obs["cell_type"].astype(object).copy()
    labels.iloc[150:] = None
    one = de(model, adata, labels.to_numpy(), "type0")
    other = de(model, some, "cell_type", "type0")
    columns = ["gene", "found1", "found2", "is_de"]
    pd.testing.assert_frame_equal(one[columns], other[columns])
    np.testing.assert_allclose(one["lfc"], other["lfc"], atol=1e-3)


def test_of_many_cells_a_sample_is_looked_at(trained, monkeypatch):
    model, adata = trained
    seen = []
    original = differential.group_means

    def counted(network, cells, group, batches, rows):
        seen.append(np.bincount(group[rows]))
        return original(network, cells, group, batches, rows)

    monkeypatch.setattr(differential, "group_means", counted)
    monkeypatch.setattr(differential, "MAX_CELLS", 20)
    de(model, adata, "cell_type", "type0", "type1")
    np.testing.assert_array_equal(seen, [[20, 20]])


def test_groups_of_different_batches_are_told(trained):
    model, adata = trained
    with pytest.warns(UserWarning, match="no batch in common"):
        de(model, adata, "batch", "0", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        de(model, adata, "cell_type", "type0", "type1")


def test_markers_are_of_held_out_cells_and_of_the_other_half(trained, monkeypatch):
    model, adata = trained
    halves, genes = [], []

    def assign(half):
        halves.append(half)
        found = half.counts.toarray() > 0
        genes.append(np.abs(found.mean(0) - 0.5).argmin())
        return found[:, genes[-1]].astype(int)

    table = split_markers(model, assign=assign, min_cells=3)
    first = halves[0].counts
    assert first.shape[0] <= len(model.test_idx) and set(table["cluster"]) == {"0", "1"}
    whole = adata.X[model.test_idx].sum()
    assert 0.4 * whole < first.sum() < 0.6 * whole
    # in the half that chose, all cells of the one have the gene and none of the other
    chosen = table[(table["gene"] == model.genes[genes[0]]) & (table["cluster"] == "1")].iloc[0]
    assert 0 < chosen["found2"] <= 1 and chosen["found1"] - chosen["found2"] < 0.9
    with pytest.raises(ValueError, match="no cluster has 1000 cells"):
        split_markers(model, assign=assign, min_cells=1000)
    monkeypatch.setattr(model, "test_idx", np.array([], dtype=int))
    with pytest.raises(ValueError, match="no held-out cells"):
        split_markers(model)


def test_sums_of_few_cells_are_left_out():
    adata = cells(60)
    adata.obs.loc[adata.obs_names[:57], "donor"] = "a"
    adata.obs.loc[adata.obs_names[57:], "donor"] = "b"
    sums = pseudobulk(adata, "donor", "cell_type", min_cells=2)
    assert list(sums.obs_names) == ["a type0", "a type1", "a type2"]
    assert sums.obs["n_cells"].tolist() == [19, 19, 19] and sums.X.dtype == np.int64
    np.testing.assert_array_equal(sums.X.sum(0), np.asarray(adata.X[:57].sum(0)).ravel())
    with pytest.raises(ValueError, match="no donor has 50 cells"):
        pseudobulk(adata, "donor", "cell_type", min_cells=50)


def test_pairs_of_the_same_text_are_two_sums():
    adata = cells(60)
    first = np.arange(60) < 20
    adata.obs["sample"] = np.where(first, "P1", "P1 B")
    adata.obs["type"] = np.where(first, "B cell", "cell")
    with every_warning_an_error():
        sums = pseudobulk(adata, "sample", "type")
    assert list(sums.obs_names) == ["P1 B cell", "P1 B cell-1"]
    assert sums.obs["sample"].tolist() == ["P1", "P1 B"]
    assert sums.obs["n_cells"].tolist() == [20, 40]
    np.testing.assert_array_equal(sums.X[0], np.asarray(adata.X[:20].sum(0)).ravel())


def test_what_cannot_be_compared_is_told(trained, tmp_path):
    model, adata = trained
    for options, words in (
        (dict(groupby="donor"), "donor"),
        (dict(groupby=["a", "b"]), "2 values for 200 cells"),
        (dict(groupby="cell_type", group1="type0", group2="type0"), "expected two groups"),
        (dict(groupby="cell_type", group1="B"), "no cell is of the group 'B'"),
        (dict(groupby="cell_type", transform_batch="9"), "batches, as text: 0, 1"),
        (dict(groupby="cell_type", fdr_target=5), "fdr_target is 5"),
        (dict(groupby="cell_type", delta="1"), "delta is '1'"),
    ):
        with pytest.raises(ValueError, match=words):
            de(model, adata, **options)
    with pytest.raises(ValueError, match="pass the AnnData"):
        de(model, None, "cell_type")
    model.save(tmp_path)
    with pytest.raises(ValueError, match="without cells"):
        de(GMVAE.load(tmp_path))
    assert isinstance(adata, ad.AnnData)


def test_a_series_is_read_by_the_names_of_its_cells(trained):
    model, adata = trained
    labels = adata.obs["cell_type"].astype(str)
    labels = pd.Series(labels.to_numpy(), [str(name) for name in adata.obs_names])
    named = ad.AnnData(
        adata.X, obs=adata.obs.set_axis([f"c{i}" for i in range(200)]), var=adata.var
    )
    labels.index = named.obs_names
    right = de(model, named, labels.to_numpy(), "type0")
    turned = pd.concat([labels[::-1], pd.Series({"no cell": "type0"})])
    pd.testing.assert_frame_equal(de(model, named, turned, "type0"), right)
    for bad in (labels.reset_index(drop=True), labels[1:], pd.concat([labels, labels])):
        with pytest.raises(ValueError, match="groupby is a Series with the names"):
            de(model, named, bad, "type0")
    with pytest.raises(ValueError, match="pass the AnnData of these cells"):
        de(model, groupby=labels[::-1])  # the names of its own cells are not known
    of_own = labels.reset_index(drop=True)
    assert len(de(model, groupby=of_own)) == 3 * adata.n_vars
    with pytest.raises(ValueError, match="groupby is a Series"):
        de(model, groupby=of_own[::-1])


def test_groups_are_in_the_order_of_their_numbers():
    labels = [f"{i % 12}" for i in range(24)]
    codes, names = differential.group_codes(labels)
    assert names == [str(i) for i in range(12)] and codes.tolist() == [*range(12)] * 2
    for given, ordered in (
        ([10, 9, None, 2], ["2", "9", "10"]),
        ([0.5, 0.25, 3.0], ["0.25", "0.5", "3.0"]),
        (["T2", "B cell", "T10"], ["B cell", "T2", "T10"]),
        (["1" * 5000, "2"], ["2", "1" * 5000]),
    ):
        assert differential.group_codes(given)[1] == ordered
    adata = cells(60)
    adata.obs["sample"] = np.resize(["10", "9"], 60)
    adata.obs["kind"] = np.repeat(["2", "11"], 30)
    sums = pseudobulk(adata, "sample", "kind", min_cells=1)
    assert list(sums.obs_names) == ["9 2", "9 11", "10 2", "10 11"]
    its = (adata.obs["sample"] == "9") & (adata.obs["kind"] == "11")
    np.testing.assert_array_equal(sums.X[1], np.asarray(adata.X[its.to_numpy()].sum(0)).ravel())
    with pytest.raises(ValueError, match="keep is 'sample'; expected a list"):
        pseudobulk(adata, "sample", "kind", keep="sample")


def test_a_number_names_its_group_and_a_list_names_none(trained):
    model, adata = trained
    groups = np.resize([1.0, 2.0], 200)
    of_text = de(model, adata, groups, "1.0", "2.0")
    pd.testing.assert_frame_equal(de(model, adata, groups, 1, np.float32(2)), of_text)
    of_whole = de(model, adata, groups.astype(int), 1.0)
    assert set(of_whole["group1"]) == {"1"}
    for group, words in (
        (["1.0"], r"group1 is \['1.0'\]; expected one of 1.0, 2.0"),
        (3, "no cell is of the group 3; there are 1.0, 2.0"),
        (True, "no cell is of the group True; there are 1.0, 2.0"),
    ):
        with pytest.raises(ValueError, match=words):
            de(model, adata, groups, group)
    for shape in (groups[:, None], 5):
        with pytest.raises(ValueError, match="groupby has the shape"):
            de(model, adata, shape)


def test_one_cluster_has_nothing_to_be_compared_with(trained):
    for bad in (0, 1.5, "3", None):
        with pytest.raises(ValueError, match="min_cells is .*expected a whole number, 1 or more"):
            split_markers(trained[0], min_cells=bad)
    with pytest.raises(ValueError, match="are of one cluster"):
        split_markers(trained[0], assign=lambda half: np.zeros(half.counts.shape[0], int))


def test_genes_that_the_cells_do_not_have_are_not_compared(trained):
    model, adata = trained
    some = adata[:, 6:].copy()
    matched = model.match_cells(some, min_matched=0.5)
    group = np.repeat(["a", "b"], 100)
    table = de(model, matched, group)
    assert set(table["gene"]) == set(some.var_names)
    whole = de(model, adata, group).set_index(["group1", "gene"])
    found = table.set_index(["group1", "gene"])["found1"]
    np.testing.assert_array_equal(found, whole.loc[found.index, "found1"])
    markers = split_markers(model, matched, assign=lambda half: np.repeat([0, 1], 100))
    assert set(markers["gene"]) == set(some.var_names)


def test_what_cannot_be_compared_is_told_in_a_sentence(trained, monkeypatch):
    model, adata = trained
    for short in ([0, 1], np.zeros((200, 1))):
        with pytest.raises(ValueError, match="assign gave .* expected a cluster for each of 200"):
            split_markers(model, adata, assign=lambda half, short=short: short)
    assert len(split_markers(model, adata, assign=lambda half: [0, 1] * 100)) == 60
    with pytest.raises(ValueError, match="expected a GMVAE, found str"):
        de("run", adata, "batch")
    with pytest.raises(ValueError, match="expected a GMVAE, found str"):
        split_markers("run", adata)
    counted = adata.copy()
    counted.obs["n_cells"] = 1.0
    with pytest.raises(ValueError, match="a column is named 'n_cells'"):
        pseudobulk(counted, "batch", "cell_type", keep=["n_cells"])
    for odd, said in (dict(keep=None), "a list"), (dict(min_cells="x"), "whole"):
        with pytest.raises(ValueError, match=said):
            pseudobulk(adata, "batch", "cell_type", **odd)
    monkeypatch.setattr(differential, "matched", None)
    for odd in (dict(delta="1"), dict(delta=-1), dict(delta=np.inf), dict(fdr_target=1)):
        with pytest.raises(ValueError, match=f"^{next(iter(odd))} is .*; expected a"):
            de(model, adata, "batch", **odd)


def test_a_named_gene_is_more_likely_than_not_and_the_most_telling_come_first(trained, monkeypatch):
    model, adata = trained
    proba = np.r_[np.full(25, 1.0), 0.9, 0.45, 0.3, 0.2, 0.0]
    plain = differential.shrink
    monkeypatch.setattr(differential, "shrink", lambda *a: plain(*a)._replace(proba=proba))
    table = de(model, adata, "cell_type", "type0", fdr_target=0.09)
    assert (table["fdr"] <= 0.09).sum() > table["is_de"].sum() == 26
    assert (table["proba_de"][table["is_de"]] > 0.5).all()
    for part in (table[:26], table[26:]):
        assert part["is_de"].nunique() == 1 and part["score"].abs().is_monotonic_decreasing
    assert (table["score"] < 0).any() and (table["score"] > 0).any()
