"""Adversarial and property-based checks of the mixture prior, its loss and its clusters."""

import math

import pytest
import torch
from gmvae_nb.gmvae_loss import (
    MixturePrior,
    ParameterMixture,
    cluster_usage,
    component_log_probs,
    free_nats,
    gmvae_terms,
    responsibilities,
)
from gmvae_nb.vae import kl_gaussians
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from torch.testing import assert_close

sizes = st.tuples(*(st.integers(1, n) for n in (4, 5, 6, 7, 3)))  # M, N, K, D, n_w
scales = st.sampled_from([1e-3, 0.3, 1.0, 4.0])


def random_case(shape, scale=1.0, seed=0, dtype=torch.float64):
    M, N, K, D, n_w = shape
    g = torch.Generator().manual_seed(seed)

    def rand(*s):
        return torch.randn(*s, generator=g, dtype=dtype)

    x_mean, x_log_std = scale * rand(N, D), 0.5 * rand(N, D)
    return dict(
        x=x_mean + x_log_std.exp() * rand(M, N, D),
        x_mean=x_mean,
        x_log_std=x_log_std,
        w_mean=scale * rand(N, n_w),
        w_log_std=0.5 * rand(N, n_w),
        means=scale * rand(M, N, K, D),
        log_stds=0.5 * rand(M, N, K, D),
    )


def brute_terms(c, log_weights=None, bound="paper"):
    "The terms by torch.distributions, written as in the derivation."
    K = c["means"].shape[2]
    log_pi = (
        torch.full((K,), -math.log(K), dtype=c["x"].dtype)
        if log_weights is None
        else log_weights.log_softmax(-1)
    )
    components = Independent(Normal(c["means"], c["log_stds"].exp()), 1)
    q = Independent(Normal(c["x_mean"], c["x_log_std"].exp()), 1)
    joint = components.log_prob(c["x"].unsqueeze(-2)) + log_pi
    gamma = Categorical(logits=joint)
    kl_z = kl_divergence(gamma, Categorical(logits=log_pi.expand_as(joint)))
    if bound == "paper":
        q_k = Independent(Normal(c["x_mean"].unsqueeze(-2), c["x_log_std"].exp().unsqueeze(-2)), 1)
        kl_xz = kl_z + (gamma.probs * kl_divergence(q_k.expand(joint.shape), components)).sum(-1)
    else:
        mixture = MixtureSameFamily(Categorical(logits=log_pi.expand_as(joint)), components)
        kl_xz = q.log_prob(c["x"]) - mixture.log_prob(c["x"])
    w = Independent(Normal(c["w_mean"], c["w_log_std"].exp()), 1)
    standard = Independent(Normal(torch.zeros_like(c["w_mean"]), torch.ones_like(c["w_mean"])), 1)
    return dict(
        kl_w=kl_divergence(w, standard),
        kl_z=kl_z.mean(0),
        cond=(kl_xz - kl_z).mean(0),
        kl_xz=kl_xz.mean(0),
    )


def gradients(value, inputs):
    return torch.autograd.grad(
        value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
    )


@settings(max_examples=60, deadline=None)
@given(sizes, scales, st.sampled_from(["paper", "exact"]), st.booleans())
def test_terms_and_their_gradients_are_those_of_the_definition(shape, scale, bound, weighted):
    c = {k: v.requires_grad_() for k, v in random_case(shape, scale).items()}
    inputs, log_weights = [*c.values()], None
    if weighted:
        log_weights = torch.linspace(-1, 1, shape[2], dtype=torch.float64).requires_grad_()
        inputs.append(log_weights)
    mix = torch.arange(1.0, shape[1] + 1, dtype=torch.float64)  # each cell weighs differently
    ours = gmvae_terms(**c, log_weights=log_weights, bound=bound)
    theirs = brute_terms(c, log_weights, bound)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], rtol=1e-8, atol=1e-8)
        got, want = (gradients((t[name] * mix).sum(), inputs) for t in (ours, theirs))
        for a, b in zip(got, want):
            assert_close(a, b, rtol=1e-6, atol=1e-6 * (1 + b.abs().max().item()))


@settings(max_examples=40, deadline=None)
@given(sizes, scales, st.integers(0, 9))
def test_kl_z_lies_between_zero_and_log_K_and_terms_stay_positive(shape, scale, seed):
    terms = gmvae_terms(**random_case(shape, scale, seed))
    assert (terms["kl_z"] >= -1e-12).all() and (terms["kl_z"] <= math.log(shape[2]) + 1e-12).all()
    assert (terms["cond"] >= -1e-9).all() and (terms["kl_w"] >= -1e-9).all()


