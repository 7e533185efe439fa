"""The scripts of tests/bench in tiny form: they start, run through, and keep what they made."""

import contextlib
import io
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from gmvae_nb.network import PRESETS

from hazards import cells

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))
import ablation  # noqa: E402
import covariates  # noqa: E402
import differential  # noqa: E402, F401
import donor  # noqa: E402
import evaluation  # noqa: E402
import heads  # noqa: E402
import merging  # noqa: E402
import novelty  # noqa: E402
import one_type  # noqa: E402
import overcorrection  # noqa: E402
import partition  # noqa: E402
import peers  # noqa: E402
import planted  # noqa: E402
import search  # noqa: E402
import study  # noqa: E402
import training  # noqa: E402
import unpacking  # noqa: E402

TINY = dict(
    n_x=3, encoder_hidden=(8,), decoder_hidden=(8,), batch_size=32, min_steps=0, max_epochs=1
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    "240 cells of three types in two batches, whose names are numbers."
    path = tmp_path_factory.mktemp("bench") / "tiny.h5ad"
    cells(240, 40).write_h5ad(path)
    return path


@pytest.fixture(autouse=True)
def small_presets(monkeypatch):
    "Presets of one epoch, of the same names."
    for name in ("blog", "recommended", "with_w", "blog_offsets"):
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], **TINY))


def run(monkeypatch, script, *words) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


def twice(monkeypatch, script, csv: Path, *words) -> pd.DataFrame:
    "The table, which a second call leaves as it is: it trains nothing."
    run(monkeypatch, script, csv, *words)
    before = csv.read_bytes()
    if hasattr(script, "train_run"):
        monkeypatch.setattr(script, "train_run", lambda *a, **k: pytest.fail("trained again"))
    run(monkeypatch, script, csv, *words)
    assert csv.read_bytes() == before
    return pd.read_csv(csv)


@pytest.mark.parametrize(
    "script",
    "ablation covariates differential donor evaluation heads merging novelty null one_type "
    "partition peers placings planted search study training unpacking".split(),
)
def test_each_starts_and_says_what_it_is_for(script, monkeypatch, capsys):
    module = __import__(script)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    printed, first = capsys.readouterr().out, module.__doc__.split("\n")[0]
    assert first[:40] in printed.replace("\n", " ")


class AtOnce:
    "The pool of processes, in this one."

    def __init__(self, jobs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *args):
        return Namespace(result=lambda: function(*args))


def test_study_makes_a_row_for_each_setting(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "ProcessPoolExecutor", AtOnce)
    monkeypatch.setattr(study, "as_completed", list)
    words = ["--data", file, "--K", 3, "--seeds", 1, "--set", "M=1,2", "--set", "lam=0.5"]
    rows = twice(monkeypatch, study, tmp_path / "study.csv", *words)
    assert list(rows["M"]) == [1, 2] and set(rows["lam"]) == {0.5} and set(rows["data"]) == {"tiny"}
    assert rows[["ari_oracle", "kbet", "neg_elbo", "effective_K"]].notna().all(axis=None)
    assert "mean" in capsys.readouterr().out


def test_search_changes_one_thing_at_a_time(file, tmp_path, monkeypatch, capsys):
    words = ["--data", file, "--seeds", 0, "--changes", "recommended", "no warm-up"]
    rows = twice(monkeypatch, search, tmp_path / "search.csv", *words)
    assert list(rows["method"]) == ["recommended", "no warm-up"]
    assert rows.loc[1, "settings"] == "kl_warmup_share=0.0"
    assert rows[["total", "iwae", "n_clusters", "cpu_seconds"]].notna().all(axis=None)
    assert "no warm-up" in capsys.readouterr().out


def test_every_change_of_the_search_makes_a_preset():
    for options in search.CHANGES.values():
        options = {k: v for k, v in options.items() if k != "K"}
        preset = PRESETS[options.pop("preset", "recommended")]
        assert not options or replace(preset, **options) != preset


def test_the_table_of_the_search_is_of_todays_settings():
    rows = pd.read_csv(BENCH.parents[1] / "nbs/search.csv", keep_default_na=False)
    for name, part in rows.groupby("method"):
        change = peers.Contender("gmvae", name, search.CHANGES[name])
        assert set(part["settings"]) == {change.settings}


def test_novelty_leaves_out_each_type(file, tmp_path, monkeypatch, capsys):
    words = ["--data", file, "--every", 2]
    rows = twice(monkeypatch, novelty, tmp_path / "novelty.csv", *words)
    assert list(rows["left_out"]) == ["type0", "type2"]
    assert rows.notna().all(axis=None) and (rows["relative"] != rows["left_out"]).all()
    assert rows.filter(regex="auroc|permuted|above").stack().between(0, 1).all()
    assert "permuted_novelty" in capsys.readouterr().out


