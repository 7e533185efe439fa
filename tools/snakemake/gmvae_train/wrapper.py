"""Snakemake wrapper of gmvae_train: one rule, one run."""

import os
import shlex
from pathlib import Path

from snakemake.shell import shell

files = list(snakemake.input) or [snakemake.params.data]  # noqa: F821
folder = Path(snakemake.output[0]).parent  # noqa: F821
options = []
for name, value in dict(snakemake.params.get("options", {})).items():  # noqa: F821
    if value is True:
        options.append(f"--{name}")
    elif isinstance(value, list | tuple):
        options += [f"--{name}", *map(str, value)]
    elif not (value is None or value is False or value == ""):  # 0 is a value
        options += [f"--{name}", str(value)]
command = ["gmvae_train", *map(str, files), "--out", str(folder), "--resume", *options]
words = shlex.join(command)
os.environ["OMP_NUM_THREADS"] = str(snakemake.threads)  # noqa: F821
log = snakemake.log_fmt_shell(stdout=True, stderr=True)  # noqa: F821
shell(f"{words} {log}")