@settings(max_examples=30, deadline=None)
@given(
    sizes,
    st.integers(0, 9),
    st.sampled_from(["paper", "exact"]),
    st.randoms(use_true_random=False),
)
def test_permutations(shape, seed, bound, random):
    c = random_case(shape, 1.0, seed)
    k, n = (torch.tensor(random.sample(range(s), s)) for s in (shape[2], shape[1]))
    terms = gmvae_terms(**c, bound=bound)
    by_k = {name: v[:, :, k] if v.ndim == 4 else v for name, v in c.items()}
    by_n = {name: v[n] if v.ndim == 2 else v[:, n] for name, v in c.items()}
    for name in terms:
        assert_close(gmvae_terms(**by_k, bound=bound)[name], terms[name])
        assert_close(gmvae_terms(**by_n, bound=bound)[name], terms[name][n])


def test_the_gap_between_the_bounds_is_the_mean_divergence_of_responsibilities():
    for seed in range(3):
        c = random_case((20_000, 4, 5, 2, 1), 1.0, seed)
        c["means"], c["log_stds"] = (c[k][:1].expand_as(c[k]) for k in ("means", "log_stds"))
        log_gamma = responsibilities(c["x"], c["means"], c["log_stds"])
        other = log_gamma.roll(1, 0)
        gap = (other.exp() * (other - log_gamma)).sum(-1)
        q = Independent(Normal(c["x_mean"], c["x_log_std"].exp()), 1)
        components = Independent(Normal(c["means"], c["log_stds"].exp()), 1)
        log_mix = (components.log_prob(c["x"].unsqueeze(-2)) - math.log(5)).logsumexp(-1)
        kl_k = kl_gaussians(
            c["x_mean"].unsqueeze(-2), c["x_log_std"].unsqueeze(-2), c["means"], c["log_stds"]
        )
        paper = (log_gamma.exp() * (log_gamma + math.log(5) + kl_k)).sum(-1)
        difference = paper - (q.log_prob(c["x"]) - log_mix) - gap  # (M, N), mean 0
        n_pairs = len(difference) / 2  # neighbours share a draw
        standard_error = difference.std(0) / math.sqrt(n_pairs)
        assert (difference.mean(0).abs() < 4 * standard_error).all()
        assert (gap.mean(0) > 0).all()
        terms = {b: gmvae_terms(**c, bound=b)["kl_xz"] for b in ("paper", "exact")}
        assert_close(terms["paper"], paper.mean(0))
        assert (terms["paper"] > terms["exact"]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_components_keep_values_and_gradients_finite(dtype):
    "Components a thousand standard deviations away, and scales from e^-6 to e^6."
    c = random_case((2, 3, 4, 5, 2), 1.0, dtype=dtype)
    c["means"] = c["means"] * 1e3
    c["log_stds"] = c["log_stds"].clamp(-1, 1) * 6
    c = {k: v.requires_grad_() for k, v in c.items()}
    for bound in ("paper", "exact"):
        terms = gmvae_terms(**c, bound=bound)
        grads = torch.autograd.grad(
            (terms["kl_w"] + terms["kl_xz"]).sum(),
            list(c.values()),
            retain_graph=True,
            allow_unused=True,
        )
        assert all(t.isfinite().all() for t in terms.values())
        assert all(g.isfinite().all() for g in grads if g is not None)


def test_components_shared_by_all_cells_equal_expanded_ones():
    c = random_case((3, 4, 5, 2, 1))
    shared = [c[k][:1, :1].clone().requires_grad_() for k in ("means", "log_stds")]
    for bound in ("paper", "exact"):
        grads = []
        for expand in (False, True):
            means, log_stds = (t.expand(3, 4, 5, 2) if expand else t for t in shared)
            terms = gmvae_terms(**{**c, "means": means, "log_stds": log_stds}, bound=bound)
            grads.append(torch.autograd.grad(terms["kl_xz"].sum(), shared))
        assert_close(grads[0], grads[1])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(6, 1), (6, 2), (6, 3), (6, 6), (4, 2), (1, 1)]),
    sizes,
    scales,
    st.sampled_from(["paper", "exact"]),
)
def test_fewer_draws_of_w_equal_components_repeated_for_the_draws_that_share_them(
    draws, shape, scale, bound
):
    "Terms, responsibilities and every gradient."
    M, M_w = draws
    c = {k: v.requires_grad_() for k, v in random_case((M, *shape[1:]), scale).items()}
    few = [c[k][:M_w].detach().requires_grad_() for k in ("means", "log_stds")]
    inputs = [c["x"], c["x_mean"], c["x_log_std"], *few]
    mix = torch.arange(1.0, shape[1] + 1, dtype=torch.float64)
    results = []
    for means, log_stds in (few, [t.repeat_interleave(M // M_w, 0) for t in few]):
        terms = gmvae_terms(**{**c, "means": means, "log_stds": log_stds}, bound=bound)
        results.append([*terms.values(), responsibilities(c["x"], means, log_stds)])
        for name in ("kl_z", "cond"):
            results[-1] += gradients((terms[name] * mix).sum(), inputs)
    for a, b in zip(*results):
        assert_close(a, b, rtol=1e-8, atol=1e-8 * (1 + b.abs().max().item()))


def test_draws_of_w_that_do_not_divide_the_draws_of_x_are_refused():
    c = random_case((6, 2, 3, 2, 1))
    c["means"], c["log_stds"] = c["means"][:4], c["log_stds"][:4]
    for bound in ("paper", "exact"):
        with pytest.raises(
            ValueError,
            match="6 draws of x cannot be shared out among 4 draws of w; take a divisor of 6",
        ):
            gmvae_terms(**c, bound=bound)


@pytest.mark.parametrize("K", [1, 3])
def test_prior_depends_on_own_w_only_unless_the_axes_are_wrong(K):
    torch.manual_seed(0)
    w = torch.randn(2, 5, 4)
    n = torch.tensor([3, 1, 4, 0, 2])
    for wrong in (False, True):
        prior = MixturePrior(4, 3, K, 8, original_reshape=wrong).eval()
        same = all(a[:, n].allclose(b, atol=1e-6) for a, b in zip(prior(w), prior(w[:, n])))
        assert same == (not wrong or K == 1)


def test_parameter_mixture_is_a_mixture():
    torch.manual_seed(0)
    prior = ParameterMixture(3, 4)
    x = torch.randn(2, 5, 3)
    means, log_stds = prior(torch.empty(2, 5, 0))
    mixture = MixtureSameFamily(
        Categorical(logits=torch.zeros(4)),
        Independent(Normal(means[0, 0], log_stds[0, 0].exp()), 1),
    )
    assert_close(
        (component_log_probs(x, means, log_stds) - math.log(4)).logsumexp(-1), mixture.log_prob(x)
    )


@given(st.lists(st.floats(0, 5), min_size=1, max_size=9), st.floats(0, 5))
def test_free_nats_never_lower_the_term_and_cells_never_cost_less_than_the_batch(kl, lam):
    kl_z = torch.tensor(kl, dtype=torch.float64)
    batch, cell = free_nats(kl_z, lam), free_nats(kl_z, lam, "cell")
    assert batch >= kl_z.mean() - 1e-12 and batch >= lam - 1e-12
    assert cell >= batch - 1e-12  # Jensen: the maximum is convex
    assert_close(cell, torch.tensor([max(v, lam) for v in kl], dtype=torch.float64).mean())


# --- the clusters ---------------------------------------------------------------------------------


def random_gamma(n_cells, K, sharpness, seed):
    g = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n_cells, K, generator=g, dtype=torch.float64)
    return logits.softmax(-1)


def test_usage_counts_components_and_what_they_tell():
    gamma = random_gamma(40, 5, 2.0, seed=0)
    gamma[:, 3] = 0
    gamma /= gamma.sum(1, keepdim=True)
    usage = cluster_usage(gamma)
    joint = gamma / len(gamma)  # p(n, k)
    information = torch.special.xlogy(joint, joint / (joint.sum(0) / len(gamma)).clamp_min(1e-30))
    mean_entropy = Categorical(probs=gamma.mean(0)).entropy().exp().item()
    assert usage["dead_components"] == 1
    assert usage["effective_K"] == pytest.approx(mean_entropy)
    assert usage["gamma_entropy"] == pytest.approx(Categorical(probs=gamma).entropy().mean().item())
    assert usage["mutual_information"] == pytest.approx(information.sum().item())


def test_a_component_is_dead_below_one_per_cent_of_an_equal_share():
    for share, dead in ((0.0049, 1), (0.0051, 0)):  # two components: an equal share is a half
        assert cluster_usage(torch.tensor([[share, 1 - share]]))["dead_components"] == dead
