"""Names of before: they work for one release and warn, and files that hold them are read."""

import importlib
import inspect
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gmvae_nb.model_folder import read_model, write_model
from gmvae_nb.network import PRESETS, Preset
from gmvae_nb.old_names import MOVED
from gmvae_nb.reading import read_input
from gmvae_nb.runs import claim_folder, train_run
from gmvae_nb.train import GMVAE

from hazards import TINY, cells, model

ROOT = Path(__file__).parents[1]
NAMES = [(module, name) for module, names in MOVED.items() for name in names]


@pytest.mark.parametrize("module, name", NAMES)
def test_a_name_is_found_where_it_was(module, name):
    "With a warning that names its new place, unless the old module uses the name itself."
    room, _, new = MOVED[module][name].partition(".")
    target = getattr(importlib.import_module(f"gmvae_nb.{room}"), new or name)
    old = importlib.import_module(f"gmvae_nb.{module}")
    if name in vars(old):
        assert getattr(old, name) is target
        return
    with pytest.warns(DeprecationWarning, match=rf"is now gmvae_nb\.{room}\.{new or name};"):
        assert getattr(old, name) is target


@pytest.mark.parametrize("module", MOVED)
def test_a_name_that_never_was_is_none_now(module):
    old = importlib.import_module(f"gmvae_nb.{module}")
    with pytest.raises(AttributeError, match=f"module 'gmvae_nb.{module}' has no attribute 'x'"):
        getattr(old, "x")  # noqa: B009


def test_the_warning_points_at_the_line_that_uses_the_old_name():
    with pytest.warns(DeprecationWarning) as told:
        from gmvae_nb.train import TERMS  # noqa: F401
    assert told[0].filename == __file__


def test_the_package_itself_uses_no_old_name():
    modules = sorted(p.stem for p in (ROOT / "gmvae_nb").glob("*.py") if p.stem != "__init__")
    code = "; ".join(f"import gmvae_nb.{name}" for name in modules)
    command = [sys.executable, "-W", "error:gmvae_nb.", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "preset, rise, share, epochs",
    [
        (Preset(), 0, 0, 0),
        (Preset(), 0.25, 0.25, 0),
        (Preset(), 1, 0, 1),
        (Preset(), 5, 0, 5),
        (PRESETS["recommended"], 0, 0, 0),  # which has a share of its own
        (PRESETS["recommended"], 0.25, 0.25, 0),
        (PRESETS["recommended"], 5, 0, 5),
    ],
)
def test_the_old_warm_up_is_one_of_the_two_of_now(preset, rise, share, epochs):
    name = "kl_warmup_share" if rise < 1 else "kl_warmup_epochs"
    with pytest.warns(DeprecationWarning, match=f"kl_warmup is now {name}"):
        changed = replace(preset, kl_warmup=rise)
    assert changed == replace(preset, kl_warmup_share=share, kl_warmup_epochs=epochs)


def test_a_preset_is_made_and_changed_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(Preset(kl_warmup_epochs=2), M=1).kl_warmup_epochs == 2


SAMPLED = [
    "predict_proba",
    "predict",
    "get_elbo",
    "get_iwae",
    "get_normalized_expression",
    "posterior_predictive",
]


def test_no_method_that_samples_is_forgotten():
    takes = [
        name
        for name, method in inspect.getmembers(GMVAE, inspect.isfunction)
        if not name.startswith("_") and "n_samples" in inspect.signature(method).parameters
    ]
    never_had_another = {"predict_labels"}
    assert set(takes) - never_had_another == set(SAMPLED)


@pytest.fixture(scope="module")
def trained():
    return model(2)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_old_number_of_draws_is_that_of_samples(trained, name):
    method = getattr(trained, name)
    with pytest.warns(DeprecationWarning, match="n_draws is now called n_samples") as told:
        old = method(n_draws=3)
    assert told[0].filename == __file__
    new = method(n_samples=3)
    if name == "posterior_predictive":
        assert len(old) == 3
        old, new = (np.stack([y.toarray() for y in drawn]) for drawn in (old, new))
    assert np.array_equal(np.asarray(old), np.asarray(new))


def test_a_model_of_format_2_has_its_warm_up_under_todays_name():
    folder = ROOT / "tests/golden/format2"
    stored = json.loads((folder / "config.json").read_text())
    assert stored["format"] == 2 and stored["preset"]["kl_warmup"] == 0.3
    preset = read_model(folder)[0]["preset"]
    assert preset["kl_warmup_share"] == 0.3 and preset["kl_warmup_epochs"] == 0
    assert "kl_warmup" not in preset
    assert GMVAE.load(folder).preset.kl_warmup_share == 0.3