def test_each_type_is_looked_at_alone(file, tmp_path, monkeypatch, capsys):
    words = ["--data", file, "--seeds", 1, "--fewest", 80]
    rows = twice(monkeypatch, one_type, tmp_path / "one_type.csv", *words)
    assert len(rows) == 3 and rows["type"].is_unique and (rows["n_cells"] == 80).all()
    assert (rows["n_held_out"] == 12).all() and rows["p"].isna().all()  # too few to ask
    assert (rows["by_looks"] == rows["n_clusters"]).all()
    assert "one_cluster" in capsys.readouterr().out


def test_rules_of_merging_are_of_one_model(file, tmp_path, monkeypatch):
    rows = twice(monkeypatch, merging, tmp_path / "merging.csv", "--data", file, "--seeds", 0)
    assert list(rows["rule"]) == list(merging.RULES) and "proof" in merging.RULES
    assert rows["train_cpu_seconds"].nunique() == 1
    assert rows[["ari", "nmi", "f1"]].notna().all(axis=None)


def test_placings_differ_and_their_consensus_is_of_all(file, tmp_path, monkeypatch, capsys):
    import placings

    words = ["--data", str(file), "--max_epochs", "2", "--placings", "3"]
    found = twice(monkeypatch, placings, tmp_path / "a.csv", *words)
    assert len(found) == 1 and found["sd"].notna().all()
    three = [np.repeat([0, 1], 20), np.repeat([0, 1], [20, 20]), np.repeat([0, 1, 2], [20, 10, 10])]
    types = np.repeat(["a", "b", "c"], [20, 10, 10])
    both = placings.consensus(three, types)
    assert (both["n_0.8"], both["n_0.65"], both["n_0.5"]) == (3, 2, 2)
    assert both["together_0.8"] == 1 > both["together_0.5"]


def test_covariates_are_told_or_not(file, tmp_path, monkeypatch, capsys):
    words = ["--data", file, "--cells", 200, "--seeds", 0]
    rows = twice(monkeypatch, covariates, tmp_path / "covariates.csv", *words)
    assert list(rows["contender"]) == ["pca", "clean", "untold", "told", "batch"]
    assert list(rows["found_chemistry"].notna()) == [False, False, False, True, False]
    assert list(rows["found_damage"].notna()) == [False, False, False, True, True]
    assert rows[["mixed_batch", "mixed_chemistry", "r2_damage", "asw"]].notna().all(axis=None)
    assert "mixed_chemistry" in capsys.readouterr().out


def test_ablation_takes_one_thing_away(file, tmp_path, monkeypatch, capsys):
    words = ["--data", file, "--seeds", 0, "--K", 3, "--min_steps", 1]
    words += ["--methods", "recommended", "bare, no offsets", "no w, n_x = 20"]
    rows = twice(monkeypatch, ablation, tmp_path / "ablation.csv", *words)
    named = ["recommended", "bare, no offsets", "no w, n_x = 20", "recommended"]
    assert list(rows["method"]) == named and list(rows["K"]) == [30, 30, 30, 3]
    assert list(rows["kl_w"] > 0) == [False, True, False, False]
    assert rows.notna().all(axis=None) and "no offsets" in capsys.readouterr().out


def test_every_method_of_the_ablation_is_a_preset_of_its_own():
    presets = {}
    for name, settings in ablation.METHODS.items():
        settings = dict(settings)
        presets[name] = replace(PRESETS[settings.pop("preset")], **settings)
    assert len(set(presets.values())) == len(presets)
    for name, preset in presets.items():
        assert (preset.prior == "parameters") == (name == "recommended" or name.startswith("no w,"))
        assert (preset.prior == "network") == ("network" in name or "no offsets" in name)
        assert (preset.bound == "paper") == ("paper's" in name)
        assert (preset.init == "random") == ("random" in name)


