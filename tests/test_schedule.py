"""How long a model is trained: the plan, and the watch on cells that are held out."""

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import commands
from gmvae_nb.findings import remarks
from gmvae_nb.gpu import counts_for
from gmvae_nb.model_folder import read_model, read_preset, weights_sha256
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.runs import finished_run, fitting_preset, train_run
from gmvae_nb.scale import checked_batch_size
from gmvae_nb.schedule import (
    Course,
    best_so_far,
    course_of,
    epochs_wanted,
    kept_epoch,
    kl_weight,
    learning_rate,
    place_in_plan,
    row_of_weights,
    told_by_components,
    went_back,
    with_batch_size,
)
from gmvae_nb.train import GMVAE, training_split
from scipy.sparse import csr_matrix

from hazards import SMALL, stop_at_step

PLAN = 20  # epochs
WATCHED = replace(SMALL, lr=5e-3, weight_decay=0.0, patience=0.1, recentre=False)
HELD_OUT = np.arange(60, 75)


def misled(n=75, G=20) -> ad.AnnData:
    "Cells of one kind to train on, and others to hold out: what is learned soon misleads."
    rng = np.random.default_rng(0)
    rates = rng.gamma(1.0, 2.0, (2, G))
    y = rng.poisson(rates[(np.arange(n) >= 60).astype(int)]) + (np.arange(G) == 0)
    obs = pd.DataFrame(
        {"batch": (np.arange(n) % 2).astype(str), "cell_type": "one"},
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(G)])
    return ad.AnnData(csr_matrix(y.astype(np.float32)), obs=obs, var=var)


def untrained(preset=WATCHED) -> GMVAE:
    return GMVAE(misled(), K=4, batch_key="batch", preset=preset)


def trained(preset=WATCHED, epochs=PLAN, test_idx=HELD_OUT, **options) -> GMVAE:
    return untrained(preset).train(epochs, test_idx=test_idx, progress=False, **options)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    "A training that the watch shortens, the checkpoint after each epoch, and their folder."
    states, write = [], GMVAE._write

    def keep(self, folder):
        states.append(self._state())
        write(self, folder)

    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GMVAE, "_write", keep)
        model = trained(out=folder)
    return model, states, folder


def course(model: GMVAE) -> Course:
    return course_of(model.preset, PLAN, model._rows)


def weights(state: dict, prefix: str = "network.") -> dict:
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def assert_same_bits(state: dict, other: dict):
    assert state.keys() == other.keys()
    assert [name for name, t in state.items() if not t.equal(other[name])] == []


def test_few_cells_get_no_more_than_most_epochs():
    preset = replace(PRESETS["recommended"], max_epochs=10, min_steps=1500, most_epochs=100)
    epochs = [epochs_wanted(preset, n) for n in (1, 128, 129, 1920, 1921, 6400, 10**6)]
    assert epochs == [100, 100, 100, 100, 94, 30, 10]
    assert epochs_wanted(replace(preset, most_epochs=0), 128) == 1500
    assert epochs_wanted(replace(preset, most_epochs=3), 128) == 10


def test_a_training_without_a_watch_is_the_plan():
    model = trained(replace(WATCHED, patience=0.0), epochs=10)
    assert course_of(model.preset, 10, model._rows) == Course(7, 7, 10)
    assert len(model.history) == 10 and "weights_of" not in model.history
    lr = [learning_rate(e, model.preset, 10) for e in range(10)]
    assert model.history["lr"].tolist() == lr


