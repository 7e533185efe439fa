"""Runs of `gmvae_train` in each of which one request for memory fails, by fail_allocation.c.

    LD_PRELOAD=fail_allocation.so python tests/failing_allocations.py FOLDER LEAST COUNT

FOLDER has mine.h5ad, and gets `begun`, a run of one epoch, and `whole`, the same gone on with to
two. For each chosen n a copy of `begun` is gone on with, in which the n-th request of at least
LEAST bytes fails; what that leaves is copied to `n.left`, and the run is gone on with again,
undisturbed. COUNT is how many n are chosen, evenly, `all`, or `written`: all that are made while a
file is written. For each n a line of JSON is printed: n, the exit code, what was said, and the
exit code of the undisturbed run."""

import ctypes
import json
import os
import shutil
import sys
import uuid
from pathlib import Path

import numpy as np
from gmvae_nb import annotation, commands
from gmvae_nb.network import PRESETS

from hazards import TINY, import_what_runs_need, no_map, outcome

WORDS = "--K 2 --preset blog --batch_key batch --labels_key cell_type --quiet --resume"
LIBRARY = ctypes.CDLL(None)
LIBRARY.fail_allocation.argtypes = [ctypes.c_long, ctypes.c_size_t]
LIBRARY.allocations.restype = ctypes.c_long


def train(folder: Path, name: str, epochs: int, n: int, least: int, log: Path) -> int:
    "As on the command line, in a copy of this process; the exit code."
    pid = os.fork()
    if pid:
        return outcome(pid)
    for handle, place in ((1, os.devnull), (2, log)):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    if n == 0:
        note_files(log.with_suffix(".at"))
    words = [str(folder / "mine.h5ad"), "--out", str(folder / name), "--max_epochs", str(epochs)]
    sys.argv = ["gmvae_train", *words, *WORDS.split()]
    LIBRARY.fail_allocation(n, least)
    commands.gmvae_train()
    if n == 0:
        print(LIBRARY.allocations(), file=open(log.with_suffix(".all"), "w"))
    sys.exit()


def note_files(log: Path) -> None:
    "Write down how many requests were made when a file is begun, and when it is in its place."
    file = open(log, "w", buffering=1)

    def begin(original=uuid.uuid4):
        file.write(f"{LIBRARY.allocations()} ")
        return original()

    def end(*paths, original=os.replace):
        original(*paths)
        file.write(f"{LIBRARY.allocations()}\n")

    uuid.uuid4, os.replace = begin, end


def chosen(folder: Path, count: str) -> list[int]:
    total = int((folder / "whole.all").read_text())
    if count == "all":
        return list(range(1, total + 1))
    if count != "written":
        return sorted(set(np.linspace(1, total, int(count)).astype(int).tolist()))
    found: set[int] = set()
    for line in (folder / "whole.at").read_text().split("\n"):
        if line:  # one that was begun inside another has its own beginning
            found |= set(range(int(line.split()[0]) + 1, int(line.split()[-1]) + 1))
    return sorted(found)


def main(folder: Path, least: int, count: str) -> None:
    PRESETS["blog"] = TINY
    annotation.umap = no_map
    import_what_runs_need()  # once, and not in every copy
    assert train(folder, "begun", 1, 0, least, folder / "begun.txt") == 0
    shutil.copytree(folder / "begun", folder / "whole")
    assert train(folder, "whole", 2, 0, least, folder / "whole.txt") == 0
    for n in chosen(folder, count):
        run, log = folder / str(n), folder / f"{n}.txt"
        shutil.copytree(folder / "begun", run)
        code = train(folder, run.name, 2, n, least, log)
        shutil.copytree(run, folder / f"{n}.left")
        again = train(folder, run.name, 2, -1, least, folder / f"{n}.again")
        print(json.dumps([n, code, log.read_text(), again]), flush=True)


main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
