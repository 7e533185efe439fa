"""Counts divided in two: sums, distributions, independence; do halves agree; a model's cells."""

from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb import count_splitting
from gmvae_nb.count_splitting import (
    FEWEST_ASKED,
    LEAST_P,
    N_DIVISIONS,
    Halves,
    LooksAtHalves,
    agreement_p,
    at_one_depth,
    halve_cells,
    halves_agree_p,
    look_at_halves,
    paired_by_lots_p,
    split_counts,
    thin_counts,
)
from gmvae_nb.inference import draw_nb
from gmvae_nb.match import Cells
from gmvae_nb.network import PRESETS
from gmvae_nb.reproducible import Stream, numpy_stream
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix
from scipy.stats import beta, binom, binomtest, chisquare

from test_train import TINY, simulated

N = 200_000


def drawn(r, mean, n=N, seed=0):
    "Negative binomial counts, and their log r."
    rng = np.random.default_rng(seed)
    log_r = np.full(n, np.log(r))
    return draw_nb(log_r, np.full(n, np.log(mean / r)), rng), log_r


def assert_mean(values, expected):
    "Within four standard errors."
    assert abs(values.mean() - expected) < 4 * values.std() / len(values) ** 0.5


# --- one count ------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("r, mean", [(0.3, 2.0), (2.0, 5.0), (30.0, 1.0)])
def test_both_parts_are_negative_binomial_and_independent(r, mean, share):
    y, log_r = drawn(r, mean)
    first = thin_counts(y, log_r, share, np.random.default_rng(1))
    second = y - first
    assert first.dtype == np.int64 and first.min() >= 0 and second.min() >= 0
    for part, s in ((first, share), (second, 1 - share)):
        assert_mean(part, s * mean)
        assert_mean((part - s * mean) ** 2, s * mean + (s * mean) ** 2 / (s * r))
    assert_mean((first - share * mean) * (second - (1 - share) * mean), 0)


@pytest.mark.parametrize("count", [2, 7])
def test_a_count_is_divided_as_beta_and_binomial_say(count):
    r, share = 1.7, 0.3
    first = thin_counts(np.full(N, count), np.full(N, np.log(r)), share, np.random.default_rng(2))
    u = (np.arange(4000) + 0.5) / 4000  # the binomial averaged over u
    quantiles = beta.ppf(u, r * share, r * (1 - share))
    pmf = np.array([binom.pmf(k, count, quantiles).mean() for k in range(count + 1)])
    observed = np.bincount(first, minlength=count + 1)
    assert chisquare(observed, N * pmf / pmf.sum()).pvalue > 1e-3


def test_a_count_of_one_is_a_coin_whatever_r_is():
    for log_r in (-40.0, 0.0, 40.0):
        first = thin_counts(np.ones(N), np.full(N, log_r), 0.3, np.random.default_rng(3))
        assert_mean(first, 0.3)


@pytest.mark.parametrize("log_r", [np.inf, 30.0, 25.0])
def test_a_huge_r_is_poisson_splitting(log_r):
    first = thin_counts(np.full(N, 20), np.full(N, log_r), 0.25, np.random.default_rng(4))
    observed = np.bincount(first.clip(max=12), minlength=13)
    pmf = binom.pmf(np.arange(12), 20, 0.25)
    assert chisquare(observed, N * np.append(pmf, 1 - pmf.sum())).pvalue > 1e-3


def test_a_tiny_r_does_not_divide_a_count():
    "u is 0 or 1: with r -> 0 all molecules of a gene go one way."
    first = thin_counts(np.full(N, 9), np.full(N, -np.inf), 0.3, np.random.default_rng(5))
    assert set(np.unique(first)) == {0, 9}
    assert_mean(first == 9, 0.3)


