"""Novelty: in a run, in one line of Python, and of cells that came later."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
from gmvae_nb import annotation, novelty
from gmvae_nb.annotation import annotate_run
from gmvae_nb.embed import embed_file
from gmvae_nb.files import listed_files
from gmvae_nb.network import PRESETS
from gmvae_nb.novelty import Known, Looks, novelty_of, novelty_of_own, read_known
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.train import GMVAE

from hazards import SMALL, cells, no_map


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(annotation, "umap", no_map)


def trained(n=400, epochs=3, **kw) -> GMVAE:
    return GMVAE(cells(n), batch_key="batch", preset=SMALL).train(epochs, progress=False, **kw)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of 400 cells, the file it was made of, and its model."
    folder = tmp_path_factory.mktemp("novelty")
    file, out = folder / "mine.h5ad", folder / "run"
    cells(400).write_h5ad(file)
    data = read_input(str(file), batch_key="batch")
    model = train_run(data, out, batch_key="batch", preset=SMALL, max_epochs=3, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation, "umap", no_map)
        annotate_run(model, data, out)
    return out, file, model


def test_a_run_keeps_what_new_cells_need(run, tmp_path):
    out, file, model = run
    written = ad.read_h5ad(out / "annotated.h5ad").obs["gmvae_novelty"].to_numpy()
    np.testing.assert_array_equal(written, novelty_of_own(model)[0])
    assert "novelty.npz" in listed_files(out)
    # the same cells in another order, with the model of the folder alone
    other, target = tmp_path / "other.h5ad", tmp_path / "out.h5ad"
    order = np.random.default_rng(0).permutation(400)
    ad.read_h5ad(file)[order].copy().write_h5ad(other)
    report = embed_file(GMVAE.load(out), other, target, run=out)
    assert report["novelty"] == "gmvae_novelty: the share of 60 held-out cells that are less unlike"
    again = ad.read_h5ad(target)
    np.testing.assert_allclose(again.obs["gmvae_novelty"], written[order], atol=0.05)
    assert again.uns["gmvae"]["novelty"] == report["novelty"]


def test_without_a_reference_there_is_a_sentence_and_no_column(run, tmp_path):
    out, file, model = run
    alone, target = tmp_path / "model", tmp_path / "out.h5ad"
    model.save(alone)
    for folder, said in ((None, "no run was named"), (alone, "has no novelty.npz")):
        report = embed_file(model, file, target, run=folder)
        assert report["novelty"].startswith("none: ") and report["novelty"].endswith(said)
        assert "gmvae_novelty" not in ad.read_h5ad(target).obs
    # that of another state of the model
    (alone / "novelty.npz").write_bytes((out / "novelty.npz").read_bytes())
    assert "not of the model as it is now" in embed_file(model, file, target, run=alone)["novelty"]
    with pytest.raises(ValueError, match="not of the model as it is now"):
        read_known(alone, SMALL.n_x)


def test_few_held_out_cells_are_no_reference():
    model = trained(200, 1, test_idx=np.arange(49))
    known = novelty_of_own(model)[1]
    assert not known.held_out and known.total.size == 151
    held_out = trained(200, 1, test_idx=np.arange(50))
    known = novelty_of_own(held_out)[1]
    assert known.held_out and known.total.size == 50


def test_a_model_without_its_cells_is_told(tmp_path):
    trained(60, 1).save(tmp_path)
    with pytest.raises(ValueError, match="loaded without cells"):
        novelty_of_own(GMVAE.load(tmp_path))


def test_a_cell_alone_in_its_cluster_is_no_centre(tmp_path, monkeypatch):
    model = trained(100, 1)
    cluster = np.zeros(100, dtype=int)
    cluster[model.train_idx[0]] = 1
    monkeypatch.setattr(model, "predict_proba", lambda cells: np.eye(2)[cluster])
    with np.errstate(all="raise"):
        own, known = novelty_of_own(model)
    assert len(known.centres) == 1 and not known.held_out
    assert all(np.isfinite(part).all() for part in known) and len(set(own)) > 50
    # all of them are alone: no distance is 0
    monkeypatch.setattr(model, "predict_proba", lambda cells: np.eye(100))
    with np.errstate(all="raise"):
        own, known = novelty_of_own(model)
    assert np.isfinite(known.place).all() and np.isfinite(own).all()
    with pytest.raises(ValueError, match=r"NaN or infinite values \(place\)"):
        novelty.write_known(tmp_path, known._replace(place=np.log(np.zeros(1) + np.nan)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["with_w", "blog"])
def test_every_preset_has_it(preset):
    small = dict(n_x=3, n_w=2, encoder_hidden=(8,), decoder_hidden=(8,), prior_hidden=8)
    settings = replace(PRESETS[preset], **small, batch_size=32, min_steps=0)
    adata = cells(400)
    model = GMVAE(adata, 3, batch_key="batch", preset=settings).train(2, progress=False)
    own, known = novelty_of_own(model)
    assert abs(own.mean() - 0.5) < 0.15 and own.dtype == np.float32
    odd = adata.copy()
    odd.X = adata.X.copy()
    odd.X.data = 100 * odd.X.data[::-1].copy()  # of other genes
    assert novelty_of(model, odd, known).mean() > 0.9


def reference(n: int, rng: np.random.Generator) -> tuple[Known, np.ndarray]:
    "Reference cells whose both looks rise steeply with depth."
    total = np.exp(rng.normal(7, 1, n))
    rec, place = total + rng.normal(0, 5, n), np.log(total) / 10 + rng.normal(0, 0.01, n)
    known = Known(np.zeros((1, 1)), np.ones((1, 1)), total, rec, place, np.array(True))
    return known, total


def test_each_look_is_compared_at_its_depth():
    rng = np.random.default_rng(0)
    known, total = reference(3000, rng)
    at = np.array([300.0, 1000.0, 3000.0])
    usual = Looks(at, at, np.exp(at.clip(1) * 0 + np.log(at) / 20)[:, None])
    # too far for its depth, and too badly described for it; each is usual for a deeper cell
    far = usual._replace(u=usual.u * np.exp(0.05))
    badly = usual._replace(rec=at * 1.5)
    found = {k: novelty.novelty(v, known) for k, v in dict(u=usual, f=far, b=badly).items()}
    assert found["u"].max() < 0.9
    assert found["f"].min() > 0.95 and found["b"].min() > 0.95
