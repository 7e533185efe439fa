"""The negative binomial against 60-digit arithmetic and scipy, its gradients, the two heads."""

import copy
import math
import os
import subprocess
import sys
import textwrap
from unittest import mock

import hypothesis.extra.numpy as hnp
import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gmvae_nb import nb_heads, nb_likelihood
from gmvae_nb.nb_heads import NBHeads
from gmvae_nb.nb_likelihood import log_nb, log_rising, nb_log_lik, nb_mean, nb_variance
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)
few = settings(quick, max_examples=40)

# the range of use, evenly in the logarithm, with whole powers of ten more likely
SIZES = (st.floats(-3, 4) | st.integers(-3, 4)).map(lambda e: 10.0**e) | st.floats(14.9, 16.1)
MEANS = (st.floats(-4, 6) | st.integers(-4, 6)).map(lambda e: 10.0**e)
COUNTS = st.integers(0, 3) | st.floats(0, 6).map(lambda e: round(10**e)) | st.just(10**6)


def f64(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def exact(y: float, r: float, l: float) -> mpmath.mpf:
    "log P(y) with 60 digits, by definition: C(y+r-1, y) (1-p)^y p^r with p = 1/(1+e^l)."
    with mpmath.workdps(60):
        y, r, l = (mpmath.mpf(float(v)) for v in (y, r, l))
        p = 1 / (1 + mpmath.exp(l))
        log_coef = mpmath.loggamma(y + r) - mpmath.loggamma(r) - mpmath.loggamma(y + 1)
        return log_coef + y * mpmath.log(1 - p) + r * mpmath.log(p)


# --- the value -----------------------------------------------------------------------------------


@quick
@given(COUNTS, SIZES, MEANS)
@example(10**6, 1e4, 1e6)  # the largest log-gammas beside the smallest |log P|
@example(10**6, 1e4, 1e-4)  # -1.8e7 nats
@example(10**6, 1e-3, 1e-4)
@example(0, 1e4, 1e-4)
@example(1, 1e-3, 1e6)
def test_float64_within_1e9(y, r, mean):
    l = math.log(mean / r)
    truth = exact(y, r, l)
    error = abs(float(log_nb(f64(float(y)), f64(r), f64(l)).item() - truth))
    assert error <= 1e-9 * (1 + abs(float(truth)))


@quick
@given(COUNTS, SIZES, MEANS)
@example(10**6, 1e4, 1e-4)
@example(2, 1e4, 2.0)
@example(10**6, 1e-3, 1e6)
def test_float32_within_2e6_of_the_value_at_the_rounded_inputs(y, r, mean):
    y, r, l = (torch.tensor(float(v)) for v in (y, r, math.log(mean / r)))
    value = log_nb(y, r, l)
    assert value.dtype == torch.float32
    truth = exact(y, r, l)
    error = abs(float(value.item() - truth))
    assert error <= 2e-6 * (1 + y.item() + r.item())
    assert error <= 6e-8 * abs(float(truth)) + 2e-9  # rounded once: half a unit in the last place


def test_scipy_on_a_grid():
    "scipy loses 1-p where p is close to 1, so it judges where p < 0.9."
    counts = f64([0, 1, 2, 9, 250, 1e4, 1e6])
    sizes, means = torch.logspace(-3, 4, 22).double(), torch.logspace(-4, 6, 31).double()
    y, r, mean = torch.meshgrid(counts, sizes, means, indexing="ij")
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
    value = log_rising(f64(a), f64(float(n))).item()
    assert math.isclose(value, truth, rel_tol=1e-13, abs_tol=1e-13)


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
    top = math.ceil(mean + 40 * math.sqrt(variance) + 40 * math.exp(l) + 60)
    y = torch.arange(top, dtype=torch.float64)
    pmf = log_nb(y, f64(r), f64(l)).exp()
    assert math.isclose(pmf.sum().item(), 1, rel_tol=1e-9)
    assert math.isclose((pmf * y).sum().item(), mean, rel_tol=1e-7)
    assert math.isclose((pmf * (y - mean) ** 2).sum().item(), variance, rel_tol=1e-6)


@few
@given(st.integers(0, 200), st.floats(1e-3, 1e3), st.floats(7, 300).map(lambda e: 10**e))
def test_poisson_limit(y, mean, r):
    "The distance is ((y-m)² - y) / 2r to first order, at every r: no digits are lost."
    value = log_nb(f64(float(y)), f64(r), f64(math.log(mean) - math.log(r))).item()
    gap = value - stats.poisson.logpmf(y, mean)
    second_order = ((1 + y + mean) ** 1.5 / r) ** 2
    assert abs(gap - ((y - mean) ** 2 - y) / (2 * r)) <= 1e-11 * (1 + y + mean) + second_order


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
    truth = torch.tensor([float(exact(*v)) for v in zip(*full)], dtype=torch.float32)
    assert_close(value.reshape(-1), truth)


# --- the gradients -------------------------------------------------------------------------------


@quick
@given(COUNTS, SIZES, MEANS)
def test_gradients_against_50_digit_derivatives(y, r, mean):
    "To 1e-8 of the size of the parts that cancel, y + r(1 + |l|)."
    log_r, l = f64(math.log(r)).requires_grad_(), f64(math.log(mean / r)).requires_grad_()
    found = torch.autograd.grad(log_nb(f64(float(y)), log_r.exp(), l), (log_r, l))
    with mpmath.workdps(50):
        r_, l_ = mpmath.exp(mpmath.mpf(log_r.item())), mpmath.mpf(l.item())
        truth = (
            r_ * (mpmath.digamma(y + r_) - mpmath.digamma(r_) - mpmath.log1p(mpmath.exp(l_))),
            y - (y + r_) / (1 + mpmath.exp(-l_)),
        )
    for value, expected in zip(found, truth):
        assert abs(value.item() - float(expected)) <= 1e-8 * (1 + y + r * (1 + abs(l.item())))


@few
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-8, 8))
def test_gradients_against_finite_differences(y, r, l):
    log_r, l = f64(math.log(r)).requires_grad_(), f64(l).requires_grad_()
    y, step = f64(float(y)), 1e-5
    found = torch.autograd.grad(log_nb(y, log_r.exp(), l), (log_r, l))

    @torch.no_grad()
    def quotient_along(i, j):
        above = log_nb(y, (log_r + i * step).exp(), l + j * step)
        below = log_nb(y, (log_r - i * step).exp(), l - j * step)
        return (above - below) / (2 * step)

    quotients = quotient_along(1, 0), quotient_along(0, 1)
    for value, quotient in zip(found, quotients):
        assert abs(value - quotient) <= 1e-6 * (1 + y + r * (1 + l.abs()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_the_extremes(dtype):
    y = torch.tensor([0, 1, 2, 1e6])
    r = torch.tensor([1e-37, 1e-10, 1, 1e4, 3.3e6, 1e12])
    l = torch.tensor([-40.0, -1, 0, 1, 40])
    y, r, l = torch.meshgrid(y, r, l, indexing="ij")
    r, l = r.to(dtype).requires_grad_(), l.to(dtype).requires_grad_()
    value = log_nb(y.to(dtype), r, l)
    for t in (value, *torch.autograd.grad(value.sum(), (r, l))):
        assert t.isfinite().all()


# --- the sum over genes --------------------------------------------------------------------------


def sums(f, log_r, logits, y, upstream):
    inputs = [t.clone().requires_grad_() for t in (log_r, logits)]
    value = f(*inputs, y)
    return [value.detach(), *torch.autograd.grad((upstream * value).sum(), inputs)]


def dense(log_r, logits, y):
    return log_nb(y, log_r.exp(), logits).sum(-1)


def random_case(seed, M, N, G, share, largest=50, leading=True):
    g = torch.Generator().manual_seed(seed)
    shape = (M, N, G) if leading else (N, G)
    log_r, logits = (3 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(1, largest + 1, (N, G), generator=g)
    y = y * (torch.rand(N, G, generator=g) < share)
    return log_r, logits, y.double(), torch.randn(shape[:-1], generator=g, dtype=torch.float64)


@quick
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 2, 50]),
    st.booleans(),
)
def test_sparse_equals_dense(seed, M, N, G, share, largest, leading):
    "Value and gradients; counts all zero, all positive, all ones; one gene; no axis of draws."
    case = random_case(seed, M, N, G, share, largest, leading)
    for found, expected in zip(sums(nb_log_lik, *case), sums(dense, *case)):
        assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_sparse_equals_dense_at_extreme_values():
    axes = f64([0, 1, 2, 1e6]), f64([-15, -1, 0, 2.7, 2.8, 15]), f64([-40, -1, 0, 1, 40])
    y, log_r, l = torch.cartesian_prod(*axes).T[:, None]
    found, expected = (sums(f, log_r, l, y, f64([1.0])) for f in (nb_log_lik, dense))
    for a, b in zip(found, expected):
        assert a.isfinite().all() and torch.allclose(a, b, rtol=1e-9, atol=1e-7)


