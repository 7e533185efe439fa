"""Prints the entry for the list of scverse's ecosystem packages, from settings.ini.

    python tools/scverse_entry.py > meta.yaml

It goes into packages/gmvae_nb/ of https://github.com/scverse/ecosystem-packages by a pull request,
by a maintainer, after the first release is on PyPI. The fields are those of that repository's
schema.json; its checklist asks for a licence, versioned releases, a registry, automated tests, an
API page, a statement on support (README) and AnnData, all of which are here.
"""

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENTRY = """\
name: gmvae_nb
description: |
  {description}. Takes and gives AnnData;
  runs from a shell, from scanpy and from scikit-learn.
project_home: {home}
documentation_home: {docs}/
tutorials_home: {docs}/tutorial.html
install:
  pypi: gmvae_nb
license: Apache-2.0
language: Python
version: v{version}
contact:
  - {user}
category: ecosystem
primary_category: scRNA-seq
tags:
{tags}
test_command: make test
"""


def entry() -> str:
    "The entry as YAML."
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    cfg = settings["DEFAULT"]
    return ENTRY.format(
        description=cfg["description"],
        home=cfg["git_url"],
        docs=cfg["doc_host"] + cfg["doc_baseurl"],
        version=cfg["version"],
        user=cfg["user"],
        tags="\n".join(f"  - {word}" for word in cfg["keywords"].split()),
    )


if __name__ == "__main__":
    print(entry(), end="")