def test_the_watch_ends_what_is_not_getting_better(watched):
    "With the epochs, the rate and the phases that follow from it."
    model, _, _ = watched
    learning, kept, total = course(model)
    history = model.history
    assert kept < learning < total == len(history) < PLAN
    loss = history["test_neg_elbo"].to_numpy()
    start = PLAN // 7
    assert kept == start + 1 + loss[start:learning].argmin() == learning - 3
    assert total - learning == -(-kept * 3 // 7)
    assert history["epoch"].tolist() == list(range(1, total + 1))
    ends = learning + 1 + int(loss[learning:].argmin())
    weights_of = [*range(1, learning), kept, *range(learning + 1, total), ends]
    assert history["weights_of"].tolist() == weights_of and ends < total
    places = [place_in_plan(WATCHED, PLAN, course(model), e) for e in range(total + 1)]
    assert places[learning] == 14 and places[total] == pytest.approx(PLAN)
    assert history["lr"].tolist() == [learning_rate(p, WATCHED, PLAN) for p in places[:-1]]
    assert [kl_weight(p, WATCHED, PLAN) for p in places[learning:]] == [1] * (total - learning + 1)
    assert row_of_weights(history)["epoch"] == ends and went_back(history)


def test_until_the_watch_fires_it_changes_nothing(watched):
    model, _, _ = watched
    other = trained(replace(WATCHED, patience=0.0))
    same = course(model).learning
    for column in ("train_neg_elbo", "test_neg_elbo", "lr"):
        assert (model.history[column][:same] == other.history[column][:same]).all()
    assert len(other.history) == PLAN


def test_the_weights_go_back_with_their_moments(watched):
    "To those of the best epoch, once the encoder has learned, and at the very end."
    model, states, _ = watched
    learning, kept, total = course(model)
    assert_same_bits(states[learning - 1], states[kept - 1])
    ends = model.history["weights_of"].iloc[-1]
    last, best = weights(states[-1]), weights(states[ends - 1])
    for name in best.keys() - {"cluster_of", "forks", "fork_evidence"}:  # merged at the end
        assert last[name].equal(best[name])
    resting = [weights(s, "network.encoder.") for s in states[learning - 1 :]]
    for state in resting[1:]:  # the encoder has not moved
        assert_same_bits(state, resting[0])
    model._source = counts_for(model.device, model.counts, model.batch)
    loss = model._evaluate(model.test_idx)
    found = np.concatenate([(p["rec"] + (p["kl_w"] + p["kl_xz"])).numpy() for p in loss])
    reported = row_of_weights(model.history)["test_neg_elbo"]
    assert found.mean() == pytest.approx(reported, rel=1e-5)


def test_the_best_epoch_is_in_the_checkpoints_and_not_in_the_model(watched, tmp_path):
    model, states, folder = watched
    learning, kept, total = course(model)
    for done, state in enumerate(states, 1):
        best = weights(state, "best.")
        rows = model._rows[:done]
        reserved = best_so_far(WATCHED, PLAN, rows)
        is_needed = kept_epoch(WATCHED, PLAN, rows) == done and 0 < reserved < done
        if done in (learning, total) or not is_needed:
            assert not best
        else:
            assert_same_bits(best, {k: t for k, t in states[reserved - 1].items()})
    assert any(weights(state, "best.") for state in states)
    assert not any("best." in name for name in read_model(folder)[2])
    model.save(tmp_path)
    assert all(name.startswith("network.") for name in read_model(tmp_path)[2])
    with_best = next(state for state in states if weights(state, "best."))
    assert weights_sha256(with_best) == weights_sha256(
        {f"network.{name}": t for name, t in weights(with_best).items()}
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_stopped_in_any_epoch_it_goes_on_to_the_same_bits(watched, tmp_path, error):
    "From the folder, and, after Ctrl-C, from memory."
    whole, states, _ = watched
    steps = -(-60 // WATCHED.batch_size)
    learning, _, total = course(whole)
    around = sorted({2, learning - 1, learning, total - 1})  # the two that go back
    stops = range(1, total) if error is RuntimeError else around
    for done in stops:
        model, folder = untrained(), tmp_path / str(done)
        options = dict(out=folder, progress=False)
        stop_at_step(model, done * steps + 1, error)
        with pytest.raises(error):
            model.train(PLAN, test_idx=HELD_OUT, **options)
        again = untrained()
        if error is KeyboardInterrupt:
            assert_same_bits(model._state(), states[done - 1])
            again = [model, GMVAE.load(folder, misled())][done % 2]
        again.train(PLAN, test_idx=None if again.test_idx is not None else HELD_OUT, **options)
        assert_same_bits(again._state(), whole._state())
        assert again.history["weights_of"].tolist() == whole.history["weights_of"].tolist()


def test_a_finished_training_trains_nothing_more(watched):
    model, states, folder = watched
    before = (folder / "model.safetensors").read_bytes()
    total = len(model.history)
    for finished in (model, GMVAE.load(folder, misled()), untrained()):
        finished.train(PLAN, test_idx=HELD_OUT, out=folder, progress=False)
        assert len(finished.history) == total
    assert (folder / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match=f"planned for {PLAN} epochs"):
        model.train(total, progress=False)


def test_a_model_without_moments_is_finished_if_the_watch_says_so(watched, tmp_path):
    model, _, _ = watched
    model.save(tmp_path)
    again = trained(out=tmp_path)
    assert len(again.history) == len(model.history)


def test_without_held_out_cells_the_plan_holds():
    model = trained(epochs=10, test_idx=np.arange(0))
    assert len(model.history) == 10 and not went_back(model.history)
    assert model.history["weights_of"].tolist() == list(range(1, 11))


def test_without_a_rest_the_training_just_ends():
    model = trained(replace(WATCHED, refit=0.0))
    learning, kept, total = course(model)
    assert kept < learning == total == len(model.history)
    assert model.history["weights_of"].iloc[-1] == kept and model._best is None


def test_a_loss_that_is_no_number_is_never_better():
    rows = [{"test_neg_elbo": float(loss)} for loss in [3, 3, 2, "nan", "nan", "nan", "nan"]]
    assert course_of(WATCHED, PLAN, rows) == Course(6, 3, 8)
    worst = [{"test_neg_elbo": float("nan")}] * 20
    assert course_of(WATCHED, PLAN, worst) == Course(6, 3, 8)


def test_the_log_says_what_the_watch_did(watched, capfd):
    total = len(watched[0].history)
    untrained().train(PLAN, test_idx=HELD_OUT)
    told = capfd.readouterr()
    assert "held-out cells were described best after epoch" in told.err and not told.out
    assert f"{total}/{total}" in told.err  # the bar ends where the training does
    trained()
    assert "held-out cells" not in capfd.readouterr().err


def test_settings_of_before_have_no_watch_and_no_limit():
    settings = json.loads(json.dumps(vars(WATCHED)))
    for name in ("most_epochs", "patience"):
        del settings[name]
    preset = read_preset(settings)
    assert (preset.most_epochs, preset.patience) == (0, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run whose held-out cells are those that training misleads about."
    folder, seed = tmp_path_factory.mktemp("run"), 0
    data = read_input(with_held_out_last(seed), batch_key="batch")
    options = dict(K=4, batch_key="batch", preset=WATCHED, seed=seed, progress=False)
    options |= dict(max_epochs=2 * PLAN)  # the watch ends it long before, with any torch
    return folder, data, options, train_run(data, folder, **options)


def with_held_out_last(seed: int) -> ad.AnnData:
    "The cells in such an order that those which `misled` holds out are held out."
    adata = misled()
    _, test = training_split(adata.n_obs, None, seed)
    order = np.empty(adata.n_obs, dtype=int)
    train = np.setdiff1d(np.arange(adata.n_obs), test)
    order[test] = np.arange(adata.n_obs)[-len(test) :]
    order[train] = np.arange(adata.n_obs)[: len(train)]
    return adata[order].copy()


def test_a_run_that_the_watch_has_ended_is_finished(run):
    folder, data, options, model = run
    done = len(model.history)
    assert went_back(model.history) and done < 2 * PLAN
    assert finished_run(folder, 2 * PLAN) and not finished_run(folder, 2 * PLAN + 1)
    with pytest.raises(ValueError, match=f"trained for {done} epochs"):
        finished_run(folder, done - 1)
    before = (folder / "model.safetensors").read_bytes()
    train_run(data, folder, resume=True, **options)
    assert (folder / "model.safetensors").read_bytes() == before
    metrics = json.loads((folder / "metrics.json").read_text())
    last = row_of_weights(model.history)
    assert metrics["epochs"] == done
    assert metrics["test"]["neg_elbo"] == last["test_neg_elbo"]
    assert metrics["clusters"]["effective_K"] == last["effective_K"]


def test_the_page_does_not_ask_for_more_epochs(run):
    history = run[3].history
    falling = history.assign(test_neg_elbo=np.linspace(100, 50, len(history)))
    preset = run[3].preset
    assert not any("max_epochs" in r for r in remarks(falling, 4, 4, 0.0, preset))
    planned = falling.drop(columns="weights_of")
    assert any("max_epochs" in r for r in remarks(planned, 4, 4, 0.0, preset))


@pytest.mark.parametrize("asked", [41, 4096, 100_000])
def test_the_rate_is_that_of_a_mini_batch_that_there_is(asked, tmp_path, monkeypatch):
    preset, seen = PRESETS["recommended"], []
    wanted = with_batch_size(preset, 340)
    assert checked_batch_size(preset, 300, 400) == with_batch_size(preset, 300)
    if asked >= 340:
        assert checked_batch_size(preset, asked, 400) == wanted
        assert fitting_preset(wanted, 400) == (wanted, [])
    # in the command, of 48 cells 40 are trained on
    misled(48).write_h5ad(tmp_path / "mine.h5ad")
    monkeypatch.setattr(commands, "describe_cost", lambda read, _, **how: seen.append((read, how)))
    words = dict(out=str(tmp_path / "out"), dry_run=True, quiet=True, batch_size=asked)
    commands.gmvae_train(str(tmp_path / "mine.h5ad"), batch_key="batch", **words)
    read, how = seen[0]
    assert how["preset"] == with_batch_size(preset, len(training_split(48, None, 0)[0]))
    assert read.notes[-1].endswith("and the rate is that of this size")


def test_components_tell_no_more_than_the_embedding_costs():
    row = dict(mutual_information=0.5, train_kl_w=9.0, train_kl_z=9.0, train_cond=9.0)
    assert told_by_components(pd.DataFrame([row])) == 0.5
    held_out = dict(test_kl_w=0.01, test_kl_z=0.03, test_cond=-0.02)
    told = told_by_components(pd.DataFrame([row | held_out]))
    assert told == pytest.approx(0.02)
    assert told_by_components(pd.DataFrame([row | held_out | {"test_cond": -1.0}])) == 0