def test_sparse_with_one_r_per_gene_and_with_strided_inputs():
    log_r, logits, y, upstream = random_case(0, 3, 4, 5, 0.5)
    per_gene = (log_r[0, 0], logits, y, upstream)
    for a, b in zip(sums(nb_log_lik, *per_gene), sums(dense, *per_gene)):
        assert_close(a, b, rtol=1e-10, atol=1e-10)

    def strided(*tensors):
        return nb_log_lik(*(t.mT.contiguous().mT for t in tensors))

    case = (log_r, logits, y, upstream)
    for a, b in zip(sums(strided, *case), sums(dense, *case)):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_sparse_gradient_survives_single_precision_at_large_r():
    "In single precision r ψ(y+r) - r ψ(1+r) at r = e^15 would be wrong by whole units."
    log_r, y = torch.full((1, 1, 6), 14.5), torch.tensor([[0.0, 1, 2, 3, 10, 100]])
    logits = (y.clamp(min=1).log() - log_r).clone()
    found = sums(nb_log_lik, log_r, logits, y, torch.ones(1, 1))
    expected = sums(dense, log_r.double(), logits.double(), y, torch.ones(1, 1))
    for a, b in zip(found, expected):
        assert_close(a.double(), b, rtol=1e-5, atol=2e-4)


