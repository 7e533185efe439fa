"""The wheel and the sdist, installed where nothing of the project is; what the package requires."""

import ast
import configparser
import email
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
NOT_IMPORTED = {  # and why it is required
    "papermill": "runs the notebook of the results",
    "ipykernel": "runs the notebook of the results",
    "fastcore": "that notebook checks itself with fastcore.test",
    "pynndescent": "a pin of what umap-learn and scanpy draw in",
}
USE = """
from gmvae_nb.all import *
from gmvae_nb.report import template_text
assert "<html" in template_text("report.html")
assert "unpack" in template_text("explore.js") and "<html" in template_text("explore.html")
adata = kang_pbmc()
small = Preset(n_x=4, n_w=2, M=1)
model = GMVAE(adata, K=3, batch_key="batch", layer="counts", preset=small)
model.train(1, progress=False)
adata.obsm["X_gmvae"] = model.get_latent_representation()
import importlib.util, gmvae_nb
assert "site-packages" in gmvae_nb.__file__, gmvae_nb.__file__
for name in ("nbdev", "execnb", "pytest", "hypothesis", "jupytext"):
    assert importlib.util.find_spec(name) is None, name + " is a development package"
print(adata.shape, adata.obsm["X_gmvae"].shape)
"""


def run(*command, **kw):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kw)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def distribution(name: str) -> str:
    "One spelling of its name."
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(setting: str) -> set[str]:
    words = SETTINGS[setting].split()
    return {distribution(re.match(r"[\w.-]+", word)[0]) for word in words}


def imported() -> dict[str, str]:
    "Distribution -> a module of the package that imports it, on top or in a function."
    provides, found = importlib.metadata.packages_distributions(), {}
    for path in sorted((ROOT / "gmvae_nb").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                found |= {distribution(d): path.name for d in provides.get(name, [name])}
    return found


def test_what_the_package_imports_is_declared():
    allowed = declared("requirements") | declared("ray_requirements")
    undeclared = {name: module for name, module in imported().items() if name not in allowed}
    assert undeclared == {}
    # the extra, where the package can do without it
    assert imported()["ray"] == "sweep.py" and "ray" not in declared("requirements")


def test_what_is_declared_is_imported_or_has_a_reason():
    assert declared("requirements") - set(imported()) == set(NOT_IMPORTED)


def test_every_requirement_is_explained_in_one_place():
    "settings.ini says what each is for."
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    reasons = " ".join(re.findall(r"^# (.*)$", text, re.MULTILINE))
    unexplained = {name for name in declared("requirements") if name not in reasons}
    assert unexplained - {"joblib", "threadpoolctl"} == set() and "joblib" in reasons


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A wheel built from the sdist, which is built from the files git knows."
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    listing = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    told = run("sh", "-c", 'exec "$@" 2>&1', "sh", *command)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz")), told


def test_wheel_and_sdist_hold_the_data_and_nothing_foreign(built):
    wheel, sdist, _ = built
    version = wheel.name.split("-")[1]
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "gmvae_nb/templates").iterdir()]
    assert len(files) >= 5
    files += ["gmvae_nb/datasets/kang_pbmc.h5ad", "gmvae_nb/py.typed", "gmvae_nb/commands.py"]
    in_wheel = zipfile.ZipFile(wheel).namelist()
    in_sdist = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert set(files) <= set(in_wheel) and set(files) <= in_sdist
    notebook = zipfile.ZipFile(wheel).read("gmvae_nb/notebooks/06_results.ipynb")
    assert notebook == (ROOT / "nbs/06_results.ipynb").read_bytes()
    folders = {name.split("/")[0] for name in in_wheel}
    assert folders == {"gmvae_nb", f"gmvae_nb-{version}.dist-info"}
    assert wheel.stat().st_size < 4e6


def test_it_is_built_without_a_warning(built):
    "setuptools warns of data it takes for packages, of old fields, and the like."
    assert "Successfully built" in built[2]
    assert not re.findall(r".*Warning.*", built[2])


