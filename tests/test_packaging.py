"""The wheel and the sdist, installed where nothing of the project is."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
from gmvae_nb.all import *
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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A wheel built from the sdist, which is built from the files git knows."
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    listing = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", out, source)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_wheel_and_sdist_hold_the_data_and_nothing_foreign(built):
    wheel, sdist = built
    data, version = "gmvae_nb/datasets/kang_pbmc.h5ad", wheel.name.split("-")[1]
    names = zipfile.ZipFile(wheel).namelist()
    assert data in names and "gmvae_nb/py.typed" in names
    folders = {name.split("/")[0] for name in names}
    assert folders == {"gmvae_nb", f"gmvae_nb-{version}.dist-info"}
    assert any(name.endswith(data) for name in tarfile.open(sdist).getnames())
    assert wheel.stat().st_size < 4e6


def test_installed_into_an_empty_environment_it_works_offline_and_without_development_packages(
    built, tmp_path
):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    constraints = ROOT / "constraints.txt"
    # torch first, so that no other build of it is drawn in
    run(python, "-m", "pip", "install", "-q", "-c", constraints, "torch")
    run(python, "-m", "pip", "install", "-q", "-c", constraints, built[0])
    nowhere = "http://127.0.0.1:9"
    proxies = {"http_proxy": nowhere, "https_proxy": nowhere}
    no_network = {**os.environ, **proxies, "PYTHONPATH": ""}
    assert "(4000, 2000) (4000, 4)" in run(python, "-c", USE, cwd=tmp_path, env=no_network)
    assert "finished runs" in run(tmp_path / "env/bin/gmvae_table", "--help", cwd=tmp_path)