def test_sparse_refuses_a_second_derivative():
    log_r, logits, y, _ = random_case(0, 1, 2, 3, 0.5)
    logits.requires_grad_()
    value = nb_log_lik(log_r, logits, y).square().sum()
    (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --- the heads -----------------------------------------------------------------------------------


def heads_and_batch(M=3, N=4, H=6, G=5, of_mean=False):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = torch.poisson(torch.rand(N, G) * 3)
        return NBHeads(H, G, of_mean).double(), torch.randn(M, N, H).double(), y.double()


@pytest.mark.parametrize("of_mean", [False, True])
def test_heads_agree_with_log_nb_and_with_its_gradients(of_mean):
    heads, h, y = heads_and_batch(of_mean=of_mean)
    s = f64([[0.2], [1.0], [3.0], [10.0]])
    inputs = [h.requires_grad_(), *heads.parameters()]
    sparse, fused = heads.log_prob(h, y, s), heads.log_prob(h, y, s, impl="fused")
    dense = log_nb(y, *heads(h, s)).sum(-1)
    results = []
    for value in (sparse, fused, dense):
        assert value.shape == (3, 4)
        results.append([value.detach(), *torch.autograd.grad(value.mean(), inputs)])
    for a, *others in zip(*results):
        for b in others:
            assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_head_of_the_mean_gives_the_mean_whatever_r_is():
    heads, h, y = heads_and_batch(of_mean=True)
    s = f64([[0.2], [1.0], [3.0], [10.0]])
    mean = (h @ heads.log_mean.weight.T + heads.log_mean.bias).exp()
    assert_close(nb_mean(*heads(h)), mean)
    assert_close(nb_mean(*heads(h, s)), s * mean)
    with torch.no_grad():
        heads.log_r.bias += 1
    assert_close(nb_mean(*heads(h)), mean)
    assert not hasattr(heads, "logits") and heads.mean_or_logits is heads.log_mean


@pytest.mark.parametrize("level", [-1e6, -300, -15.5, 0, 15.5, 300, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_of_the_mean_gives_the_mean_where_log_r_is_clamped_too(level, dtype):
    heads, h, y = heads_and_batch(of_mean=True)
    s, heads, h = (
        torch.tensor([[0.2], [1.0], [3.0], [10.0]], dtype=dtype),
        heads.to(dtype),
        h.to(dtype),
    )
    with torch.no_grad():
        heads.log_r.bias.fill_(level)
        heads.log_r.weight.mul_(0.1)
    log_mean = heads.log_mean(h)
    tolerance = dict(rtol=1e-5, atol=0) if dtype == torch.float32 else dict(rtol=1e-12, atol=0)
    assert_close(nb_mean(*heads(h)), log_mean.exp(), **tolerance)
    assert_close(nb_mean(*heads(h, s)), s * log_mean.exp(), **tolerance)


@pytest.mark.parametrize("level", [-40, -15, 0, 15, 40])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_three_forms_agree_about_a_head_of_the_mean_around_the_clamp(level, reduction):
    "Some log r of a tile beyond it and some not; by definition of P at the clamped r and the mean."
    heads, h, y = heads_and_batch(of_mean=True)
    with torch.no_grad():
        heads.log_r.bias.copy_(level + torch.arange(5.0) - 2)
    inputs = [h.requires_grad_(), *heads.parameters()]
    clamped = F.linear(h, heads.log_r.weight, heads.log_r.bias).clamp(-15, 15)
    expected = log_nb(y, clamped.exp(), heads.log_mean(h) - clamped).sum(-1)
    expected = expected.mean() if reduction == "mean" else expected
    expected_slopes = torch.autograd.grad(expected.sum(), inputs)
    for impl in ("dense", "sparse", "fused"):
        value = heads.log_prob(h, y, impl=impl, reduction=reduction)
        assert_close(value, expected, rtol=1e-10, atol=1e-10)
        for a, b in zip(torch.autograd.grad(value.sum(), inputs), expected_slopes):
            assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("of_mean", [False, True])
@pytest.mark.parametrize("zero", [True, False])
def test_weights_of_log_r_are_left_out_only_where_they_rest_at_zero(of_mean, zero):
    heads, h, y = heads_and_batch(of_mean=of_mean)
    heads.log_r.weight.requires_grad_(False).mul_(not zero)
    assert heads.r_of_gene == zero
    inputs = [h.requires_grad_(), *(p for p in heads.parameters() if p.requires_grad)]
    results = []
    for impl in ("dense", "fused"):
        value = heads.log_prob(h, y, impl=impl, reduction="mean")
        results.append([value.detach(), *torch.autograd.grad(value, inputs)])
    for a, b in zip(*results):
        assert_close(a, b, rtol=1e-10, atol=1e-10)
    heads.log_r.weight.requires_grad_(True)
    assert not heads.r_of_gene


@pytest.mark.parametrize("of_mean", [False, True])
def test_decay_shrinks_weights_and_never_turns_them_round(of_mean):
    heads, _, _ = heads_and_batch(of_mean=of_mean)
    before = {name: p.detach().clone() for name, p in heads.named_parameters()}
    heads.decay(0.5)
    for name, p in heads.named_parameters():
        assert_close(p, before[name] * (math.exp(-0.5) if name.endswith("weight") else 1))
    heads.log_r.weight.requires_grad_(False)  # rests: nothing moves it
    at_rest = heads.log_r.weight.clone()
    heads.decay(1e6)
    assert heads.log_r.weight.equal(at_rest)
    assert (heads.mean_or_logits.weight == 0).all()


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
    with torch.no_grad():
        heads.log_r.bias.fill_(sign * 1e4), heads.logits.bias.fill_(sign * 40)
    value = heads.log_prob(h.float().requires_grad_(), y.float())
    value.sum().backward()
    assert value.isfinite().all() and heads(h.float())[0].isfinite().all()
    assert all(p.grad.isfinite().all() for p in heads.parameters())


def test_global_random_state_is_left_alone():
    heads, h, y = heads_and_batch()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    heads.log_prob(h, y), heads(h)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


# --- the fused form ------------------------------------------------------------------------------


def gradients(heads, h, y, weight=None, **options):
    "[value, gradients of h and all parameters] of sum(weight * log_prob)."
    h = h.detach().clone().requires_grad_()
    value = heads.log_prob(h, y, **options)
    total = value.sum() if weight is None else (weight * value).sum()
    return [value.detach(), *torch.autograd.grad(total, [h, *heads.parameters()])]


def fused_case(seed, M, N, H, G, share=0.5, spread=3.0, largest=40):
    "Heads whose log r now and then leaves ±15, counts on both sides of the largest small count."
    g = torch.Generator().manual_seed(seed)
    heads = NBHeads(H, G).double()
    with torch.no_grad():
        for p in heads.parameters():
            p.copy_(spread * torch.randn(p.shape, generator=g))
        # softplus of torch is x above 20, its derivative 1: the dense form then errs by 2e-9
        for p in heads.logits.parameters():
            p.mul_(0.2)
    y = torch.randint(1, largest + 1, (N, G), generator=g)
    y = y * (torch.rand(N, G, generator=g) < share)
    h, s = torch.randn(M, N, H, generator=g).double(), 0.2 + torch.rand(N, 1, generator=g).double()
    return heads, h, y.double(), s, torch.randn(M, N, generator=g).double()


@quick
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1, 3, 40, 10**6]),
    st.integers(1, 10),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "mean"]),
)
def test_fused_equals_dense(seed, M, N, H, G, share, largest, tile, sized, sparse, reduction):
    "Value and every gradient in float64, for tiles that do and do not divide the genes."
    heads, h, y, s, weight = fused_case(seed, M, N, H, G, share, largest=largest)
    options = dict(size_factor=s if sized else None, reduction=reduction)
    weight = weight if reduction == "none" else f64(-1.7)
    expected = gradients(heads, h, y, weight, impl="dense", **options)
    with mock.patch.multiple(nb_heads, TILE_ENTRIES=tile * M * N, TILE_GENES=1):
        counts = y.to_sparse_csr() if sparse else y
        found = gradients(heads, h, counts, weight, impl="fused", **options)
    for a, b in zip(found, expected):
        # small gradients are differences of large terms: relative to what is summed
        assert_close(a, b, rtol=1e-10, atol=1e-10 * (1 + b.abs().max().item() + largest * N * M))


