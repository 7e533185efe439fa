"""Where all cells are one cluster it is trained twice, and halves of held-out cells choose."""

import json
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import clusters, tl
from gmvae_nb.count_splitting import FEWEST_ASKED, LEAST_P
from gmvae_nb.findings import remarks
from gmvae_nb.inference import root_p
from gmvae_nb.model_folder import read_model, verify, without_seconds, write_model
from gmvae_nb.network import PRESETS, get_preset, recentred
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.schedule import row_of_weights, second_training
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix

EPOCHS = {"stays": 30, "dropped": 12}
pytestmark = pytest.mark.filterwarnings("ignore:the mixture has collapsed")


def cells(which: str) -> ad.AnnData:
    "Two kinds that differ in a few genes, or one kind."
    rng = np.random.default_rng(0)
    n, n_genes, n_different = {"stays": (240, 40, 12), "dropped": (180, 30, 0)}[which]
    mean = rng.lognormal(0, 1.5, n_genes)
    means = np.stack([mean, mean])
    found = np.argsort(-mean)[: n_genes // 2]
    means[1, rng.choice(found, n_different, replace=False)] *= 10.0
    means /= means.sum(1, keepdims=True)
    mu = rng.lognormal(np.log(2000), 0.4, n)[:, None] * means[np.arange(n) % 2]
    y = rng.poisson(rng.gamma(2.0, mu / 2)) + (np.arange(n_genes) == 0)
    names = [f"cell{i}" for i in range(n)]
    return ad.AnnData(csr_matrix(y.astype(np.float32)), obs=pd.DataFrame(index=names))


def untrained(which: str, **settings) -> GMVAE:
    small = replace(
        PRESETS["recommended"],
        n_x=4,
        encoder_hidden=(32, 16),
        decoder_hidden=(16, 32),
        batch_size=32,
        min_steps=0,
        max_epochs=EPOCHS[which],
        dtype="float32",
    )
    return GMVAE(cells(which), K=8, preset=replace(small, **settings))


@pytest.fixture(scope="module", params=EPOCHS)
def twice(request):
    "Which training stays, and the model."
    return request.param, untrained(request.param).train(progress=False)


def assert_same_history(model: GMVAE, other: GMVAE):
    # NaN is not NaN
    rows, of_other = (m.history.fillna(-1).to_dict("records") for m in (model, other))
    assert without_seconds(rows) == without_seconds(of_other)


def assert_same_model(model: GMVAE, other: GMVAE):
    state, others = model._state(), other._state()
    assert state.keys() == others.keys()
    assert [name for name, t in state.items() if not t.equal(others[name])] == []
    assert model.recentred == other.recentred
    assert_same_history(model, other)


def test_held_out_cells_choose(twice):
    which, model = twice
    alone = {
        again: untrained(which, recentre=False, **change).train(progress=False)
        for again, change in ((False, {}), (True, dict(encoder_input="centred_log", thin_to=0.2)))
    }
    loss = {k: row_of_weights(m.history)["test_neg_elbo"] for k, m in alone.items()}
    second = alone[True]
    stays, asked = second.n_clusters > 1, root_p(second.network)
    assert stays == (asked is not None and asked <= 0.05)
    assert model.recentred == stays == (which == "stays")
    of_it, other = alone[stays], alone[not stays]
    for name, t in of_it.network.state_dict().items():
        assert t.equal(model.network.state_dict()[name]), name
    told = {"uncentred_neg_elbo": loss[False]}
    if not stays:
        told = {"centred_neg_elbo": loss[True], "centred_n_clusters": second.n_clusters}
    if asked is not None:
        told["halves_agree_p"] = asked
    columns = list(told)
    assert model.history[columns].iloc[-1].to_dict() == told
    assert model.history[columns].iloc[:-1].isna().all(axis=None)
    assert model.history.drop(columns=columns).columns.equals(other.history.columns)
    told = second_training(model.history)
    assert ("stays" in told) == stays and ("dropped" in told) != stays
    one = "that model has one cluster too"
    assert one in told if asked is None else f"(p = {asked:.2g})" in told
    assert second_training(of_it.history) == ""
    on_page = " ".join(
        remarks(model.history, model.n_clusters, model.n_clusters, 0.0, model.preset)
    )
    assert told[1:] in on_page and "--preset centred" not in on_page


def test_saved_and_loaded_it_answers_the_same(twice, tmp_path):
    which, model = twice
    model.save(tmp_path)
    again = GMVAE.load(tmp_path, cells(which))
    assert again.recentred == model.recentred and again.preset == model.preset
    x = model.get_latent_representation()
    np.testing.assert_array_equal(again.get_latent_representation(), x)
    done = len(model.history)
    assert len(again.train(EPOCHS[which], progress=False).history) == done


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "A model, and the bytes of its file."
    folder = tmp_path_factory.mktemp("whole")
    model = untrained("dropped").train(progress=False, out=folder)
    return model, (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stopped_in", [3, 12, 20])
def test_stopped_in_either_training_it_goes_on_to_the_same_bits(
    stopped_in, undisturbed, tmp_path, monkeypatch
):
    undisturbed, whole = undisturbed
    calls, epoch = [], GMVAE._train_epoch

    def stop_once(self, *args):
        calls.append(args)
        row = epoch(self, *args)
        if len(calls) == stopped_in + 1:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(GMVAE, "_train_epoch", stop_once)
    model = untrained("dropped")
    with pytest.raises(KeyboardInterrupt):
        model.train(progress=False, out=tmp_path / "parts")
    config, rows, state = read_model(tmp_path / "parts")
    is_second = any(name.startswith("first.") for name in state)
    assert is_second == (stopped_in > EPOCHS["dropped"])
    of_second = stopped_in - EPOCHS["dropped"]
    assert len(rows) == (of_second if is_second else min(stopped_in, 11))  # the last is lost
    assert config.get("recentred", False) == is_second
    # in another process, by way of a model that was loaded, and in this one
    loaded = GMVAE.load(tmp_path / "parts", cells("dropped"))
    assert_same_model(loaded.train(EPOCHS["dropped"], progress=False), undisturbed)
    assert_same_model(model.train(progress=False), undisturbed)
    resumed = untrained("dropped").train(progress=False, out=tmp_path / "parts")
    assert_same_model(resumed, undisturbed)
    assert (tmp_path / "parts/model.safetensors").read_bytes() == whole
    assert not [name for name in read_model(tmp_path / "parts")[2] if name.startswith("first.")]
    assert verify(tmp_path / "parts")["notes"] == []


@pytest.fixture(scope="module")
def in_the_second(tmp_path_factory):
    "A folder in which the second training has three epochs, and the model."
    folder, epoch, calls = tmp_path_factory.mktemp("second"), GMVAE._train_epoch, []

    def stop_once(self, *args):
        calls.append(args)
        if len(calls) > EPOCHS["dropped"] + 3:
            raise KeyboardInterrupt
        return epoch(self, *args)

    model = untrained("dropped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(GMVAE, "_train_epoch", stop_once)
        model.train(progress=False, out=folder)
    assert "3 epochs of a second training are done" in str(stopped.value)
    return folder, model


def test_stopped_in_the_second_it_goes_on_as_it_was_begun(in_the_second, undisturbed, tmp_path):
    folder, _ = in_the_second
    model = GMVAE.load(folder, cells("dropped"))
    with pytest.raises(ValueError, match="planned for 12 epochs"):
        model.train(20, progress=False)
    with pytest.raises(ValueError, match="leave test_idx out"):
        model.train(12, test_idx=np.arange(9), progress=False)
    model.save(tmp_path)  # the first one too
    again = GMVAE.load(tmp_path, cells("dropped"))
    assert_same_model(again.train(12, progress=False), undisturbed[0])
    # its time is that of both
    first = json.loads((folder / "config.json").read_text())["first_seconds"]
    assert len(first) == 12 and again.history["seconds"].sum() > sum(first)


@pytest.mark.parametrize("failing", [12, 13, 23])
def test_after_a_write_that_failed_the_same_call_goes_on(
    failing, undisturbed, tmp_path, monkeypatch
):
    calls, write = [], GMVAE._write

    def full_once(self, folder):
        calls.append(folder)
        if len(calls) == failing:
            raise OSError("No space left on device")
        write(self, folder)

    monkeypatch.setattr(GMVAE, "_write", full_once)
    model = untrained("dropped")
    with pytest.raises(OSError):
        model.train(progress=False, out=tmp_path)
    assert_same_model(model.train(progress=False, out=tmp_path), undisturbed[0])
    assert (tmp_path / "model.safetensors").read_bytes() == undisturbed[1]


def test_what_stands_beside_the_weights_is_of_the_same_training(twice, tmp_path):
    which, model = twice
    model.save(tmp_path)
    stale = dict(recentred=not model.recentred)  # as after a write that was cut in two
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | stale))
    again = untrained(which).train(progress=False, out=tmp_path)
    assert json.loads(path.read_text()).get("recentred", False) == model.recentred
    assert_same_history(again, model)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config, state: config.pop("first_history"),
        lambda config, state: config.update(first_history=[]),
        lambda config, state: config.update(first_history=[{}]),
        lambda config, state: config.update(first_history=[1]),
        lambda config, state: config.update(recentred=1),
        lambda config, state: config.update(recentred=False),
        lambda config, state: state.pop("first.network.y_mean"),
    ],
)
def test_a_checkpoint_without_its_first_training_is_refused(in_the_second, tmp_path, spoil):
    config, rows, state = read_model(in_the_second[0])
    config["first_history"] = without_seconds(config["first_history"])
    spoil(config, state)
    write_model(tmp_path, config, rows, state)
    with pytest.raises(ValueError, match="is not a model written by gmvae_nb, or is damaged"):
        GMVAE.load(tmp_path)


