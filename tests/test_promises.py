"""What holds when things go wrong: each promise of nbs/promises.ipynb, in small.

In large: make soak.
"""

import ast
import gzip
import hashlib
import json
import math
import os
import pickle
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import platformdirs
import pytest
import torch
from gmvae_nb import commands, data, looking
from gmvae_nb.data import load_data
from gmvae_nb.files import locked_folder, write_atomically
from gmvae_nb.model_folder import FORMAT, model_digest, read_model, verify
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.sweep import train_or_reason
from gmvae_nb.train import GMVAE
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import sparse

import test_files
from hazards import (
    HOSTILE,
    ROOT,
    SMALL,
    TINY,
    before_steps,
    cells,
    die_at_step,
    fork,
    hostile,
    kill_after,
    memory_of,
    model,
    outcome,
    read_all,
    resource,
    small_disk,
    stop_at_step,
    try_damaged,
    write_for_ever,
)

server = test_files.server  # a fixture
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def sentence(error) -> str:
    "The message, which must be one sentence."
    said = str(error.value)
    assert said and "\n" not in said and len(said) < 900, said
    return said


def untrained(preset=SMALL, K=3) -> GMVAE:
    return GMVAE(cells(), K=K, batch_key="batch", preset=preset)


def same_weights(one: dict, other: dict) -> bool:
    return all(one[name].equal(t) for name, t in other.items())


# --- one way to write a file ----------------------------------------------------------------------


@needs_fork
def test_kills_at_random_moments_leave_the_last_good_state(tmp_path):
    models, tables, rng = [model(1), model(2)], [cells(), cells(seed=1)], random.Random(0)
    good = [m.network.state_dict() for m in models]
    models[0].save(tmp_path)
    write_atomically(tmp_path / "cells.h5ad", tables[0].write_h5ad)
    for _ in range(10):
        seconds = rng.uniform(0, 0.08)
        code = kill_after(lambda: write_for_ever(tmp_path, models, tables), seconds)
        assert code == -signal.SIGKILL
        found = GMVAE.load(tmp_path).network.state_dict()
        assert any(same_weights(found, state) for state in good)
        y = ad.read_h5ad(tmp_path / "cells.h5ad").X
        assert any((y != a.X).nnz == 0 for a in tables)
        assert "model.safetensors" in verify(tmp_path)["files"]
        # of two models in one folder, each stopped between two files, verify could not say
        # which wrote history.csv
        models[0].save(tmp_path)
        assert not list(tmp_path.glob(".*"))  # what the kill has left is gone


def test_a_file_is_flushed_then_renamed_then_its_folder_is_flushed(tmp_path, monkeypatch):
    done = []

    def sync(handle, original=os.fsync):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        return original(handle)

    def rename(a, b, original=os.replace):
        assert Path(a).parent == Path(b).parent  # a rename, never a copy
        done.append("rename")
        return original(a, b)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")  # it is not made use of
    model(1).save(tmp_path)
    if sys.platform == "linux":
        assert done == ["file", "rename", "folder"] * 3


@needs_linux
def test_a_full_disk_is_a_sentence_and_the_old_model_loads(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("mounting is not permitted here")
        old = model(1)
        old.save(disk)
        left = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(left.f_bavail * left.f_frsize))
        for write in (
            lambda: model(2).save(disk),
            lambda: write_atomically(disk / "cells.h5ad", cells(3000).write_h5ad),
            lambda: model(1).train(2, out=disk, progress=False),
        ):
            with pytest.raises(OSError) as error:
                write()
            assert "could not be written (No space left on device)" in sentence(error)
        there = {p.name for p in disk.iterdir()}
        assert there == {"model.safetensors", "config.json", "history.csv", "filler"}
        assert same_weights(GMVAE.load(disk).network.state_dict(), old.network.state_dict())
        verify(disk)


