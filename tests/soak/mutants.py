"""Takes each protection out of a copy of the package, in turn, and sees its test fail: python tests/soak/mutants.py."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA, TRAIN, CHECK, VERIFY, RUNS = (
    "gmvae_nb/data.py",
    "gmvae_nb/train.py",
    "gmvae_nb/h5check.py",
    "gmvae_nb/verify.py",
    "gmvae_nb/runs.py",
)
BAD, PROMISES, RAY = "tests/test_bad_input.py", "tests/test_promises.py", "tests/test_ray.py"

# what is removed, in which file, the text, what takes its place, and the test that must fail
MUTANTS = [
    (
        "files written in place",
        DATA,
        "        write(tmp)\n",
        "        write(path); shutil_copy(path, tmp)\n",
        PROMISES,
        "random_moments or full_disk",
    ),
    (
        "file not flushed",
        DATA,
        '        with open(tmp, "rb+") as f: os.fsync(f.fileno())\n',
        "",
        PROMISES,
        "flushed_then_renamed",
    ),
    (
        "folder not flushed",
        DATA,
        "        _sync_folder(path.parent)\n",
        "",
        PROMISES,
        "flushed_then_renamed",
    ),
    (
        "temporary file elsewhere",
        DATA,
        "    tmp = path.with_name(",
        "    tmp = Path('/dev/shm').joinpath(",
        PROMISES,
        "flushed_then_renamed",
    ),
    (
        "no sentence for a full disk",
        DATA,
        "e.filename not in ours: raise",
        "True: raise",
        PROMISES,
        "full_disk or may_not_grow or read_only",
    ),
    (
        "left-over deleted without care",
        DATA,
        "        with contextlib.suppress(OSError): tmp.unlink()",
        "        tmp.unlink()",
        PROMISES,
        "read_only",
    ),
    (
        "a file written without ceremony",
        RUNS,
        "    write_atomically(path, lambda tmp: tmp.write_text(",
        "    (lambda f: f(path))(lambda tmp: tmp.write_text(",
        PROMISES,
        "everything_is_written",
    ),
    (
        "checksums not compared",
        VERIFY,
        " and sha256_of(folder / name) == expected",
        "",
        PROMISES,
        "verify_names",
    ),
    (
        "checksums of files outside",
        VERIFY,
        "or Path(name).name != name]",
        "or False]",
        PROMISES,
        "file_outside",
    ),
    (
        "the model's checksum not compared",
        TRAIN,
        "if version > 1 and model_digest(config, rows, state)",
        "if False and model_digest(config, rows, state)",
        PROMISES,
        "nothing_runs",
    ),
    (
        "settings and shapes not checked",
        TRAIN,
        "                check_model(config, rows, state)\n",
        "",
        PROMISES,
        "nothing_runs",
    ),
    (
        "weights may be NaN when read",
        TRAIN,
        '    if bad := not_finite(state):\n        raise ValueError(f"{bad} is not finite")\n',
        "",
        PROMISES,
        "nothing_runs",
    ),
    (
        "a fallback to pickle",
        TRAIN,
        "    except (SafetensorError, KeyError,",
        "    except SafetensorError:\n        import pickle\n        return pickle.loads(path.read_bytes())\n    except (KeyError,",
        PROMISES,
        "nothing_runs",
    ),
    (
        "a fallback to torch.load",
        TRAIN,
        "    except (SafetensorError, KeyError,",
        "    except SafetensorError:\n        return torch.load(path, weights_only=False)\n    except (KeyError,",
        PROMISES,
        "nothing_runs",
    ),
    (
        "format 1 no longer read",
        TRAIN,
        "version in (1, FORMAT)",
        "version in (FORMAT,)",
        PROMISES,
        "golden_models",
    ),
    (
        "the encoder's input changed",
        TRAIN,
        "values = 1e4 * values",
        "values = 1.0001e4 * values",
        PROMISES,
        "golden_models",
    ),
    (
        "any format read",
        TRAIN,
        "if known := version in (1, FORMAT):",
        "if known := True:",
        PROMISES,
        "newer_format",
    ),
    (
        "NaN found at the end of an epoch",
        TRAIN,
        "    if not_finite(dict(self.network.named_parameters())):",
        "    if False:",
        PROMISES,
        "a_nan_stops and 47",
    ),
    (
        "the loss not looked at",
        TRAIN,
        "            if not loss.isfinite():",
        "            if False:",
        PROMISES,
        "a_nan_stops or exits_with_code",
    ),
    (
        "not put back after a NaN",
        TRAIN,
        "            except (KeyboardInterrupt, FloatingPointError) as stop:",
        "            except KeyboardInterrupt as stop:",
        PROMISES,
        "a_nan_stops",
    ),
    (
        "the cause not looked for",
        TRAIN,
        "    for start, part in _parts(self.counts):  # all of them",
        "    return ''\n    for start, part in _parts(self.counts):  # all of them",
        PROMISES,
        "a_nan_stops or turned_bad",
    ),
    (
        "NaN written",
        TRAIN,
        "    if bad := not_finite(state):\n        raise FloatingPointError(",
        "    if False:\n        raise FloatingPointError(",
        PROMISES,
        "never_written",
    ),
    (
        "random numbers of an epoch from the clock",
        TRAIN,
        "    with seeded(self.seed, epoch) as rng:",
        "    with seeded(time.perf_counter_ns()) as rng:",
        PROMISES,
        "byte_for_byte or same_seed",
    ),
    (
        "Adam's moments not kept",
        TRAIN,
        "    self._write(folder, self._state())",
        "    self._write(folder, {n: t for n, t in self._state().items() if n.startswith('network.')})",
        PROMISES,
        "byte_for_byte or survives_a_kill",
    ),
    (
        "wall time in the model file",
        TRAIN,
        'if name != "seconds"}',
        "}",
        PROMISES,
        "byte_for_byte or same_seed",
    ),
    (
        "batches in the order of a set",
        TRAIN,
        "    return batch.codes.astype(np.int64), list(batch.categories)",
        "    names = list(set(batch.categories))\n    return np.array([names.index(v) for v in batch]), names",
        PROMISES,
        "same_seed",
    ),
    (
        "external links followed",
        CHECK,
        "            if not isinstance(link, h5py.HardLink):",
        "            if False:",
        PROMISES,
        "hostile_h5ad and external_link",
    ),
    (
        "names told apart by name alone",
        CHECK,
        "            if address in seen:",
        "            if False:",
        PROMISES,
        "hostile_h5ad and (circle or many_names)",
    ),
    (
        "values from other files",
        CHECK,
        "if item.external or item.is_virtual:",
        "if False:",
        PROMISES,
        "hostile_h5ad and (external_storage or virtual)",
    ),
    (
        "size declared not compared",
        CHECK,
        "if declared > 2**20 + 1100 * stored:",
        "if False:",
        PROMISES,
        "hostile_h5ad and (shape_bomb or filled_bomb)",
    ),
    (
        "texts not counted",
        CHECK,
        "if texts > f.id.get_filesize():",
        "if False:",
        PROMISES,
        "hostile_h5ad and same_text",
    ),
    (
        "indices not checked",
        DATA,
        "        if sparse.issparse(counts): _check_indices(counts, name)\n",
        "",
        BAD,
        "indices or indptr",
    ),
    (
        "indices on disk not checked",
        DATA,
        "        if isinstance(counts, CountsOnDisk): _check_indices(y, name)\n",
        "",
        BAD,
        "outside",
    ),
    (
        "all cells made dense",
        TRAIN,
        "    mean, std = mean_and_std(counts, self.train_idx)",
        "    mean, std = mean_and_std(csr_matrix(counts.toarray()) if hasattr(counts, 'toarray') else counts, self.train_idx)",
        PROMISES,
        "ever_dense",
    ),
    (
        "backed file read whole",
        DATA,
        'backed="r" if backed else None',
        "backed=None",
        PROMISES,
        "counts_on_disk",
    ),
    (
        "a call home",
        TRAIN,
        "import hashlib\n",
        "import hashlib\nimport urllib.request\ntry: urllib.request.urlopen('http://127.0.0.1:9/', timeout=1)\nexcept OSError: pass\n",
        PROMISES,
        "no_network",
    ),
    (
        "checksum of a download not compared",
        DATA,
        "    if sha256 not in (None, found):",
        "    if False:",
        PROMISES,
        "verified_before_use",
    ),
    (
        "a download starts again",
        DATA,
        "part.stat().st_size if part.exists() else 0",
        "0",
        PROMISES,
        "verified_before_use",
    ),
    (
        "finished runs trained again",
        RUNS,
        "== max_epochs\n    except",
        "== -1\n    except",
        PROMISES,
        "sweep_retries",
    ),
    (
        "a half-written result stops the sweep",
        RUNS,
        "    except (ValueError, KeyError):  # damaged: to be made again\n        return False\n",
        "    except ZeroDivisionError:\n        return False\n",
        PROMISES,
        "sweep_retries",
    ),
    (
        "left-over files stay",
        DATA,
        "        with contextlib.suppress(OSError): _remove_left_over(path.parent)\n",
        "",
        PROMISES,
        "left_over or random_moments",
    ),
    (
        "files of a live writer deleted",
        DATA,
        " and _is_gone(int(written_by[1], 16))",
        "",
        PROMISES,
        "live_writer",
    ),
    (
        "files of another machine deleted",
        DATA,
        'folder.glob(f".{space}*")',
        'folder.glob(".*")',
        PROMISES,
        "no_others",
    ),
    (
        "two processes in one folder",
        RUNS,
        "    try: fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))\n",
        "    try: pass\n",
        PROMISES,
        "two_processes",
    ),
    (
        "lost runs of a cluster not tried again",
        RUNS,
        "max_retries=RETRIES",
        "max_retries=0",
        RAY,
        "worker_is_killed",
    ),
    (
        "lost runs of a cluster begun again",
        RUNS,
        "    return attempt(given._replace(",
        "    shutil.rmtree(run['out'], ignore_errors=True)\n    return attempt(given._replace(",
        RAY,
        "worker_is_killed",
    ),
    (
        "folders of nodes not looked at",
        RUNS,
        '        if wrong: raise ValueError(f"{name} {wrong}")\n',
        "",
        RAY,
        "does_not_see",
    ),
    (
        "masks taken for positions",
        TRAIN,
        '        if test_idx.size and test_idx.dtype.kind not in "iu":',
        "        if False:",
        BAD,
        "mask or fractions",
    ),
    (
        "kinds of batches mixed",
        DATA,
        "    if distinct != len(set(values)):",
        "    if False:",
        BAD,
        "batch",
    ),
    (
        "counts not looked at",
        DATA,
        "        bad = np.flatnonzero(~_is_count(y.data))",
        "        bad = np.flatnonzero(~_is_count(y.data[:20]))",
        BAD,
        "csr or any_shape",
    ),
    (
        "settings not looked at",
        TRAIN,
        '            if not right:\n                raise ValueError(f"{name} is',
        '            if False:\n                raise ValueError(f"{name} is',
        BAD,
        "n_x or lr or merge",
    ),
]


def main(words: list[str]) -> int:
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for what, file, old, new, tests, chosen in MUTANTS:
            if words and not any(word in what for word in words):
                continue
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            for name in ("gmvae_nb", "tests", "settings.ini"):
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
                    ROOT / name, copy / name
                )
            (copy / "nbs").mkdir(), shutil.copy(ROOT / "nbs/06_results.ipynb", copy / "nbs")
            text = (copy / file).read_text()
            assert text.count(old) == 1, f"{what}: {text.count(old)} times in {file}"
            new = new.replace("shutil_copy", "__import__('shutil').copy")
            (copy / file).write_text(text.replace(old, new))
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-x",
                    "-p",
                    "no:cacheprovider",
                    tests,
                    "-k",
                    chosen,
                ],
                cwd=copy,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(copy)},
                timeout=600,
            )
            last = done.stdout.strip().split("\n")[-1]
            caught = done.returncode == 1
            survived += not caught
            print(f"{'caught' if caught else 'SURVIVED':9} {what:45} {last[:60]}", flush=True)
    print(f"{survived} survived")
    return survived


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
