"""Types: the public API under mypy --strict; and what `import gmvae_nb` brings in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
HEAVY = (
    "torch numpy pandas scipy anndata scanpy sklearn matplotlib numba h5py "
    "fastcore jinja2 safetensors tqdm pooch"
).split()
WRONG = """
from gmvae_nb.nb_heads import NBHeads
from gmvae_nb.network import Preset
from gmvae_nb.train import GMVAE


def wrong(model: GMVAE) -> None:
    model.predict_probability()
    model.train("ten")
    x: int = model.save("run")
    model.get_normalized_expression(library_size="small")
    print(Preset(n_x="a"), NBHeads(2, 3).log_prob(1, 2), x, GMVAE.load(3))
"""
COMPLAINTS = (
    'no attribute "predict_probability"',
    '"train" of "GMVAE"',
    '"Path", variable has type "int"',
    '"library_size"',
    '"n_x" to "Preset"',
    '"log_prob" of "NBHeads"',
    '"load" of "GMVAE"',
)


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """mypy --strict on one file.

    pandas, scipy, anndata come without types of their own; of our modules it takes the types, and
    says nothing of what is inside."""
    cache = tmp_path_factory.mktemp("mypy")
    options = "--strict --ignore-missing-imports --follow-imports silent --cache-dir"
    command = [sys.executable, "-m", "mypy", *options.split(), str(cache)]

    def check(file: Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, str(file)], capture_output=True, text=True, env=ENV, cwd=cache
        )

    return check


def test_a_program_with_types_may_use_the_public_api(mypy):
    done = mypy(ROOT / "tests/typed_use.py")
    assert done.returncode == 0, done.stdout


def test_a_program_that_misuses_the_public_api_is_told(mypy, tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    done = mypy(tmp_path / "wrong.py")
    for words in COMPLAINTS:
        assert words in done.stdout, (words, done.stdout)


@pytest.mark.parametrize("module", ["gmvae_nb", "gmvae_nb.commands"])
def test_importing_brings_in_nothing_heavy(module):
    code = f"import sys; import {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV)
    assert done.stdout.strip() == ("[]" if module == "gmvae_nb" else "['fastcore']")


def test_the_package_says_that_it_is_typed():
    "In its own modules, without stubs beside them."
    assert (ROOT / "gmvae_nb/py.typed").exists()
    assert "py.typed" in (ROOT / "MANIFEST.in").read_text()
    assert not list((ROOT / "gmvae_nb").glob("*.pyi"))
