"""Prints the recipe of conda-forge for an sdist: what it needs stands in settings.ini alone.

    python -m build --sdist && python tools/conda_recipe.py dist/gmvae_nb-*.tar.gz > meta.yaml

The recipe builds from the sdist on PyPI, whose sha256 is that of the file given.
"""

import hashlib
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
# what conda-forge calls it
NAMES = {"torch": "pytorch", "igraph": "python-igraph", "matplotlib": "matplotlib-base"}
RECIPE = """\
{{% set version = "{version}" %}}

package:
  name: gmvae_nb
  version: {{{{ version }}}}

source:
  url: https://pypi.org/packages/source/g/gmvae_nb/gmvae_nb-{{{{ version }}}}.tar.gz
  sha256: {sha256}

build:
  noarch: python
  number: 0
  script: {{{{ PYTHON }}}} -m pip install . -vv --no-deps --no-build-isolation
  entry_points:
{entry_points}

requirements:
  host:
    - python {{{{ python_min }}}}
    - pip
    - setuptools
  run:
    - python >={{{{ python_min }}}}
{run}

test:
  imports:
    - gmvae_nb
    - gmvae_nb.all
  commands:
    - gmvae --version
    - gmvae demo --out demo --quiet
  requires:
    - python {{{{ python_min }}}}

about:
  home: {home}
  summary: {summary}
  license: Apache-2.0
  license_file: LICENSE
  doc_url: {docs}
  dev_url: {home}

extra:
  recipe-maintainers:
    - {user}
"""


def needed(requirement: str) -> str:
    "One requirement of settings.ini, as conda writes it."
    name, versions = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()
    return f"{NAMES.get(name, name)} {versions}".strip()


def recipe(sdist: Path) -> str:
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    cfg = settings["DEFAULT"]
    commands = [line.replace("=", " = ") for line in cfg["console_scripts"].split()]
    return RECIPE.format(
        version=cfg["version"],
        sha256=hashlib.sha256(sdist.read_bytes()).hexdigest(),
        entry_points="\n".join(f"    - {line}" for line in commands),
        run="\n".join(f"    - {needed(r)}" for r in cfg["requirements"].split()),
        home=cfg["git_url"],
        summary=cfg["description"],
        docs=cfg["doc_host"] + cfg["doc_baseurl"],
        user=cfg["user"],
    )


if __name__ == "__main__":
    print(recipe(Path(sys.argv[1])), end="")
