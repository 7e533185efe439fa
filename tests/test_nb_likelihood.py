"""The negative binomial against 60-digit arithmetic and scipy, its gradients, and the sparse sum over genes."""

import math

import hypothesis.extra.numpy as hnp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from gmvae_nb.nb_likelihood import NBHeads, log_nb, log_rising, nb_log_lik, nb_mean, nb_variance

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)
few = settings(quick, max_examples=40)

# the range of use, evenly in the logarithm, with whole powers of ten more likely
SIZES = (st.floats(-3, 4) | st.integers(-3, 4)).map(lambda e: 10.0**e) | st.floats(14.9, 16.1)
MEANS = (st.floats(-4, 6) | st.integers(-4, 6)).map(lambda e: 10.0**e)
COUNTS = st.integers(0, 3) | st.floats(0, 6).map(lambda e: round(10**e)) | st.just(10**6)


def f64(value) -> torch.Tensor: return torch.tensor(value, dtype=torch.float64)


def exact(y: float, r: float, l: float) -> mpmath.mpf:
    "log P(y) with 60 digits, straight from the definition C(y+r-1, y) (1-p)^y p^r with p = 1/(1+e^l)."
    with mpmath.workdps(60):
        y, r, p = mpmath.mpf(float(y)), mpmath.mpf(float(r)), 1 / (1 + mpmath.exp(mpmath.mpf(float(l))))
        log_coef = mpmath.loggamma(y + r) - mpmath.loggamma(r) - mpmath.loggamma(y + 1)
        return log_coef + y * mpmath.log(1 - p) + r * mpmath.log(p)


# --- the value ---------------------------------------------------------------------------------------------

@quick
@given(COUNTS, SIZES, MEANS)
@example(10**6, 1e4, 1e6)      # the largest log-gammas beside the smallest |log P|
@example(10**6, 1e4, 1e-4)     # -1.8e7 nats
@example(10**6, 1e-3, 1e-4)
@example(0, 1e4, 1e-4)
@example(1, 1e-3, 1e6)
def test_float64_within_1e9(y, r, mean):
    l = math.log(mean / r)
    truth = exact(y, r, l)
    assert abs(float(log_nb(f64(float(y)), f64(r), f64(l)).item() - truth)) <= 1e-9 * (1 + abs(float(truth)))


@quick
@given(COUNTS, SIZES, MEANS)
@example(10**6, 1e4, 1e-4)
@example(2, 1e4, 2.0)
@example(10**6, 1e-3, 1e6)
def test_float32_within_2e6_of_the_value_at_the_rounded_inputs(y, r, mean):
    y, r, l = torch.tensor(float(y)), torch.tensor(r).float(), torch.tensor(math.log(mean / r)).float()
    value = log_nb(y, r, l)
    assert value.dtype == torch.float32
    truth = exact(y, r, l)
    error = abs(float(value.item() - truth))
    assert error <= 2e-6 * (1 + y.item() + r.item())
    assert error <= 6e-8 * abs(float(truth)) + 2e-9      # rounded once: half a unit in the last place


def test_scipy_on_a_grid():
    "scipy loses 1-p where p is close to 1, so it judges where p < 0.9."
    y, r, mean = torch.meshgrid(f64([0, 1, 2, 9, 250, 1e4, 1e6]), torch.logspace(-3, 4, 22).double(),
                                torch.logspace(-4, 6, 31).double(), indexing="ij")
    l = (mean / r).log()
    p = torch.sigmoid(-l)
    reference = torch.as_tensor(stats.nbinom.logpmf(y, r, p))
    error = (log_nb(y, r, l) - reference).abs() / (1 + reference.abs())
    assert error[p < 0.9].max() < 1e-9


@quick
@given(st.floats(1e-6, 50), SIZES, MEANS)
def test_counts_between_whole_numbers_follow_the_gamma_function(y, r, mean):
    l = math.log(mean / r)
    truth = float(exact(y, r, l))
    assert math.isclose(log_nb(f64(y), f64(r), f64(l)).item(), truth, rel_tol=1e-9, abs_tol=1e-9)


