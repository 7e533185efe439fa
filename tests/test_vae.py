"""Properties of the plain VAE's formulas over random shapes and extreme values; its parts."""

import math

import hypothesis.extra.numpy as hnp
import pytest
import torch
import torch.distributions as td
from gmvae_nb.vae import (
    MLP,
    VAE,
    Dropout,
    GaussianHead,
    gaussian_log_prob,
    kl_gaussians,
    kl_standard_normal,
    reparametrize,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)

MEANS = st.floats(-1e3, 1e3, width=32)
LOG_STDS = st.floats(-8, 8, width=32)


@st.composite
def gaussians(draw, n_pairs: int) -> list[torch.Tensor]:
    "`n_pairs` of (mean, log_std) in float64; shapes broadcast: leading axes are 1 or missing."
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    out = []
    for elements in [MEANS, LOG_STDS] * n_pairs:
        lead = [draw(st.sampled_from([1, side])) for side in shape[:-1]]
        lead = lead[draw(st.integers(0, len(lead))) :]
        values = draw(hnp.arrays("float64", (*lead, shape[-1]), elements=elements))
        out.append(torch.tensor(values))
    return out


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the density ----------------------------------------------------------------------------------


@quick
@given(gaussians(2))
def test_log_prob_is_that_of_torch_distributions(tensors):
    x, _, mean, log_std = tensors
    x, mean = x / 100, mean / 100
    expected = td.Normal(mean, log_std.exp()).log_prob(x).sum(-1)
    assert_close(gaussian_log_prob(x, mean, log_std), expected, rtol=1e-9, atol=1e-9)


@quick
@given(st.floats(-5, 5), st.floats(-2, 1))
def test_log_prob_integrates_to_one(mean, log_std):
    grid = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    mean, log_std = (torch.tensor([v], dtype=torch.float64) for v in (mean, log_std))
    log_p = gaussian_log_prob(grid[:, None], mean, log_std)
    assert abs(torch.trapezoid(log_p.exp(), grid) - 1) < 1e-9


def test_log_prob_gradients():
    x, mean, log_std = (normal(3, 4, seed=i).requires_grad_() for i in range(3))
    assert torch.autograd.gradcheck(gaussian_log_prob, (x, mean, log_std))


# --- the divergences ------------------------------------------------------------------------------


@quick
@given(gaussians(2))
def test_kl_is_that_of_torch_distributions(tensors):
    mean_q, log_std_q, mean_p, log_std_p = tensors
    q, p = td.Normal(mean_q, log_std_q.exp()), td.Normal(mean_p, log_std_p.exp())
    expected = td.kl_divergence(q, p).sum(-1)
    # torch subtracts 1 and a logarithm from a ratio of variances: digits are lost where they cancel
    assert_close(kl_gaussians(*tensors), expected, rtol=1e-9, atol=1e-9)


@quick
@given(gaussians(1))
def test_kl_standard_normal_is_the_special_case(tensors):
    mean, log_std = tensors
    zero = torch.zeros(mean.shape[-1], dtype=torch.float64)
    general = kl_gaussians(mean, log_std, zero, zero)
    assert_close(kl_standard_normal(mean, log_std), general, rtol=1e-12, atol=1e-12)
    expected = td.kl_divergence(td.Normal(mean, log_std.exp()), td.Normal(0.0, 1.0)).sum(-1)
    assert_close(kl_standard_normal(mean, log_std), expected, rtol=1e-9, atol=1e-9)


@quick
@given(gaussians(2))
def test_kl_is_never_negative(tensors):
    assert (kl_gaussians(*tensors) >= -1e-13).all()
    assert (kl_standard_normal(*tensors[:2]) >= -1e-13).all()


@quick
@given(gaussians(1), st.floats(-30, 30), st.sampled_from([torch.float32, torch.float64]))
def test_kl_of_equals_is_exactly_zero(tensors, shift, dtype):
    mean, log_std = (t.to(dtype) for t in tensors)
    kl = kl_gaussians(mean, log_std + shift, mean, log_std + shift)
    assert torch.equal(kl, torch.zeros_like(kl))


