"""The preset `recommended` from outside: components from the data, batches aligned, clusters merged; files and resumption with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gmvae_nb.metrics import ari
from gmvae_nb.train import GMVAE, PRESETS, BatchAlignment, merge_components

from test_train import simulated

SMALL = replace(
    PRESETS["recommended"],
    n_x=4,
    encoder_hidden=(32, 16),
    decoder_hidden=(16, 32),
    batch_size=32,
    lr=5e-3,
    weight_decay=1e3,
    min_steps=300,
)  # an eighth of the hidden units, and less decay with them


def fitted(K=None, epochs=None, preset=SMALL, batch_key="batch", n=240, **kw):
    return GMVAE(simulated(n), K=K, batch_key=batch_key, preset=preset).train(
        epochs, progress=False, **kw
    )


@pytest.fixture(scope="module")
def model():
    return fitted()


def test_the_number_of_clusters_is_chosen_without_labels(model):
    clusters = model.predict()
    assert model.K == 30 and 2 <= model.n_clusters <= 6  # three groups
    assert ari(simulated(240).obs["cell_type"], clusters) > 0.8
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
    assert (
        len(model.history) * steps_per_epoch
        >= SMALL.min_steps
        > (len(model.history) - 1) * steps_per_epoch
    )
    assert len(fitted(K=2, epochs=3).history) == 3  # unless told
    assert model.history["lr"].iloc[-1] < 1e-2 * SMALL.lr


@pytest.mark.parametrize("K", [1, 2, 7, 50])
def test_any_number_of_components_trains(K):
    model = fitted(K, epochs=8)
    assert 1 <= model.n_clusters <= K
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_iwae(n_draws=5)).all()


def test_more_components_than_cells():
    model = fitted(250, epochs=3, test_idx=np.arange(0))
    assert model.n_clusters <= 240 and np.isfinite(model.history.to_numpy()).all()


def test_one_batch_or_one_epoch():
    for model in (fitted(4, epochs=8, batch_key=None), fitted(4, epochs=1)):
        assert np.isfinite(model.history.to_numpy()).all()


def test_alignment_removes_what_a_batch_adds_to_its_component_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    group, batch = (
        torch.randint(3, (600,), generator=generator),
        torch.randint(2, (600,), generator=generator),
    )
    batch[group == 2] = 1  # a group that one batch alone has
    x = (
        8 * torch.eye(3)[group]
        + torch.randn(600, 3, generator=generator) / 2
        + batch[:, None] * torch.tensor([0.0, 2.0, -1.0])
    )
    gamma, align, start = F.one_hot(group, 3).float(), BatchAlignment(3, 2, 3), x.clone()
    x.requires_grad_()
    for _ in range(300):
        cells = torch.randperm(600, generator=generator)[:64]
        (grad,) = torch.autograd.grad(
            align(x[cells], gamma[cells], batch[cells], torch.zeros(3, 3)), x
        )
        with torch.no_grad():
            x -= 10 * grad

    def offset(x, k):
        return (
            x[(group == k) & (batch == 1)].mean(0) - x[(group == k) & (batch == 0)].mean(0)
        ).norm()

    for k in (0, 1):
        assert offset(x, k) < 0.2 * offset(start, k)
        torch.testing.assert_close(
            x[group == k].mean(0), start[group == k].mean(0), atol=0.3, rtol=0
        )
    torch.testing.assert_close(x[group == 2], start[group == 2])


def test_a_killed_training_goes_on_to_the_same_clusters(tmp_path, monkeypatch):
    whole = fitted(6, epochs=9)
    original, done = GMVAE._train_epoch, []

    def killed(self, epoch, max_epochs):
        if len(done) == 5:
            raise RuntimeError("killed")
        done.append(epoch)
        return original(self, epoch, max_epochs)

    monkeypatch.setattr(GMVAE, "_train_epoch", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fitted(6, epochs=9, out=tmp_path)
    monkeypatch.undo()
    again = fitted(6, epochs=9, out=tmp_path)
    assert all(t.equal(again._state()[name]) for name, t in whole._state().items())
    loaded = GMVAE.load(tmp_path, simulated(240))
    assert (loaded.predict() == whole.predict()).all() and loaded.n_clusters == whole.n_clusters


@pytest.mark.parametrize("stop", [4, 7, 8])  # of 10 epochs; in the last three the encoder rests
def test_training_goes_on_from_any_epoch_to_the_same_bits(tmp_path, stop):
    whole = fitted(6, epochs=10)
    model = GMVAE(simulated(240), K=6, batch_key="batch", preset=SMALL)
    rows, train_epoch = [], type(model)._train_epoch
    with pytest.MonkeyPatch.context() as patch:

        def one_less(self, epoch, max_epochs):
            if epoch == stop:
                raise KeyboardInterrupt
            return train_epoch(self, epoch, max_epochs)

        patch.setattr(GMVAE, "_train_epoch", one_less)
        with pytest.raises(KeyboardInterrupt):
            model.train(10, progress=False, out=tmp_path)
    assert len(model.history) == stop
    again = fitted(6, epochs=10, out=tmp_path)
    assert all(t.equal(again._state()[name]) for name, t in whole._state().items())


def test_while_the_encoder_rests_the_embedding_stays_and_r_becomes_the_cells():
    adata = simulated(240)
    model = GMVAE(adata, K=6, batch_key="batch", preset=SMALL)
    seen = []
    train_epoch = GMVAE._train_epoch

    def watched(self, epoch, max_epochs):
        row = train_epoch(self, epoch, max_epochs)
        y, b = (
            torch.from_numpy(adata.X[:20].toarray()).to_sparse_csr(),
            torch.zeros(20, dtype=torch.long),
        )
        with torch.no_grad():
            log_r, _ = self.network.eval().likelihood_params(
                y, b, self.network.encode(y, b).x_mean[None]
            )
        seen.append((self.get_latent_representation(), log_r.std(1).max().item()))
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GMVAE, "_train_epoch", watched)
        model.train(10, progress=False)
    moved = [not np.array_equal(a, b) for (a, _), (b, _) in zip(seen, seen[1:])]
    assert moved == [True] * 6 + [False] * 3
    assert [r > 1e-4 for _, r in seen] == [False] * 7 + [True] * 3


def test_weights_decay_the_more_the_fewer_cells_there_are():
    def norm(cells, n):
        return (
            fitted(3, 8, replace(SMALL, weight_decay=cells), n=n)
            .network.heads.log_mean.weight.norm()
            .item()
        )

    assert norm(1e3, 240) < norm(0.0, 240)
    assert norm(1e3, 120) / norm(0.0, 120) < norm(1e3, 480) / norm(0.0, 480)
    assert np.isfinite(norm(1e9, 240))  # however much


def test_cells_of_a_batch_that_was_left_out_are_embedded(model):
    "The encoder does not see the batch: which one a cell is said to be from changes nothing."
    adata = simulated(240)
    other = adata.copy()
    other.obs["batch"] = adata.obs["batch"].map({"0": "1", "1": "0"}).to_numpy()
    np.testing.assert_array_equal(
        model.get_latent_representation(adata), model.get_latent_representation(other)
    )


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="K is None"):
        GMVAE(simulated(), K=None, preset="blog")
    with pytest.raises(ValueError, match='prior="parameters"'):
        replace(SMALL, prior="network")


def test_merging_does_not_depend_on_the_order_of_components_or_cells():
    generator = torch.Generator().manual_seed(0)
    gamma = (3 * torch.randn(500, 9, generator=generator)).softmax(-1)
    gamma[:, 5] = gamma[:, 2] = (gamma[:, 5] + gamma[:, 2]) / 2  # one component twice
    found, order = merge_components(gamma), torch.randperm(9, generator=generator)
    assert found[5] == found[2]
    shuffled = merge_components(gamma[torch.randperm(500, generator=generator)][:, order])
    assert shuffled.tolist() == found[order].tolist()
