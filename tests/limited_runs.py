"""Runs of `gmvae_train`, each a copy of this process under a bound of its own.

    python tests/limited_runs.py FOLDER BOUNDS...

FOLDER has mine.h5ad, and gets `whole`, a run of two epochs without a bound. For each bound a copy
of it is gone on with, in a folder of that name; stderr is beside it, and the exit codes are printed
as JSON. Bounds are AS-BYTES, of memory above what the process has, or FSIZE-BYTES, of each file."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

from gmvae_nb import annotation, commands
from gmvae_nb.network import PRESETS

from hazards import TINY, import_what_runs_need, no_map, outcome

WORDS = "--K 2 --preset blog --batch_key batch --labels_key cell_type --quiet --resume"


def train(folder: Path, name: str, epochs: int) -> int:
    "As on the command line, its end included; the exit code."
    pid = os.fork()
    if pid:
        return outcome(pid)
    for handle, place in ((1, os.devnull), (2, folder / f"{name}.txt")):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), handle)
    if name != "whole":
        set_bound(*name.split("-"))
    words = [str(folder / "mine.h5ad"), "--out", str(folder / name), "--max_epochs", str(epochs)]
    sys.argv = ["gmvae_train", *words, *WORDS.split()]
    commands.gmvae_train()
    sys.exit()


def set_bound(kind: str, asked: str) -> None:
    n_bytes = int(asked)
    if kind == "AS":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        n_bytes += pages * resource.getpagesize()
    which = getattr(resource, f"RLIMIT_{kind}")
    resource.setrlimit(which, (n_bytes, resource.getrlimit(which)[1]))


def main(folder: Path, bounds: list[str]) -> None:
    PRESETS["blog"] = TINY
    annotation.umap = no_map
    import_what_runs_need()  # once, and not in every copy
    codes = {"whole": train(folder, "whole", 2)}
    for bound in bounds:
        shutil.copytree(folder / "whole", folder / bound)
        codes[bound] = train(folder, bound, 3)
    print(json.dumps(codes))


main(Path(sys.argv[1]), sys.argv[2:])