@quick
@given(gaussians(1), st.sampled_from([0, 1]), st.sampled_from([1e-4, -1e-2, 3.0]))
def test_kl_of_unequals_is_positive(tensors, which, change):
    changed = list(tensors)
    unit = torch.zeros_like(tensors[which])
    # a mean moves in units of the spread
    unit[..., 0] = change * (tensors[1].exp().max() if which == 0 else 1)
    changed[which] = tensors[which] + unit
    assume(not torch.equal(changed[which], tensors[which]))
    assert (kl_gaussians(*changed, *tensors) > 0).all()
    assert (kl_gaussians(*tensors, *changed) > 0).all()


@quick
@given(gaussians(2))
def test_kl_broadcasts_like_a_loop(tensors):
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    rows = [t.expand(shape).reshape(-1, shape[-1]) for t in tensors]
    one_by_one = [
        sum(kl_gaussians(*(r[i, d : d + 1] for r in rows)) for d in range(shape[-1]))
        for i in range(len(rows[0]))
    ]
    kl = kl_gaussians(*tensors)
    assert kl.shape == shape[:-1]
    assert_close(kl.reshape(-1), torch.stack(one_by_one), rtol=1e-12, atol=1e-12)


@quick
@given(st.floats(-3, 3), st.floats(-1.5, 1), st.floats(-3, 3), st.floats(-1, 1.5))
def test_kl_and_its_gradients_are_those_of_the_integral(mean_q, log_std_q, mean_p, log_std_p):
    grid = torch.linspace(-60, 60, 40_001, dtype=torch.float64)[:, None]
    values = (mean_q, log_std_q, mean_p, log_std_p)
    tensors = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in values]
    q, p = td.Normal(tensors[0], tensors[1].exp()), td.Normal(tensors[2], tensors[3].exp())
    integrand = q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid))
    integral = torch.trapezoid(integrand[:, 0], grid[:, 0])
    closed = kl_gaussians(*tensors)
    assert_close(closed, integral, rtol=1e-7, atol=1e-7)
    gradients = [torch.autograd.grad(value, tensors) for value in (closed, integral)]
    for ours, theirs in zip(*gradients):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@quick
@given(gaussians(2))
def test_kl_gradients_are_those_of_torch_distributions(tensors):
    def gradients(f):
        leaves = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(f(*leaves).sum(), leaves)

    def reference(mq, sq, mp, sp):
        return td.kl_divergence(td.Normal(mq, sq.exp()), td.Normal(mp, sp.exp())).sum(-1)

    for ours, theirs in zip(gradients(kl_gaussians), gradients(reference)):
        scale = theirs.abs().max().clamp(min=1)
        assert_close(ours / scale, theirs / scale, rtol=1e-9, atol=1e-9)


@quick
@given(gaussians(2), st.floats(-100, 100), st.floats(-3, 3))
def test_kl_does_not_depend_on_origin_or_unit(tensors, shift, log_unit):
    mean_q, log_std_q, mean_p, log_std_p = tensors
    unit = math.exp(log_unit)
    moved_q = (mean_q + shift) * unit, log_std_q + log_unit
    moved_p = (mean_p + shift) * unit, log_std_p + log_unit
    moved = kl_gaussians(*moved_q, *moved_p)
    expected = kl_gaussians(*tensors)
    assert_close(moved, expected, rtol=1e-7, atol=1e-7 * (1 + expected.abs().max().item()))


@quick
@given(st.floats(1e-6, 1e-2), st.sampled_from([1, -1]))
def test_kl_keeps_its_digits_near_zero_in_single_precision(t, sign):
    zero, log_std = torch.zeros(1), torch.tensor([sign * t])
    # KL = s^2 + (2/3) s^3 + ...
    exact = pytest.approx(log_std.double().square().item(), rel=2e-2, abs=3e-7 * t)
    assert kl_standard_normal(zero, log_std).item() == exact
    assert kl_gaussians(zero, log_std, zero, zero).item() == exact


