"""Snakemake wrapper of gmvae_train: one rule, one run."""

import os
import shlex
from pathlib import Path

from snakemake.shell import shell

data = snakemake.input[0] if snakemake.input else snakemake.params.data  # noqa: F821
folder = Path(snakemake.output[0]).parent  # noqa: F821
options = []
for name, value in dict(snakemake.params.get("options", {})).items():  # noqa: F821
    if value is True:
        options.append(f"--{name}")
    elif value not in (None, False, ""):
        options += [f"--{name}", str(value)]
words = shlex.join(["gmvae_train", str(data), "--out", str(folder), "--resume", *options])
os.environ["OMP_NUM_THREADS"] = str(snakemake.threads)  # noqa: F821
log = snakemake.log_fmt_shell(stdout=True, stderr=True)  # noqa: F821
shell(f"{words} {log}")