@quick
@given(st.floats(0, 300).map(lambda e: 10**e), st.integers(0, 10**6))
def test_log_rising_at_any_size(a, n):
    with mpmath.workdps(400):
        truth = float(mpmath.loggamma(mpmath.mpf(a) + n) - mpmath.loggamma(mpmath.mpf(a)))
    assert math.isclose(log_rising(f64(a), f64(float(n))).item(), truth, rel_tol=1e-13, abs_tol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("a", [16.0, 16.5, 17.0, 20.0])
def test_log_rising_where_stirling_begins(a, n):
    "Close enough to see each of the five terms of the series."
    truth = math.log(math.prod(a + i for i in range(n)))
    assert abs(log_rising(f64(a), f64(float(n))).item() - truth) < 1e-15 + 4e-16 * n * truth


@few
@given(st.floats(0.05, 50), st.floats(-4, 2.5))
def test_a_distribution_with_the_stated_moments(r, l):
    mean, variance = (f(f64(r), f64(l)).item() for f in (nb_mean, nb_variance))
    y = torch.arange(math.ceil(mean + 40 * math.sqrt(variance) + 40 * math.exp(l) + 60), dtype=torch.float64)
    pmf = log_nb(y, f64(r), f64(l)).exp()
    assert math.isclose(pmf.sum().item(), 1, rel_tol=1e-9)
    assert math.isclose((pmf * y).sum().item(), mean, rel_tol=1e-7)
    assert math.isclose((pmf * (y - mean)**2).sum().item(), variance, rel_tol=1e-6)


@few
@given(st.integers(0, 200), st.floats(1e-3, 1e3), st.floats(7, 300).map(lambda e: 10**e))
def test_poisson_limit(y, mean, r):
    "The distance is ((y-m)² - y) / 2r to first order, at every r: no digits are lost on the way to infinity."
    value = log_nb(f64(float(y)), f64(r), f64(math.log(mean) - math.log(r))).item()
    gap = value - stats.poisson.logpmf(y, mean)
    second_order = ((1 + y + mean) ** 1.5 / r) ** 2
    assert abs(gap - ((y - mean)**2 - y) / (2 * r)) <= 1e-11 * (1 + y + mean) + second_order


@few
@given(SIZES, st.floats(-40, 40))
def test_a_zero_costs_exactly_r_softplus(r, l):
    r, l = f64(r), f64(l)
    assert log_nb(f64(0.0), r, l).item() == (-r * torch.nn.functional.softplus(l)).item()


@few
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=4), st.integers(0, 99))
def test_broadcasting_and_types(shapes, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 5, shapes.input_shapes[0], generator=g)
    r, l = (torch.randn(s, generator=g) for s in shapes.input_shapes[1:])
    r = r.exp()
    value = log_nb(y, r, l)
    assert value.shape == shapes.result_shape and value.dtype == torch.float32
    assert log_nb(y, r.double(), l).dtype == torch.float64
    full = [t.expand(shapes.result_shape).reshape(-1).tolist() for t in (y, r, l)]
    assert_close(value.reshape(-1), torch.tensor([float(exact(*v)) for v in zip(*full)], dtype=torch.float32))


# --- the gradients -----------------------------------------------------------------------------------------

@quick
@given(COUNTS, SIZES, MEANS)
def test_gradients_against_50_digit_derivatives(y, r, mean):
    "To 1e-8 of the size of the parts that cancel, y + r(1 + |l|)."
    log_r, l = f64(math.log(r)).requires_grad_(), f64(math.log(mean / r)).requires_grad_()
    found = torch.autograd.grad(log_nb(f64(float(y)), log_r.exp(), l), (log_r, l))
    with mpmath.workdps(50):
        r_, l_ = mpmath.exp(mpmath.mpf(log_r.item())), mpmath.mpf(l.item())
        truth = (r_ * (mpmath.digamma(y + r_) - mpmath.digamma(r_) - mpmath.log1p(mpmath.exp(l_))),
                 y - (y + r_) / (1 + mpmath.exp(-l_)))
    for value, expected in zip(found, truth):
        assert abs(value.item() - float(expected)) <= 1e-8 * (1 + y + r * (1 + abs(l.item())))