@pytest.mark.parametrize("wrong", [0.3, 4.0, np.inf])
def test_a_wrong_r_leaves_the_covariance_that_the_page_says(wrong):
    r, mean, share = 1.0, 3.0, 0.4
    y, _ = drawn(r, mean, seed=6)
    first = thin_counts(y, np.full(N, np.log(wrong)), share, np.random.default_rng(6))
    factor = 1 / r if np.isinf(wrong) else (wrong - r) / (r * (wrong + 1))
    assert (factor > 0) == (wrong > r)
    product = (first - share * mean) * (y - first - (1 - share) * mean)
    assert_mean(product, share * (1 - share) * mean**2 * factor)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, np.nan])
def test_a_share_outside_0_and_1_is_refused(share):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=f"share is {share}; expected a number between 0 and 1"):
        thin_counts(np.ones(2), np.zeros(2), share, rng)
    with pytest.raises(ValueError, match="share is"):
        split_counts(csr_matrix(np.eye(2)), np.zeros(2), share, rng)


@pytest.mark.parametrize("counts", [[1, 1.5], [2, -1], [2, np.inf]])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_what_is_no_count_is_refused(counts):
    with pytest.raises(ValueError, match="counts must be whole numbers"):
        thin_counts(np.array(counts), np.zeros(2), 0.5, np.random.default_rng(0))


@pytest.mark.parametrize("log_r", [np.zeros(3), np.zeros((2, 1)), np.array(0.0), [0, np.nan]])
def test_each_count_needs_an_r(log_r):
    with pytest.raises(ValueError, match="expected a number for each of the 2 counts"):
        thin_counts(np.ones(2), log_r, 0.5, np.random.default_rng(0))


# --- a matrix -------------------------------------------------------------------------------------
def matrix(n=300, G=40, seed=7):
    rng = np.random.default_rng(seed)
    y = csr_matrix(rng.negative_binomial(0.7, 0.3, (n, G)).astype(np.float32))
    y.data[:3] = 0  # stored zeros
    return y, rng.normal(size=y.nnz)


def test_two_matrices_sum_to_the_whole_and_store_no_zero():
    y, log_r = matrix()
    before = y.copy()
    one, two = split_counts(y, log_r, 0.5, np.random.default_rng(8))
    for part in (one, two):
        assert part.shape == y.shape and part.dtype == np.float32 and part.format == "csr"
        assert part.nnz == part.count_nonzero() < y.count_nonzero()
        assert (part.data > 0).all()
    np.testing.assert_array_equal((one + two).toarray(), y.toarray())
    for name in ("data", "indices", "indptr"):  # as they were
        np.testing.assert_array_equal(getattr(y, name), getattr(before, name))


def test_the_first_part_has_the_share_and_each_count_its_own_r():
    y, _ = drawn(1.0, 6.0, n=40_000, seed=9)
    y = csr_matrix(y.reshape(200, 200).astype(np.float32))
    log_r = np.where(y.indices < 100, -50.0, np.inf)  # in one piece, or Poisson
    one, _ = split_counts(y, log_r, 0.2, np.random.default_rng(9))
    assert abs(one.sum() / y.sum() - 0.2) < 0.01
    whole, part = y.toarray(), one.toarray()
    uncut = (part == 0) | (part == whole)
    large = whole >= 8
    assert uncut[:, :100].all() and uncut[:, 100:][large[:, 100:]].mean() < 0.2