@pytest.mark.parametrize("log_std", [-40.0, -10.0, 10.0, 40.0])
@pytest.mark.parametrize("mean", [0.0, 1e6, -1e6])
def test_extremes_stay_finite_in_single_precision(mean, log_std):
    mean, log_std = (torch.tensor([v]).requires_grad_() for v in (mean, log_std))
    kl = kl_standard_normal(mean, log_std)
    gradients = torch.autograd.grad(kl, (mean, log_std))
    assert torch.isfinite(torch.stack((kl, *(g.sum() for g in gradients)))).all()
    assert kl > 0


# --- the reparametrised draw ----------------------------------------------------------------------


@quick
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_reparametrize_shapes_values_and_gradients(m, n, d, shared):
    mean, log_std = normal(n, d, seed=1).requires_grad_(), normal(n, d, seed=2).requires_grad_()
    eps = normal(m, 1 if shared else n, d, seed=3)
    z = reparametrize(mean, log_std, eps)
    assert z.shape == (m, n, d)
    for i in range(m):
        for j in range(n):
            assert_close(z[i, j], mean[j] + log_std[j].exp() * eps[i, 0 if shared else j])
    assert torch.autograd.gradcheck(lambda a, b: reparametrize(a, b, eps), (mean, log_std))


def test_pathwise_gradient_of_the_divergence_is_the_closed_form():
    "Autograd through draws of log q - log p: the closed form's derivative to 4 standard errors."
    mean_q, mean_p = normal(3, seed=1), normal(3, seed=3)
    log_std_q, log_std_p = 0.3 * normal(3, seed=2), 0.3 * normal(3, seed=4)
    n = 100_000
    leaves = [mean_q.repeat(1, n, 1).requires_grad_(), log_std_q.repeat(1, n, 1).requires_grad_()]
    z = reparametrize(*leaves, normal(1, n, 3, seed=5))
    sampled = gaussian_log_prob(z, *leaves) - gaussian_log_prob(z, mean_p, log_std_p)
    per_draw = torch.autograd.grad(sampled.sum(), leaves)
    exact_leaves = [mean_q.clone().requires_grad_(), log_std_q.clone().requires_grad_()]
    exact = torch.autograd.grad(kl_gaussians(*exact_leaves, mean_p, log_std_p), exact_leaves)
    for draws, value in zip(per_draw, exact):
        assert ((draws[0].mean(0) - value).abs() < 4 * draws[0].std(0) / math.sqrt(n)).all()


# --- building blocks ------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.sampled_from([0.0, 0.05, 0.5]))
def test_mlp_layers_and_their_order(sizes, dropout):
    orders = {False: (nn.GELU, nn.LayerNorm), True: (nn.LayerNorm, nn.GELU)}
    for norm_first, inner in orders.items():
        mlp = MLP(sizes, dropout, norm_first)
        block = [nn.Linear, *inner, Dropout]
        assert [type(layer) for layer in mlp] == block * (len(sizes) - 1)
        linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
        widths = [(layer.in_features, layer.out_features) for layer in linear]
        assert widths == list(zip(sizes, sizes[1:]))
        assert all(layer.p == dropout for layer in mlp if isinstance(layer, Dropout))
        assert mlp.eval()(torch.zeros(2, 3, sizes[0])).shape == (2, 3, sizes[-1])


def test_mlp_defaults_are_those_of_the_text():
    mlp = MLP((4, 3))
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.GELU, nn.LayerNorm, Dropout]
    assert mlp[-1].p == 0.05


def test_mlp_output_moments_tell_the_order():
    x = normal(200, 10).float()
    torch.manual_seed(0)
    norm_last, activation_last = (
        MLP((10, 64), norm_first=first).eval()(x) for first in (False, True)
    )
    assert_close(norm_last.mean(-1), torch.zeros(200), atol=1e-5, rtol=0)
    assert_close(norm_last.var(-1, unbiased=False), torch.ones(200), atol=1e-3, rtol=0)
    assert activation_last.min() > -0.1701 and norm_last.min() < -0.1701


