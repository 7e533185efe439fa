"""Log-densities by matrix products, with gradients written by hand, against the plain formula."""

import pytest
import torch
from gmvae_nb.gaussian_products import (
    ExpectedLogProbs,
    by_draw_of_w,
    component_terms,
    expected_log_probs,
    square_norm,
)
from gmvae_nb.vae import gaussian_log_prob, kl_gaussians
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

NAMES = ("x", "x_mean", "x_log_std", "means", "log_stds")
DRAWS = [(6, 6), (6, 3), (6, 2), (6, 1), (4, 2), (1, 1), (6, None)]  # M, M_w; None: without w
sizes = st.tuples(*(st.integers(1, n) for n in (5, 6, 7)))  # N, K, D
scales = st.sampled_from([1e-3, 0.3, 1.0, 4.0])


def random_case(M, M_w, N, K, D, scale=1.0, seed=0, dtype=torch.float64):
    "x, x_mean, x_log_std, means, log_stds; `M_w` None: one set of components for all cells."
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x_mean, x_log_std = scale * rand(N, D), 0.5 * rand(N, D)
    x = x_mean + x_log_std.exp() * rand(M, N, D)
    shape = (1, 1, K, D) if M_w is None else (M_w, N, K, D)
    case = [x, x_mean, x_log_std, scale * rand(*shape), 0.5 * rand(*shape)]
    return [t.to(dtype).requires_grad_() for t in case]


def repeated(t, M, N):
    "Components as they belong to each draw and cell, (M, N, K, D), without repeat_interleave."
    draws = [t[m * len(t) // M] for m in range(M)]
    return torch.stack(draws).expand(-1, N, -1, -1)


def plain_terms(x, x_mean, x_log_std, means, log_stds):
    M, N, _ = x.shape
    log_p = gaussian_log_prob(x.unsqueeze(-2), repeated(means, M, N), repeated(log_stds, M, N))
    kl_k = kl_gaussians(x_mean.unsqueeze(-2), x_log_std.unsqueeze(-2), means, log_stds)
    return log_p, kl_k


def grads_of(outputs, inputs):
    "Gradients of sums in which every number has a weight of its own."
    total = 0
    for out in outputs:
        weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).to(out.dtype)
        total = total + (out * weights.view_as(out)).sum()
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DRAWS), sizes, scales, st.integers(0, 9))
def test_values_and_gradients_are_those_of_the_plain_formula(draws, shape, scale, seed):
    case = random_case(*draws, *shape, scale, seed)
    ours, theirs = component_terms(*case), plain_terms(*case)
    for a, b in zip(ours, theirs):
        assert_close(a, b, rtol=1e-8, atol=1e-8 * (1 + b.abs().max().item()))
    for a, b in zip(grads_of(ours, case), grads_of(theirs, case)):
        assert_close(a, b, rtol=1e-6, atol=1e-7 * (1 + b.abs().max().item()))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DRAWS), sizes, st.booleans())
def test_the_expectation_is_the_density_less_half_the_spread_in_units_of_the_component(
    draws, shape, spread
):
    x, _, _, means, log_stds = random_case(*draws, *shape)
    M, N, _ = x.shape
    means_, log_stds_ = repeated(means, M, N), repeated(log_stds, M, N)
    var = torch.rand(x.shape, dtype=torch.float64).requires_grad_() if spread else None
    expected = gaussian_log_prob(x.unsqueeze(-2), means_, log_stds_)
    if spread:
        expected = expected - 0.5 * (var.unsqueeze(-2) / log_stds_.exp() ** 2).sum(-1)
    inputs = [x, means, log_stds] + [var] * spread
    ours = expected_log_probs(x, var, means, log_stds)
    assert_close(ours, expected)
    for a, b in zip(grads_of([ours], inputs), grads_of([expected], inputs)):
        assert_close(a, b, rtol=1e-6, atol=1e-7 * (1 + b.abs().max().item()))


def test_hand_written_gradients_are_those_of_numerical_differences():
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4), (2, 3, 4), (2, 5, 4), (2, 5, 4)]  # a, b, means, log_stds
    inputs = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(ExpectedLogProbs.apply, inputs)


def test_gradients_of_the_gradients_are_refused():
    x, _, _, means, log_stds = random_case(2, 1, 3, 2, 2)
    out = expected_log_probs(x, None, means, log_stds).square().sum()
    (grad,) = torch.autograd.grad(out, means, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("M_w", [10, 2, 1, None])
@pytest.mark.parametrize("shift", [0.0, 8.0])
def test_components_in_single_precision_against_double(M_w, shift):
    "Values and gradients to 1e-5 of their norm at the seed's sizes, also far from the origin."
    case = [t.detach() for t in random_case(10, M_w, 16, 20, 80)]
    for name, t in zip(NAMES, case):
        if name in ("x", "x_mean", "means"):
            t += shift
    results = []
    for dtype in (torch.float64, torch.float32):
        inputs = [t.to(dtype).requires_grad_() for t in case]
        log_p, kl_k = component_terms(*inputs)
        loss = log_p.log_softmax(-1)[..., 0].sum() + kl_k.log().sum()
        results.append([log_p, kl_k, *torch.autograd.grad(loss, inputs)])
    for exact, single in zip(*results):
        assert (single - exact).norm() < 1e-5 * exact.norm()


def test_draws_of_x_go_to_their_draw_of_w_in_order():
    assert by_draw_of_w(torch.arange(6), 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert by_draw_of_w(torch.zeros(6, 5, 4), 3).shape == (3, 2, 5, 4)
    with pytest.raises(
        ValueError,
        match="6 draws of x cannot be shared out among 4 draws of w; take a divisor of 6",
    ):
        by_draw_of_w(torch.arange(6), 4)


def test_square_norm_is_a_sum_of_squares_and_leaves_its_argument_alone():
    t = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert_close(square_norm(t), torch.tensor([25.0, 4.0]))
    assert t.tolist() == [[3, 4], [0, -2]]
