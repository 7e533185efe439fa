"""A run from its input to its files: what is taken, scored, kept, and never replaced."""

import json
import math

import numpy as np
import pytest
from gmvae_nb import runs
from gmvae_nb.commands import gmvae_report, gmvae_table
from gmvae_nb.files import nan_for_null, write_json
from gmvae_nb.network import PRESETS
from gmvae_nb.results import collect_runs, results_table
from gmvae_nb.runs import read_input, train_run

from hazards import SMALL, TINY, cells


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "Small networks behind the names of presets; the map is not computed."
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    monkeypatch.setitem(PRESETS, "blog", TINY)
    monkeypatch.setattr(runs, "umap", lambda X, seed=0: np.asarray(X[:, :2], dtype=np.float32))


def strict(text: str):
    "JSON as readers other than Python read it."

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_no_file_of_a_run_holds_a_word_that_json_has_not(tmp_path, capsys):
    "With one batch or labels in all batches, scores are NaN: null in files, NaN in tables."
    keys = dict(batch_key="batch", labels_key="cell_type")
    data = read_input(cells(), **keys)
    model = train_run(data, tmp_path, K=2, preset=TINY, max_epochs=1, progress=False, **keys)
    for path in tmp_path.glob("*.json"):
        strict(path.read_text())
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]["latent"]
    assert scores["isolated_labels_asw"] is None  # every type is in both batches
    table = collect_runs([tmp_path])
    assert math.isnan(table.loc[0, "isolated_labels_asw"])
    assert table["isolated_labels_asw"].dtype == float
    gmvae_table([str(tmp_path)])
    assert " nan" not in capsys.readouterr().out
    runs.annotate_run(model, data, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    metrics["test"] = dict.fromkeys(metrics["test"])  # a loss that is not a number
    write_json(tmp_path / "metrics.json", metrics)
    gmvae_report(str(tmp_path), json=True)
    strict(capsys.readouterr().out)


def test_a_table_takes_runs_whose_metrics_say_nan_or_null(tmp_path):
    run = dict(data="d", preset="p", K=2, seed=0, test={}, clusters={}, train_seconds=1.0)
    for seed, score in enumerate(["NaN", "null", "0.5"]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        text = json.dumps(run | {"seed": seed, "scores": {"latent": {"asw": "here"}}})
        (folder / "metrics.json").write_text(text.replace('"here"', score))
    table = results_table([tmp_path / str(seed) for seed in range(3)])
    assert table.loc[0, "ASW"].startswith("0.500")


def test_infinity_and_nan_are_null_at_any_depth(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1.5, float("inf")], "b": {"c": (float("nan"), 2)}})
    found = strict((tmp_path / "a.json").read_text())
    assert found == {"a": [1.5, None], "b": {"c": [None, 2]}}
    assert math.isnan(nan_for_null({"x": None})["x"]) and nan_for_null({"x": 1}) == {"x": 1}