def test_one_seed_one_split():
    y, log_r = matrix()
    ways = [split_counts(y, log_r, 0.5, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert (ways[0] != ways[1]).nnz == 0
    assert (ways[0] != ways[2]).nnz > 100


def test_counts_beyond_what_float32_adds_are_divided():
    y = csr_matrix(np.array([[2.0**24, 3.0]]))
    one, two = split_counts(y, np.array([0.0, 0.0]), 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(one.toarray() + two.toarray().astype(float), y.toarray())


# --- agreement ------------------------------------------------------------------------------------
def by_hand(table):
    (a, b), (c, d) = table
    n, R, C = a + b + c + d, a + b, a + c
    ways = sum(comb(R, k) * comb(n - R, C - k) for k in range(a, min(R, C) + 1))
    return float(Fraction(ways, comb(n, C)))


@pytest.mark.parametrize(
    "table, p",
    [
        ([[3, 1], [1, 3]], 17 / 70),  # the lady tasting tea
        ([[4, 0], [0, 4]], 1 / 70),
        ([[0, 4], [4, 0]], 1.0),  # they disagree: no evidence
        ([[1, 11], [9, 3]], by_hand([[1, 11], [9, 3]])),
        ([[11, 1], [3, 9]], by_hand([[11, 1], [3, 9]])),
        ([[20, 7], [5, 40]], by_hand([[20, 7], [5, 40]])),
        ([[5, 0], [3, 0]], 1.0),
        ([[0, 0], [0, 0]], 1.0),
    ],
)
def test_agreement_is_fishers_exact_test(table, p):
    assert agreement_p(table) == pytest.approx(p, rel=1e-9)
    assert agreement_p(np.array(table, dtype=float)) == pytest.approx(p, rel=1e-9)
    assert isinstance(agreement_p(table), float)
    swapped = np.array(table)[::-1, ::-1]  # the clusters' names
    assert agreement_p(swapped) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    "table", [[1, 2], [[1, 2, 3], [4, 5, 6]], [[1, -1], [2, 3]], [[0.5, 1]] * 2]
)
def test_a_table_is_two_by_two_numbers_of_cells(table):
    with pytest.raises(ValueError, match="expected numbers of cells, 2 x 2"):
        agreement_p(table)


G = 30
RATES = np.random.default_rng(10).gamma(2.0, 2.0, G)
DISPERSION = np.random.default_rng(11).uniform(0.5, 3, G)
CHANGE = np.where(np.arange(G) % 2, 0.5, -0.5)  # along which cells differ, and are cut


def agreement_of(position, log_r, rng):
    "p of the halves of cells whose rule was not made by them."
    mean = RATES * np.exp(np.outer(position, CHANGE))
    y = draw_nb(np.log(DISPERSION), np.log(mean / DISPERSION), rng)
    first = thin_counts(y.ravel(), np.tile(log_r, len(y)), 0.5, rng).reshape(y.shape)
    middle = RATES / RATES.sum() @ CHANGE
    halves = (first, y - first)
    one, two = (part / part.sum(1, keepdims=True) @ CHANGE > middle for part in halves)
    return agreement_p(
        [[(one & two).sum(), (one & ~two).sum()], [(~one & two).sum(), (~one & ~two).sum()]]
    )


def test_p_values_of_one_population_are_no_smaller_than_chance():
    rng = np.random.default_rng(12)
    p = np.array([agreement_of(np.zeros(200), np.log(DISPERSION), rng) for _ in range(300)])
    for alpha in (0.01, 0.05, 0.2, 0.5):
        small = (p <= alpha).sum()
        assert binomtest(small, len(p), alpha, alternative="greater").pvalue > 1e-3
    assert (p <= 0.5).mean() > 0.3  # and not all at 1
    as_poisson = [agreement_of(np.zeros(200), np.full(G, np.inf), rng) for _ in range(20)]
    assert np.median(as_poisson) < 1e-3


def test_two_populations_are_found():
    rng = np.random.default_rng(13)
    p = agreement_of(rng.choice([-0.7, 0.7], 200), np.log(DISPERSION), rng)
    assert p < 1e-6


# --- the cells of a model -------------------------------------------------------------------------
LIKE = {
    "blog": TINY,
    "recommended": replace(
        PRESETS["recommended"],
        n_x=4,
        encoder_hidden=(16, 8),
        decoder_hidden=(8, 16),
        batch_size=16,
        min_steps=0,
    ),
}


@pytest.fixture(scope="module", params=LIKE)
def model(request):
    model = GMVAE(simulated(), K=3, batch_key="batch", preset=LIKE[request.param])
    return model.train(2, progress=False)


def few_counts():
    "Cells 3 and 8 have one count: one half has none. The names are their own."
    adata = simulated(40, seed=5)
    y = adata.X.toarray()
    y[[3, 8]] = 0
    y[[3, 8], [4, 6]] = 1
    adata.X = csr_matrix(y)
    adata.obs_names = [f"new{i}" for i in range(40)]
    return adata


def dense(cells: Cells) -> np.ndarray:
    return cells.counts.toarray()


def test_halves_of_a_models_cells_sum_to_them_and_empty_ones_are_left_out(model):
    adata = few_counts()
    cells = model.match_cells(adata)
    halves = halve_cells(model.network, cells, 0)
    kept = np.delete(np.arange(40), [3, 8])
    np.testing.assert_array_equal(halves.rows, kept)
    np.testing.assert_array_equal(dense(halves.first) + dense(halves.second), dense(cells)[kept])
    for half in halves[:2]:
        assert half.counts.dtype == np.float32 and (half.counts.getnnz(1) > 0).all()
        assert half.counts.nnz == half.counts.count_nonzero()
        pd.testing.assert_index_equal(half.names, cells.names[kept])
        np.testing.assert_array_equal(half.batch, cells.batch[kept])
        assert half.genes is cells.genes and half.batches == cells.batches
        assert model.predict_proba(half).shape[0] == len(kept)
    share = halves.first.counts.sum() / dense(cells)[kept].sum()
    assert 0.4 < share < 0.6


def test_a_cells_halves_depend_on_the_seed_and_its_row_alone(model):
    cells = model.match_cells(few_counts())
    all_of_them = halve_cells(model.network, cells, 0)
    rows = np.array([30, 3, 12, 1])
    some = halve_cells(model.network, cells, 0, rows)
    np.testing.assert_array_equal(some.rows, [30, 12, 1])
    assert list(some.first.names) == ["new30", "new12", "new1"]
    at = [list(all_of_them.rows).index(row) for row in some.rows]
    for one, other in zip(some[:2], all_of_them[:2]):
        np.testing.assert_array_equal(dense(one), dense(other)[at])
        np.testing.assert_array_equal(one.batch, other.batch[at])
    again, other = (halve_cells(model.network, cells, seed).first for seed in (0, 1))
    np.testing.assert_array_equal(dense(again), dense(all_of_them.first))
    assert (dense(other) != dense(again)).mean() > 0.2


def test_a_cell_is_divided_with_the_models_r_at_its_mean(model):
    cells = model.match_cells(simulated(20, seed=6))
    halves = halve_cells(model.network, cells, 3)
    y, i = cells.counts, 7
    row = torch.from_numpy(y[i].toarray()).to_sparse_csr()
    b = torch.tensor([cells.batch[i]])
    with torch.no_grad():
        x = model.network.encode(row, b).x_mean
        log_r = model.network.likelihood_params(row, b, x[None])[0][0, 0].double().numpy()
    genes = y[i].indices
    first = thin_counts(y[i].data, log_r[genes], 0.5, numpy_stream(3, Stream.HALVES, i))
    expected = np.zeros(y.shape[1])
    expected[genes] = first
    np.testing.assert_array_equal(dense(halves.first)[list(halves.rows).index(i)], expected)


def test_nothing_is_left_of_the_gradient_nor_of_dropout(model):
    cells = model.match_cells(simulated(20, seed=6))
    model.network.train()
    state = torch.get_rng_state()
    one = halve_cells(model.network, cells, 0)
    assert torch.get_rng_state().equal(state) and not model.network.training
    np.testing.assert_array_equal(
        dense(one.first), dense(halve_cells(model.network, cells, 0).first)
    )


def test_a_cell_without_any_count_is_named(model):
    adata = few_counts()
    y = adata.X.toarray()
    y[5] = 0
    cells = model.match_cells(few_counts())._replace(counts=csr_matrix(y))
    with pytest.raises(ValueError, match="'new5' has no count"):
        halve_cells(model.network, cells, 0)
    halve_cells(model.network, cells, 0, np.array([0, 1]))  # not asked for


def test_the_streams_of_halves_and_lots_have_their_numbers():
    assert Stream.HALVES == 12 and Stream.SIMULATION == 11 and Stream.LOTS == 16


# --- depth and batch taken away -------------------------------------------------------------------
def as_halves(first: np.ndarray, second: np.ndarray) -> Halves:
    n = len(first)
    names, batch = pd.Index([f"c{i}" for i in range(n)]), np.arange(n) % 2
    parts = (
        Cells(csr_matrix(part.astype(np.float32)), batch, names, None, {})
        for part in (first, second)
    )
    return Halves(*parts, np.arange(100, 100 + n))


def test_halves_at_one_depth_are_drawn_without_putting_back():
    rng = np.random.default_rng(0)
    rows = [[10, 0, 30, 60], [1, 2, 3, 4], [500, 300, 200, 0]] * 40
    y = np.array(rows)[rng.permutation(120)]
    halves = as_halves(y, y[::-1].copy())
    shallow = y.sum(1) == 10
    kept = ~(shallow | shallow[::-1])
    even = at_one_depth(halves, rng, too_few=0.4)
    np.testing.assert_array_equal(even.rows, halves.rows[kept])
    for part, had in zip(even[:2], (y[kept], y[::-1][kept])):
        assert (dense(part).sum(1) == 100).all() and (dense(part) <= had).all()
        assert part.counts.nnz == part.counts.count_nonzero()
        deep = had.sum(1) == 1000
        np.testing.assert_array_equal(dense(part)[~deep], had[~deep])
        share = dense(part)[deep][:, 0]  # 100 of 1,000, of which 500 are marked
        assert_mean(share, 50)
        assert_mean((share - 50) ** 2, 100 * 0.25 * 900 / 999)
        np.testing.assert_array_equal(part.batch, halves.first.batch[kept])
        pd.testing.assert_index_equal(part.names, halves.first.names[kept])
    np.testing.assert_array_equal(dense(halves.first), y)  # those given are left alone
    all_of_them = at_one_depth(halves, rng)  # fewer than a tenth have fewer than 10
    assert len(all_of_them.rows) == 120 and (dense(all_of_them.first).sum(1) == 10).all()
    none = as_halves(np.empty((0, 4)), np.empty((0, 4)))
    assert len(at_one_depth(none, rng).rows) == 0


def test_depth_is_no_reason_to_agree_at_one_depth():
    "The rule: how many genes are found."
    rng, log_r = np.random.default_rng(3), np.full(300, np.log(2.0))
    means = rng.lognormal(0, 1, 300)
    p = {"as they are": [], "at one depth": []}
    for _ in range(40):
        depth = np.exp(rng.normal(size=(80, 1)))
        y = csr_matrix(rng.poisson(rng.gamma(2.0, depth * means / 2)))
        first, second = split_counts(y, log_r[y.indices], 0.5, rng)
        halves = as_halves(first.toarray(), second.toarray())
        for name, found in zip(p, (halves, at_one_depth(halves, rng))):
            of_half = [(dense(part) > 0).sum(1) for part in found[:2]]
            both = [n > np.median(n) for n in of_half]
            p[name].append(paired_by_lots_p(*both, np.zeros(len(found.rows)), rng, 199))
    assert np.mean(np.array(p["as they are"]) <= 0.05) > 0.9
    assert binomtest(int(np.sum(np.array(p["at one depth"]) <= 0.05)), 40, 0.05).pvalue > 0.01


def test_halves_paired_by_lots():
    rng = np.random.default_rng(4)
    batch = rng.permutation(np.repeat([0, 1, 2], [50, 30, 20]))
    share = np.array([0.1, 0.5, 0.9])[batch]  # in the first cluster, by batch
    p = np.array(
        [paired_by_lots_p(*(rng.random((2, 100)) < share), batch, rng, 199) for _ in range(300)]
    )
    for level in (0.05, 0.2, 0.5):  # p <= level as often as that, or less: there are ties
        assert binomtest(int((p <= level).sum()), 300, level, alternative="greater").pvalue > 0.01
    assert (p <= 0.2).mean() > 0.08
    one, same = np.zeros(100, dtype=int), rng.random(100) < 0.5
    across = [paired_by_lots_p(*(rng.random((2, 100)) < share), one, rng, 199) for _ in range(20)]
    assert np.median(across) < 0.05  # the batch alone
    other = np.where(rng.random(100) < 0.8, same, ~same)
    assert paired_by_lots_p(same, other, batch, rng) == 0.001
    assert paired_by_lots_p(same, ~same, batch, rng) == 1
    three = batch + 10 * same  # of any name, and more than two
    assert paired_by_lots_p(three, three, batch, rng, 19) == 1 / 20


@pytest.fixture
def two_kinds(model, monkeypatch):
    "Cells with a gene or without, and a model whose clusters are these."

    def kind(network, cells, noise):
        return np.eye(2)[(dense(cells)[:, 0] > 0).astype(int)]

    monkeypatch.setattr(count_splitting, "cluster_probabilities", kind)
    adata = simulated(200, seed=7)
    y = adata.X.toarray()
    y[:, 0] = 200 * (np.arange(200) % 2)
    y[:, 1] += 400  # as deep as each other
    adata.X = csr_matrix(y)
    return model.match_cells(adata)


def asked(model, cells, rows=None, clusters=(0, 1)):
    looks = look_at_halves(model.network, cells, model._noise(2), 0, rows)
    return halves_agree_p(looks, clusters, np.random.default_rng(0))


def test_a_model_is_asked_whether_it_sees_anything(model, two_kinds):
    def p(batch, *among):
        return asked(model, two_kinds._replace(batch=batch), *among)

    kind, nothing = np.arange(200) % 2, np.zeros(200, dtype=int)
    assert p(nothing) == LEAST_P == 0.002
    assert p(nothing, np.flatnonzero(kind)) == 1  # one cluster
    assert p(nothing, None, [1]) == 1
    assert p(kind) == 1  # the batch is all there is


def test_a_model_that_sees_depth_alone_sees_nothing(model, monkeypatch):
    def deep(network, cells, noise):
        return np.eye(2)[(dense(cells).sum(1) > 300).astype(int)]

    monkeypatch.setattr(count_splitting, "cluster_probabilities", deep)
    adata = simulated(200, seed=7)
    y = adata.X.toarray()
    y[:, 1] = np.where(np.arange(200) % 2, 1000, 200)
    adata.X = csr_matrix(y)
    assert asked(model, model.match_cells(adata)) == 1


@pytest.mark.parametrize("kind_is_batch", [True, False])
def test_covariates_beside_the_batch_pair_no_halves(model, two_kinds, monkeypatch, kind_is_batch):
    wholes = lambda network, cells, *_: Halves(cells, cells, np.arange(200))  # noqa: E731
    monkeypatch.setattr(count_splitting, "halve_cells", wholes)
    batch = np.arange(200) % 2 * kind_is_batch
    told = two_kinds._replace(batch=np.column_stack([batch, np.linspace(0, 1, 200)]))
    assert asked(model, told) == (1 if kind_is_batch else LEAST_P)


def test_of_many_cells_a_sample_is_asked(model, two_kinds, monkeypatch):
    looked_at = []

    def halved(network, cells, seed, rows):
        looked_at.append((seed, rows))
        return halve_cells(network, cells, seed, rows)

    monkeypatch.setattr(count_splitting, "MAX_SAMPLED_CELLS", 30)
    monkeypatch.setattr(count_splitting, "halve_cells", halved)
    for rows in (None, np.arange(50, 120), np.arange(50, 80)):
        asked(model, two_kinds, rows)
    every = [looked_at[k : k + N_DIVISIONS] for k in range(0, 3 * N_DIVISIONS, N_DIVISIONS)]
    for divisions in every:  # of the same cells, and each another one
        assert len({seed for seed, _ in divisions}) == N_DIVISIONS
        assert all(np.array_equal(rows, divisions[0][1]) for _, rows in divisions)
    sampled = [divisions[0][1] for divisions in every]
    assert [len(set(rows)) for rows in sampled] == [30, 30, 30]
    assert sampled[0].max() > 120 and sampled[1].min() >= 50 and sampled[1].max() < 120
    np.testing.assert_array_equal(sampled[2], np.arange(50, 80))


def test_without_a_cell_of_two_halves_nobody_can_be_asked(model):
    assert np.isnan(asked(model, model.match_cells(few_counts()), np.array([3, 8])))


def looks_of(first, second, batch) -> LooksAtHalves:
    return LooksAtHalves(*(np.asarray(part) for part in (first, second, batch)))


def test_twice_the_median_of_the_divisions():
    rng = np.random.default_rng(1)
    one = np.zeros(40, dtype=int)
    sides = np.repeat([0, 1], 20)
    agree, chance = looks_of(sides, sides, one), looks_of(sides, np.arange(40) % 2, one)
    p_of_chance = paired_by_lots_p(*chance, rng, 9_999)
    for n_agree, p in ((5, LEAST_P), (3, LEAST_P), (2, min(1, 2 * p_of_chance))):
        looks = [agree] * n_agree + [chance] * (5 - n_agree)
        assert halves_agree_p(looks, [0, 1], rng) == pytest.approx(p, abs=0.05)
    assert halves_agree_p([chance] * 5, [0, 1], rng) <= 1


@pytest.mark.parametrize("branch, n", [([0, 1], 60), ([0, 2], 90), ([1, 2], 60), ([0, 1, 2], 120)])
def test_those_alone_are_asked_that_both_halves_put_into_a_branch(monkeypatch, branch, n):
    seen = []

    def by_lots(first, second, batch, rng):
        seen.append(len(first))
        return 0.01

    monkeypatch.setattr(count_splitting, "paired_by_lots_p", by_lots)
    first = np.repeat([0, 1, 2, 2], 30)
    second = np.repeat([0, 1, 2, 0], 30)
    look = looks_of(first, second, np.zeros(120, dtype=int))
    assert halves_agree_p([look] * 5, branch, np.random.default_rng(2)) == 0.02
    assert seen == [n] * 5


@pytest.mark.parametrize("n_batches", [1, 2, 7])
def test_a_branch_of_few_cells_is_not_asked(n_batches):
    rng = np.random.default_rng(3)
    for n, can in ((FEWEST_ASKED + n_batches - 1, False), (FEWEST_ASKED + n_batches, True)):
        sides, batch = np.arange(n) % 2, np.arange(n) % n_batches
        p = halves_agree_p([looks_of(sides, sides, batch)] * 5, [0, 1], rng)
        assert np.isnan(p) != can


def test_lots_are_those_drawn_cell_by_cell():
    "p from tables with given margins is p from shuffled cells."
    rng = np.random.default_rng(4)
    batch = np.repeat([0, 1, 2], [40, 25, 5])
    first = rng.integers(0, 3, 70)
    second = np.where(rng.random(70) < 0.15, first, rng.integers(0, 3, 70))
    agree, n_lots, as_many = np.sum(first == second), 20_000, 0
    for _ in range(n_lots):
        shuffled = second[np.lexsort((rng.random(70), batch))]
        as_many += np.sum(first == shuffled) >= agree
    p = as_many / n_lots
    assert 0.02 < p < 0.9
    assert paired_by_lots_p(first, second, batch, rng, n_lots) == pytest.approx(p, abs=0.02)


@pytest.mark.parametrize("seed", range(6))
def test_halves_of_deep_cells_are_drawn_to_the_count(seed):
    "Single precision does not hold the sum of these, and numpy draws from less than 1e9."
    rng = np.random.default_rng(seed)
    y = rng.integers(1, 2**21, size=(40, 300))
    y[7] = 2**24 - 1
    halves = as_halves(y.astype(np.float32), y[::-1].astype(np.float32))
    even = at_one_depth(halves, rng)
    assert 7 not in even.rows and 32 not in even.rows and len(even.rows) > 20
    totals = [np.ravel(part.counts.astype(np.float64).sum(1)) for part in even[:2]]
    assert len(np.unique(totals)) == 1
