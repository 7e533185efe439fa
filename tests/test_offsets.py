"""Centres, and what w adds to them: the form, its start, and the presets that have it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gmvae_nb.gmvae_loss import MixturePrior, ParameterMixture, gmvae_terms
from gmvae_nb.inference import w_means
from gmvae_nb.metrics import ari
from gmvae_nb.network import PRESETS, Posterior, get_preset
from gmvae_nb.offsets import start_at_centres
from gmvae_nb.train import GMVAE
from torch.testing import assert_close

from hazards import stop_at_step
from test_recommended import SMALL, STEPS, assert_same_bits
from test_train import simulated

WITH_W = replace(SMALL, prior="offsets", n_w=2, prior_hidden=16)


def prior_of(K=4, n_w=5, n_x=3):
    torch.manual_seed(0)
    return MixturePrior(n_w, n_x, K, 16).double().eval()


def trained(epochs=None, preset=WITH_W, K=6, **kw):
    return GMVAE(simulated(240), K=K, batch_key="batch", preset=preset).train(
        epochs, progress=False, **kw
    )


@pytest.fixture(scope="module")
def model():
    return trained()


# --- the form -------------------------------------------------------------------------------------


def test_a_component_is_its_centre_and_what_w_adds():
    prior = prior_of()
    w = torch.randn(2, 7, 5, dtype=torch.float64)
    weight = prior.components.weight.unflatten(0, (4, 2, 3))  # K, mean or log std, n_x
    added = torch.einsum("kcdh,mnh->mnkcd", weight, prior.hidden(w))
    means, log_stds = prior(w)
    assert_close(means, prior.means + added[..., 0, :])
    assert_close(log_stds, prior.log_stds + added[..., 1, :])


@torch.no_grad()
def test_what_is_written_into_the_centres_is_where_components_are():
    prior = prior_of()
    prior.components.weight.zero_()
    m, s = torch.randn(2, 4, 3, dtype=torch.float64)
    prior.means[0, 0].copy_(m)
    prior.log_stds[0, 0].copy_(s)
    means, log_stds = prior(torch.randn(2, 7, 5, dtype=torch.float64))
    assert_close(means, m.expand_as(means))
    assert_close(log_stds, s.expand_as(log_stds))


@pytest.mark.parametrize("bound", ["paper", "exact"])
@torch.no_grad()
def test_without_offsets_it_is_the_mixture_without_w(bound):
    prior, fixed = prior_of(), ParameterMixture(3, 4).double()
    prior.components.weight.zero_()
    prior.means.copy_(fixed.means)
    prior.log_stds.copy_(fixed.log_stds)
    x, w = torch.randn(2, 7, 3).double(), torch.randn(2, 7, 5).double()
    q = [0.3 * torch.randn(7, n).double() for n in (3, 3, 5, 5)]
    with_w, without = (gmvae_terms(x, *q, *p(w), bound=bound) for p in (prior, fixed))
    for name, value in without.items():
        assert_close(with_w[name], value)


def test_the_start_is_a_mixture_that_w_hardly_moves():
    torch.manual_seed(0)
    prior = MixturePrior(10, 10, 50, 128).eval()
    start_at_centres(prior)
    means, log_stds = prior(torch.randn(2, 100, 10))
    assert 0.9 < prior.means.std() < 1.1 and not prior.log_stds.any()
    assert 0 < (means - prior.means).abs().max() < 0.05
    assert log_stds.abs().max() < 0.05
    assert prior.components.weight.requires_grad and prior.components.bias.requires_grad


# --- the presets ----------------------------------------------------------------------------------


def test_presets_differ_from_recommended_by_w_and_the_seeds_sizes_alone():
    recommended, blog = PRESETS["recommended"], PRESETS["blog"]
    without_w = dict(prior=recommended.prior, n_w=recommended.n_w)
    ours = replace(get_preset("with_w"), **without_w, prior_hidden=recommended.prior_hidden)
    assert ours == recommended
    names = ("n_x", "n_w", "encoder_hidden", "decoder_hidden", "prior_hidden")
    alive = get_preset("blog_offsets")
    assert all(getattr(alive, name) == getattr(blog, name) for name in names)
    sizes = {name: getattr(get_preset("with_w"), name) for name in names}
    assert replace(alive, **sizes) == get_preset("with_w")


@pytest.mark.parametrize(
    "setting", [{"init": "data"}, {"align": 1.0}, {"merge": True}, {"prior": "offsets"}]
)
def test_the_wrong_axes_have_no_centres(setting):
    with pytest.raises(ValueError, match="original_reshape is True; .*keep their places"):
        replace(PRESETS["original"], **setting)
    assert replace(PRESETS["blog"], **setting)


def noting_placements(monkeypatch):
    "Whether each placing was for good, and the prior's weights right after it."
    placed, place = [], GMVAE._place_components

    def noted(self, for_good):
        place(self, for_good)
        of = {name: p.detach().clone() for name, p in self.network.prior.named_parameters()}
        placed.append((for_good, of))

    monkeypatch.setattr(GMVAE, "_place_components", noted)
    return placed


def trained_with_rest(preset):
    preset = replace(preset, patience=0.0)
    model = GMVAE(simulated(240), K=6, batch_key="batch", preset=preset)
    return model.train(10, progress=False)


@pytest.mark.parametrize("preset", [WITH_W, SMALL], ids=["with w", "without"])
def test_centres_are_placed_twice_and_rest_with_the_encoder(preset, monkeypatch):
    placed = noting_placements(monkeypatch)
    model = trained_with_rest(preset)
    assert [for_good for for_good, _ in placed] == [False, True]
    net, (first, last) = model.network, (of for _, of in placed)
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("encoder.", "q_x.")) for name in learning)
    centres = "prior.components.bias" if net.n_w else "prior.means"
    assert centres not in learning
    centres = centres.removeprefix("prior.")
    assert net.prior.get_parameter(centres).equal(last[centres])
    assert not first[centres].equal(last[centres])


def test_offsets_and_w_are_learned_while_the_encoder_rests_and_not_before(monkeypatch):
    torch.manual_seed(0)
    placed = noting_placements(monkeypatch)
    net = trained_with_rest(WITH_W).network
    (_, first), (_, last) = placed
    name = "components.weight"
    assert first[name].any() and first[name].equal(last[name])
    learning = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert {"prior", "q_w"} <= learning and net.prior.components.weight.requires_grad
    assert (net.prior.components.weight - last[name]).abs().max() > 1e-3


def test_as_drawn_the_prior_network_is_placed_once_and_learns_to_the_end(monkeypatch):
    placed = noting_placements(monkeypatch)
    net = trained_with_rest(replace(WITH_W, prior="network")).network
    assert [for_good for for_good, _ in placed] == [False]
    assert all(p.requires_grad for p in net.prior.parameters())
    assert not any(p.requires_grad for p in net.q_w.parameters())


def test_offsets_learn_all_along_if_nothing_rests():
    model = GMVAE(simulated(240), K=3, batch_key="batch", preset=replace(WITH_W, refit=0.0))
    before = model.network.prior.components.weight.detach().clone()
    model.train(1, progress=False)
    assert not model.network.prior.components.weight.equal(before)


def test_killed_while_offsets_are_learned_it_goes_on_to_the_same_bits(tmp_path):
    whole, model = trained(10), GMVAE(simulated(240), K=6, batch_key="batch", preset=WITH_W)
    stop_at_step(model, 8 * STEPS + 3, RuntimeError)  # of 10 epochs; in three the encoder rests
    with pytest.raises(RuntimeError, match="stopped by a test"):
        model.train(10, progress=False, out=tmp_path)
    again = trained(10, out=tmp_path)
    assert len(again.history) == len(whole.history)
    assert_same_bits(again, whole)


@torch.no_grad()
def test_kmeans_places_the_centres_and_leaves_the_offsets():
    model = GMVAE(simulated(240), K=3, batch_key="batch", preset=WITH_W)
    model.train_idx = np.arange(200)
    prior = model.network.prior
    weight, before = prior.components.weight.clone(), prior.means.clone()
    model._place_components(for_good=False)
    x, centres = model.get_latent_representation()[:200], prior.means[0, 0].numpy()
    assert (prior.means != before).all() and prior.components.weight.equal(weight)
    nearest = np.linalg.norm(x[:, None] - centres, axis=-1).argmin(1)
    for k in range(3):
        np.testing.assert_allclose(x[nearest == k].mean(0), centres[k], atol=1e-3)
    w = torch.randn(2, 5, 2)
    moved = (prior(w)[0] - prior.means).abs().max()
    assert 0 < moved < 0.1


def test_clusters_follow_groups_with_w_as_without():
    adata = simulated(240, G=60)
    for prior, seed in (("offsets", 1), ("parameters", 0)):  # that find all three of them
        preset = replace(WITH_W, prior=prior)
        model = GMVAE(adata, batch_key="batch", preset=preset, seed=seed).train(progress=False)
        assert ari(adata.obs["cell_type"], model.predict()) > 0.8


@pytest.mark.parametrize("log_std, n_clusters", [(-6.0, 2), (6.0, 1)])
def test_components_that_change_places_with_w_are_two_if_cells_know_w(log_std, n_clusters):
    "A look at a cell is a draw of x and of w: an unsure w makes it change sides."
    model = GMVAE(simulated(240), K=2, batch_key="batch", preset=WITH_W).train(1, progress=False)
    net, sides = model.network, torch.tensor([[-5.0], [5.0]])

    def encode(y, b):
        n, half = len(b), torch.arange(len(b)) % 2
        at_ease = torch.full((n, 4), -6.0)
        return Posterior(
            sides[half].expand(n, 4), at_ease, torch.ones(n, 2), torch.full((n, 2), log_std)
        )

    def swapped(w):  # (M, N, K, n_x)
        means = w[..., :1, None].sign() * sides
        return (means.expand(*w.shape[:2], 2, 4), torch.zeros(*w.shape[:2], 2, 4))

    net.encode, net.prior.forward = encode, swapped
    with torch.no_grad():
        model._find_clusters()
    assert model.n_clusters == n_clusters


def test_a_model_with_w_is_kept(model, tmp_path):
    adata = simulated(240)
    model.save(tmp_path)
    other = GMVAE.load(tmp_path, adata)
    np.testing.assert_array_equal(other.predict_proba(), model.predict_proba())
    w = w_means(model.network, model.match_cells(adata))
    assert w.shape == (240, 2) and w.std() > 0
    np.testing.assert_array_equal(w_means(other.network, other.match_cells(adata)), w)


def test_without_w_there_is_nothing_to_say_of_it():
    model = trained(2, SMALL)
    assert w_means(model.network, model.match_cells(simulated(240))).shape == (240, 0)