@pytest.mark.parametrize("sizes", [(), (10,), (10, 0), (0, 10), (10, -3)])
def test_mlp_refuses_missing_or_empty_layers(sizes):
    with pytest.raises(ValueError, match="sizes"):
        MLP(sizes)


def test_head_gives_mean_then_log_std():
    head = GaussianHead(5, 3)
    h = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([1.0, 2, 3, -4, -5, -6]))
    mean, log_std = head(h)
    assert mean.shape == log_std.shape == (2, 4, 3)
    assert torch.equal(mean[0, 0], torch.tensor([1.0, 2, 3]))
    assert torch.equal(log_std[1, 3], torch.tensor([-4.0, -5, -6]))


# --- the plain VAE --------------------------------------------------------------------------------


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(12, 3, hidden=(8, 6)).double().eval()


@pytest.fixture
def cells() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.bernoulli(torch.full((5, 12), 0.3, dtype=torch.float64), generator=rng)


def test_vae_architecture_follows_its_arguments():
    vae = VAE(12, 3, hidden=(8, 6), dropout=0.2, norm_first=True)
    widths = [(m.in_features, m.out_features) for m in vae.modules() if isinstance(m, nn.Linear)]
    assert widths == [(12, 8), (8, 6), (6, 6), (3, 6), (6, 8), (8, 12)]
    assert {m.p for m in vae.modules() if isinstance(m, Dropout)} == {0.2}
    assert all(isinstance(block[1], nn.LayerNorm) for block in (vae.encoder, vae.decoder))


def test_vae_terms_are_their_definition(vae, cells):
    eps = normal(4, 5, 3)
    rec, kl = vae.elbo_terms(cells, eps)
    mean, log_std = vae.encode(cells)
    log_lik = td.Bernoulli(logits=vae.decode(mean + log_std.exp() * eps)).log_prob(cells).sum(-1)
    assert_close(rec, -log_lik.mean(0))
    assert_close(kl, td.kl_divergence(td.Normal(mean, log_std.exp()), td.Normal(0.0, 1.0)).sum(-1))
    assert (rec > 0).all() and (kl > 0).all()


def test_vae_shuffled_cells_give_shuffled_terms(vae, cells):
    eps, shuffle = normal(4, 5, 3), torch.tensor([2, 4, 0, 1, 3])
    terms = torch.stack(vae.elbo_terms(cells, eps))
    assert_close(torch.stack(vae.elbo_terms(cells[shuffle], eps[:, shuffle])), terms[:, shuffle])


def test_vae_draws_are_averaged(vae, cells):
    eps = normal(4, 5, 3)
    one_by_one = torch.stack([vae.elbo_terms(cells, e[None])[0] for e in eps])
    assert one_by_one.std(0).min() > 0
    assert_close(vae.elbo_terms(cells, eps)[0], one_by_one.mean(0))


def test_vae_elbo_is_a_lower_bound(cells):
    torch.manual_seed(1)
    vae = VAE(12, 1, hidden=(8, 6)).double().eval()
    grid = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    with torch.no_grad():
        rec, kl = vae.elbo_terms(cells, normal(20_000, 5, 1))
        log_lik = td.Bernoulli(logits=vae.decode(grid[:, None])[:, None]).log_prob(cells).sum(-1)
        joint = log_lik + td.Normal(0.0, 1.0).log_prob(grid)[:, None]
        log_px = torch.trapezoid(joint.exp().T, grid).log()
    assert (-(rec + kl) < log_px).all()
    # near enough to tell a wrong sign or a missing term
    assert (log_px + rec + kl < 3).all()


def test_vae_every_parameter_gets_a_gradient(vae, cells):
    rec, kl = vae.elbo_terms(cells, normal(2, 5, 3))
    (rec + kl).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())
