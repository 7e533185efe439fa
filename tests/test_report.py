"""The page: complete in itself, small, and safe from what users call things."""
import re

import anndata as ad
import numpy as np
import pytest

from gmvae_nb import runs
from gmvae_nb.data import kang_pbmc
from gmvae_nb.report import on_map, remarks, write_report
from gmvae_nb.runs import annotate_run, read_input, train_run
from gmvae_nb.train import Preset

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module", params=[True, False], ids=["with batches and labels", "bare"])
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    a = kang_pbmc()[::20]
    a = a[:, np.asarray(a.X.sum(0)).ravel() > 0].copy()
    a.obs["type"] = a.obs["cell_type"].astype(str).replace({"NK": NASTY, "B": '$\\frac{" onclick="x'})
    a.obs["donor"] = a.obs["batch"].astype(str).replace({"stim": "</style><b>&"})
    a.var_names = ["<img src=x>", *a.var_names[1:]]
    a.obs_names = ["<i>cell</i>", *a.obs_names[1:]]
    a.write_h5ad(folder / "<u>.h5ad")
    keys = dict(batch_key="donor", labels_key="type") if request.param else {}
    given = read_input(folder / "<u>.h5ad", **keys)
    small = Preset(n_x=3, prior="parameters", encoder_hidden=(16,), decoder_hidden=(16,), M=1)
    model = train_run(given, folder / "run", K=3, preset=small, max_epochs=1, progress=False, command="gmvae_train '<u>.h5ad'", **keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "umap", lambda X, seed: X[:, :2].astype(np.float32))  # half a minute of compiling
        annotate_run(model, given, folder / "run")
    return request.param, write_report(folder / "run").read_text(encoding="utf-8")


def test_it_is_one_small_file_without_an_address_outside(page):
    text = page[1]
    assert len(text.encode()) < 5e6
    assert not re.search(r"https?://|url\(|@import|<link|src=[\"'](?!data:)", text)
    assert "default-src 'none'" in text


def test_names_of_users_are_text(page):
    labelled, text = page
    tags = set(re.findall(r"<(\w+)", text))
    assert not tags & {"u", "img src=x"} and "<i>cell" not in text and "<img src=x" not in text
    assert len(re.findall(r"<script", text)) == len(re.findall(r"</script>", text))
    assert NASTY not in text and "</style><b>" not in text and '" onclick="x' not in text
    if labelled:
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "$\\frac{" in text


def test_sections_are_there_when_there_is_something_to_show(page):
    labelled, text = page
    assert ('id="scores"' in text) == labelled and (">batches<" in text) == labelled
    for part in ("maps", "clusters", "unsure", "training", "settings", "methods"):
        assert f'id="{part}"' in text
    assert "@article{dilokthanakul2016gmvae" in text and "200 cells" in text


def test_no_page_without_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match="run.json does not exist"):
        write_report(tmp_path)


def test_a_map_survives_any_coordinates():
    assert on_map(np.full((3, 2), np.nan)).shape == (3, 2)
    assert (on_map(np.zeros((4, 2))) < 65536).all()
