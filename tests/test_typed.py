"""Types: the public API under mypy --strict, stubs in step with their modules, and what `import gmvae_nb` brings in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from stubs import stub, stubs  # noqa: E402

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "anndata",
    "scanpy",
    "sklearn",
    "matplotlib",
    "numba",
    "h5py",
    "fastcore",
    "jinja2",
    "safetensors",
    "tqdm",
    "pooch",
)


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    "mypy --strict on one file; pandas, scipy, anndata come without types of their own."
    cache = tmp_path_factory.mktemp("mypy")
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--ignore-missing-imports",
        "--follow-imports",
        "silent",
        "--cache-dir",
        cache,
    ]
    return lambda file: subprocess.run(
        [*map(str, words), str(file)], capture_output=True, text=True, env=ENV, cwd=cache
    )


def test_a_program_with_types_may_use_the_public_api(mypy, tmp_path):
    done = mypy(ROOT / "tests/typed_use.py")
    assert done.returncode == 0, done.stdout
    (tmp_path / "wrong.py").write_text(
        "from gmvae_nb.nb_likelihood import NBHeads\nfrom gmvae_nb.train import GMVAE, Preset\n\n\n"
        "def wrong(model: GMVAE) -> None:\n    model.predict_probability()\n    model.train('ten')\n    x: int = model.save('run')\n"
        "    model.get_normalized_expression(library_size='small')\n    print(Preset(n_x='a'), NBHeads(2, 3).log_prob(1, 2), x, GMVAE.load(3))\n"
    )
    done = mypy(tmp_path / "wrong.py")
    for words in (
        'no attribute "predict_probability"',
        '"train" of "GMVAE"',
        '"Path", variable has type "int"',
        '"library_size"',
        '"n_x" to "Preset"',
        '"log_prob" of "NBHeads"',
        '"load" of "GMVAE"',
    ):
        assert words in done.stdout, (words, done.stdout)


def test_stubs_are_in_step():
    for path, text in stubs().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is out of step: run python tools/stubs.py"
        )
    assert {p for p in (ROOT / "gmvae_nb").glob("*.pyi")} == set(stubs())


def test_a_patched_method_gets_into_its_class():
    text = stub(
        "N = 2\nclass A:\n    def __init__(self, a):\n        pass\n@patch\ndef f(self: A, n: int = 3) -> dict:\n    return {}\n@patch(cls_method=True)\ndef g(cls: A) -> A: ...\n",
        "x.py",
    )
    for line in (
        "N: int",
        "    def __init__(self, a: Any) -> None:",
        "    def f(self, n: int=3) -> dict[str, Any]:",
        "    @classmethod",
        "    def g(cls) -> A:",
        "from typing import Any",
    ):
        assert line in text.split("\n"), text
    with pytest.raises(AssertionError, match="patches B"):
        stub("@patch\ndef f(self: B): ...\n", "x.py")


@pytest.mark.parametrize("module", ["gmvae_nb", "gmvae_nb.commands"])
def test_importing_brings_in_nothing_heavy(module):
    code = f"import sys; import {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENV
    ).stdout.strip()
    assert found == ("[]" if module == "gmvae_nb" else "['fastcore']")


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "gmvae_nb/py.typed").exists()
    assert "*.pyi py.typed" in (ROOT / "MANIFEST.in").read_text()