def test_the_wheel_has_the_commands(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
        entries = configparser.ConfigParser(delimiters=["="])
        entries.read_string(wheel.read(name).decode())
    scripts = dict(entries["console_scripts"])
    assert {"gmvae_table", "gmvae_verify", "gmvae_train"} <= set(scripts)
    commands = {}
    for module in ("commands", "after_training", "comparing", "umbrella"):
        source = ast.parse((ROOT / f"gmvae_nb/{module}.py").read_text(encoding="utf-8"))
        functions = {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
        names = {name for name in functions if re.fullmatch("gmvae(_.*)?", name)}
        commands |= {name: f"gmvae_nb.{module}:{name}" for name in names}
    assert {"gmvae", "gmvae_notebook"} <= set(commands) and scripts == commands


def test_what_a_registry_shows_of_it(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(wheel.read(name))
    urls = dict(url.split(", ", 1) for url in told.get_all("Project-URL"))
    assert {"Documentation", "Source", "Changelog", "Issues"} <= set(urls)
    assert "single-cell,RNA-seq," in told["Keywords"]
    pythons = {c.rpartition(" ")[2] for c in told.get_all("Classifier") if ":: 3." in c}
    workflow = (ROOT / ".github/workflows/test.yaml").read_text(encoding="utf-8")
    tried = re.findall(r'"(3\.\d+)"', re.search(r"python: (\[.*\])", workflow)[1])
    assert pythons == set(tried) and SETTINGS["min_python"] == min(tried, key=lambda v: int(v[2:]))
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", told.get_payload())
    assert pictures and all(at.startswith("https://") for at in pictures)


def required(lines: list[str]) -> set[str]:
    "The distributions that these lines of metadata ask for here, and all that those ask for."
    found, left = set(), [*lines]
    while left:
        wanted = Requirement(left.pop())
        name = distribution(wanted.name)
        here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if here and name not in found:
            found.add(name)
            left += importlib.metadata.requires(name) or []
    return found


@pytest.fixture
def empty_environment(built, tmp_path):
    """An environment's python: the wheel, and links to the packages that it requires, no others.

    `make env` has got these versions from the index; a release is installed from there as well."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "-q", "--no-compile", "--no-index", "--no-deps", built[0])
    packages = next((tmp_path / "env/lib").glob("python*/site-packages"))
    (metadata,) = packages.glob("gmvae_nb-*.dist-info/METADATA")
    told = email.message_from_string(metadata.read_text(encoding="utf-8"))
    for name in required(told.get_all("Requires-Dist")):
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
    assert "No broken requirements" in run(*pip, "check")
    return python


def test_installed_into_an_empty_environment_it_works_offline_and_without_development_packages(
    empty_environment, tmp_path
):
    python = empty_environment
    nowhere = "http://127.0.0.1:9"
    proxies = {"http_proxy": nowhere, "https_proxy": nowhere}
    no_network = {**os.environ, **proxies, "PYTHONPATH": ""}
    assert "(4000, 2000) (4000, 4)" in run(python, "-c", USE, cwd=tmp_path, env=no_network)
    told = {"gmvae_table": "finished runs", "gmvae_verify": "checksums", "gmvae": "gmvae train"}
    for command, words in told.items():
        assert words in run(tmp_path / "env/bin" / command, "--help", cwd=tmp_path)
    # papermill $(gmvae_notebook) out.ipynb -p K 2; its script is that of our own environment
    notebook = run(tmp_path / "env/bin/gmvae_notebook", cwd=tmp_path).strip()
    assert Path(notebook).is_relative_to(tmp_path / "env")
    # a minute of imports and of numba: test_results runs the notebook, here it is there to be run
    words = "out.ipynb --prepare-only --kernel python3 -p K 2".split()
    papermill = [python, "-m", "papermill"]
    run(*papermill, notebook, *words, cwd=tmp_path, env=no_network)
    assert "K = 2" in (tmp_path / "out.ipynb").read_text()
    assert run(python, "-m", "ipykernel_launcher", "--version").strip()