def test_a_checkpoint_of_format_6_is_gone_on_from(in_the_second, undisturbed, tmp_path):
    "Written before branches were proven: neither model has their p."
    config, rows, state = read_model(in_the_second[0])
    config["first_history"] = without_seconds(config["first_history"])
    names = [name for name in state if name.endswith("network.halves_agree_p")]
    assert sorted(names) == ["first.network.halves_agree_p", "network.halves_agree_p"]
    state = {name: t for name, t in state.items() if name not in names}
    write_model(tmp_path, config | dict(format=6), rows, state)
    model = GMVAE.load(tmp_path, cells("dropped")).train(12, progress=False)
    first, second = (m.network.state_dict() for m in (model, undisturbed[0]))
    for name in first.keys() - {"halves_agree_p"}:
        assert first[name].equal(second[name]), name


@pytest.mark.parametrize(
    "settings, options",
    [
        (dict(recentre=False), {}),
        ({}, dict(test_idx=np.array([], dtype=int))),  # nobody can choose
        ({}, dict(test_idx=np.arange(FEWEST_ASKED - 1))),  # too few
        ({}, dict(max_epochs=11)),  # more epochs may be all it needs
        (dict(encoder_input="centred_log"), {}),  # it was the second one already
    ],
)
def test_there_is_one_training(settings, options):
    model = untrained("dropped", **settings).train(progress=False, **options)
    assert model.n_clusters == 1 and not model.recentred
    assert len(model.history) == options.get("max_epochs", 12)
    assert second_training(model.history) == ""


