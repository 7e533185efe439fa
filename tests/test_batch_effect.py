"""The batch effect without cell types: what it does not depend on, and what it cannot see."""

import numpy as np
import pandas as pd
import pytest
from gmvae_nb import batch_effect as module
from gmvae_nb.batch_effect import (
    batch_effect,
    batch_effect_of_counts,
    effect_in_short,
    effect_in_words,
    gained,
    principal_components,
)
from scipy.sparse import csr_matrix


def groups_and_batches(n=600, apart=8.0):
    "Three groups in three batches of unlike composition: before, after, group, batch."
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, n)
    batch = np.where(rng.random(n) < 0.5, group, rng.integers(0, 3, n))
    after = rng.normal(size=(n, 6)) + 20 * np.eye(3, 6)[group]
    return after + apart * np.eye(6)[3 + batch], after, group, batch


@pytest.fixture(scope="module")
def made():
    before, after, group, batch = groups_and_batches()
    return before, after, group, batch, batch_effect(before, after, group, batch)


def test_a_planted_effect_that_was_removed_is_gone(made):
    before, after, group, batch, effect = made
    assert effect.loc["kBET", "before"] < 0.05 < 0.9 < effect.loc["kBET", "after"]
    assert 0.9 < gained(effect) < 1.1 and effect_in_short(effect) == "gone"
    half = (before + after) / 2
    assert effect_in_short(batch_effect(before, half, group, batch)) == "still there"
    assert "0 % of the way" in effect_in_words(batch_effect(before, before, group, batch))
    worse = batch_effect(half, before, group, batch)
    assert gained(worse) < 0 and "mixed less than they were" in effect_in_words(worse)
    best = effect.copy()
    best["if_mixed"] -= 0.2 * (best["if_mixed"] - best["before"])
    assert gained(best) > 1 and " 100 % of the way" in effect_in_words(best)
    assert effect_in_short(batch_effect(after, after, group, batch)) == "little before"


def test_order_and_names_do_not_matter_but_to_who_is_dealt_out(made):
    before, after, group, batch, effect = made
    order = np.random.default_rng(1).permutation(len(batch))
    names = np.array(["z", "a", "m"])
    other = batch_effect(before[order], after[order], group[order], names[batch][order])
    columns = ["before", "after"]
    pd.testing.assert_frame_equal(other[columns], effect[columns])
    assert (other["if_mixed"] - effect["if_mixed"]).abs().max() < 0.1


def test_batches_with_clusters_of_their_own_are_not_praised(made):
    before, _, group, batch, _ = made
    own = batch_effect(before, before, group * 3 + batch, batch)
    assert np.isnan(own.loc["kBET"]).all()  # no cluster with two batches
    assert effect_in_short(own) == "cannot be told"
    assert "each cluster holds nearly one batch" in effect_in_words(own)


@pytest.mark.parametrize("sizes", [(380, 20), (190, 10), (900, 50, 50)])
def test_batches_of_unlike_size_that_lie_apart_are_not_called_mixed(sizes):
    rng = np.random.default_rng(0)
    batch = np.repeat(np.arange(len(sizes)), sizes)
    together = rng.normal(size=(len(batch), 10))
    apart, clusters = together + 50 * np.eye(10)[batch], rng.choice(2, len(batch))
    effect = batch_effect(apart, apart, clusters, batch)
    assert effect_in_short(effect) == "cannot be told"
    assert "of very unequal size" in effect_in_words(effect)
    mixed = batch_effect(together, together, clusters, batch)
    assert effect_in_short(mixed) == "little before" and np.isnan(mixed.loc["PCR"]).all()


def test_counts_are_sampled_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 400)
    rng, n = np.random.default_rng(0), 600
    batch = rng.integers(0, 2, n)
    rates = np.exp(rng.normal(size=(2, 30)))[batch]
    counts, after = csr_matrix(rng.poisson(rates).astype(np.float32)), rng.normal(size=(n, 4))
    cluster = np.zeros(n, dtype=int)
    first = batch_effect_of_counts(counts, after, cluster, batch)
    pd.testing.assert_frame_equal(
        first, batch_effect_of_counts(counts, after, cluster, pd.Categorical(batch))
    )
    assert effect_in_short(first) == "gone"
    assert batch_effect_of_counts(counts[:3], after[:3], cluster[:3], batch[:3]) is None


def test_components_are_no_more_than_there_can_be():
    counts = csr_matrix(np.random.default_rng(0).poisson(3.0, (8, 40)).astype(np.float32))
    total = np.asarray(counts.sum(1)).ravel()
    assert principal_components(counts, total).shape == (8, 7)
    assert principal_components(counts, total, 2).shape == (8, 2)
    assert principal_components(counts[:, :3], total) is None


def test_what_was_hardly_there_is_not_called_gone():
    scores = {"before": [0.90, 0.90], "after": [0.93, 0.93], "if_mixed": [0.94, 0.94]}
    effect = pd.DataFrame(scores, index=["iLISI", "kBET"])
    assert np.isnan(gained(effect)) and effect_in_short(effect) == "little before"
    effect["before"] = 0.5
    assert effect_in_short(effect) == "gone" and gained(effect) == pytest.approx(0.43 / 0.44)
