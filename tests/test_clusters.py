"""Which components are one cluster: agreement, the test, the tree, and its cuts."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from gmvae_nb.clusters import (
    ALPHA,
    TOLD_APART,
    agreement,
    changes,
    cluster_tree,
    cut_tree,
    linkage,
    merge_components,
    number_by_size,
    one_population_p,
    shared_cells,
    told_apart,
)
from gmvae_nb.drawing import draw_tree
from gmvae_nb.metrics import ari
from gmvae_nb.placing import MIN_STD, em_turn, fit_components, kmeans_components
from gmvae_nb.train import GMVAE
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gamma as gamma_function
from scipy.stats import poisson
from sklearn.mixture import GaussianMixture
from torch.testing import assert_close

from test_recommended import SMALL, fitted
from test_train import simulated


def random_gamma(n_cells, K, sharpness, seed):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(n_cells, K, generator=generator)).double().softmax(-1)


def gamma_of_distances(x, centres):
    return (-0.5 * torch.cdist(x, centres) ** 2).softmax(-1)


def groups(sizes, apart=12.0, per_group=4, seed=0):
    "Cells around as many places as there are sizes, and components on and beside these."
    rng = np.random.default_rng(seed)
    centres = apart * np.arange(len(sizes))[:, None] + np.zeros((1, 2))
    x = np.repeat(centres, sizes, 0) + rng.normal(0, 1, (sum(sizes), 2))
    components = np.repeat(centres, per_group, 0) + rng.normal(0, 0.5, (per_group * len(sizes), 2))
    return gamma_of_distances(torch.from_numpy(x), torch.from_numpy(components))


def evidence(gamma, i, j):
    "kappa and p, from the two-by-two table of two looks, entry by entry."
    table = torch.zeros(2, 2, dtype=torch.float64)
    for first, a in enumerate((i, j)):
        for second, b in enumerate((i, j)):
            table[first, second] = (gamma[:, a] * gamma[:, b]).sum()
    n = table.sum()
    same, by_chance = table.trace() / n, (table.sum(0) / n) @ (table.sum(1) / n)
    kappa = (same - by_chance) / (1 - by_chance)
    changed, expected = (n - table.trace()).item(), (n * (1 - by_chance)).item()
    return kappa.item(), 1 - gamma_function.cdf(expected, changed + 1)


def merged_by_definition(gamma):
    "Every merger looks at all pairs and all cells anew. Sets of components."
    gamma, members = gamma.double(), [{k} for k in range(gamma.shape[1])]
    alpha = ALPHA / math.comb(len(members), 2)
    while len(members) > 1:
        columns = torch.stack([gamma[:, list(m)].sum(1) for m in members], 1)
        unit = columns / columns.norm(dim=0).clamp_min(1e-300)
        pairs = [(i, j) for i in range(len(members)) for j in range(i)]
        found = {pair: evidence(columns, *pair) for pair in pairs}
        alike = [pair for pair in pairs if found[pair][0] < TOLD_APART or found[pair][1] > alpha]
        if not alike:
            break
        i, j = max(alike, key=lambda p: (unit[:, p[0]] @ unit[:, p[1]]).item())
        members[j] |= members.pop(i)
    return sorted(sorted(m) for m in members)


def sets_of(cluster):
    return sorted((cluster == c).nonzero().flatten().tolist() for c in cluster.unique())


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.sampled_from([1.0, 3.0, 8.0, 20.0]), st.integers(0, 10_000))
def test_merging_is_the_greedy_search_of_its_definition(K, sharpness, seed):
    gamma = random_gamma(150, K, sharpness, seed)
    assert sets_of(merge_components(gamma)) == merged_by_definition(gamma)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 100))
def test_evidence_is_that_of_the_table_of_two_looks(n_i, n_j, share):
    gamma = torch.zeros(n_i + n_j, 2, dtype=torch.float64)
    gamma[:n_i] = torch.tensor([1 - share / 250, share / 250])
    gamma[n_i:] = torch.tensor([share / 300, 1 - share / 300])
    shared = shared_cells(gamma)
    counts = changes(shared[0, 1:], shared[0, 0], shared[1, 1:])
    kappa, p = evidence(gamma, 0, 1)
    assert agreement(*counts)[0] == pytest.approx(kappa, abs=1e-9)
    assert one_population_p(*counts)[0] == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize("by_chance", [2.0, 17.0, 300.0, 10_000.0])
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
def test_one_population_is_split_with_probability_alpha_at_most(by_chance, alpha):
    "Of all numbers of changes that a Poisson of mean E gives, by their probabilities."
    changed = np.arange(0, int(2 * by_chance) + 60)
    split = told_apart(changed, np.full(len(changed), by_chance), alpha, level=-9.0)
    error = poisson.pmf(changed, by_chance)[split].sum()
    assert error <= alpha + 1e-12
    if by_chance >= 300:
        assert error > alpha / 3  # and not far below it


def test_alpha_is_that_of_all_pairs_together():
    "A group of n that is never confused: its p is exp(-2 n), nearly; of 50 components n is 6."
    for n, K, apart in [(5, 50, False), (6, 50, True), (1, 2, False), (2, 2, True)]:
        gamma = torch.zeros(4000 + n, K)
        gamma[:4000, 0] = gamma[4000:, 1] = 1
        assert (merge_components(gamma)[:2].tolist() == [0, 1]) == apart
    loose = torch.eye(2).repeat_interleave(torch.tensor([4000, 1]), 0)
    assert merge_components(loose, alpha=0.2).max() == 1


def test_a_proven_difference_that_cells_do_not_follow_is_no_border():
    gamma = torch.tensor([[0.9, 0.1]] * 3000 + [[0.1, 0.9]] * 3000)
    counts = changes(*(shared_cells(gamma)[i, j] for i, j in [(0, 1), (0, 0), (1, 1)]))
    assert one_population_p(*counts) < 1e-100 and agreement(*counts) == pytest.approx(0.64)
    assert merge_components(gamma).max() == 0
    assert merge_components(gamma, level=0.6).max() == 1


@pytest.mark.parametrize("K", [2, 30, 50])
@pytest.mark.parametrize("sharpness", [0.0, 0.5, 2.0])
def test_one_population_is_one_cluster_however_it_is_cut(K, sharpness):
    "Responsibilities that differ by chance alone, cell by cell."
    for seed in range(5):
        assert merge_components(random_gamma(1000, K, sharpness, seed)).max() == 0


def test_a_normal_population_is_not_cut_into_proven_halves():
    for spread in (0.5, 1.0, 2.0):
        x = spread * torch.randn(3000, 1, generator=torch.Generator().manual_seed(0)).double()
        centres = torch.linspace(-3 * spread, 3 * spread, 20)[:, None].double()
        assert merge_components(gamma_of_distances(x, centres)).max() == 0


def test_rare_groups_apart_stay_clusters_and_take_no_part_of_the_large_ones():
    gamma = groups([1500, 400, 20, 12])
    cluster = merge_components(gamma)
    assert cluster.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_too_small_a_group_joins_the_cluster_that_it_is_most_like():
    x = torch.cat([torch.zeros(500), torch.full((500,), 40.0), torch.full((1,), 43.0)])
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
    centres = torch.tensor([[0.0], [40.0], [43.0]])
    cluster = merge_components(gamma_of_distances((x + noise)[:, None], centres))
    assert cluster[1] == cluster[2] != cluster[0]


def test_components_without_cells_change_nothing():
    gamma = groups([300, 200, 100])
    empty = torch.cat([gamma, torch.zeros(600, 3)], 1)
    assert merge_components(empty)[:12].tolist() == merge_components(gamma).tolist()
    assert merge_components(torch.ones(3, 1)).tolist() == [0]


@pytest.mark.parametrize("seed", range(6))
def test_order_of_components_and_cells_does_not_matter(seed):
    gamma, generator = groups([300, 200, 60], seed=seed), torch.Generator().manual_seed(seed)
    cells, order = (torch.randperm(n, generator=generator) for n in gamma.shape)
    shuffled = merge_components(gamma[cells][:, order])
    assert shuffled.tolist() == merge_components(gamma)[order].tolist()


def test_cells_that_count_twice_are_merged_as_if_they_stood_there_twice():
    for seed in range(20):
        gamma = random_gamma(150, 6, 8.0, seed)
        times = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, 150))
        repeated = gamma.repeat_interleave(times, 0)
        assert merge_components(gamma, times).tolist() == merge_components(repeated).tolist()


def test_clusters_are_numbered_by_the_cells_that_are_most_probably_theirs():
    gamma = torch.tensor([[0.9, 0.1, 0.0]] * 2 + [[0.0, 0.6, 0.4]] * 5 + [[0.0, 0.0, 1.0]] * 3)
    assert number_by_size(np.array([0, 1, 2]), gamma).tolist() == [2, 0, 1]
    times = torch.tensor([9] * 2 + [1] * 5 + [0] * 3)
    assert number_by_size(np.array([0, 1, 2]), gamma, times).tolist() == [0, 1, 2]
    assert number_by_size(np.array([0, 1, 0]), gamma).tolist() == [0, 1, 0]  # of equals the first


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_joins_two_clusters_of_the_next_finer_one(seed):
    tree = cluster_tree(shared_cells(random_gamma(200, 9, 6.0, seed)))
    cuts = [cut_tree(tree.forks, n) for n in range(1, 10)]
    for n, cut in enumerate(cuts, start=1):
        assert len(np.unique(cut)) == n
    for coarse, fine in zip(cuts, cuts[1:]):
        assert all(len(set(coarse[fine == c])) == 1 for c in fine)
    for n in (0, 10):
        with pytest.raises(ValueError, match="from 1 to 9"):
            cut_tree(tree.forks, n)


def test_above_the_clusters_all_that_joins_is_proven():
    gamma = groups([300, 200, 100, 50])
    tree = cluster_tree(shared_cells(gamma))
    above = tree.n_clusters - 1
    assert tree.n_clusters == 4 and (tree.kappa[-above:] >= TOLD_APART).all()
    assert (tree.p[-above:] <= ALPHA / math.comb(16, 2)).all()
    assert (tree.kappa[:-above] < TOLD_APART).all()


def test_merging_many_components_takes_seconds():
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(0, 8, (12, 5)), 25, 0) + rng.normal(0, 0.3, (300, 5))
    x = centres[rng.integers(0, 300, 20_000)] + rng.normal(0, 1, (20_000, 5))
    gamma = gamma_of_distances(torch.from_numpy(x), torch.from_numpy(centres))
    start = time.process_time()
    assert merge_components(gamma).max() + 1 == 12
    assert time.process_time() - start < 8


# ---- placing


def clouds(seed=0, n=300, D=3):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(4, D, generator=generator).repeat_interleave(n, 0) * 8
    x_mean = centre + torch.randn(4 * n, D, generator=generator)
    return x_mean, 0.2 + torch.rand(4 * n, D, generator=generator)


def test_a_component_of_kmeans_has_the_spread_of_draws():
    x_mean, x_std = clouds()
    m, s, size = kmeans_components(x_mean, x_std, 4, seed=0)
    nearest = torch.cdist(x_mean.double(), m).argmin(1)
    for k in range(4):
        mine = nearest == k
        assert size[k] == mine.sum()
        draws = x_mean[mine] + x_std[mine] * torch.randn(4000, *x_mean[mine].shape)
        assert_close(m[k], draws.mean((0, 1)).double(), atol=0.02, rtol=0)
        assert_close(s[k], draws.flatten(0, 1).std(0).double(), atol=0.02, rtol=0)


def test_fewer_different_cells_than_components():
    x_mean = torch.tensor([[0.0, 0.0], [5.0, 5.0]]).repeat(10, 1)
    m, s, size = kmeans_components(x_mean, torch.full_like(x_mean, 0.3), 9, seed=0)
    assert len(m) == len(s) == len(size) == 2
    assert_close(s, torch.full((2, 2), 0.3).double(), atol=1e-6, rtol=0)


def test_turns_are_those_of_another_implementation(monkeypatch):
    x = clouds()[0].double()
    m, s, _ = kmeans_components(x, torch.full_like(x, 0.5), 4, seed=0)
    theirs = GaussianMixture(
        4,
        covariance_type="diag",
        max_iter=1,
        reg_covar=0,
        weights_init=np.full(4, 0.25),
        means_init=m.numpy(),
        precisions_init=(1 / s**2).numpy(),
    )
    with pytest.warns(match="converge"):
        theirs.fit(x.numpy())
    monkeypatch.setattr("gmvae_nb.placing.EM_ROWS", 100)  # in parts
    mean, std = em_turn(x, m, s)
    assert_close(mean, torch.from_numpy(theirs.means_))
    assert_close(std, torch.from_numpy(theirs.covariances_).sqrt())


def test_a_component_without_draws_stays_and_none_shrinks_to_a_cell():
    x = torch.cat([torch.zeros(50, 2), torch.full((1, 2), 9.0)]).double()
    m = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1e4, 1e4]]).double()
    s = torch.ones(3, 2).double()
    for _ in range(5):
        m, s = em_turn(x, m, s)
    assert m[2].tolist() == [1e4, 1e4] and s[2].tolist() == [1.0, 1.0]
    assert (s[:2] == MIN_STD).all()


def test_the_fit_depends_on_its_generator_alone():
    x_mean, x_std = clouds()
    m, s, _ = kmeans_components(x_mean, x_std, 6, seed=0)
    found = [
        fit_components(x_mean, x_std, m, s, torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[2][0])


# ---- a model's


def three_types():
    return simulated(240, G=60)


@pytest.fixture(scope="module")
def model():
    return GMVAE(three_types(), batch_key="batch", preset=SMALL).train(progress=False)


def test_components_rest_with_the_encoder_where_they_were_placed(model):
    "The last epochs of two lengths differ for the decoder alone."
    before, seen = {}, []

    class Watched(GMVAE):
        def _train_epoch(self, epoch, *args):
            row = super()._train_epoch(epoch, *args)
            seen.append({n: p.detach().clone() for n, p in self.network.prior.named_parameters()})
            return row

    Watched(simulated(240), batch_key="batch", preset=SMALL).train(10, progress=False)
    for before, after in zip(seen[7:], seen[8:]):
        assert all(torch.equal(before[n], after[n]) for n in before)
    assert not torch.equal(seen[6]["means"], seen[7]["means"])


def test_a_model_cuts_its_tree_without_training(model):
    labels = three_types().obs["cell_type"]
    for n in (1, 2, 3, model.n_clusters, 12, model.K):
        probability = model.predict_proba(n_clusters=n)
        assert probability.shape == (240, n)
        np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)
        assert len(model.predict(n_clusters=n).categories) <= n
    np.testing.assert_array_equal(
        model.predict_proba(n_clusters=model.n_clusters), model.predict_proba()
    )
    assert ari(labels, model.predict(n_clusters=3)) > 0.8
    for n in (0, model.K + 1):
        with pytest.raises(ValueError, match=f"from 1 to {model.K}"):
            model.predict(n_clusters=n)


def test_alpha_is_the_evidence_that_a_split_needs(model, tmp_path):
    "The same training: only what its clusters are is another question."
    preset = replace(SMALL, alpha=1e-300, recentre=False)
    strict = GMVAE(three_types(), batch_key="batch", preset=preset).train(progress=False)
    assert strict.history["train_neg_elbo"].equals(model.history["train_neg_elbo"])
    assert model.n_clusters > 1 == strict.n_clusters
    assert strict.cluster_report()["n_clusters_95"] == [1, 1]
    assert strict.predict_proba(n_clusters=3).shape == (240, 3)
    loaded = GMVAE.load(strict.save(tmp_path / "strict"), three_types())
    assert loaded.preset.alpha == 1e-300 and loaded.n_clusters == 1
    for alpha in (0, 1.5, "0.05", math.nan):
        with pytest.raises(ValueError, match="expected above 0, at most 1"):
            replace(SMALL, alpha=alpha)


def test_clusters_of_a_cut_stand_in_the_order_of_the_clusters_they_hold(model):
    own = model.network.clusters(None)
    for n in (2, 9):
        cut = model.network.clusters(n)
        first = [own[cut == c].min().item() for c in range(n)]
        assert first == sorted(first)


def test_the_table_of_forks_is_the_tree(model):
    table = model.cluster_tree()
    assert table["n_clusters"].tolist() == list(range(model.K - 1, 0, -1))
    above = table[table["n_clusters"] < model.n_clusters]
    assert (above["kappa"] >= TOLD_APART - 1e-6).all()
    assert (above["p"] <= ALPHA / math.comb(model.K, 2)).all()
    assert table["kappa"].between(-1, 1).all() and table["p"].between(0, 1).all()


def test_the_tree_is_kept_and_old_models_say_that_they_have_none(model, tmp_path):
    loaded = GMVAE.load(model.save(tmp_path / "model"), three_types())
    assert loaded.cluster_tree().equals(model.cluster_tree())
    np.testing.assert_array_equal(
        loaded.predict_proba(n_clusters=4), model.predict_proba(n_clusters=4)
    )
    loaded.network.forks.zero_()  # as of a model that an older version wrote
    assert loaded.predict_proba().shape == (240, model.n_clusters)
    with pytest.raises(ValueError, match="no tree"):
        loaded.cluster_tree()
    with pytest.raises(ValueError, match="no tree"):
        loaded.predict(n_clusters=2)


def test_without_merging_there_is_no_tree():
    unmerged = fitted(K=3, epochs=7, preset=replace(SMALL, merge=False))
    assert unmerged.predict_proba(n_clusters=3).shape == (240, 3)
    for ask in (unmerged.cluster_tree, lambda: unmerged.predict(n_clusters=2)):
        with pytest.raises(ValueError, match="tree"):
            ask()


# ---- the drawing


def test_the_tree_above_the_clusters_never_falls_and_ends_in_all_of_them():
    gamma = groups([300, 200, 100, 50, 20], apart=6.0)
    tree, cluster_of = cluster_tree(shared_cells(gamma)), merge_components(gamma).numpy()
    nodes, n = linkage(tree.forks, tree.kappa, cluster_of), tree.n_clusters
    assert nodes.shape == (n - 1, 4) and n == 5
    assert (np.diff(nodes[:, 2]) >= 0).all() and nodes[-1, 3] == n
    assert sorted(nodes[:, :2].ravel()) == list(range(2 * n - 2))  # each node joins once
    assert draw_tree(nodes).startswith("data:image/png;base64,")


def test_one_cluster_has_no_tree_to_draw():
    tree = cluster_tree(shared_cells(torch.full((900, 3), 1 / 3)))
    nodes = linkage(tree.forks, tree.kappa, np.zeros(3, dtype=np.int64))
    assert nodes.shape == (0, 4) and draw_tree(nodes) == ""