def test_fused_equals_dense_to_1e10_of_each_norm_on_a_plain_case():
    heads, h, y, s, weight = fused_case(3, 3, 7, 12, 50, share=0.2, spread=0.4)
    for reduction, w in (("none", weight), ("mean", f64(2.0))):
        options = dict(size_factor=s, reduction=reduction)
        fused = gradients(heads, h, y, w, impl="fused", **options)
        for a, b in zip(fused, gradients(heads, h, y, w, impl="dense", **options)):
            assert (a - b).norm() <= 1e-10 * b.norm()


def test_clamped_log_r_has_no_gradient():
    heads, h, y, _, _ = fused_case(0, 2, 3, 4, 6, spread=0.1)
    with torch.no_grad():
        heads.log_r.bias.copy_(f64([20.0, -20, 0, 0, 16, 0]))
    _, _, w_r, b_r, w_l, _ = gradients(heads, h, y, impl="fused", reduction="mean")
    clamped = torch.tensor([True, True, False, False, True, False])
    assert (w_r[clamped] == 0).all() and (b_r[clamped] == 0).all()
    assert (w_r[~clamped] != 0).all() and (w_l[0] != 0).any()


def test_counts_that_are_not_whole_and_stored_zeros():
    heads, h, y, _, weight = fused_case(1, 2, 3, 4, 6, share=1.0)
    y = y + f64([0.5, -0.25, 0, 0, 1e5, 0])
    y[1] = 0
    starts, columns = torch.tensor([0, 6, 12, 18]), torch.arange(6).repeat(3)
    stored = torch.sparse_csr_tensor(starts, columns, y.flatten(), y.shape, check_invariants=True)
    expected = gradients(heads, h, y, weight, impl="dense")
    for counts in (y, stored):
        for a, b in zip(gradients(heads, h, counts, weight, impl="fused"), expected):
            assert_close(a, b, rtol=1e-10, atol=1e-6)
    tiled = nb_heads.tile_counts(stored, 4)
    assert len(tiled.value) == 12 and (tiled.value != 0).all()  # stored zeros cost nothing