@few
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-8, 8))
def test_gradients_against_finite_differences(y, r, l):
    log_r, l, y, step = f64(math.log(r)).requires_grad_(), f64(l).requires_grad_(), f64(float(y)), 1e-5
    found = torch.autograd.grad(log_nb(y, log_r.exp(), l), (log_r, l))
    with torch.no_grad():
        f = lambda i, j: log_nb(y, (log_r + i * step).exp(), l + j * step)
        quotients = [(f(i, j) - f(-i, -j)) / (2 * step) for i, j in ((1, 0), (0, 1))]
    for value, quotient in zip(found, quotients):
        assert abs(value - quotient) <= 1e-6 * (1 + y + r * (1 + l.abs()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_the_extremes(dtype):
    y, r, l = torch.meshgrid(torch.tensor([0, 1, 2, 1e6]), torch.tensor([1e-37, 1e-10, 1, 1e4, 3.3e6, 1e12]),
                             torch.tensor([-40.0, -1, 0, 1, 40]), indexing="ij")
    r, l = r.to(dtype).requires_grad_(), l.to(dtype).requires_grad_()
    value = log_nb(y.to(dtype), r, l)
    for t in (value, *torch.autograd.grad(value.sum(), (r, l))): assert t.isfinite().all()


# --- the sum over genes ------------------------------------------------------------------------------------

def sums(f, log_r, logits, y, upstream):
    inputs = [t.clone().requires_grad_() for t in (log_r, logits)]
    value = f(*inputs, y)
    return [value.detach(), *torch.autograd.grad((upstream * value).sum(), inputs)]


def dense(log_r, logits, y): return log_nb(y, log_r.exp(), logits).sum(-1)


def random_case(seed, M, N, G, share, largest=50, leading=True):
    g = torch.Generator().manual_seed(seed)
    shape = (M, N, G) if leading else (N, G)
    log_r, logits = (3 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(1, largest + 1, (N, G), generator=g) * (torch.rand(N, G, generator=g) < share)
    return log_r, logits, y.double(), torch.randn(shape[:-1], generator=g, dtype=torch.float64)


@quick
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7),
       st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([1, 2, 50]), st.booleans())
def test_sparse_equals_dense(seed, M, N, G, share, largest, leading):
    "Values and gradients; all-zero and all-positive counts, all ones, a single gene, no axis of draws."
    case = random_case(seed, M, N, G, share, largest, leading)
    for found, expected in zip(sums(nb_log_lik, *case), sums(dense, *case)):
        assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_sparse_equals_dense_at_extreme_values():
    axes = f64([0, 1, 2, 1e6]), f64([-15, -1, 0, 2.7, 2.8, 15]), f64([-40, -1, 0, 1, 40])
    y, log_r, l = torch.cartesian_prod(*axes).T[:, None]
    found, expected = (sums(f, log_r, l, y, f64([1.0])) for f in (nb_log_lik, dense))
    for a, b in zip(found, expected): assert a.isfinite().all() and torch.allclose(a, b, rtol=1e-9, atol=1e-7)


def test_sparse_with_one_r_per_gene_and_with_strided_inputs():
    log_r, logits, y, upstream = random_case(0, 3, 4, 5, 0.5)
    per_gene = (log_r[0, 0], logits, y, upstream)
    for a, b in zip(sums(nb_log_lik, *per_gene), sums(dense, *per_gene)):
        assert_close(a, b, rtol=1e-10, atol=1e-10)
    strided = lambda a, l, y: nb_log_lik(a.mT.contiguous().mT, l.mT.contiguous().mT, y.T.contiguous().T)
    case = (log_r, logits, y, upstream)
    for a, b in zip(sums(strided, *case), sums(dense, *case)): assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_sparse_gradient_survives_single_precision_at_large_r():
    "In single precision r ψ(y+r) - r ψ(1+r) at r = e^15 would be wrong by whole units."
    log_r, y = torch.full((1, 1, 6), 14.5), torch.tensor([[0.0, 1, 2, 3, 10, 100]])
    logits = (y.clamp(min=1).log() - log_r).clone()
    found = sums(nb_log_lik, log_r, logits, y, torch.ones(1, 1))
    expected = sums(dense, log_r.double(), logits.double(), y, torch.ones(1, 1))
    for a, b in zip(found, expected): assert_close(a.double(), b, rtol=1e-5, atol=2e-4)


def test_sparse_refuses_a_second_derivative():
    log_r, logits, y, _ = random_case(0, 1, 2, 3, 0.5)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(nb_log_lik(log_r, logits, y).square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): gradient.sum().backward()


# --- the heads ---------------------------------------------------------------------------------------------

def heads_and_batch(M=3, N=4, H=6, G=5):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = torch.poisson(torch.rand(N, G) * 3)
        return NBHeads(H, G).double(), torch.randn(M, N, H).double(), y.double()


def test_heads_agree_with_log_nb_and_with_its_gradients():
    heads, h, y = heads_and_batch()
    s = f64([[0.2], [1.0], [3.0], [10.0]])
    h.requires_grad_()
    gradients = []
    for value in (heads.log_prob(h, y, s), log_nb(y, *heads(h, s)).sum(-1)):
        assert value.shape == (3, 4)
        gradients.append([value.detach(), *torch.autograd.grad(value.mean(), [h, *heads.parameters()])])
    for a, b in zip(*gradients): assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_each_head_is_the_layer_of_its_name():
    heads, h, _ = heads_and_batch()
    r, logits = heads(h)
    assert_close(r, (h @ heads.log_r.weight.T + heads.log_r.bias).exp())
    assert_close(logits, h @ heads.logits.weight.T + heads.logits.bias)


def test_size_factor_scales_the_mean_and_leaves_r():
    heads, h, _ = heads_and_batch()
    s = f64([[0.2], [1.0], [3.0], [10.0]])
    (r, l), (r_s, l_s) = heads(h), heads(h, s)
    assert torch.equal(r, r_s)
    assert_close(nb_mean(r_s, l_s), s * nb_mean(r, l), rtol=1e-12, atol=0)
    assert_close(heads(h)[1], heads(h, torch.ones(4, 1).double())[1])


def test_draws_and_cells_do_not_mix():
    heads, h, y = heads_and_batch()
    draws, cells = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    assert_close(heads.log_prob(h[draws], y), heads.log_prob(h, y)[draws])
    assert_close(heads.log_prob(h[:, cells], y[cells]), heads.log_prob(h, y)[:, cells])


@pytest.mark.parametrize("sign", [-1, 1])
def test_runaway_heads_stay_finite(sign):
    heads, h, y = heads_and_batch()
    heads = heads.float()
    with torch.no_grad(): heads.log_r.bias.fill_(sign * 1e4), heads.logits.bias.fill_(sign * 40)
    value = heads.log_prob(h.float().requires_grad_(), y.float())
    value.sum().backward()
    assert value.isfinite().all() and heads(h.float())[0].isfinite().all()
    assert all(p.grad.isfinite().all() for p in heads.parameters())


def test_global_random_state_is_left_alone():
    heads, h, y = heads_and_batch()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    heads.log_prob(h, y), heads(h)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("call, says", [
    (lambda m, h, y: m.log_prob(h, y[:-1]), r"shape \(3, 5\), expected \(cells, genes\) = \(4, 5\)"),
    (lambda m, h, y: m.log_prob(h, y[:, :-1]), r"found counts of shape \(4, 4\)"),
    (lambda m, h, y: m.log_prob(h, y[None]), r"found counts of shape \(1, 4, 5\)"),
    (lambda m, h, y: m(h, torch.ones(4)), r"found shape \(4,\), expected one per cell, \(4, 1\)"),
    (lambda m, h, y: m(h, torch.ones(1, 5)), "size_factor: found shape"),
    (lambda m, h, y: m(h, f64([[1.0], [0.0], [1.0], [1.0]])), "size_factor: found a value that is zero"),
    (lambda m, h, y: m(h, f64([[1.0], [math.nan], [1.0], [1.0]])), "size_factor: found a value"),
    (lambda m, h, y: m(h, f64([[1.0], [math.inf], [1.0], [1.0]])), "size_factor: found a value"),
    (lambda m, h, y: NBHeads(0, 5), "n_hidden and n_genes must be at least 1, found 0 and 5"),
])
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says): call(*heads_and_batch())