def test_clusters_that_were_not_proven_are_not_looked_at_again(monkeypatch):
    "The encoder told cells apart; held-out cells did not confirm it."
    grown = clusters.cluster_tree
    apart = lambda *a, **kw: grown(*a, **kw)._replace(n_clusters=8)  # noqa: E731
    monkeypatch.setattr(clusters, "cluster_tree", apart)
    monkeypatch.setattr("gmvae_nb.train.halves_agree_p", lambda looks, among, rng: 0.4)
    model = untrained("dropped").train(progress=False)
    assert model.n_clusters == 1 and root_p(model.network) == 0.4
    assert second_training(model.history) == "" and not model.recentred


def test_several_clusters_are_not_looked_at_again():
    model = GMVAE(cells("stays"), preset=replace(untrained("stays").preset, recentre=True), K=8)
    model.preset = replace(model.preset, merge=False)
    model.network.preset = model.preset
    assert second_training(model.train(progress=False).history) == ""
    assert model.n_clusters > 1


@pytest.mark.parametrize("hold_out", [True, False])
def test_a_run_says_whether_held_out_counts_know_of_its_clusters(tmp_path, hold_out):
    data = read_input(cells("stays"))
    preset = untrained("stays", encoder_input="centred_log", thin_to=0.2).preset
    model = train_run(data, tmp_path, K=8, preset=preset, hold_out=hold_out, progress=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert model.n_clusters == 2
    assert metrics["halves_agree_p"] == (LEAST_P if hold_out else None)


def test_one_line_says_so_too(monkeypatch):
    model = dict(preset=untrained("stays", encoder_input="centred_log", thin_to=0.2).preset)
    asked = dict(K=8, progress=False, return_model=True, **model)
    adata = cells("stays")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "No counts were asked")
        assert tl.gmvae(adata, **asked).n_clusters == 2
    assert adata.uns["gmvae"]["halves_agree_p"] == LEAST_P
    tl.gmvae(adata, **asked | dict(preset=replace(model["preset"], alpha=1e-300)))
    assert "halves_agree_p" not in adata.uns["gmvae"]  # one cluster, by its looks
    adata, train = cells("stays"), GMVAE.train
    none = np.array([], dtype=int)
    monkeypatch.setattr(GMVAE, "train", lambda self, *a, **kw: train(self, *a, test_idx=none, **kw))
    with pytest.warns(UserWarning, match="No counts were asked but those that made the clusters"):
        assert tl.gmvae(adata, **asked).n_clusters > 1
    assert "halves_agree_p" not in adata.uns["gmvae"]