def seed_like(N=32, M=4, H=100, G=900):
    "Float32 heads as initialised, a batch with 9 % non-zeros, the mean's float64 gradient."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads, h = NBHeads(H, G), torch.randn(M, N, H)
        y = (1 + torch.poisson(torch.full((N, G), 1.5))) * (torch.rand(N, G) < 0.09)
    double = copy.deepcopy(heads).double()
    _, *exact = gradients(double, h.double(), y, impl="dense", reduction="mean")
    return heads, h, y, exact


@pytest.mark.parametrize(
    "impl, dtype, bound",
    [
        ("dense", torch.float32, 1e-5),
        ("sparse", torch.float32, 1e-5),
        ("fused", torch.float32, 1e-5),
        ("fused", torch.bfloat16, 1e-2),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_distance_to_the_float64_gradient(impl, dtype, bound, reduction):
    heads, h, y, exact = seed_like()
    weight = torch.tensor(1.0)
    if reduction == "none":
        weight = torch.full(h.shape[:2], 1 / (len(h) * len(y)))
    value, *found = gradients(heads, h, y, weight, impl=impl, dtype=dtype, reduction=reduction)
    assert all(g.dtype == torch.float32 for g in found)
    for a, b in zip(found, exact):
        assert (a - b).norm() <= bound * b.norm()
    reference = heads.double().log_prob(h.double(), y, impl="dense")
    if reduction == "mean":
        reference = reference.mean()
    assert ((value - reference).abs() / reference.abs()).max() < bound


def test_bfloat16_rounds_the_products_only():
    "With h = 0 all that is left are the biases, which keep single precision."
    heads, h, y, _ = seed_like()
    for hidden, same in ((0 * h, True), (h, False)):
        exact = heads.log_prob(hidden, y, impl="fused", dtype=torch.float32)
        rounded = heads.log_prob(hidden, y, impl="fused", dtype=torch.bfloat16)
        assert torch.equal(exact, rounded) == same


def test_the_default_is_the_sparse_form_to_the_last_bit():
    heads, h, y, _ = seed_like()
    s = torch.linspace(0.5, 2, len(y))[:, None]
    assert torch.equal(heads.log_prob(h, y, s), nb_log_lik(*heads.log_params(h, s), y))
    sparse = gradients(heads, h, y, impl="sparse", reduction="none")
    for a, b in zip(gradients(heads, h, y), sparse):
        assert torch.equal(a, b)


def test_mean_is_the_mean_and_other_leading_axes_are_kept():
    heads, h, y, s, _ = fused_case(2, 6, 3, 4, 5)
    exactly = dict(rtol=1e-12, atol=0)
    for impl in ("dense", "sparse", "fused"):
        value = heads.log_prob(h, y, s, impl=impl)
        mean = heads.log_prob(h, y, s, impl=impl, reduction="mean")
        assert_close(mean, value.mean(), **exactly)
        four_axes = heads.log_prob(h.view(2, 3, 3, 4), y, s, impl=impl)
        assert_close(four_axes, value.view(2, 3, 3), **exactly)
        assert_close(heads.log_prob(h[0], y, s, impl=impl), value[0], **exactly)


def test_fused_twice_backward_second_order_and_without_gradients():
    heads, h, y, _, _ = fused_case(4, 2, 3, 4, 5)
    h.requires_grad_()
    for reduction in ("none", "mean"):
        options = dict(impl="fused", reduction=reduction)
        value = heads.log_prob(h, y, **options).sum()
        once = torch.autograd.grad(value, h, retain_graph=True)[0]
        assert torch.equal(once, torch.autograd.grad(value, h, retain_graph=True)[0])
        (first,) = torch.autograd.grad(value.square(), h, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
        with torch.no_grad():
            assert torch.equal(value, heads.log_prob(h, y, **options).sum())


@pytest.mark.parametrize(
    "options",
    [
        dict(reduction="none"),
        dict(reduction="mean"),
        dict(reduction="mean", M_heads=1),
        dict(reduction="mean", M_heads=2),
    ],
    ids=str,
)
def test_autocast_does_not_choose_the_precision_of_the_fused_form(options):
    heads, h, y, _ = seed_like()
    plain = gradients(heads, h, y, impl="fused", **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(heads, h, y, impl="fused", **options)
    for a, b in zip(plain, cast):
        assert torch.equal(a, b)


@pytest.mark.parametrize("M_heads", [1, 2, 3, 4])
@pytest.mark.parametrize("tile", [2, 5])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-10), (torch.bfloat16, 1e-2)])
def test_partitioned_draws_are_unbiased(M_heads, tile, dtype, bound):
    "Averaged over the 4 places where the draws can begin, value and gradients are the mean's."
    heads, h, y, s, _ = fused_case(5, 4, 4, 6, 11, spread=0.4)
    options = dict(size_factor=s, reduction="mean")
    expected, found = gradients(heads, h, y, impl="dense", **options), []
    options |= dict(impl="fused", M_heads=M_heads, dtype=dtype)
    for i in range(4):
        with mock.patch.multiple(nb_heads, TILE_ENTRIES=tile * M_heads * 4, TILE_GENES=1):
            value, d_h, *d_weights = gradients(heads, h.roll(i, 0), y, **options)
        found.append([value, d_h.roll(-i, 0), *d_weights])
    for estimates, b in zip(zip(*found), expected):
        assert (sum(estimates) / 4 - b).norm() <= bound * b.norm()
        if M_heads < 4:
            assert (estimates[0] - b).norm() > 1e-3 * b.norm()  # one alone is an estimate


@quick
@given(st.integers(0, 10**6), st.integers(1, 6), st.data(), st.integers(1, 9), st.integers(1, 4))
def test_partitioned_heads_are_those_of_each_tile_with_its_own_draws(seed, M, data, G, tile):
    "Value and gradients of tile after tile, each by the dense form from the draws it sees."
    M_heads = data.draw(st.integers(1, M))
    heads, h, y, s, _ = fused_case(seed, M, 3, 4, G, spread=0.4)
    options = dict(impl="fused", reduction="mean", size_factor=s, M_heads=M_heads)
    with mock.patch.multiple(nb_heads, TILE_ENTRIES=tile * M_heads * 3, TILE_GENES=1):
        found = gradients(heads, h, y, **options)
    tile = min(tile, G, math.ceil(G / M))
    h = h.requires_grad_()
    total = 0
    for k, start in enumerate(range(0, G, tile)):
        genes = slice(start, start + tile)
        draws = [(k * M_heads + j) % M for j in range(M_heads)]
        log_r, logits = (t[..., genes] for t in heads.log_params(h[draws], s))
        total = total + log_nb(y[:, genes], log_r.exp(), logits).sum(-1).mean()
    for a, b in zip(found, [total, *torch.autograd.grad(total, [h, *heads.parameters()])]):
        assert_close(a, b, rtol=1e-10, atol=1e-10 * (1 + b.abs().max().item() + 40 * 3 * M))


def test_partition_is_balanced_and_takes_no_random_numbers():
    for M, M_heads, n_tiles in ((10, 1, 30), (10, 3, 10), (4, 4, 5)):
        seen = nb_heads.partition(M, M_heads, n_tiles)
        assert (seen.flatten().bincount(minlength=M) == n_tiles * M_heads // M).all()
        assert all(len(set(row)) == M_heads for row in seen.tolist())
    heads, h, y, _, _ = fused_case(5, 3, 4, 6, 11)
    before = torch.get_rng_state()
    values = [heads.log_prob(h, y, impl="fused", reduction="mean", M_heads=1) for _ in range(2)]
    assert values[0] == values[1] and torch.equal(before, torch.get_rng_state())


class Sizes(TorchDispatchMode):
    "Entries of the largest tensor that any operation returns."

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.numel())
        return result


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_makes_no_tensor_of_draws_cells_and_genes(reduction, dtype):
    heads, _, y, _ = seed_like()
    h = torch.randn(8, len(y), 100, generator=torch.Generator().manual_seed(0))
    entries = h.shape[0] * y.numel()
    weights, tile = 2 * 900 * 100, 2 * 2**13
    with mock.patch.multiple(nb_heads, TILE_ENTRIES=2**13, TILE_GENES=16):
        with Sizes() as dense:
            gradients(heads, h, y, impl="dense", reduction=reduction)
        with Sizes() as fused:
            gradients(heads, h, y, impl="fused", dtype=dtype, reduction=reduction)
    assert dense.largest >= entries
    assert fused.largest <= max(weights, tile) < entries


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes is Linux")
def test_fused_memory_is_flat_in_the_number_of_draws():
    """Peak resident memory of a fresh process.

    One (M, N, G) tensor at M = 32 takes 33 MB, h and its gradient 0.5 MB.
    """
    script = textwrap.dedent("""
        import resource, torch
        from gmvae_nb.nb_heads import NBHeads
        def peak(impl, M, G=4000, N=64, H=64):
            heads, y = NBHeads(H, G), (torch.rand(N, G) < 0.09).float()
            h = torch.randn(M, N, H, requires_grad=True)
            heads.log_prob(h, y, impl=impl, reduction="mean").backward()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for impl in ("dense", "fused"):
            peak(impl, 1, 50)  # libraries are loaded
        cases = ("fused", 4), ("fused", 4), ("fused", 32), ("dense", 32)
        print(*(peak(*case) for case in cases))
    """)
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, few, many, dense = (int(v) for v in run.stdout.split())
    assert many - few < 10e6 and dense - many > 150e6, run.stdout


NOT_POSITIVE = f64([[1.0], [0.0], [1.0], [1.0]])
NOT_FINITE = f64([[1.0], [math.nan], [1.0], [1.0]]), f64([[1.0], [math.inf], [1.0], [1.0]])
COUNTS_OF_ANOTHER_SHAPE = r"shape \(3, 5\), expected \(cells, genes\) = \(4, 5\)"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(y=lambda y: y[:-1]), COUNTS_OF_ANOTHER_SHAPE),
        (dict(y=lambda y: y[:-1], impl="fused"), COUNTS_OF_ANOTHER_SHAPE),
        (dict(y=lambda y: y[:, :-1]), r"found counts of shape \(4, 4\)"),
        (dict(y=lambda y: y[None]), r"found counts of shape \(1, 4, 5\)"),
        (dict(y=torch.Tensor.to_sparse_coo, impl="fused"), "layout torch.sparse_coo, expected a"),
        (
            dict(impl="quick"),
            r"impl: found 'quick', expected one of \('dense', 'sparse', 'fused'\)",
        ),
        (dict(reduction="sum"), "reduction: found 'sum', expected one of"),
        (dict(dtype=torch.float16, impl="fused"), "dtype: found torch.float16, expected one of"),
        (dict(dtype=torch.bfloat16), "torch.bfloat16 needs impl=\"fused\", found 'sparse'"),
        (dict(size_factor=torch.ones(3, 1), impl="fused"), r"size_factor: found shape \(3, 1\)"),
        (dict(size_factor=NOT_POSITIVE, impl="fused"), "zero, negative or not finite"),
        (dict(size_factor=torch.ones(4, 1).requires_grad_(), impl="fused"), "requires a gradient"),
        (dict(M_heads=1, impl="fused"), 'needs impl="fused" and reduction="mean", found'),
        (dict(M_heads=4, impl="fused", reduction="mean"), "M_heads: found 4, expected 1 to M = 3"),
    ],
)
def test_bad_arguments_of_log_prob_are_named(options, message):
    heads, h, y = heads_and_batch()
    options = dict(options)
    y = options.pop("y", lambda y: y)(y)
    with pytest.raises(ValueError, match=message):
        heads.log_prob(h, y, **options)


