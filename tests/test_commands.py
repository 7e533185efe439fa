"""Commands and runs on files of a user's own: what is found, refused, written, and gone on with."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import (
    __version__,
    annotation,
    command_line,
    commands,
    cost,
    reading,
    runs,
    sweep,
    umbrella,
)
from gmvae_nb.after_training import gmvae_embed, gmvae_table
from gmvae_nb.annotation import write_annotated
from gmvae_nb.commands import gmvae_demo, gmvae_sweep, gmvae_train
from gmvae_nb.counts import find_counts
from gmvae_nb.data import kang_pbmc
from gmvae_nb.match import MIN_MATCHED, map_batches, match_genes
from gmvae_nb.reading import read_input
from gmvae_nb.runs import claim_folder
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix

from hazards import cells, model, no_map
from test_report import unpack

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "gmvae_train gmvae_demo gmvae_sweep gmvae_report gmvae_embed gmvae_table gmvae_verify "
    "gmvae_metrics gmvae_notebook gmvae_seeds gmvae_differential"
).split()
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def shell(monkeypatch, capsys):
    "Calls a command as a shell would, in this process: exit code, stdout, stderr."

    def call(name: str, *words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        handler, code = signal.getsignal(signal.SIGTERM), 0
        try:
            {**command_line.COMMANDS, "gmvae": umbrella.gmvae}[name]()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)  # which commands set
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    "Kang's cells as somebody's file: normalised X, counts in a layer, columns of other names."
    a = kang_pbmc()[::10]
    a = a[:, np.asarray(a.X.sum(0)).ravel() > 20][:, :150]
    a = a[np.asarray(a.X.sum(1)).ravel() > 0].copy()
    a.obs = a.obs.rename(columns={"batch": "donor", "cell_type": "type"})
    a.X = a.X * 0.5
    path = tmp_path_factory.mktemp("mine") / "mine.h5ad"
    a.write_h5ad(path)
    return path


PEAK = """
import sys
from gmvae_nb.commands import gmvae_train
gmvae_train()
from gmvae_nb.cost import peak_memory
print(peak_memory(), file=sys.stderr)
"""


def with_peak(*words):
    "gmvae_train in a process of its own: what it printed, and the most memory it held in bytes."
    command = [sys.executable, "-c", PEAK, *map(str, words), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), int(done.stderr.strip().split("\n")[-1])


WORDS = "--batch_key donor --labels_key type --K 3 --max_epochs 1 --preset blog".split()


@pytest.fixture(scope="module")
def trained(mine):
    "One run of gmvae_train, and the memory it took."
    before = mine.read_bytes()
    last = ad.read_h5ad(mine, backed="r").var_names[-1]
    words = *WORDS, "--genes", last.lower()
    result = with_peak(mine, "--out", mine.parent / "run", *words)
    assert mine.read_bytes() == before
    return result


@pytest.fixture(scope="module")
def finished(trained):
    return trained[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_examples(shell, name):
    code, out, _ = shell(name, "--help")
    assert code == 0 and f"\n  {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_its_version(shell, name):
    assert shell(name, "--version") == (0, f"gmvae_nb {__version__}\n", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "utf-16"])
def test_the_package_itself_lists_the_commands_on_any_console(encoding):
    def call(*words):
        env = ENV | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, capture_output=True, env=env, cwd=ROOT)

    done = call("gmvae_nb")
    lines = done.stdout.decode(encoding).split("\n")
    assert done.returncode == 0 and lines[0].strip() == f"gmvae_nb {__version__}"
    listed = [line.split()[1] for line in lines if line.startswith("  gmvae ")]
    assert {f"gmvae_{name}" for name in listed} == set(command_line.COMMANDS) == set(COMMANDS)
    assert all(len(line.split()) > 4 for line in lines if line.startswith("  gmvae "))
    assert call("gmvae_nb", "--version").stdout.decode(encoding).strip() == lines[0].strip()
    assert call("gmvae_nb", "trian").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", [[], ["--version"], ["--help"], ["verify", "--help"]])
def test_a_list_that_cannot_be_printed_is_a_sentence_and_code_4(words, buffered):
    command = [sys.executable, "-m", "gmvae_nb", *words]
    env = ENV | {"PYTHONUNBUFFERED": buffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, cwd=ROOT)
    said = done.stderr.decode()
    name = "gmvae verify" if "verify" in words else "gmvae"
    assert done.returncode == 4 and said.startswith(f"{name}: stdout could not be written")
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--quiet"]])
def test_a_warning_is_a_sentence_and_not_a_line_of_the_program(shell, monkeypatch, words):
    def warns(data):
        warnings.warn("two\nlines", stacklevel=1)
        warnings.warn("of a library", FutureWarning, stacklevel=1)
        warnings.warn("of a library too", DeprecationWarning, stacklevel=1)
        raise ValueError("enough")

    monkeypatch.setattr("gmvae_nb.parts.named_files", warns)
    before = warnings.showwarning
    code, _, err = shell("gmvae_train", "x", "--dry_run", *words)
    said = err.strip().split("\n")
    assert code == 2 and said[-1] == "gmvae_train: enough" and warnings.showwarning is before
    assert "gmvae_train: warning: two lines" in said  # with --quiet too
    assert ".py:" not in err and "of a library" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_is_advised_where_there_is_one(shell, monkeypatch, name):
    options = inspect.signature(command_line.COMMANDS[name].__wrapped__).parameters
    said = command_line.in_words(MemoryError(), options)
    assert ("--n_top_genes" in said) == ("n_top_genes" in options)


def test_the_advice_names_the_commands_that_have_the_option(tmp_path):
    def has(option):
        commands_ = command_line.COMMANDS.items()
        return {n for n, f in commands_ if option in inspect.signature(f.__wrapped__).parameters}

    with pytest.raises(ValueError, match="--min_matched") as error:
        match_genes(["A", "B"], ["A", "x"])
    assert has("min_matched") == set(re.findall(r"gmvae_\w+", str(error.value)))
    with pytest.raises(ValueError, match="give data with the genes") as error:
        match_genes(["A", "B"], ["x", "y"])  # a lower share is of no use
    assert "min_matched" not in str(error.value)
    (tmp_path / "markers.csv").write_text("mine\n")
    with pytest.raises(ValueError, match="--overwrite") as error:
        claim_folder(tmp_path, {}, resume=True)
    named = set(re.findall(r"gmvae_\w+", str(error.value)))
    assert named == {"gmvae_train", "gmvae_report", "gmvae_seeds"} <= has("overwrite")
    assert has("join") <= has("gene_key")  # files that share no gene are told of it


@pytest.mark.parametrize(
    "words, said",
    [
        (dict(device="nonsense"), "device 'nonsense' cannot be used here"),
        (dict(max_epochs=0), "max_epochs is 0; expected 1 or more"),
        (dict(max_epochs=-1), "max_epochs is -1"),
        (dict(batch_key="gmvae_cluster"), "is a column that is going to be written"),
        (dict(categorical_covariate_keys=["batch"]), "'batch'"),
        (dict(supervise="cell_type", K=2), "K is 2, and the labels have 3 types"),
    ],
)
def test_what_training_refuses_is_refused_by_a_dry_run(tmp_path, monkeypatch, words, said):
    a = cells(120)
    a.obs["gmvae_cluster"] = a.obs["cell_type"]
    a.write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr("gmvae_nb.commands.describe_cost", lambda *args, **settings: {})
    words = dict(batch_key="batch", preset="blog", quiet=True) | words
    for how in (dict(dry_run=True), dict(out=str(tmp_path / "run"))):
        with pytest.raises(ValueError, match=said):
            gmvae_train(str(tmp_path / "a.h5ad"), **words, **how)
    assert not (tmp_path / "run").exists()


def test_the_example_that_trains_further_is_of_a_preset_that_allows_it():
    from gmvae_nb.network import get_preset
    from gmvae_nb.schedule import is_planned

    line = next(line for line in commands.TRAIN.split("\n") if "--max_epochs 80" in line)
    words = line.split()
    preset = words[words.index("--preset") + 1] if "--preset" in words else "recommended"
    assert not is_planned(get_preset(preset)) and "--resume" in words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_word_after_gmvae(shell, name):
    word = name.removeprefix("gmvae_")
    code, out, _ = shell("gmvae", word, "--help")
    assert code == 0 and out.startswith(f"usage: gmvae {word} ") and f"\n  gmvae {word} " in out
    code, _, err = shell("gmvae", word, "--nothing", "of", "the", "kind")
    assert code == 2 and f"gmvae {word}: error: " in err


def test_what_is_said_after_gmvae_names_the_command_as_it_was_called(shell, mine, tmp_path):
    code, _, err = shell("gmvae", "train", mine, "--out", tmp_path / "run", "--batch-key", "no")
    assert code == 2 and err.split("\n")[-2].startswith("gmvae train: batch_key='no' is not a col")
    assert shell("gmvae", "trian")[0] == 2 and shell("gmvae")[0] == 0


def test_options_are_taken_with_dashes(shell, mine, tmp_path):
    for words in (["--batch-key", "nobody"], ["--batch-key=nobody"]):
        code, _, err = shell("gmvae_train", mine, "--out", tmp_path / "run", *words)
        assert code == 2 and "batch_key='nobody' is not a column" in err


def test_the_notebook_is_where_the_command_says(shell):
    code, out, _ = shell("gmvae_notebook")
    cells = json.loads(Path(out.strip()).read_text(encoding="utf-8"))["cells"]
    assert code == 0 and any("parameters" in c["metadata"].get("tags", []) for c in cells)


def takes_less_than(limit: float, *words: str) -> bool:
    "Whether one of five processes does, in processor seconds; a busy machine makes some slower."
    resource = pytest.importorskip("resource")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], env=ENV, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if taken < limit:
            return True
    return False


def test_the_package_is_imported_in_a_tenth_of_a_second():
    assert takes_less_than(0.1, "-c", "import gmvae_nb")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_takes_less_than_a_third_of_a_second(name):
    assert takes_less_than(0.3, "-m", "gmvae_nb", name.removeprefix("gmvae_"), "--help")


@pytest.mark.parametrize("words", ["train gone.h5ad --out run", "embed run a/gone", "metrics x.h5"])
def test_a_file_that_is_not_there_is_told_before_torch_is_imported(words, tmp_path):
    code = "import sys; from gmvae_nb.umbrella import gmvae\ntry: gmvae()\n"
    code += "except SystemExit as e: print(e.code, sorted({'torch', 'scanpy'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "2 []\n" and "there is no file" in done.stderr


@pytest.mark.parametrize("option", ["", "--out"])
def test_a_name_that_no_file_could_hold_is_refused_before_anything_is_done(option, tmp_path):
    "Of bytes that are no UTF-8, as from an old file server; pages and models name their files."
    name = os.fsdecode(b"l\xe4.h5ad")
    (tmp_path / name).touch()
    words = ["train", name] if not option else ["train", "a.h5ad", option, name]
    command = [sys.executable, "-m", "gmvae_nb", *words]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "of bytes that are no letters in utf-8: rename" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_commands_import_nothing_heavy():
    code = "import sys, gmvae_nb.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    imported = set(done.stdout.split())
    assert "gmvae_nb.commands" in imported
    assert not imported & {"torch", "numpy", "anndata", "scanpy", "gmvae_nb.runs"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_installed(name):
    settings = (ROOT / "settings.ini").read_text()
    module = command_line.COMMANDS[name].__module__
    assert f" {name}={module}:{name}" in settings.replace("= ", "=  ")


def test_label_key_is_labels_key(shell, mine, tmp_path):
    for words in (["--label_key", "nobody"], ["--label_key=nobody"]):
        code, _, err = shell("gmvae_train", mine, "--out", tmp_path / "run", *words)
        assert code == 2 and "labels_key='nobody' is not a column" in err


@pytest.mark.parametrize(
    "words",
    [
        ["gmvae_train", "mine.h5ad", "--out", ""],
        ["gmvae_train", "mine.h5ad", "--out", "run", "--batch_key", ""],
        ["gmvae_train", "", "--out", "run"],
        ["gmvae_sweep", "mine.h5ad", "--out", " "],
        ["gmvae_embed", "run", "mine.h5ad", "--out", ""],
        ["gmvae_metrics", "mine.h5ad", "--embed", ""],
        ["gmvae_table", "run", ""],
    ],
    ids=" ".join,
)
def test_a_variable_of_the_shell_that_is_not_set_writes_nowhere(
    shell, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    cells().write_h5ad(tmp_path / "mine.h5ad")
    code, out, said = shell(*words)
    assert code == 2 and out == "" and len(said.strip().split("\n")) == 1, said
    assert "is an empty text, as of a shell variable" in said
    assert [p.name for p in tmp_path.iterdir()] == ["mine.h5ad"]


def test_a_table_of_nothing_is_a_sentence(shell, tmp_path):
    code, out, err = shell("gmvae_table", tmp_path)
    assert code == 2 and out == ""
    assert err.startswith(f"gmvae_table: {tmp_path} has no metrics.json") and err.count("\n") == 1


def test_train_leaves_everything_it_promises(finished, mine):
    out = mine.parent / "run"
    promised = "annotated.h5ad report.html explore.html markers.csv clusters.csv novelty.npz"
    assert {p.name for p in out.iterdir()} == {
        *promised.split(),
        "model.safetensors",
        "config.json",
        "history.csv",
        "run.json",
        "metrics.json",
        ".lock",
    }
    kept, original = ad.read_h5ad(out / "annotated.h5ad"), ad.read_h5ad(mine)
    pd.testing.assert_frame_equal(kept.obs[original.obs.columns], original.obs)
    assert (kept.X != original.X).nnz == 0
    model = GMVAE.load(out, original)
    np.testing.assert_allclose(kept.obsm["gmvae_prob"], model.predict_proba(), atol=1e-5)
    assert (kept.obs["gmvae_confidence"] == kept.obsm["gmvae_prob"].max(1)).all()
    assert (kept.obs["gmvae_unsure"] == (kept.obsm["gmvae_prob"].max(1) < 0.5)).all()
    assert sum(finished["clusters"].values()) == original.n_obs and "asw" in finished["scores"]


def test_genes_she_names_are_on_the_page(finished, mine):
    header, _ = unpack((mine.parent / "run/explore.html").read_text(encoding="utf-8"))
    assert header["genes"][0]["name"] == ad.read_h5ad(mine, backed="r").var_names[-1]


@pytest.mark.parametrize("command", ["train", "dry_run", "demo"])
def test_a_gene_that_is_not_there_is_said_before_anything_takes_time(
    mine, tmp_path, monkeypatch, command
):
    monkeypatch.setattr(runs, "train_run", lambda *a, **k: pytest.fail("trained"))
    monkeypatch.setattr(cost, "expected", lambda *a, **k: pytest.fail("timed"))
    words = dict(out=str(tmp_path / "run"), genes=["CD3D", "nope"], quiet=True)
    with pytest.raises(ValueError, match=r"'nope' is no gene of the file, which has [\d,]+ "):
        if command == "demo":
            gmvae_demo(**words)
        else:
            words["genes"] = [ad.read_h5ad(mine, backed="r").var_names[3], "nope"]
            gmvae_train(str(mine), dry_run=command == "dry_run", **words)
    assert not (tmp_path / "run").exists()


def test_a_folder_is_not_taken_from_another_run(finished, mine, tmp_path):
    words = dict(out=finished["out"], batch_key="donor", max_epochs=1, preset="blog", quiet=True)
    with pytest.raises(ValueError, match="already holds this run"):
        gmvae_train(str(mine), K=3, **words)
    with pytest.raises(ValueError, match="K was 3, now 4"):
        gmvae_train(str(mine), K=4, resume=True, **words)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="did not make"):
        claim_folder(tmp_path, {}, resume=True)


def test_the_input_is_never_the_output(mine):
    with pytest.raises(ValueError, match="is the input"):
        write_annotated(mine, mine.parent / "../" / mine.parent.name / "mine.h5ad", {}, {}, {})


def test_a_failed_write_leaves_the_old_file(finished, mine, monkeypatch):
    target = Path(finished["annotated"])
    before = target.read_bytes()
    with pytest.raises(ValueError, match="values"):
        write_annotated(mine, target, {"gmvae_cluster": [1, 2]}, {}, {})  # too few values
    assert target.read_bytes() == before
    assert [p.name for p in target.parent.glob(".*")] == [".lock"]


def test_embedding_gives_the_training_cells_back_in_any_order(finished, mine, tmp_path, capsys):
    a = ad.read_h5ad(mine)
    a[::-2, ::-1].copy().write_h5ad(tmp_path / "new.h5ad")
    new, out = str(tmp_path / "new.h5ad"), str(tmp_path / "out.h5ad")
    gmvae_embed(finished["out"], new, out=out, quiet=True)
    assert f"{a.n_vars} of {a.n_vars} matched, 0 missing" in capsys.readouterr().out
    new, kept = ad.read_h5ad(tmp_path / "out.h5ad"), ad.read_h5ad(finished["annotated"])
    np.testing.assert_allclose(new.obsm["X_gmvae"], kept[new.obs_names].obsm["X_gmvae"], atol=1e-5)
    assert list(new.obs["gmvae_cluster"]) == list(kept[new.obs_names].obs["gmvae_cluster"])


def test_unseen_batches_are_refused_or_mapped(finished, mine, tmp_path):
    a = ad.read_h5ad(mine)
    a.obs["donor"] = "x=y"
    a.write_h5ad(tmp_path / "new.h5ad")

    def call(**options):
        words = finished["out"], str(tmp_path / "new.h5ad")
        return gmvae_embed(*words, out=str(tmp_path / "out.h5ad"), quiet=True, **options)

    with pytest.raises(ValueError, match="'x=y' was not trained on"):
        call()
    assert not (tmp_path / "out.h5ad").exists()
    assert call(map_batch=["x=y=stim"])["batches"] == {"x=y": "stim"}
    del a.obs["donor"]
    a.write_h5ad(tmp_path / "new.h5ad")
    assert set(call(map_batch=["*=ctrl"])["batches"].values()) == {"ctrl"}


def test_map_batches_and_match_genes_name_what_is_wrong():
    assert list(map_batches(["a", "n", "b"], ["a", "b"], {"*": "b"})) == ["a", "b", "b"]
    with pytest.raises(ValueError, match="the model has no batch 'z'"):
        map_batches(["n"], ["a"], {"n": "z"})
    with pytest.raises(ValueError, match="the data have no batch 'm'"):
        map_batches(["n"], ["a"], {"m": "a"})
    match = match_genes(["A", "B", "C"], ["C", "x", "A"], min_matched=0.6)
    assert list(match.position) == [2, -1, 0]
    assert (match.matched, match.missing, match.extra) == (2, ["B"], 1)
    with pytest.raises(ValueError, match="fewer than 90%"):
        match_genes(["A", "B", "C"], ["C", "x", "A"])
    with pytest.raises(ValueError, match="gene_key='ids'"):
        match_genes(["A", "B"], ["x", "y"], columns=pd.DataFrame({"ids": ["A", "B"]}))


def test_one_bad_value_is_named_and_so_is_the_layer_that_holds_counts():
    y = csr_matrix(np.random.default_rng(0).poisson(1, (300, 100)).astype(np.float32))
    y.data[777] = np.nan
    cell = np.searchsorted(y.indptr, 777, side="right") - 1
    umi = csr_matrix(np.ones((300, 100), dtype=np.float32) * 2)
    a = ad.AnnData(y * 1.5, layers={"counts": y, "umi": umi})
    state = np.random.get_state()[1].copy()
    words = rf"nan for cell '{cell}' and gene '{y.indices[777]}'.*layer='umi'"
    with pytest.raises(ValueError, match=words):
        find_counts(a)
    assert (np.random.get_state()[1] == state).all()
    del a.layers["counts"]
    assert find_counts(a).where == "layers['umi']"


def test_parts_of_the_reads_and_0_1_layers_are_no_counts():
    y = csr_matrix(np.random.default_rng(0).poisson(2, (40, 30)).astype(np.float32))
    a = ad.AnnData(y, layers={"spliced": y, "detected": (y > 0).astype(np.float32)})
    assert find_counts(a).where == "X"
    a.raw = a
    a.X = y * 0.3
    assert find_counts(a).where == "raw.X"


def test_genes_are_dropped_made_unique_and_chosen_and_all_is_said(mine, tmp_path):
    a = ad.read_h5ad(mine)
    a.layers["counts"] = a.layers["counts"].multiply(np.arange(a.n_vars) != 5).tocsr()
    a.var_names = [a.var_names[1], *a.var_names[1:]]
    a = a[np.asarray(a.layers["counts"].sum(1)).ravel() > 0].copy()
    a.write_h5ad(tmp_path / "a.h5ad")
    data = read_input(tmp_path / "a.h5ad", batch_key="donor")
    assert data.cells.n_vars == a.n_vars - 1 and data.cells.var_names.is_unique
    assert any("occur again" in note for note in data.notes)
    assert any(note.startswith("1 of") for note in data.notes)
    assert read_input(tmp_path / "a.h5ad", batch_key="donor", n_top_genes=120).cells.n_vars == 120
    notes = read_input(tmp_path / "a.h5ad", batch_key="donor", n_top_genes=10**6).notes
    assert any("all are used" in note for note in notes)
    assert not any("highly variable" in note for note in notes)


def test_what_embedding_is_asked_for_is_what_it_does(finished, mine, tmp_path):
    a = ad.read_h5ad(mine)
    a.var["symbol"] = a.var_names
    a.var_names = [f"ENSG{i}" for i in range(a.n_vars)]
    a[:, : a.n_vars // 2].copy().write_h5ad(tmp_path / "half.h5ad")
    half = tmp_path / "half.h5ad"

    def call(**options):
        options = {"out": str(tmp_path / "out.h5ad"), "quiet": True} | options
        return gmvae_embed(finished["out"], str(half), **options)

    with pytest.raises(ValueError, match="gene_key='symbol'"):
        call()
    with pytest.raises(ValueError, match="fewer than 90%"):
        call(gene_key="symbol")
    assert call(gene_key="symbol", min_matched=0.5)["matched"] == a.n_vars // 2
    by_default = call(out=None, gene_key="symbol", min_matched=0.5)
    assert by_default["out"] == str(tmp_path / "half_gmvae.h5ad")
    assert Path(by_default["out"]).exists()
    with pytest.raises(ValueError, match="gene_key='nonsense' is not a column of var"):
        call(gene_key="nonsense")
    with pytest.raises(ValueError, match="batch_key='nobody'"):
        call(gene_key="symbol", min_matched=0.5, batch_key="nobody")
    assert inspect.signature(gmvae_embed).parameters["min_matched"].default == MIN_MATCHED


def test_embedding_says_what_the_reader_says(tmp_path, capsys):
    "Antibodies beside the genes, and a layer that is a part of the molecules."
    model(1).save(tmp_path / "model")
    new = cells(20)
    new.layers["spliced"] = new.X.copy()
    more = ad.AnnData(np.ones((20, 2), dtype=np.float32), obs=new.obs, var=None)
    more.var_names = ["CD3_antibody", "CD4_antibody"]
    both = ad.concat([new, more], axis=1, join="outer", fill_value=0)
    both.obs = new.obs
    both.var["feature_types"] = ["Gene Expression"] * 20 + ["Antibody Capture"] * 2
    both.write_h5ad(tmp_path / "new.h5ad")
    notes = list(find_counts(both).notes)
    result = gmvae_embed(str(tmp_path / "model"), str(tmp_path / "new.h5ad"), quiet=True)
    assert result["notes"] == notes and any("spliced" in note for note in notes)
    printed = capsys.readouterr().out
    assert all(f"note     {note}" in printed for note in notes)


def test_new_cells_lie_on_the_map_of_the_run_if_it_has_one(finished, mine, tmp_path, capsys):
    run = Path(finished["out"])
    known = ad.read_h5ad(run / "annotated.h5ad")
    target = tmp_path / "new.h5ad"
    some = ad.read_h5ad(mine)[::-3].copy()  # cells of the run come back to their places
    some.write_h5ad(tmp_path / "some.h5ad")
    result = gmvae_embed(str(run), str(tmp_path / "some.h5ad"), out=str(target), quiet=True)
    new = ad.read_h5ad(target)
    places = known[new.obs_names].obsm["X_gmvae_umap"]
    assert np.abs(new.obsm["X_gmvae_umap"] - places).max() < 0.01 * np.ptp(places)
    np.testing.assert_array_equal(new.obsm["X_umap"], new.obsm["X_gmvae_umap"])
    assert f"{known.n_obs:,} cells of the run" in result["map"] == new.uns["gmvae"]["map"]
    assert f"map      {result['map']}" in capsys.readouterr().out
    GMVAE.load(run).save(tmp_path / "model")  # without cells
    (tmp_path / "model" / "annotated.h5ad").write_bytes((run / "annotated.h5ad").read_bytes())
    for folder, words in [("model", "is not of the model as it is now"), ("bare", "has no anno")]:
        if folder == "bare":
            GMVAE.load(run).save(tmp_path / "bare")
        args = str(tmp_path / folder), str(tmp_path / "some.h5ad")
        result = gmvae_embed(*args, out=str(target), quiet=True)
        assert result["map"].startswith("none") and words in result["map"]
        assert "X_gmvae_umap" not in ad.read_h5ad(target).obsm


def test_training_on_some_cells_is_recorded_and_annotates_those_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation, "umap", no_map)
    a = cells(240)
    a.var["symbol"] = [f"S{i}" for i in range(20)]
    a.obsm["X_pca"] = np.arange(480.0).reshape(240, 2)
    a.raw = a.copy()
    a.write_h5ad(tmp_path / "a.h5ad")
    asked = dict(subset="cell_type=type0,type2", gene_key="symbol", K=3, max_epochs=1, quiet=True)
    out = tmp_path / "run"
    options = asked | dict(batch_key="batch", preset="blog", out=str(out))
    gmvae_train(str(tmp_path / "a.h5ad"), **options)
    part = a[a.obs["cell_type"].isin(["type0", "type2"])]
    found = ad.read_h5ad(out / "annotated.h5ad")
    assert found.obs_names.tolist() == part.obs_names.tolist()
    np.testing.assert_array_equal(found.obsm["X_pca"], part.obsm["X_pca"])
    np.testing.assert_array_equal(found.X.toarray(), part.X.toarray())
    assert found.raw.n_vars == 20 and found.raw.X.shape[0] == part.n_obs
    run = json.loads((out / "run.json").read_text())
    assert (run["subset"], run["gene_key"]) == (asked["subset"], "symbol")
    assert any(f"{part.n_obs} of 240 cells" in note for note in run["notes"])
    page = " ".join((out / "report.html").read_text(encoding="utf-8").split())
    assert "cells (those with cell_type=type0,type2 in obs) and 20 genes" in page
    assert len(pd.read_csv(out / "clusters.csv")) == part.n_obs
    markers = pd.read_csv(out / "markers.csv")
    assert markers["gene"].str.startswith("S").all()
    assert GMVAE.load(out).genes[0] == "S0"
    with pytest.raises(ValueError, match="holds a run with other counts, cells or genes"):
        gmvae_train(str(tmp_path / "a.h5ad"), **options | dict(subset=None, resume=True))
    gmvae_train(str(tmp_path / "a.h5ad"), **options | dict(resume=True))


def test_a_cell_is_unsure_below_one_half():
    prob = np.array([[0.45, 0.35, 0.2], [0.5, 0.5, 0], [0.2, 0.7, 0.1], [1.0000001, 0, 0]])
    model = SimpleNamespace(
        predict_proba=lambda cells: prob,
        get_latent_representation=lambda cells: np.zeros((4, 2)),
        types=[],
    )
    obs, obsm = annotation.annotate(model)
    assert list(obs["gmvae_unsure"]) == [True, False, False, False]
    assert list(obs["gmvae_cluster"]) == ["0", "0", "1", "0"]
    np.testing.assert_allclose(obs["gmvae_confidence"], [0.45, 0.5, 0.7, 1])
    assert obs["gmvae_confidence"].max() <= 1
    assert list(obs["gmvae_cluster"].categories) == ["0", "1"]


def test_the_seed_is_the_models(mine, tmp_path):
    data, settings = read_input(mine), dict(K=2, batch_key="donor", preset="blog")
    options = dict(seed=3, max_epochs=1, progress=False)
    model = runs.train_run(data, tmp_path / "run", **settings, **options)
    assert model.seed == json.loads((tmp_path / "run/config.json").read_text())["seed"] == 3
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["seed"] == 3
    other = GMVAE(data.cells, layer=data.layer, **settings).train(0, progress=False)
    assert (model.train_idx != other.train_idx).any()


def test_without_held_out_cells_all_are_trained_on_and_scored(mine, tmp_path):
    data, options = read_input(mine), dict(K=2, batch_key="donor", preset="blog", max_epochs=1)
    options |= dict(hold_out=False, labels_key="type", score_counts=True, progress=False)
    model = runs.train_run(data, tmp_path / "run", **options)
    assert len(model.train_idx) == data.cells.n_obs and len(model.test_idx) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["n_train"], metrics["n_test"]) == (data.cells.n_obs, 0)
    assert metrics["test"] == {} and set(metrics["scores"]) == {"counts", "latent"}
    with pytest.raises(ValueError, match="hold_out was False, now True"):
        runs.train_run(data, tmp_path / "run", **options | {"hold_out": True, "resume": True})


def test_cells_in_memory_and_data_by_name_are_read_as_files_are(mine, tmp_path, monkeypatch):
    # half a minute of compiling
    monkeypatch.setattr(annotation, "umap", no_map)
    adata, file = ad.read_h5ad(mine), read_input(mine)
    memory = read_input(adata)
    assert (memory.sha256, memory.layer, memory.where) == (file.sha256, file.layer, file.where)
    model = runs.train_run(
        memory, tmp_path / "run", K=2, preset="blog", max_epochs=1, progress=False
    )
    annotation.annotate_run(model, memory, tmp_path / "run")
    kept = ad.read_h5ad(tmp_path / "run/annotated.h5ad")
    assert "X_gmvae" in kept.obsm and (kept.X != adata.X).nnz == 0
    assert "gmvae_cluster" not in adata.obs and "X_gmvae" not in adata.obsm
    assert read_input("kang_pbmc").cells.shape == (4000, 2000)


def test_the_time_that_is_stated_grows_with_the_cells(mine, monkeypatch):
    "Two seconds for the second epoch of 256 cells, three for their probabilities."
    data, seconds = read_input(mine), pd.DataFrame({"seconds": [9.0, 2.0]})
    N = data.cells.n_obs
    preset = runs.Preset(batch_size=16, encoder_hidden=(8,), decoder_hidden=(8,))
    monkeypatch.setattr(GMVAE, "history", seconds)
    ticks = iter([10.0, 13.0])
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    stated = cost.expected(data, K=2, preset=preset, max_epochs=7)
    assert N > 300 and stated["seconds_per_epoch"] == pytest.approx(2 * N / 256)
    assert stated["train_seconds"] == pytest.approx(7 * 2 * N / 256)
    afterwards = stated["seconds"] - stated["train_seconds"]
    assert afterwards == pytest.approx(3 * N / 256 + 15 + 0.004 * N)
    assert stated["train_again_seconds"] == 0  # the preset never trains again
    ticks = iter([10.0, 13.0])
    again = replace(preset, recentre=True, max_epochs=7)
    stated = cost.expected(data, K=2, preset=again)
    assert stated["train_again_seconds"] == stated["train_seconds"] > 0


def test_a_batch_key_that_is_not_there_is_told_on_reading(mine):
    for key in ("batch_key", "labels_key"):
        with pytest.raises(ValueError, match=f"{key}='nobody' is not a column"):
            read_input(mine, **{key: "nobody"})


def test_variable_genes_are_ranked_in_each_batch(mine):
    "The order of genes by scanpy's rule is that of the batches taken one by one."
    data = read_input(mine, batch_key="donor")
    y, batch = data.cells.layers["counts"], data.cells.obs["donor"]

    def chosen(y, batch) -> set[int]:
        return set(np.flatnonzero(reading.variable_genes(y, batch, 30)))

    alone = [chosen(y[(batch == name).to_numpy()], None) for name in batch.unique()]
    in_both = alone[0] & alone[1]  # a gene that is variable in every batch comes first
    assert len(in_both) > 5 and in_both <= chosen(y, batch)
    assert not in_both <= chosen(y, None)


def test_a_folder_that_cannot_be_written_is_code_4(shell, mine, tmp_path):
    (tmp_path / "file").touch()
    words = "--K 2 --max_epochs 1 --quiet".split()
    code, _, err = shell("gmvae_train", mine, "--out", tmp_path / "file/run", *words)
    assert code == 4 and err.startswith("gmvae_train: ") and err.count("\n") == 1, err


def test_the_fingerprint_is_of_counts_and_names():
    y, cells, genes = csr_matrix(np.arange(6.0).reshape(2, 3)), ["c", "d"], ["x", "y", "z"]
    first = reading.fingerprint(y, cells, genes)
    others = {
        reading.fingerprint(y * 2, cells, genes),
        reading.fingerprint(y, ["d", "c"], genes),
        reading.fingerprint(y, cells, ["x", "y", "w"]),
    }
    assert len({first} | others) == 4
    assert reading.fingerprint(y.astype(np.float32), cells, genes) == first


def test_the_sweep_skips_what_is_finished_and_makes_the_table(mine, tmp_path, monkeypatch):
    words = dict(out=str(tmp_path / "s"), K=[1, 2], batch_key="donor", max_epochs=1, quiet=True)
    gmvae_sweep(str(mine), **words)
    table = pd.read_csv(tmp_path / "s/results.csv")
    assert list(table["K"]) == [1, 2]
    monkeypatch.setattr(sweep, "train_run", lambda *a, **k: pytest.fail("trained again"))
    gmvae_sweep(str(mine), **words)
    with pytest.raises(ValueError, match="more than the"):
        gmvae_sweep(str(mine), **{**words, "max_epochs": 0})
    with pytest.raises(ValueError, match="repeats is 0"):
        gmvae_sweep(str(mine), **words, repeats=0)


def test_the_sweep_begins_with_the_seed_that_is_asked_for(mine, tmp_path):
    words = dict(out=str(tmp_path / "s"), K=[1], batch_key="donor", max_epochs=1, quiet=True)
    gmvae_sweep(str(mine), **words, seed=3, repeats=2)
    assert list(pd.read_csv(tmp_path / "s/results.csv")["seed"]) == [3, 4]


def test_a_sweep_of_some_cells_is_that_of_a_file_with_no_others(tmp_path):
    a = cells(240)
    a.write_h5ad(tmp_path / "a.h5ad")
    a[a.obs["cell_type"].isin(["type0", "type2"])].copy().write_h5ad(tmp_path / "part.h5ad")
    words = dict(K=[2], batch_key="batch", preset="blog", max_epochs=1, quiet=True)
    subset = "cell_type=type0,type2"
    gmvae_sweep(str(tmp_path / "a.h5ad"), out=str(tmp_path / "s"), subset=subset, **words)
    gmvae_sweep(str(tmp_path / "part.h5ad"), out=str(tmp_path / "p"), **words)
    models = [(tmp_path / out / "K2-seed0/model.safetensors").read_bytes() for out in "sp"]
    assert models[0] == models[1]
    assert json.loads((tmp_path / "s/K2-seed0/run.json").read_text())["subset"] == subset
    with pytest.raises(ValueError, match="no cell has cell_type 'x'; there are type0, type1"):
        gmvae_sweep(str(tmp_path / "a.h5ad"), out="s", subset="cell_type=x", **words)


@pytest.mark.parametrize("K, said", [(2000, True), (3, False)])
def test_thousands_of_components_are_said_to_cost_their_square(
    tmp_path, monkeypatch, capsys, K, said
):
    monkeypatch.setattr("gmvae_nb.commands.describe_cost", lambda *args, **settings: {})
    cells(240).write_h5ad(tmp_path / "a.h5ad")
    gmvae_train(str(tmp_path / "a.h5ad"), K=K, preset="blog", dry_run=True)
    assert ("K is 2,000: merging the components" in capsys.readouterr().err) == said


def test_bad_input_is_a_sentence_and_code_2(shell, mine, tmp_path):
    code, _, err = shell("gmvae_train", mine, "--out", tmp_path / "run", "--batch_key", "nobody")
    last = err.strip().split("\n")[-1]
    assert code == 2 and last.startswith("gmvae_train: batch_key='nobody' is not a column")
    assert not (tmp_path / "run").exists()


def test_stopped_it_says_how_to_go_on_and_does(mine, tmp_path, monkeypatch):
    # half a minute of compiling
    monkeypatch.setattr(annotation, "umap", no_map)
    code = "from gmvae_nb.commands import gmvae_train; gmvae_train()"
    words = [str(mine), "--out", str(tmp_path / "run"), "--K", "2", "--max_epochs", "50"]
    command = [sys.executable, "-c", code, *words]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV)
    until = time.time() + 120
    while not (tmp_path / "run/config.json").exists() and time.time() < until:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and "to go on" in said, said[-500:]
    assert said.strip().endswith("--resume")
    epochs = json.loads((tmp_path / "run/config.json").read_text())["epochs"]
    assert 0 < epochs < 50
    options = dict(K=2, max_epochs=50, resume=True, quiet=True)
    result = gmvae_train(str(mine), out=str(tmp_path / "run"), **options)
    assert len(pd.read_csv(tmp_path / "run/history.csv")) == 50
    assert result["out"] == str(tmp_path / "run")


def test_alpha_is_asked_for_at_the_command(shell, mine, tmp_path, monkeypatch):
    def stop(*args, preset, **others):
        raise ValueError(f"would train with alpha={preset.alpha}")

    monkeypatch.setattr(commands, "train_and_annotate", stop)
    words = ("--layer", "counts", "--out", tmp_path / "run")
    for alpha, preset, said in (
        (0.2, "recommended", "would train with alpha=0.2"),
        (0, "recommended", "alpha is 0.0; expected above 0, at most 1"),
        (0.2, "blog", "alpha is 0.2, but this preset merges no components"),
    ):
        code, _, err = shell("gmvae_train", mine, *words, "--alpha", alpha, "--preset", preset)
        assert code == 2 and said in err and not (tmp_path / "run/model.safetensors").exists()


def test_dry_run_keeps_its_memory(mine, trained):
    "The peak of the whole command stays within 1.2 x of what was stated."
    stated, taken = with_peak(mine, "--dry_run", *WORDS)[0]["memory_gb"] * 1e9, trained[1]
    assert 0.6 * stated < taken < 1.2 * stated, (taken, stated)


def test_scores_stand_beside_those_of_scib(shell, mine, monkeypatch):
    a = ad.read_h5ad(mine)
    a.obsm["X_pca"] = np.random.default_rng(0).normal(size=(a.n_obs, 3)) + a.X[:, :3].toarray()
    a.write_h5ad(mine.parent / "embedded.h5ad")
    words = "--embed X_pca --batch_key donor --labels_key type --check scib".split()
    code, out, _ = shell("gmvae_metrics", mine.parent / "embedded.h5ad", *words, "--json")
    found = json.loads(out)
    compared = {name: row for name, row in found["check"].items() if row["scib"] is not None}
    assert code == 0 and {"asw", "batch_asw"} <= set(compared)
    for name, row in compared.items():
        assert row["ours"] == found["scores"][name]["score"]
        assert abs(row["ours"] - row["scib"]) < 1e-5 and not row["note"]
    # pandas 3 has no value_counts, which scib's connectivity calls
    failed = set(found["check"]) - set(compared)
    assert failed == ({"graph_connectivity"} if pd.__version__ >= "3" else set())
    assert all("scib fails here" in found["check"][name]["note"] for name in failed)
    monkeypatch.setattr("gmvae_nb.metrics.evaluate", None)  # it is not come to
    code, _, err = shell(
        "gmvae_metrics", mine.parent / "embedded.h5ad", *words[:-4], *words[-2:], "--labels_key", ""
    )
    assert code == 2 and "scib compares labels, and there are none" in err
    monkeypatch.setattr("gmvae_nb.scib_check.find_spec", lambda name: None)
    code, _, err = shell("gmvae_metrics", mine.parent / "embedded.h5ad", *words)
    assert code == 2 and "scib is not installed" in err


def test_a_run_that_is_gone_on_with_keeps_the_labels_of_its_scores(shell, mine, tmp_path):
    words = [mine, "--batch_key", "donor", "--K", "2", "--max_epochs", "1", "--quiet"]
    out = tmp_path / "sweep/K2-seed0"
    labelled = "--labels_key", "type", "--out", tmp_path / "sweep"
    assert shell("gmvae_sweep", *words, *labelled)[0] == 0
    before = json.loads((out / "metrics.json").read_text())
    assert shell("gmvae_train", *words, "--out", out, "--resume")[0] == 0
    after = json.loads((out / "metrics.json").read_text())
    assert after["table"] == before["table"] and {"asw"} <= set(after["scores"]["latent"])
    assert json.loads((out / "run.json").read_text())["labels_key"] == "type"
    # what the training refuses, a dry run refuses too
    code, _, err = shell("gmvae_train", *words, "--out", out, "--dry_run")
    assert code == 2 and "already holds this run: add --resume" in err
    # and as functions they return what they print
    assert gmvae_table([str(out)])["K"].tolist() == [2]
    again = gmvae_sweep(str(mine), str(tmp_path / "sweep"), **SAME, labels_key="type", quiet=True)
    assert [run["K"] for run in again["runs"]] == [2]


SAME = dict(K=[2], max_epochs=1, batch_key="donor")