def test_a_run_says_which_training_stayed(tmp_path):
    adata = cells("dropped")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    data = read_input(tmp_path / "cells.h5ad")
    preset = untrained("dropped").preset
    made = {"K": 8, "preset": preset, "progress": False}
    model = train_run(data, tmp_path / "run", **made)
    assert "was dropped" in second_training(model.history)
    again = train_run(data, tmp_path / "run", resume=True, **made)
    assert_same_model(again, model)
    text = (tmp_path / "run" / "history.csv").read_text()
    assert "centred_neg_elbo" in text.splitlines()[0]


def test_centred_is_the_second_training_of_recommended():
    assert get_preset("centred") == recentred(get_preset("recommended"))
    assert not get_preset("centred").recentre


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("odd counts")])
def test_an_error_at_the_end_takes_no_clusters_for_found(error, undisturbed, monkeypatch):
    def fail(self, gamma):
        raise error

    model = untrained("dropped")
    with monkeypatch.context() as patch, pytest.raises(type(error), match=str(error)):
        patch.setattr(GMVAE, "_grow_tree", fail)
        model.train(progress=False)
    assert len(model.history) == EPOCHS["dropped"] - 1
    assert_same_model(model.train(progress=False), undisturbed[0])


def test_a_second_training_that_nobody_can_be_asked_about_is_dropped_and_said(monkeypatch):
    monkeypatch.setattr("gmvae_nb.train.halves_agree_p", lambda looks, among, rng: np.nan)
    model = untrained("stays").train(progress=False)
    assert not model.recentred and model.n_clusters == 1
    assert "too few cells were held out to ask" in second_training(model.history)
    held_out = len(model.test_idx)
    monkeypatch.setattr("gmvae_nb.train.FEWEST_ASKED", held_out)  # one more for the batch
    assert second_training(untrained("stays").train(progress=False).history) == ""
