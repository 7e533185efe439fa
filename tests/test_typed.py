"""Types: the public API under mypy --strict; and what `import gmvae_nb` brings in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
HEAVY = (
    "torch numpy pandas scipy anndata scanpy sklearn umap igraph joblib threadpoolctl matplotlib "
    "numba h5py fastcore jinja2 safetensors filelock platformdirs requests psutil tqdm ray"
).split()
WRONG = """
from gmvae_nb.files import write_atomically
from gmvae_nb.nb_heads import NBHeads
from gmvae_nb.network import Preset
from gmvae_nb.runs import train_run
from gmvae_nb.train import GMVAE, match_genes


def wrong(model: GMVAE) -> None:
    model.predict_probability()
    model.train("ten")
    x: int = model.save("run")
    model.get_normalized_expression(library_size="small")
    print(Preset(n_x="a"), NBHeads(2, 3).log_prob(1, 2), x, GMVAE.load(3))
    model.predict_proba(n_draws=3)
    rows: list[str] = model.get_elbo()
    write_atomically("a.txt", 3)
    train_run("cells.h5ad", "run", k=3)
    print(rows, match_genes)
"""
COMPLAINTS = (  # line, and what mypy says of it
    (6, 'Module "gmvae_nb.train" has no attribute "match_genes"'),  # an old name
    (10, '"GMVAE" has no attribute "predict_probability"'),
    (11, 'Argument 1 has incompatible type "str"; expected "int | None"'),
    (12, 'expression has type "Path", variable has type "int"'),
    (13, 'Argument "library_size" has incompatible type "Literal[\'small\']"'),
    (14, 'Argument "n_x" to "Preset" has incompatible type "str"; expected "int"'),
    (14, 'Argument 1 has incompatible type "int"; expected "Tensor"'),
    (
        14,
        'Argument 1 to "load" of "Checkpoints" has incompatible type "int"; expected "str | Path"',
    ),
    (15, 'Unexpected keyword argument "n_draws"'),  # an old name
    (16, 'variable has type "list[str]"'),
    (17, 'Argument 2 to "write_atomically" has incompatible type "int"'),
    (18, 'Argument 1 to "train_run" has incompatible type "str"; expected "Input"'),
    (18, 'Unexpected keyword argument "k" for "train_run"'),
)


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """mypy --strict on one file.

    pandas, scipy, anndata come without types of their own; of our modules it takes the types, and
    says nothing of what is inside. What it learns of torch, in a minute, it keeps."""
    elsewhere, cache = tmp_path_factory.mktemp("mypy"), ROOT / ".mypy_cache"
    options = "--strict --ignore-missing-imports --follow-imports silent --cache-dir"
    command = [sys.executable, "-m", "mypy", *options.split(), str(cache)]

    def check(file: Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, str(file)], capture_output=True, text=True, env=ENV, cwd=elsewhere
        )

    return check


def test_a_program_with_types_may_use_the_public_api(mypy):
    done = mypy(ROOT / "tests/typed_use.py")
    assert done.returncode == 0, done.stdout


def test_a_program_that_misuses_the_public_api_is_told(mypy, tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    done = mypy(tmp_path / "wrong.py")
    told = done.stdout.splitlines()
    for line, words in COMPLAINTS:
        assert any(f":{line}: error: " in said and words in said for said in told), (words, told)


@pytest.mark.parametrize("module", ["gmvae_nb", "gmvae_nb.umbrella"])
def test_importing_brings_in_nothing_heavy(module):
    code = f"import sys; import {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV)
    assert done.stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed():
    "In its own modules, without stubs beside them."
    assert (ROOT / "gmvae_nb/py.typed").exists()
    assert "py.typed" in (ROOT / "MANIFEST.in").read_text()
    assert not list((ROOT / "gmvae_nb").glob("*.pyi"))
