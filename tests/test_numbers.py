"""Clusters are numbered by size under every preset, and everything that names one agrees."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gmvae_nb.annotation import annotate
from gmvae_nb.inference import for_each_cell, shared_noise
from gmvae_nb.model_folder import FORMAT, read_model, weights_sha256
from gmvae_nb.network import PRESETS
from gmvae_nb.train import GMVAE

from test_promises import rewritten
from test_train import simulated

K = 6
SIZES = dict(n_x=3, n_w=2, encoder_hidden=(8,), decoder_hidden=(8,), prior_hidden=8)
PLAIN = replace(PRESETS["blog"], **SIZES, M=2, M_w=1, dtype="float32")
# its components are placed, and so in use; they are not merged
PLACED = replace(PLAIN, prior="parameters", init="data", bound="exact")


def trained(preset, epochs=4):
    model = GMVAE(simulated(), K=K, batch_key="batch", preset=preset)
    return model.train(epochs, progress=False)


@pytest.fixture(scope="module")
def model():
    return trained(PLACED)


def sizes(model):
    prob = model.predict_proba(simulated()[model.train_idx])
    return np.bincount(prob.argmax(1), minlength=K)


@pytest.mark.filterwarnings("ignore:the mixture has collapsed")
@pytest.mark.parametrize("preset", [PLAIN, PLACED], ids=["w", "placed"])
def test_the_largest_cluster_is_0_the_next_is_1(preset):
    model = trained(preset)
    assert sorted(model.network.cluster_of.tolist()) == list(range(K)) and model.n_clusters == K
    assert (np.diff(sizes(model)) <= 0).all(), sizes(model)


def test_it_is_the_data_that_number_them(model):
    "Else the test above could pass for components that happen to be in order."
    assert model.network.cluster_of.tolist() != list(range(K))
    assert (sizes(model) > 0).sum() > 2


def test_all_that_names_a_cluster_names_the_same(model):
    adata, of = simulated(), model.network.cluster_of
    prob = model.predict_proba(adata)
    net, noise = model.network, shared_noise(model.network, 50, model.seed)

    def of_components(y, b):
        return net.log_responsibilities(y, b, *noise).exp().mean(0)

    gamma = for_each_cell(net, model.match_cells(adata), of_components).numpy()
    for component in range(K):
        np.testing.assert_array_equal(prob[:, of[component]], gamma[:, component])
    names = [str(k) for k in prob.argmax(1)]
    assert list(model.predict(adata)) == names
    obs, obsm = annotate(model)
    assert list(obs["gmvae_cluster"]) == names
    np.testing.assert_allclose(obsm["gmvae_prob"], np.minimum(prob, 1))
    cells = model.cluster_report(adata)["cells"]
    assert cells == {str(k): names.count(str(k)) for k in range(K)}


def test_the_numbers_are_kept_and_come_again(model, tmp_path):
    of = model.network.cluster_of
    again = GMVAE.load(model.save(tmp_path))
    assert again.network.cluster_of.equal(of)
    assert list(again.predict(simulated())) == list(model.predict())


@pytest.mark.filterwarnings("ignore:the mixture has collapsed")
def test_a_training_in_parts_numbers_as_one_at_once():
    at_once, parts = trained(PLAIN, 3), trained(PLAIN, 1)
    parts.train(3, progress=False)
    assert parts.network.cluster_of.equal(at_once.network.cluster_of)


def as_format_4(header, state):
    header["config"]["format"] = 4
    del state["network.cluster_of"]


def test_an_older_model_has_the_numbers_of_its_components(model, tmp_path):
    model.save(tmp_path)
    rewritten(tmp_path, as_format_4)
    old = GMVAE.load(tmp_path, simulated())
    assert old.network.cluster_of.tolist() == list(range(K))
    order = model.network.cluster_of.numpy()
    np.testing.assert_array_equal(old.predict_proba(), model.predict_proba()[:, order])
    # what an annotated file of that time says of the weights is still true
    state = old.network.state_dict()
    before = {name: t for name, t in state.items() if name != "cluster_of"}
    assert (
        weights_sha256(state) == weights_sha256(before) == weights_sha256(read_model(tmp_path)[2])
    )
    assert weights_sha256(model.network.state_dict()) != weights_sha256(state)
    # and it is written in the format of today
    assert json.loads((old.save(tmp_path / "new") / "config.json").read_text())["format"] == FORMAT


def test_no_other_number_of_clusters_without_a_tree(model):
    assert model.predict_proba(simulated(), n_clusters=K).shape[1] == K
    with pytest.raises(ValueError, match="n_clusters is 3, but this model has no tree"):
        model.predict(n_clusters=3)
