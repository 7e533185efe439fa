"""Sentences under figures: right for whatever run they are put together from."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from gmvae_nb.in_words import (
    Told,
    cause_sentence,
    clusters_sentence,
    comparison_sentence,
    has_collapsed,
    loss_sentence,
    maps_sentences,
    mixture_sentence,
    settings_in_words,
    verdict,
)
from gmvae_nb.network import PRESETS
from gmvae_nb.train import GMVAE
from hypothesis import given
from hypothesis import strategies as st

from test_numbers import PLACED, PLAIN
from test_train import simulated


def run_of(K, effective_K, kl_z, held_out=True, name="blog", scored=True, neg_iwae=400.0):
    "Of one epoch; its components are as sure as kl_z says."
    parts = ("train", "test") if held_out else ("train",)
    row = {"epoch": 1, "effective_K": effective_K}
    row["mutual_information"] = np.log(effective_K) - (np.log(K) - kl_z)
    for part in parts:
        row |= {f"{part}_neg_elbo": 400.0, f"{part}_kl_w": 9.0}
        row |= {f"{part}_kl_z": kl_z, f"{part}_cond": 9.0}
    n = max(1, round(effective_K))
    latent = {"ari_clusters": 0.5, "nmi_clusters": 0.4, "asw": 0.3, "batch_asw": float("nan")}
    metrics = {
        "K": K,
        "test": {"neg_iwae": neg_iwae} if held_out else {},
        "scores": {"latent": latent} if scored else {},
    }
    clusters = pd.Categorical([str(i % n) for i in range(60)])
    return Told(name, PRESETS[name], pd.DataFrame([row]), metrics, clusters)


CASES = list(
    itertools.product(
        [1, 2, 30], ["one", "all"], ["sure", "alike"], [True, False], [None, 1, 8], sorted(PRESETS)
    )
)


@pytest.mark.parametrize("K, use, how, full, n_types, name", CASES)
def test_each_sentence_is_one_and_has_no_gap(K, use, how, full, n_types, name):
    kl_z = np.log(K) if how == "sure" else 0.0
    run = run_of(K, 1.0 if use == "one" else K, kl_z, full, name, scored=full)
    said = [loss_sentence(run), mixture_sentence(run), clusters_sentence(run, n_types)]
    said += verdict([run], n_types)
    for other in PRESETS:
        said += verdict([run, run._replace(name=other, preset=PRESETS[other])], n_types)
    for sentence in said:
        assert sentence.endswith(".") and "\n" not in sentence and "  " not in sentence
        assert "nan" not in sentence and "None" not in sentence and len(sentence) < 400
    if n_types is None or not full:
        assert "ARI" not in " ".join(said)
    if K == 1:
        assert not has_collapsed(run) and "Cause" not in " ".join(said)


def test_a_cure_is_one_that_cures():
    dead, alive = run_of(30, 1.0, np.log(30)), run_of(30, 20.0, np.log(30), name="recommended")
    for runs in ([dead, alive], [alive, dead]):
        said = verdict(runs, 8)
        assert sum(x.startswith("Cause: ") for x in said) == 1
        assert said[-1].startswith("Cure: recommended has components placed by k-means")
    for runs in ([dead, dead], [alive, alive], [alive]):
        assert not any(x.startswith("Cure") for x in verdict(runs, 8))
    # few, as far as one knows how many there should be
    few = run_of(30, 2.0, np.log(30))
    assert verdict([few], 8)[0] == "blog fails to cluster these cells: 2 clusters, cell types: 8."
    assert verdict([few])[0] == verdict([few], 4)[0].replace(", cell types: 4", "")
    assert verdict([few])[0] == "blog clusters these cells: 2 clusters."
    merged = alive._replace(clusters=pd.Categorical(["0"] * 60))  # of twenty components
    assert verdict([merged])[0] == "recommended does not divide these cells: 1 cluster."
    fails, cause = verdict([merged], 8)
    assert fails.startswith("recommended fails to cluster") and "were merged where" in cause
    assert "Cure" not in " ".join(verdict([dead, merged], 8))


def test_the_cause_is_the_one_that_the_history_shows():
    assert "is sure of one component, placed at random; and" in cause_sentence(
        run_of(30, 1.0, np.log(30))
    )
    placed = run_of(30, 1.0, np.log(30), name="recommended")
    assert "is sure of one component; and" in cause_sentence(placed)
    more = placed.history.assign(epoch=2, test_kl_z=0.2, effective_K=3.0)
    course = pd.concat([more, placed.history], ignore_index=True).assign(weights_of=[1, 1])
    assert "too much alike" in cause_sentence(placed._replace(history=course))
    assert "too much alike" in cause_sentence(run_of(30, 30.0, 0.0))


@given(st.floats(300, 500), st.floats(300, 500))
def test_better_is_lower(here, there):
    run, other = (
        run_of(2, 1, 0, neg_iwae=here),
        run_of(2, 1, 0, name="recommended", neg_iwae=there),
    )
    said = comparison_sentence(run, other)
    word = {1: "better than", -1: "worse than", 0: "as well as"}
    assert word[np.sign(round(here, 1) - round(there, 1))] in said


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_the_highest_is_the_highest(values):
    scores = {f"m{i}": {"asw": v} for i, v in enumerate(values)}
    (said,) = maps_sentences(scores)
    rounded = [round(v, 2) for v in values]
    best = [f"m{i}" for i, v in enumerate(rounded) if v == max(rounded)]
    assert said.endswith(f"highest: {' and '.join(best)}.")


@pytest.mark.parametrize("preset", [PLAIN, PLACED], ids=["w", "placed"])
@pytest.mark.parametrize("K", [1, 6])
def test_collapsed_is_what_training_warns_of(preset, K):
    model = GMVAE(simulated(), K=K, batch_key="batch", preset=preset)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(2, progress=False)
    warned = any("the mixture has collapsed" in str(w.message) for w in caught)
    clusters = model.predict(simulated()[model.test_idx])
    run = Told("", preset, model.history, {"K": K, "test": {}, "scores": {}}, clusters)
    assert has_collapsed(run) == warned


def test_settings_that_differ_are_named_and_others_are_not():
    said = settings_in_words(PRESETS["blog"], PRESETS["recommended"])
    assert said.count(",") == 3 and "exact bound" in said and "random" not in said
    assert settings_in_words(PRESETS["blog"], PRESETS["original"]).startswith("the same")