# --- a run that was begun by the version before ---------------------------------------------------

WARMED = replace(TINY, kl_warmup_epochs=2)


def train(folder: Path, max_epochs: int, preset=WARMED, **options) -> GMVAE:
    data = read_input(cells(), batch_key="batch")
    options |= dict(K=3, batch_key="batch", preset=preset, progress=False)
    return train_run(data, folder, max_epochs=max_epochs, **options)


def old_settings(preset: dict) -> dict:
    "The fields of the version before."
    preset = dict(preset)
    share, epochs = preset.pop("kl_warmup_share"), preset.pop("kl_warmup_epochs")
    return {**preset, "kl_warmup": share or epochs}


def change_run(folder: Path, change) -> None:
    "Change the settings in run.json."
    run = json.loads((folder / "run.json").read_text())
    change(run["settings"])
    (folder / "run.json").write_text(json.dumps(run))


def as_before(folder: Path) -> None:
    "The folder as the version before would have left it: format 2, and one kl_warmup."
    config, rows, state = read_model(folder)
    config |= {"format": 2, "preset": old_settings(config["preset"])}
    config.pop("data_sha256", None)
    write_model(folder, config, rows, state)
    change_run(folder, lambda s: s.update(preset=old_settings(s["preset"])))
    change_run(folder, lambda s: s.pop("hold_out"))


def test_an_interrupted_run_of_the_version_before_goes_on(tmp_path):
    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "old", 1)
    as_before(tmp_path / "old")
    assert b"kl_warmup_epochs" not in (tmp_path / "old/model.safetensors").read_bytes()
    begun = pd.read_csv(tmp_path / "old/history.csv", dtype=str)
    again = train(tmp_path / "old", 3, resume=True)
    history = pd.read_csv(tmp_path / "old/history.csv", dtype=str)
    pd.testing.assert_frame_equal(history[:1], begun)  # seconds too: not trained again
    ours = whole._state()
    assert all(t.equal(ours[name]) for name, t in again._state().items())
    run = json.loads((tmp_path / "old/run.json").read_text())
    assert run["settings"]["preset"]["kl_warmup_epochs"] == 2
    assert "kl_warmup" not in run["settings"]["preset"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    "A run of one epoch, and its settings."
    folder = tmp_path_factory.mktemp("begun") / "run"
    train(folder, 1)
    return folder, json.loads((folder / "run.json").read_text())["settings"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: p | {"kl_warmup": 3}, r"\(kl_warmup_epochs was 3, now 2.*\)"),
        (lambda p: p | {"kl_warmup": 0.5}, r"\(kl_warmup_epochs was 0.0, now 2.*\)"),
        (lambda p: p | {"n_x": 30}, r"\(n_x was 30, now 3\)"),
        (lambda p: p | {"of_a_newer_version": 1}, r"\(kl_warmup_epochs was None, now 2.*\)"),
        (lambda p: "blog", r"\(preset was 'blog', now \{.*\}\)"),
        (lambda p: None, r"\(preset was None, now \{.*\}\)"),
    ],
)
def test_a_run_of_the_version_before_with_other_settings_is_refused(begun, tmp_path, change, words):
    _, settings = begun
    stored = settings | {"preset": change(old_settings(settings["preset"]))}
    (tmp_path / "run.json").write_text(json.dumps({"settings": stored}))
    with pytest.raises(ValueError, match=f"holds a run with other settings {words}: choose"):
        claim_folder(tmp_path, settings, resume=True)


def test_without_settings_to_compare_a_folder_is_claimed_by_who_goes_on(begun):
    "gmvae_train asks so, before it reads the cells."
    claim_folder(begun[0], {}, resume=True)
    with pytest.raises(ValueError, match="already holds this run: add --resume"):
        claim_folder(begun[0], {}, resume=False)


def test_a_setting_of_a_newer_version_is_told(begun, tmp_path):
    _, settings = begun
    stored = settings | {"preset": settings["preset"] | {"of_a_newer_version": 1}}
    (tmp_path / "run.json").write_text(json.dumps({"settings": stored}))
    with pytest.raises(ValueError, match=r"\(of_a_newer_version was 1, now None\)"):
        claim_folder(tmp_path, settings, resume=True)


def test_the_one_line_import_takes_no_letter_of_the_users():
    "A matrix is called X in most scripts: `from gmvae_nb.all import *` must leave it alone."
    public = vars(importlib.import_module("gmvae_nb.all"))
    assert [name for name in public if len(name) == 1] == []