def test_planted_factor_is_in_every_type_and_leaves_counts(file, tmp_path, monkeypatch, capsys):
    cells = planted.simulated(600, 100, 3)
    for strength, least in ((2.0, 0.8), (0.0, -1.0)):
        y, t = planted.plant(cells.X, strength, seed=0)
        dense, before = y.toarray(), cells.X.toarray()
        assert (dense == dense.round()).all() and (dense <= before).all() and y.sum() < before.sum()
        for name in ("0", "1", "2"):
            rows = np.flatnonzero(cells.obs["cell_type"] == name)
            found = planted.explained(
                np.log1p(dense[rows]),
                t[rows],
                *np.array_split(np.arange(len(rows)), [3 * len(rows) // 4]),
            )
            assert found > least if strength else found < 0.2
    words = ["--data", "simulated", "--seeds", 0, "--strength", 2, "--methods", "with_w"]
    rows = twice(monkeypatch, planted, tmp_path / "planted.csv", *words)
    assert rows.notna().all(axis=None) and "with_w" in capsys.readouterr().out


def test_donor_trains_with_and_without_it(file, tmp_path, monkeypatch, capsys):
    words = ["--data", file, "--seeds", 0, "--donors", 1]
    rows = twice(monkeypatch, donor, tmp_path / "donor.csv", *words)
    assert list(rows["trained_on"]) == ["all", "others"]
    assert rows[["total", "donor_nmi", "donor_asw"]].notna().all(axis=None)
    assert "1, trained on others" in capsys.readouterr().out


def test_overcorrection_takes_a_type_out_of_every_second_batch(file, tmp_path, monkeypatch, capsys):
    words = ["--data", file, "--seeds", 0, "--types", "type0", "type1", "--cells", 230]
    words += ["--methods", "recommended", "no alignment"]
    rows = twice(monkeypatch, overcorrection, tmp_path / "overcorrection.csv", *words)
    assert list(rows["dropped"]) == ["type0"] * 2 + ["type1"] * 2
    assert list(rows["method"]) == ["recommended", "no alignment"] * 2
    assert rows["foreign"].between(0, 1).all() and (rows["cells"] >= 30).all()
    assert "type1" in capsys.readouterr().out


def test_what_is_foreign_is_every_second_batch_by_size():
    obs = pd.DataFrame({"batch": list("aaabbcccc"), "cell_type": list("xyxxyxyyx")})
    adata = AnnData(np.zeros((9, 1)), obs=obs.set_index(obs.index.astype(str)))
    keys = Namespace(batch_key="batch", labels_key="cell_type")
    kept, foreign, is_type = overcorrection.drop(adata, "x", keys)  # by size: c, a, b
    assert list(kept.obs_names) == list("1345678")
    assert list(np.flatnonzero(foreign)) == [0] and list(kept.obs_names[is_type]) == list("358")


def test_heads_times_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "peaks_mb", lambda a: {})  # in processes of their own
    sizes = ["--N", 4, "--M", 2, "--H", 5, "--G", 70, "--repeats", 1, "--threads", 1]
    run(monkeypatch, heads, *sizes, "--csv", tmp_path / "heads.csv")
    table = pd.read_csv(tmp_path / "heads.csv", index_col=0)
    assert {"dense", "sparse", "fused fp32", "fused bf16"} <= set(table.index)
    assert (table["wall s"] > 0).all()


def test_partition_measures_every_choice(file, tmp_path, monkeypatch):
    monkeypatch.setattr(partition, "load_data", lambda name: cells(240, 40))
    words = ["--data", "tiny", "--epochs", 1, "--pairs", 2, "--K", 3, "--threads", 1]
    run(monkeypatch, partition, tmp_path / "partition.csv", *words)
    table = pd.read_csv(tmp_path / "partition.csv")
    assert len(table) == len(partition.CHOICES) and (table[list(partition.PARTS)] > 0).all(
        axis=None
    )


@pytest.mark.parametrize("contender", ["plain", "sparse", "default"])
def test_a_contender_of_training_trains_a_turn_when_told(file, monkeypatch, capsys, contender):
    "Here in this process; training.py gives each one its own."
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nstop\n"))
    words = ["--contender", contender, "--data", file, "--K", 3, "--N", 32, "--steps", 2]
    run(monkeypatch, training, "--worker", *words, "--settings", "{}", "--threads", 1)
    ready, turn = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready["ready"] and turn["cells"] == 64 and turn["seconds"] > 0


def test_evaluation_measures_a_contender(tmp_path, monkeypatch):
    def here(contender, key, seed):
        "What a process of its own does."
        args = Namespace(**key | {"cells": [key["cells"]], "seed": seed})
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            evaluation.measure(contender, args)
        return json.loads(printed.getvalue().splitlines()[-1])

    monkeypatch.setattr(evaluation, "measured", here)
    sizes = "--cells 200 --dims 4 --labels 3 --batches 2 --repeats 1 --contenders five".split()
    run(monkeypatch, evaluation, tmp_path / "e.csv", *sizes)
    row = pd.read_csv(tmp_path / "e.csv").loc[0]
    assert row["contender"] == "five" and row["cells"] == 200 and 0 <= row["kbet"] <= 1
    assert row["wall"] > 0 and row["gb"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs a small process")
def test_unpacking_measures_a_file_with_both(tmp_path, monkeypatch, capsys):
    unpacking.write(tmp_path / "a.h5ad", 150, "dense", 4, None)
    run(monkeypatch, unpacking, tmp_path / "t.csv", tmp_path / "a.h5ad", "--repeats", 1)
    found = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert found["file"] == "a.h5ad"
    for how in ("look_zlib", "look", "look_here"):  # the seconds of all processes are counted
        assert 0.005 < found[how] < 2 * found["read_input"]
    unpacking.write(tmp_path / "b.h5ad", 150, "csr", 1, 2000)
    with h5py.File(tmp_path / "b.h5ad") as f:
        assert f["X/data"].chunks == (2000,) and f["X/data"].compression_opts == 1