@pytest.mark.parametrize(
    "size_factor, message",
    [
        (torch.ones(4), r"found shape \(4,\), expected one per cell, \(4, 1\)"),
        (torch.ones(1, 5), "size_factor: found shape"),
        (NOT_POSITIVE, "size_factor: found a value that is zero"),
        *((s, "size_factor: found a value") for s in NOT_FINITE),
    ],
)
def test_bad_size_factors_are_named(size_factor, message):
    heads, h, _ = heads_and_batch()
    with pytest.raises(ValueError, match=message):
        heads(h, size_factor)


def test_bad_widths_are_named():
    message = "n_hidden and n_genes must be at least 1, found 0 and 5"
    with pytest.raises(ValueError, match=message):
        NBHeads(0, 5)


# --- the old address ------------------------------------------------------------------------------


def test_the_old_name_of_the_head_beside_log_r():
    heads, _, _ = heads_and_batch(of_mean=True)
    with pytest.warns(DeprecationWarning, match="mean_or_logits") as warned:
        assert heads.second is heads.log_mean
    assert len(warned) == 1 and warned[0].filename == __file__


def test_what_never_was_there_is_an_attribute_error():
    assert not hasattr(nb_likelihood, "tiles") and not hasattr(nb_likelihood, "LOG_R_MAX")


def test_the_likelihood_loads_without_the_heads():
    script = "import sys, gmvae_nb.nb_likelihood; print('gmvae_nb.nb_heads' in sys.modules)"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