@needs_linux
def test_a_file_that_may_not_grow_is_a_sentence(tmp_path):
    "Like a full disk, where none can be mounted."
    model(1).save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            model(2).save(tmp_path)
        except OSError as error:
            said = str(error)
            assert "could not be written (File too large)" in said and "\n" not in said
        else:
            raise AssertionError("written")

    assert outcome(fork(work)) == 0
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@needs_linux
def test_a_read_only_folder_is_a_sentence(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        folder = disk or tmp_path / "disk"
        model(1).save(folder)
        if disk:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        else:
            folder.chmod(0o500)
        if os.access(folder, os.W_OK) and not disk:
            pytest.skip("root writes everywhere")
        with pytest.raises(OSError) as error:
            model(2).save(folder)
        assert "could not be written" in sentence(error)
        assert len(GMVAE.load(folder).history) == 1
        if not disk:
            folder.chmod(0o700)


WRITERS = set(
    "write_text write_bytes to_csv to_parquet to_pickle write_h5ad "
    "savefig save_file savez savetxt dump".split()
)
MODES = "w wb a ab x xb r+ r+b rb+".split()  # of open, for writing
SOURCES = [*sorted((ROOT / "gmvae_nb").glob("*.py")), ROOT / "nbs/06_results.ipynb"]


def code_of(source: Path) -> str:
    "A module's text; of a notebook the cells that are neither tests nor commands."
    text = source.read_text()
    if source.suffix == ".py":
        return text
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    codes = ["".join(c["source"]) for c in cells]
    codes = [c for c in codes if "test" not in c and not c.lstrip().startswith(("%", "!"))]
    return "\n".join(codes).replace("with tempfile", "if True: #")  # examples in a temporary folder


def name_of(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def writes(call: ast.Call) -> bool:
    "Whether a call writes a file."
    if name_of(call) != "open":
        return name_of(call) in WRITERS
    words = [*call.args[1:], *(k.value for k in call.keywords)]
    parts = [part for word in words for part in ast.walk(word)]
    return any(isinstance(part, ast.Constant) and part.value in MODES for part in parts)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_everything_is_written_in_one_way(source):
    """Each call that writes stands inside an argument of write_atomically.

    Or in a function named write that is an argument of it, or in one of those that make the copy
    of a file in another form, which such a function calls."""
    tree, allowed, writing = ast.parse(code_of(source)), set(), {"write"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MAKERS":
            writing |= {made.id for made in node.value.values}
    for node in ast.walk(tree):
        is_atomic = isinstance(node, ast.Call) and name_of(node) == "write_atomically"
        is_write = isinstance(node, ast.FunctionDef) and node.name in writing
        if is_atomic or is_write:
            allowed |= set(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in allowed or not writes(node):
            continue
        name = name_of(node)
        in_memory = name == "savefig" and source.name == "drawing.py"  # into a BytesIO
        to_temporary = source.suffix == ".ipynb" and "folders[" in ast.unparse(node)
        # write_atomically itself, the .part of a download, who has a lock
        own = name == "open" and source.name == "files.py"
        assert in_memory or to_temporary or own, f"{source.name}: {ast.unparse(node)}"


# --- gmvae_verify ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "config.json"])
def test_verify_names_the_file_that_changed(tmp_path, name):
    model(1).save(tmp_path)
    assert verify(tmp_path) == {"files": ["history.csv", "model.safetensors"], "notes": []}
    raw = bytearray((tmp_path / name).read_bytes())
    raw[len(raw) * 2 // 3] ^= 1
    (tmp_path / name).write_bytes(raw)
    if name == "config.json":  # what is in it besides checksums is a copy
        (tmp_path / name).write_bytes(b"{" + raw)
    with pytest.raises(ValueError, match=name) as error:
        verify(tmp_path)
    sentence(error)


def test_verify_tells_a_stopped_write_from_a_damaged_file(tmp_path):
    model(1).save(tmp_path)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model(2).save(tmp_path)
    (tmp_path / "config.json").write_bytes(old["config.json"])
    (tmp_path / f".{'0' * 32}.new.safetensors").write_bytes(b"half")
    newer, left = verify(tmp_path)["notes"]
    assert "after 2 epochs, is newer than config.json" in newer and "killed has left" in left
    model(2).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(old["model.safetensors"])
    older, left = verify(tmp_path)["notes"]
    assert "after 1 epochs, is older than config.json: put back the one of 2 epochs" in older
    (tmp_path / "history.csv").unlink()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json is missing.*first write was stopped"):
        verify(tmp_path)


def test_a_write_that_was_stopped_after_the_last_epoch_is_ended_by_the_next_call(tmp_path):
    """The weights are those of the last epoch: there is nothing left to train.

    The files beside them are one epoch behind."""
    untrained(TINY).train(1, out=tmp_path, progress=False)
    old = {name: (tmp_path / name).read_bytes() for name in ("history.csv", "config.json")}
    untrained(TINY).train(2, out=tmp_path, progress=False)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for left in (old, {"config.json": old["config.json"]}, {"config.json": b"{"}):
        for name, content in left.items():
            (tmp_path / name).write_bytes(content)
        untrained(TINY).train(2, out=tmp_path, progress=False)
        assert verify(tmp_path)["notes"] == []
        assert len(pd.read_csv(tmp_path / "history.csv")) == 2
        assert (tmp_path / "model.safetensors").read_bytes() == whole


def test_verify_looks_at_no_file_outside(tmp_path):
    model(1).save(tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["sha256"]["../secret"] = "0" * 64
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'../secret', which is no file of this folder"):
        verify(tmp_path / "run")


# --- resume, and the same bytes -------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("step", random.Random(5).sample(range(36), 3))
def test_killed_at_any_step_and_resumed_equals_undisturbed_byte_for_byte(tmp_path, step):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    untrained().train(6, out=whole, progress=False)
    assert outcome(fork(lambda: die_at_step(killed, step, 6))) == -signal.SIGKILL
    again = untrained().train(6, out=killed, progress=False)
    models = [(folder / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert models[0] == models[1]
    tables = [pd.read_csv(folder / "history.csv", dtype=str) for folder in (whole, killed)]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))
    assert (again.history["seconds"] > 0).all()  # those of the killed process too


SAME = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from hazards import cells, SMALL
from gmvae_nb.results import collect_runs
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
out = Path(sys.argv[1]); out.mkdir()
a = cells()
a.obs["batch"] = [f"batch{i % 6}" for i in range(100)]
a.write_h5ad(out / "cells.h5ad")
data = read_input(out / "cells.h5ad", batch_key="batch")
options = dict(K=4, batch_key="batch", preset=SMALL, max_epochs=3, progress=False)
m = train_run(data, out / "run", **options)
x, p = m.get_latent_representation(), m.predict_proba()
(out / "embedding").write_bytes(x.tobytes() + p.tobytes())
collect_runs([out / "run"]).drop(columns="train_seconds").to_csv(out / "table.csv")
"""


def test_the_same_seed_gives_the_same_bytes_in_two_processes_and_no_network_is_used(
    tmp_path, monkeypatch
):
    """The other process has other hashes of texts, and a hook that hears of every connection.

    And, where this is permitted, no network."""
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    code = QUIET + SAME + ASK + "(out / 'hash').write_text(str(hash('gene')))"
    command = [sys.executable, "-c", code, str(tmp_path / "1"), str(ROOT / "tests")]
    if shutil.which("unshare"):
        alone = ["unshare", "-n"]
        if subprocess.run([*alone, "true"], capture_output=True).returncode == 0:
            command = alone + command
    subprocess.run(command, env=env, check=True, timeout=120)
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "2"), str(ROOT / "tests")])
    exec(SAME, {})
    assert hash("gene") != int((tmp_path / "1/hash").read_text())  # here the hashes are others
    for name in ("run/model.safetensors", "embedding", "table.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


# --- numbers that are not finite ------------------------------------------------------------------


def poison(m, step):
    "Let this step of the optimizer, counted from 0, make the weight of a gene a NaN."

    def hit(i):
        if i == step:
            m.network.heads.mean_or_logits.weight.grad[7, 0] = float("nan")

    before_steps(m, hit)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("step", [0, 1, 37, 47])  # 8 epochs of 6 steps
def test_a_nan_stops_training_and_the_last_good_model_stays(tmp_path, step, on_disk):
    m = untrained()
    poison(m, step)
    with pytest.raises(FloatingPointError) as error:
        m.train(8, out=tmp_path if on_disk else None, progress=False)
    said, epoch = sentence(error), step // 6
    # in the last step of an epoch it is found at once; else by the loss of the next step
    where = f"at epoch {epoch + 1}, step {step % 6 + 2}: the weight"
    if step % 6 == 5:
        where = f"after epoch {epoch + 1}, step 6: the weight"
    assert where in said, said
    assert "of gene 'gene7' is not finite" in said and f"as it was after {epoch} epochs" in said
    good = untrained()  # the same run, stopped after its last good epoch
    stop_at_step(good, 6 * epoch, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        good.train(8, progress=False)
    assert len(m.history) == epoch
    assert same_weights(m.network.state_dict(), good.network.state_dict())
    if on_disk and epoch:
        loaded = GMVAE.load(tmp_path)
        assert len(loaded.history) == epoch
        assert all(p.isfinite().all() for p in loaded.network.parameters())
    elif on_disk:  # before the first checkpoint: nothing that could pass for a model
        assert not (tmp_path / "model.safetensors").exists()


def test_a_count_that_turned_bad_is_named_with_its_cell_and_gene():
    m = untrained(TINY)
    first = m.counts.indptr[12]
    m.counts.data[first] = np.nan
    gene = m.genes[m.counts.indices[first]]
    says = f"epoch 1, step .: the count of cell number 12, gene '{gene}', is nan"
    with pytest.raises(FloatingPointError, match=says):
        m.train(2, test_idx=np.arange(3), progress=False)


def test_a_model_that_is_not_finite_is_never_written(tmp_path):
    m = model(1)
    m.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    next(m.network.parameters()).data.view(-1)[0] = math.inf
    with pytest.raises(FloatingPointError, match="is not finite: this model is not written"):
        m.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_command_exits_with_code_3(tmp_path, monkeypatch, capsys):
    cells().write_h5ad(tmp_path / "cells.h5ad")

    def spoil(optimizer):
        optimizer.param_groups[0]["params"][0].grad[0] = math.nan

    count_steps(monkeypatch, 37, spoil)
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    source, run = tmp_path / "cells.h5ad", tmp_path / "run"
    command = f"gmvae_train {source} --out {run} --max_epochs 9 --quiet"
    monkeypatch.setattr(sys, "argv", command.split())
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        commands.gmvae_train()
    signal.signal(signal.SIGTERM, handler)
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert stopped.value.code == 3
    assert said.startswith("gmvae_train: the loss is nan at epoch 7, step 3: the weight"), said
    assert "encoder.0.weight of gene 'gene0'" in said
    assert len(GMVAE.load(run).history) == 6 and not (run / "metrics.json").exists()
    verify(run)


# --- models from somebody else --------------------------------------------------------------------

LOAD = """
import sys, os, pickle
from pathlib import Path
from gmvae_nb.train import GMVAE
from gmvae_nb.model_folder import verify
folder = Path(sys.argv[1])
GMVAE.load(folder / "good"), verify(folder / "good")  # what is imported late is imported now
FORBIDDEN = (
    "pickle.", "exec", "compile", "subprocess.", "os.system", "os.exec", "os.spawn",
    "os.posix_spawn", "os.fork", "socket.", "marshal.loads", "ctypes.dlopen", "import",
)
events = []
armed = False

def hook(event, args):
    if not armed:
        return
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event.startswith(FORBIDDEN):
        events.append((event, str(args)[:200]))

sys.addaudithook(hook)
for case in sorted(folder.iterdir()):
    if not case.is_dir():
        continue
    armed, said = True, None
    # what is shown is what the second says; config.json is no part of the model
    both = (verify, GMVAE.load)
    for read in both if case.name != "pickle_config.json" else both[::-1]:
        try:
            said = read(case) and None
        except ValueError as error:
            said = str(error)
    armed = False
    print(case.name, "|", repr(said))
assert not events, events
armed = True
pickle.loads(pickle.dumps(Path("x")))
exec("1")
assert {"pickle.find_class", "exec"} <= {name for name, _ in events}  # the trap is set
"""


class Canary:
    "Unpickled, it makes a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def rewritten(folder: Path, change) -> None:
    "The model file with its content changed, and a checksum that fits."
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as f:
        header = json.loads(f.metadata()["gmvae_nb"])
        state = {n: f.get_tensor(n) for n in f.keys()}
    header, state = change(header, state) or (header, state)
    try:
        header["sha256"] = model_digest(header["config"], header["history"], state)
    except Exception:
        pass
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(state, path, {"gmvae_nb": text})


def setting(key, value, preset=False):
    def change(header, state):
        (header["config"]["preset"] if preset else header["config"])[key] = value

    return change


def tensor(name, value):
    def change(header, state):
        state[name] = value(state.get(name))

    return change


CHANGED = {
    "K_huge": setting("K", 10**12),
    "K_text": setting("K", "3"),
    "K_zero": setting("K", 0),
    "K_true": setting("K", True),
    "K_gone": lambda h, s: h["config"].pop("K") and None,
    "seed_negative": setting("seed", -1),
    "genes_none": setting("genes", None),
    "genes_fewer": setting("genes", ["a"]),
    "genes_numbers": setting("genes", list(range(20))),
    "genes_many": setting("genes", [f"g{i}" for i in range(100_000)]),
    "batches_path": setting("batches", ["../../etc/passwd"]),
    "batches_empty": setting("batches", []),
    "config_list": lambda h, s: ({**h, "config": []}, s),
    "history_text": lambda h, s: ({**h, "history": "x"}, s),
    "history_deep": lambda h, s: ("[" * 100_000, s),
    "header_text": lambda h, s: ("x", s),
    "header_number": lambda h, s: ('{"config": {"K": ' + "9" * 6000 + "}}", s),
    "format_text": setting("format", "__import__('os')"),
    "format_newer": setting("format", FORMAT + 1),
    "format_0": setting("format", 0),
    "preset_list": setting("preset", []),
    "preset_unknown": setting("evil", 1, True),
    "n_x_huge": setting("n_x", 10**15, True),
    "n_x_text": setting("n_x", "80", True),
    "hidden_many": setting("encoder_hidden", [1] * 10**6, True),
    "hidden_huge": setting("encoder_hidden", [2**62], True),
    "hidden_text": setting("encoder_hidden", "ab", True),
    "lr_inf": setting("lr", math.inf, True),
    "dropout_nan": setting("dropout", math.nan, True),
    "prior_else": setting("prior", "os.system", True),
    "M_zero": setting("M", 0, True),
    "test_idx_text": setting("test_idx", ["a"]),
    "layer_number": setting("layer", 5),
    "n_cells_text": setting("n_cells", "many"),
    "batch_key_list": setting("batch_key", ["batch"]),
    "tensor_nan": tensor("network.heads.log_r.bias", lambda t: t.fill_(math.nan)),
    "tensor_inf": tensor("network.heads.log_r.bias", lambda t: t.fill_(math.inf)),
    "tensor_shape": tensor("network.heads.log_r.bias", lambda t: t[:-1].clone()),
    "tensor_kind": tensor("network.heads.log_r.bias", lambda t: t.double()),
    "tensor_path": tensor("../../canary", lambda t: torch.ones(1)),
    "tensor_more": tensor("network.evil.weight", lambda t: torch.ones(1)),
    "tensor_gone": lambda h, s: s.pop("network.heads.log_r.bias") is None or None,
    "moments_more": tensor("optimizer.999.exp_avg", lambda t: torch.ones(1)),
    "moments_odd": tensor("optimizer.x.y.z", lambda t: torch.ones(1)),
    "moments_shape": tensor("optimizer.0.exp_avg", lambda t: torch.ones(1)),
    "cluster_far": tensor("network.cluster_of", lambda t: torch.tensor([0, 1, 2**40])),
    "cluster_negative": tensor("network.cluster_of", lambda t: torch.tensor([0, 1, -1])),
}


def hostile_models(folder: Path) -> int:
    "One folder for each; the number of them."
    model(1, SMALL).save(folder / "good")
    bomb = pickle.dumps(Canary(folder / "canary"))
    raw = (folder / "good/model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")

    def copy(name):
        shutil.copytree(folder / "good", folder / name)
        return folder / name

    for name, change in CHANGED.items():
        rewritten(copy(name), change)
    for name in ("model.safetensors", "config.json"):
        (copy(f"pickle_{name}") / name).write_bytes(bomb)
    torch.save(Canary(folder / "canary"), copy("torch_save") / "model.safetensors")
    whole = {
        "empty": b"",
        "cut_8": raw[:8],
        "cut_header": raw[: size // 2],
        "cut_data": raw[:-9],
        "longer": raw + b"x",
        "header_4gb": (2**32).to_bytes(8, "little") + raw[8:],
        "header_2_63": (2**63).to_bytes(8, "little") + raw[8:],
        "header_past_end": (len(raw) * 2).to_bytes(8, "little") + raw[8:],
        "header_0": bytes(8) + raw[8:],
        "zip": b"PK\x03\x04" + raw,
        "bit_in_header": raw[: size // 2] + bytes([raw[size // 2] ^ 1]) + raw[size // 2 + 1 :],
        "bit_in_weights": raw[:-99] + bytes([raw[-99] ^ 4]) + raw[-98:],
        "offsets_overlap": raw.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
    }
    for name, content in whole.items():
        (copy(name) / "model.safetensors").write_bytes(content)
    path = copy("folder") / "model.safetensors"
    path.unlink()
    path.mkdir()
    return len(list(folder.iterdir())) - 1


def test_nothing_runs_when_a_model_is_loaded(tmp_path):
    n = hostile_models(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" | ") for line in done.stdout.strip().split("\n"))
    assert said.pop("good") == "None" and len(said) == n
    for name, text in said.items():
        refused = text != "None"
        assert refused and "\\n" not in text and len(text) <= 900, (name, text)
    assert not list(tmp_path.glob("*canary*"))
    print(f"{n} hostile models refused")


def test_the_canary_sings(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_a_newer_format_names_the_fix(tmp_path):
    model(1).save(tmp_path)
    rewritten(tmp_path, setting("format", FORMAT + 1))
    says = (
        f"format {FORMAT + 1}, .* reads formats 1 to {FORMAT}: install a newer gmvae_nb, with pip"
    )
    with pytest.raises(ValueError, match=says):
        GMVAE.load(tmp_path)


# --- files of cells from somebody else ------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("build", HOSTILE, ids=lambda f: f.__name__)
def test_hostile_h5ad_is_refused_in_a_sentence_and_costs_little(tmp_path, build):
    path = hostile(build, tmp_path)
    code, seconds, megabytes = memory_of(lambda: read_all(path))
    assert code == 2 and megabytes < 300 and seconds < 2, (code, seconds, megabytes)
    assert memory_of(lambda: looking.main(str(path)))[2] < 300  # what the other process needs
    with pytest.raises(ValueError) as error:
        read_all(path)
    said = sentence(error)
    assert "root:x" not in said and len(said) < 600, said


@needs_fork
@pytest.mark.parametrize("how, n", [("cut", 4), ("flip", 8)])
def test_damaged_h5ad_never_brings_the_process_down(tmp_path, how, n):
    assert set(try_damaged(tmp_path, n, how, seed=0)[0]) <= {0, 2}


# --- models load for good -------------------------------------------------------------------------

GOLDEN = ROOT / "tests/golden"


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("format*")), ids=lambda p: p.name)
def test_golden_models_embed_as_they_did(folder):
    sys.path.insert(0, str(GOLDEN))
    from make import cells as golden_cells

    expected = pd.read_csv(folder / "embedding.csv", index_col=0).to_numpy()
    found = GMVAE.load(folder, golden_cells(), device="cpu")
    np.testing.assert_allclose(found.get_latent_representation(), expected, atol=1e-6)
    assert len(found.history) == 8 and (found.history["seconds"] > 0).all()
    assert sum(p.stat().st_size for p in folder.iterdir()) < 20_000


def test_every_format_has_its_golden_model():
    assert {p.name for p in GOLDEN.glob("format*")} == {f"format{n}" for n in range(1, FORMAT + 1)}


def test_a_model_file_knows_no_device(tmp_path):
    m = model(1)
    assert all(t.device.type == "cpu" for t in m._state().values())
    m.save(tmp_path)
    assert "device" not in read_model(tmp_path)[0]


# --- memory ---------------------------------------------------------------------------------------


def test_no_more_than_a_mini_batch_is_ever_dense(monkeypatch):
    made = []

    def watch(kind, name):
        original = getattr(kind, name)

        def spy(self, *args, **kw):
            made.append(self.shape[0])
            return original(self, *args, **kw)

        monkeypatch.setattr(kind, name, spy)

    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix):
        watch(kind, "toarray")
        watch(kind, "todense")
    watch(torch.Tensor, "to_dense")
    for preset in (TINY, SMALL):
        m = model(3, preset, n=400)
        m.predict_proba()
        m.get_elbo()
        m.get_iwae(n_samples=2)
        m.cluster_report()
        m.get_latent_representation(cells(50, seed=1))
    assert max(made, default=0) <= 16, made
    made.clear()
    cells().X.toarray()
    assert made == [100]  # the spy sees


def wide_file(path, n, G=1000, per_cell=200) -> None:
    "n cells with 200 counts each, written without compression."
    step = G // per_cell
    columns = np.arange(per_cell) * step + np.arange(n)[:, None] % step  # (n, per_cell)
    values = (columns % 3 + 1).astype(np.float32)
    starts = np.arange(0, columns.size + 1, per_cell)
    parts = values.ravel(), columns.ravel().astype(np.int32), starts
    y = sparse.csr_matrix(parts, shape=(n, G))
    ad.AnnData(y, obs=pd.DataFrame(index=[f"c{i}" for i in range(n)])).write_h5ad(path)


AT_WORK = """
import sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from functools import partial
from gmvae_nb.data import read_h5ad
from gmvae_nb.train import GMVAE
from hazards import TINY

adata = read_h5ad(sys.argv[2], backed=sys.argv[3] == "backed")
model = GMVAE(adata, K=2, preset=replace(TINY, batch_size=128))
model.train(1, progress=False)
model.get_latent_representation()
# getrusage would count what the process had that started this one
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


def megabytes_for(path: Path, how: str) -> float:
    "The peak of a process that reads, trains for an epoch and embeds."
    words = [sys.executable, "-c", AT_WORK, str(ROOT / "tests"), str(path), how]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@needs_linux
def test_memory_does_not_grow_with_the_counts_on_disk(tmp_path):
    """18,000 cells more take 29 MB as a CSR matrix; their names and results are a tenth of it.

    The two peaks are those of processes of their own, whatever this one has had before."""
    sizes = 10_000, 28_000  # more than are read at a time
    paths = [tmp_path / f"{n}.h5ad" for n in sizes]
    for path, n in zip(paths, sizes):
        assert outcome(fork(partial(wide_file, path, n))) == 0
    few, many = (megabytes_for(path, "backed") for path in paths)
    assert many - few < 25, (few, many)  # less than the counts take once


# --- no network, and downloads --------------------------------------------------------------------

QUIET = """
import sys
used = []
NETWORK = (
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo",
    "socket.gethostby", "urllib.", "http.client", "ftplib.", "smtplib.",
)

def hook(event, args):
    if event.startswith(NETWORK):
        used.append((event, str(args)[:99]))

sys.addaudithook(hook)
"""
ASK = """
assert not used, used
import socket
try: socket.create_connection(("127.0.0.1", 9), 1)
except OSError: pass
assert used  # the trap is set
"""


@pytest.mark.parametrize("right", [True, False])
def test_a_download_goes_on_where_it_was_cut_off_and_is_verified_before_use(
    server, tmp_path, monkeypatch, capsys, right
):
    cache = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(cache))
    cells(3000, 100).write_h5ad(tmp_path / "a.h5ad")
    whole = gzip.compress((tmp_path / "a.h5ad").read_bytes(), 1)
    monkeypatch.setattr(test_files, "CONTENT", whole)  # which the server serves
    server.cut = len(whole) // 3
    sha256 = hashlib.sha256(whole).hexdigest() if right else "0" * 64
    with pytest.raises(OSError, match="call again, which goes on where it stopped") as error:
        data.download_h5ad(server.url, sha256)
    sentence(error)
    assert [p.name for p in cache.iterdir()] == ["a.bin.gz.part"]
    if right:
        y = load_data(data.download_h5ad(server.url, sha256)).X
        assert (y != cells(3000, 100).X).nnz == 0
        assert int(server.asked[1][6:-1]) > server.cut - 2**16
        assert "as expected" in capsys.readouterr().out
        assert data.download_h5ad(server.url, sha256) and len(server.asked) == 2  # once
    else:
        with pytest.raises(ValueError, match="does not match the known hash") as error:
            data.download_h5ad(server.url, sha256)
        sentence(error)
    assert [p.name for p in cache.iterdir()] == ["a.bin"] * right


# --- one process in a folder ----------------------------------------------------------------------


@needs_linux
def test_two_processes_never_train_in_one_folder(tmp_path):
    cells().write_h5ad(tmp_path / "cells.h5ad")
    read_in, run = read_input(tmp_path / "cells.h5ad", batch_key="batch"), tmp_path / "run"
    options = dict(K=2, batch_key="batch", preset=TINY, max_epochs=2, progress=False)
    read, write = os.pipe()

    def other():
        with locked_folder(run):
            os.write(write, b".")
            time.sleep(600)

    pid = fork(other)
    try:
        assert os.read(read, 1) == b"."
        says = f"process {pid} on .* trains in .*: wait until it is done, or stop it"
        with pytest.raises(BlockingIOError, match=says) as error:
            train_run(read_in, run, **options)
        sentence(error)
        # as a sweep does: another has begun the run, and may end it
        waiting = threading.Thread(target=train_or_reason, args=(read_in, {"out": run, **options}))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive() and [p.name for p in run.iterdir()] == [".lock"]
    finally:
        os.kill(pid, signal.SIGKILL)
        outcome(pid)
        os.close(read)
        os.close(write)
    waiting.join(60)
    assert not waiting.is_alive()
    assert "run.json" in verify(run)["files"] and verify(run)["notes"] == []


# --- the sweep ------------------------------------------------------------------------------------


def sweep(folder: Path, **kw) -> pd.DataFrame:
    if not (folder / "cells.h5ad").exists():
        folder.mkdir(exist_ok=True)
        cells().write_h5ad(folder / "cells.h5ad")
    options = dict(K=[2, 3], repeats=2, batch_key="batch", max_epochs=2, quiet=True)
    out = str(folder / "sweep")
    commands.gmvae_sweep(str(folder / "cells.h5ad"), out=out, **(options | kw))
    return pd.read_csv(folder / "sweep/results.csv").drop(columns="train_seconds")


def count_steps(monkeypatch, at=None, do=None) -> list:
    "Counts the steps of all optimizers; at one of them something is done first."
    steps = []

    def step(self, *args, original=torch.optim.Adam.step, **kw):
        steps.append(1)
        if len(steps) - 1 == at:
            do(self)
        return original(self, *args, **kw)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return steps


@needs_fork
# of 4 runs of 2 epochs of 6 steps: in a first epoch, and in a second
@pytest.mark.parametrize("at", [15, 33])
def test_a_sweep_survives_a_kill_and_gives_the_same_table(tmp_path, monkeypatch, at):
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    whole = sweep(tmp_path / "whole")
    with monkeypatch.context() as patch:
        count_steps(patch, at, lambda _: os.kill(os.getpid(), signal.SIGKILL))
        assert outcome(fork(lambda: sweep(tmp_path / "killed"))) == -signal.SIGKILL
    done = len(list((tmp_path / "killed/sweep").glob("*/metrics.json")))
    assert done == at // 12
    steps = count_steps(monkeypatch)
    pd.testing.assert_frame_equal(sweep(tmp_path / "killed"), whole)
    # finished runs and finished epochs were not trained again
    assert len(steps) == 12 * (4 - done) - at % 12 // 6 * 6
    for run in (tmp_path / "killed/sweep").glob("K*"):
        undisturbed = tmp_path / "whole/sweep" / run.name
        models = [(folder / "model.safetensors").read_bytes() for folder in (run, undisturbed)]
        assert models[0] == models[1]
        verify(run)


def test_a_sweep_retries_what_failed_and_what_is_damaged_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "recommended", SMALL)

    def spoil(optimizer):
        optimizer.param_groups[0]["params"][0].grad.fill_(math.nan)

    says = r"1 of 4 runs failed: K2-seed1 \(the loss is nan at epoch 1, step 4"
    with monkeypatch.context() as patch:
        count_steps(patch, 14, spoil)
        with pytest.raises(FloatingPointError, match=says):
            sweep(tmp_path)
    assert len(pd.read_csv(tmp_path / "sweep/results.csv")) == 3
    assert not (tmp_path / "sweep/K2-seed1/metrics.json").exists()
    half = tmp_path / "sweep/K3-seed0/metrics.json"
    half.write_bytes(half.read_bytes()[:200])
    others = [p for p in half.parents[1].glob("*/metrics.json") if p != half]
    written = {p: p.stat().st_mtime_ns for p in others}
    steps = count_steps(monkeypatch)
    table = sweep(tmp_path)
    assert len(written) == 2 and all(p.stat().st_mtime_ns == t for p, t in written.items())
    # the failed one; the half-written one was trained, and is scored again
    assert len(table) == 4 and len(steps) == 12
    json.loads(half.read_text())
    model = others[0].with_name("model.safetensors")
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged .*: get it again, or delete it"):
        sweep(tmp_path)
    model.unlink()
    pd.testing.assert_frame_equal(sweep(tmp_path), table)


# --- the page and the mutants name tests that exist -----------------------------------------------


def commands_of_page() -> list[tuple[set[str], str]]:
    "Files and words of each command in the table of promises."
    cells = json.loads((ROOT / "nbs/promises.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    found = re.findall(r'`pytest ([^`"]*)(?: -k "(.*)")?`', text)
    return [(set(re.findall(r"tests/\w+\.py", files)), chosen) for files, chosen in found]


def names_of_tests(files: list[str]) -> list[str]:
    "All in these files, collected in a copy of this process, which has imported what they import."
    out, into = os.pipe()
    pid = fork(partial(collect, files, into))
    os.close(into)
    with open(out) as pipe:
        said = pipe.read()
    assert outcome(pid) == 0
    return said.split("\n")


def collect(files: list[str], into: int) -> None:
    def pytest_collection_finish(session):
        with open(into, "w") as pipe:
            pipe.write("\n".join(item.nodeid for item in session.items))

    os.chdir(ROOT)
    plugin = SimpleNamespace(pytest_collection_finish=pytest_collection_finish)
    assert pytest.main(["--collect-only", "-q", *files], plugins=[plugin]) == 0


@needs_fork
def test_the_page_and_the_mutants_choose_tests_that_exist():
    mutants = runpy.run_path(str(ROOT / "tests/soak/mutants.py"))["MUTANTS"]
    chosen = [*commands_of_page(), *(({m.test}, m.chosen) for m in mutants)]
    assert len(chosen) - len(mutants) == 37
    files = sorted(set().union(*(files for files, _ in chosen)))
    said = names_of_tests(files)
    ids = [line.lower() for line in said]
    for files, words in chosen:
        if "tests/test_ray.py" in files and not any("test_ray.py" in name for name in said):
            continue  # without ray, or not on Linux
        for file in files:
            assert any(i.startswith(file) for i in ids), file
        for word in set(re.findall(r"\w+", words)) - {"and", "or"}:
            assert any(i.split("::")[0] in files and word.lower() in i for i in ids), (files, word)
