"""The preset `recommended`: components from the data, batches aligned, clusters merged.

Files and resumption with them too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gmvae_nb.data import to_torch
from gmvae_nb.metrics import ari
from gmvae_nb.network import PRESETS, BatchAlignment, batch_balance
from gmvae_nb.train import GMVAE

from hazards import before_steps, stop_at_step
from test_train import simulated

# an eighth of the hidden units, and less decay with them
SMALL = replace(
    PRESETS["recommended"],
    n_x=4,
    encoder_hidden=(32, 16),
    decoder_hidden=(16, 32),
    batch_size=32,
    lr=5e-3,
    weight_decay=1e3,
    min_steps=300,
)


def fitted(K=None, epochs=None, preset=SMALL, batch_key="batch", n=240, **kw):
    model = GMVAE(simulated(n), K=K, batch_key=batch_key, preset=preset)
    return model.train(epochs, progress=False, **kw)


@pytest.fixture(scope="module")
def model():
    return fitted()


def test_the_number_of_clusters_is_chosen_without_labels():
    adata = simulated(240, G=60)
    model = GMVAE(adata, batch_key="batch", preset=SMALL).train(progress=False)
    clusters = model.predict()
    assert model.K == 50 and 2 <= model.n_clusters <= 6  # three groups
    assert ari(adata.obs["cell_type"], clusters) > 0.8
    assert list(clusters.categories) == [str(k) for k in range(model.n_clusters)]
    assert set(clusters) == set(clusters.categories)  # none is empty
    probability = model.predict_proba()
    assert probability.shape == (240, model.n_clusters)
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)


def test_the_report_speaks_of_clusters_and_says_how_sure_it_is(model):
    report = model.cluster_report()
    assert sum(report["cells"].values()) == 240 and len(report["cells"]) == model.n_clusters
    assert report["effective_K"] <= model.n_clusters + 1e-4
    assert 1 / model.n_clusters <= report["confidence"] <= 1
    low, high = report["n_clusters_95"]
    assert 1 <= low <= high <= model.K


def test_small_data_train_for_enough_steps(model):
    steps_per_epoch = -(-len(model.train_idx) // SMALL.batch_size)
    epochs = len(model.history)
    assert epochs * steps_per_epoch >= SMALL.min_steps > (epochs - 1) * steps_per_epoch
    assert len(fitted(K=2, epochs=3).history) == 3  # unless told
    assert model.history["lr"].iloc[-1] < 1e-2 * SMALL.lr


@pytest.mark.parametrize("K", [1, 2, 7, 50])
def test_any_number_of_components_trains(K):
    model = fitted(K, epochs=8)
    assert 1 <= model.n_clusters <= K
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_iwae(n_samples=5)).all()


def test_more_components_than_cells():
    model = fitted(250, epochs=3, test_idx=np.arange(0))
    assert model.n_clusters <= 240 and np.isfinite(model.history.to_numpy()).all()


def test_one_batch_or_one_epoch():
    for model in (fitted(4, epochs=8, batch_key=None), fitted(4, epochs=1)):
        assert np.isfinite(model.history.to_numpy()).all()


def test_alignment_removes_what_a_batch_adds_to_its_component_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(3, (600,), generator=generator)
    batch = torch.randint(2, (600,), generator=generator)
    batch[group == 2] = 1  # a group that one batch alone has
    noise = torch.randn(600, 3, generator=generator) / 2
    shift = batch[:, None] * torch.tensor([0.0, 2.0, -1.0])
    x = 8 * torch.eye(3)[group] + noise + shift
    start, gamma = x.clone(), F.one_hot(group, 3).float()
    align, log_stds = BatchAlignment(3, 2, 3), torch.zeros(3, 3)
    x.requires_grad_()
    for _ in range(300):
        cells = torch.randperm(600, generator=generator)[:64]
        loss = align(x[cells], gamma[cells], batch[cells], log_stds)
        (grad,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x -= 10 * grad

    def offset(x, k):
        one, other = (x[(group == k) & (batch == b)].mean(0) for b in (0, 1))
        return (other - one).norm()

    for k in (0, 1):
        assert offset(x, k) < 0.2 * offset(start, k)
        here = group == k
        torch.testing.assert_close(x[here].mean(0), start[here].mean(0), atol=0.3, rtol=0)
    torch.testing.assert_close(x[group == 2], start[group == 2])


def aligned_once(group, batch, x, **how):
    "The gradient at x of one mini-batch, for components of unit spread."
    K, B = int(group.max()) + 1, int(batch.max()) + 1
    x = x.clone().requires_grad_()
    align = BatchAlignment(K, B, x.shape[1])
    gamma, log_stds = F.one_hot(group, K).float(), torch.zeros(K, x.shape[1])
    return torch.autograd.grad(align(x, gamma, batch, log_stds, **how), x)[0]


def one_shared_one_onesided(in_second: int):
    "40 cells of each batch in group 0; 40 of batch 0, and few of batch 1, in group 1."
    group = torch.tensor([0] * 80 + [1] * (40 + in_second))
    batch = torch.tensor([0, 1] * 40 + [0] * 40 + [1] * in_second)
    noise = torch.randn(len(group), 2, generator=torch.Generator().manual_seed(0))
    return group, batch, noise + 3 * batch[:, None]


@pytest.mark.parametrize("in_second", [0, 2])
def test_the_less_a_component_is_shared_the_less_it_is_pulled(in_second):
    group, batch, x = one_shared_one_onesided(in_second)
    grad = aligned_once(group, batch, x)
    shared, onesided = grad[group == 0].norm(dim=1), grad[group == 1].norm(dim=1)
    assert onesided.max() < 0.1 * shared.min()
    assert in_second or not onesided.any()
    if in_second:  # their own offset, shrunk to a sixth, is not small: its weight is
        share, of_others = 2 / 42, 40 / 80
        offset = x[group == 1][-2:].mean(0) - x[group == 1].mean(0)
        expected = offset * 2 / (2 + 10) * share / of_others / len(x)
        torch.testing.assert_close(grad[-2:], expected.expand(2, -1))


def test_a_component_with_an_equal_share_of_each_batch_is_pulled_in_full():
    cells = torch.tensor([[10.0, 40, 20], [30.0, 120, 60]])  # of batches of other sizes
    torch.testing.assert_close(batch_balance(cells), torch.ones(2, 3))
    batch = torch.tensor([0, 1] * 20)
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) + batch[:, None]
    grad = aligned_once(torch.zeros_like(batch), batch, x)
    offset = torch.stack([x[batch == b].mean(0) - x.mean(0) for b in (0, 1)])
    torch.testing.assert_close(grad, offset[batch] * 20 / (20 + 10) / 40)


def test_balance_knows_no_order_of_batches_and_bears_what_is_empty():
    cells = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(batch_balance(cells[:, order]), batch_balance(cells)[:, order])
    two = batch_balance(cells[:, :2])
    torch.testing.assert_close(two[:, 0], two[:, 1])  # each is the other's rest
    cells[1], cells[:, 2] = 0, 0
    weight = batch_balance(cells)
    assert weight.isfinite().all() and weight.ge(0).all() and weight.le(1).all()
    assert not weight[1].any() and not weight[:, 2].any()
    assert not batch_balance(torch.zeros(3, 2)).any()


def test_pooled_moves_a_batch_as_a_whole():
    group, batch, x = one_shared_one_onesided(2)
    grad = aligned_once(group, batch, x, pooled=True)
    for b in (0, 1):
        of_batch, n = grad[batch == b], (batch == b).sum()
        offset = (x[batch == b].mean(0) - x.mean(0)) * n / (n + 10) / len(x)
        torch.testing.assert_close(of_batch, offset.expand(n, -1))


def test_batches_are_pooled_until_the_prior_has_its_full_weight(monkeypatch):
    seen, forward = [], BatchAlignment.forward

    def spy(self, x_mean, gamma, b, log_stds, pooled, **of_all):
        seen.append(pooled)
        return forward(self, x_mean, gamma, b, log_stds, pooled, **of_all)

    monkeypatch.setattr(BatchAlignment, "forward", spy)
    fitted(6, epochs=10, preset=replace(SMALL, kl_warmup_share=0.4, refit=0.3))
    per_epoch = len(seen) // 6  # placed before epoch 2, at rest from epoch 8 on
    assert seen == [True] * 2 * per_epoch + [False] * 4 * per_epoch


def untrained():
    return GMVAE(simulated(240), K=6, batch_key="batch", preset=SMALL)


STEPS = 7  # in an epoch: 204 training cells in mini-batches of 32


@pytest.fixture(scope="module")
def ten_epochs():
    return fitted(6, epochs=10)


def assert_same_bits(one: GMVAE, other: GMVAE):
    states = one._state(), other._state()
    assert states[0].keys() == states[1].keys()
    assert all(t.equal(states[1][name]) for name, t in states[0].items())


def test_a_killed_training_goes_on_to_the_same_clusters(ten_epochs, tmp_path):
    model = untrained()
    stop_at_step(model, 5 * STEPS + 3, RuntimeError)
    with pytest.raises(RuntimeError, match="stopped by a test"):
        model.train(10, progress=False, out=tmp_path)
    again = fitted(6, epochs=10, out=tmp_path)
    assert_same_bits(again, ten_epochs)
    loaded = GMVAE.load(tmp_path, simulated(240))
    assert (loaded.predict() == ten_epochs.predict()).all()
    assert loaded.n_clusters == ten_epochs.n_clusters


@pytest.mark.parametrize("stop", [4, 7, 8])  # of 10 epochs; in the last three the encoder rests
def test_training_goes_on_from_any_epoch_to_the_same_bits(ten_epochs, tmp_path, stop):
    model = untrained()
    stop_at_step(model, stop * STEPS, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train(10, progress=False, out=tmp_path)
    assert len(model.history) == stop
    assert_same_bits(fitted(6, epochs=10, out=tmp_path), ten_epochs)


def test_while_the_encoder_rests_the_embedding_stays_and_r_becomes_the_cells():
    model = untrained()
    y, b = to_torch(model.counts[:20]), torch.zeros(20, dtype=torch.long)
    embeddings, spread_of_r = [], []

    def watch(step):
        "What the model is after each epoch; it stays in training afterwards."
        if step == 0 or step % STEPS:
            return
        net = model.network.eval()
        with torch.no_grad():
            log_r, _ = net.likelihood_params(y, b, net.encode(y, b).x_mean[None])
        embeddings.append(model.get_latent_representation())
        spread_of_r.append(log_r.std(1).max().item())
        net.train()

    before_steps(model, watch)
    model.train(10, progress=False)
    watch(10 * STEPS)
    moved = [not np.array_equal(a, b) for a, b in zip(embeddings, embeddings[1:])]
    assert moved == [True] * 6 + [False] * 3
    assert [r > 1e-4 for r in spread_of_r] == [False] * 7 + [True] * 3


def test_weights_decay_the_more_the_fewer_cells_there_are():
    def norm(cells, n):
        model = fitted(3, 8, replace(SMALL, weight_decay=cells), n=n)
        return model.network.heads.log_mean.weight.norm().item()

    assert norm(1e3, 240) < norm(0.0, 240)
    assert norm(1e3, 120) / norm(0.0, 120) < norm(1e3, 480) / norm(0.0, 480)
    assert np.isfinite(norm(1e9, 240))  # however much


def test_cells_of_a_batch_that_was_left_out_are_embedded(model):
    "The encoder does not see the batch: which one a cell is said to be from changes nothing."
    adata = simulated(240)
    other = adata.copy()
    other.obs["batch"] = adata.obs["batch"].map({"0": "1", "1": "0"}).to_numpy()
    one, two = (model.get_latent_representation(a) for a in (adata, other))
    np.testing.assert_array_equal(one, two)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="K is None"):
        GMVAE(simulated(), K=None, preset="blog")
