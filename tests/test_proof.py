"""Which branches of a tree are proven, and what becomes of the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gmvae_nb.clusters import ClusterTree, cut_tree, linkage, number_by_size
from gmvae_nb.inference import branch_p, joined_components
from gmvae_nb.model_folder import read_model, weights_sha256
from gmvae_nb.proof import ask_branches, joined_for_want_of_proof, prove_tree
from gmvae_nb.train import GMVAE
from hypothesis import given, settings
from hypothesis import strategies as st

from test_second_training import cells, untrained

NAN = float("nan")


def random_tree(rng: np.random.Generator, K: int, n_clusters: int) -> ClusterTree:
    "K components that join at random."
    live, forks = list(range(K)), []
    while len(live) > 1:
        i, j = sorted(rng.choice(live, 2, replace=False))
        forks.append((i, j))
        live.remove(j)
    kappa, none = np.sort(rng.random(K - 1)), np.full(K - 1, NAN)
    return ClusterTree(np.array(forks).reshape(-1, 2), kappa, rng.random(K - 1), n_clusters, none)


def members(of: np.ndarray) -> set[frozenset]:
    return {frozenset(np.flatnonzero(of == name)) for name in of}


def proven_by_definition(tree: ClusterTree, p_of) -> set[frozenset]:
    "From the root down, sets of components."
    branches, sides = {k: frozenset([k]) for k in range(len(tree.forks) + 1)}, {}
    for i, j in tree.forks:
        both = branches[i] | branches[j]
        sides[both] = branches[i], branches[j]
        branches[i] = both
    found, to_ask = set(), [frozenset(range(len(tree.forks) + 1))]
    by_looks = members(cut_tree(tree.forks, tree.n_clusters))
    while to_ask:
        branch = to_ask.pop()
        if branch in by_looks or p_of(branch) > 0.05:
            found.add(branch)
        else:
            to_ask += sides[branch]
    return found


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_the_proven_clusters_are_those_of_the_definition(K, n_clusters, seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, K, min(n_clusters, K))
    answers = {}

    def p_of(components: frozenset) -> float:
        if components not in answers:
            answers[components] = rng.choice([0.002, 0.05, 0.3, NAN])
        return answers[components]

    of = cut_tree(tree.forks, tree.n_clusters)
    names, cluster_of = np.unique(of, return_inverse=True)
    ask = lambda found: p_of(frozenset(np.flatnonzero(np.isin(cluster_of, found))))  # noqa: E731
    proven = prove_tree(tree, cluster_of, ask, 0.05)
    expected = proven_by_definition(tree, p_of)
    assert members(cut_tree(proven.forks, proven.n_clusters)) == expected
    assert proven.n_clusters == len(expected)
    for n in range(proven.n_clusters, 0, -1):  # each cut joins two clusters of the last
        finer, coarser = (members(cut_tree(proven.forks, m)) for m in (n, max(n - 1, 1)))
        assert len(finer - coarser) == 2 * (n > 1)
    for part in ("kappa", "p"):  # each fork has kept its own
        for fork, value in zip(tree.forks, getattr(tree, part)):
            here = (proven.forks == fork).all(1)
            assert getattr(proven, part)[here] == value
    after = np.unique(cut_tree(proven.forks, proven.n_clusters), return_inverse=True)[1]
    group = joined_for_want_of_proof(proven.forks, proven.halves_agree_p, after)
    unproven = {c for c in expected if len(set(of[list(c)])) > 1}
    for component, first in enumerate(group):
        (cluster,) = [c for c in expected if component in c]
        joined = cluster in unproven
        assert first == (min(cluster) if joined else component)


def test_below_an_unproven_branch_nobody_is_asked():
    rows = np.array([[0, 1, 0.9, 2], [4, 2, 0.95, 3], [5, 3, 1, 4]])
    asked = []

    def ask(clusters):
        asked.append(sorted(clusters))
        return {4: 0.01, 3: 0.2}[len(clusters)]

    p, is_one = ask_branches(rows, ask, 0.05)
    assert asked == [[0, 1, 2, 3], [0, 1, 2]]
    assert p.tolist() == [0.2, 0.2, 0.01] and is_one.tolist() == [True, True, False]


def test_two_types_stay_two_whatever_counts_say():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tree = random_tree(rng, 6, 6)
        type_of = np.array([0, -1, 1, -1, -1, -1])
        proven = prove_tree(tree, np.arange(6), lambda clusters: 0.9, 0.05, type_of)
        of = cut_tree(proven.forks, proven.n_clusters)
        assert of[0] != of[2] and proven.n_clusters < 6


def test_a_height_is_that_of_its_own_branch():
    "Forks that are not below another one do not raise it."
    forks = np.array([[2, 3], [0, 1], [0, 2]])
    rows = linkage(forks, np.array([0.97, 0.86, 0.9]), np.arange(4))
    assert rows[:, 2].tolist() == [0.97, 0.86, 0.97]


@pytest.fixture(scope="module")
def one_kind() -> GMVAE:
    "A model whose components all stay apart by their looks, of one kind of cells."
    preset = dict(recentre=False, alpha=1.0)
    model = untrained("dropped", **preset)
    gamma = torch.eye(8).repeat(30, 1)  # nobody ever changes sides
    model.preset = model.network.preset = untrained("dropped", recentre=False).preset
    model.train(1, progress=False)
    model.network.cluster_of.copy_(number_by_size(model._grow_tree(gamma), gamma))
    return model


def test_held_out_cells_of_one_kind_prove_nothing(one_kind):
    tree = one_kind.cluster_tree()
    assert one_kind.n_clusters == 1
    assert (tree["kappa"] > 0.99).all() and (tree["p"] < 0.05 / 28).all()
    assert tree["halves_agree_p"].nunique() == 1 and tree["halves_agree_p"].iloc[0] > 0.05
    assert one_kind.cluster_report()["n_clusters_95"] == [1, 1]
    assert len(set(one_kind.network.clusters(8).tolist())) == 8  # who wants them all


def test_an_unproven_branch_is_one_component_when_cells_are_resampled(one_kind):
    gamma = torch.rand(5, 8).softmax(-1)
    joined, types = joined_components(one_kind.network, gamma)
    assert types is None
    torch.testing.assert_close(joined[:, 0], gamma.sum(1))
    assert (joined[:, 1:] == 0).all()


def test_two_kinds_are_proven():
    model = untrained("stays", encoder_input="centred_log", thin_to=0.2).train(progress=False)
    asked = model.cluster_tree()["halves_agree_p"]
    assert model.n_clusters == 2 and asked.iloc[-1] == 0.002
    assert asked.iloc[:-1].isna().all() or (asked.dropna() <= 0.05).all()
    assert branch_p(model.network).tolist() == [0.002]  # of the one branch that a page draws


def test_held_out_cells_alone_are_asked(monkeypatch):
    rows = []

    def look(network, cells, noise, seed, these):
        rows.append(these)
        return []

    monkeypatch.setattr("gmvae_nb.train.look_at_halves", look)
    monkeypatch.setattr("gmvae_nb.train.halves_agree_p", lambda looks, clusters, rng: NAN)
    model = untrained("stays", encoder_input="centred_log", thin_to=0.2).train(progress=False)
    assert model.n_clusters > 1 and len(rows) == 1
    np.testing.assert_array_equal(rows[0], model.test_idx)
    assert model.cluster_tree()["halves_agree_p"].isna().all()


@pytest.mark.parametrize("alpha, n", [(1e-9, 2), (0.01, 2)])
def test_alpha_is_never_below_the_least_p(monkeypatch, alpha, n):
    "A stricter alpha asks more of the looks, not what no halves can give."
    preset = untrained("stays", encoder_input="centred_log", thin_to=0.2, alpha=alpha).preset
    model = GMVAE(cells("stays"), K=8, preset=preset).train(progress=False)
    assert model.n_clusters == n


def test_a_model_of_before_is_read_as_one_that_nobody_asked():
    folder = Path(__file__).parent / "golden/format6"
    config, _, state = read_model(folder)
    assert (state["network.halves_agree_p"] == -1).all()
    model = GMVAE.load(folder)
    assert model.cluster_tree()["halves_agree_p"].isna().all()
    before = {k: t for k, t in state.items() if not k.endswith("halves_agree_p")}
    assert weights_sha256(before) == weights_sha256(state)
    asked = state | {
        "network.halves_agree_p": torch.full_like(state["network.halves_agree_p"], 0.1)
    }
    assert weights_sha256(before) != weights_sha256(asked)
