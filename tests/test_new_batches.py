"""Batches that a model was not trained on: refused, treated as a known one, or learned."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb.after_training import gmvae_embed
from gmvae_nb.embed import embed_file
from gmvae_nb.new_batches import with_new_batches
from gmvae_nb.train import GMVAE

from hazards import SMALL, cells


@pytest.fixture(scope="module")
def old() -> ad.AnnData:
    return cells(200)


@pytest.fixture(scope="module")
def new(old) -> ad.AnnData:
    "Other cells, of a known batch and two new ones; in these some genes have more counts."
    adata = cells(200, seed=1)
    adata.obs["batch"] = np.where(np.arange(200) % 4, np.where(np.arange(200) % 2, "y", "x"), "")
    adata.obs.loc[adata.obs["batch"] == "", "batch"] = old.obs["batch"].astype(str).iloc[0]
    counts = adata.X.copy()
    counts[np.isin(adata.obs["batch"], ["x", "y"]), :5] *= 4
    return ad.AnnData(counts, obs=adata.obs, var=adata.var)


@pytest.fixture(scope="module")
def model(old) -> GMVAE:
    return GMVAE(old, 4, batch_key="batch", preset=SMALL).train(3, progress=False)


def test_only_the_new_columns_change_and_describe_their_cells_better(model, new):
    before = {name: t.clone() for name, t in model.network.state_dict().items()}
    wider = with_new_batches(model, new)
    B = len(model.batches)
    assert wider.batches == [*model.batches, "x", "y"]
    for name, t in model.network.state_dict().items():
        assert torch.equal(t, before[name]), name
        after = wider.network.state_dict()[name]
        if name == "decoder.0.weight":
            after = after[:, :-2]
        elif name in ("alignment.cells", "alignment.sums"):
            after = after[:, :B]
        assert torch.equal(t, after), name
    mapped = dict.fromkeys("xy", model.batches[0])
    theirs = np.isin(new.obs["batch"], ["x", "y"])
    gain = wider.get_iwae(new) - model.get_iwae(new, map_batch=mapped)
    assert gain[theirs].mean() > 0.3
    np.testing.assert_array_equal(
        wider.get_latent_representation(new),
        model.get_latent_representation(new, map_batch=mapped),
    )


def test_one_that_is_mapped_is_not_learned_and_the_copy_can_be_kept(
    model, new, tmp_path, monkeypatch
):
    wider = with_new_batches(model, new, map_batch={"x": model.batches[0]}, n_steps=2)
    assert wider.batches == [*model.batches, "y"]
    wider.save(tmp_path / "wider")
    again = GMVAE.load(tmp_path / "wider")
    mapped = {"x": model.batches[0]}
    np.testing.assert_array_equal(
        again.get_iwae(new, map_batch=mapped), wider.get_iwae(new, map_batch=mapped)
    )
    steps, step = [], torch.optim.Adam.step
    with monkeypatch.context() as m:
        m.setattr(torch.optim.Adam, "step", lambda *a, **k: steps.append(1) or step(*a, **k))
        with_new_batches(model, new, n_steps=2)
    assert len(steps) == 2
    same = with_new_batches(model, new, n_steps=2), with_new_batches(model, new, n_steps=2)
    weights = [m.network.decoder[0].weight for m in same]
    assert torch.equal(*weights)


def test_an_encoder_that_sees_the_batch_and_one_batch_are_refused(old, new):
    sees = GMVAE(old, 4, batch_key="batch", preset=replace(SMALL, encoder_batch=True))
    with pytest.raises(ValueError, match="encoder that sees the batch"):
        with_new_batches(sees, new)
    with pytest.raises(ValueError, match="the model has no batches"):
        with_new_batches(GMVAE(old, 4, preset=SMALL), new)


def test_the_command_learns_if_asked_and_writes_one_table(model, new, tmp_path):
    file, table = tmp_path / "new.h5ad", tmp_path / "new.csv"
    model.save(tmp_path / "run")
    new.write_h5ad(file)
    with pytest.raises(ValueError, match="was not trained on"):
        embed_file(GMVAE.load(tmp_path / "run"), file, tmp_path / "out.h5ad")
    how = dict(out=str(tmp_path / "out.h5ad"), finetune_batch=True, csv=str(table), quiet=True)
    report = gmvae_embed(str(tmp_path / "run"), str(file), **how)
    assert "batch 'y' has learned weights of its own" in report["notes"]
    found, written = pd.read_csv(table), ad.read_h5ad(tmp_path / "out.h5ad")
    assert found["barcode"].tolist() == list(new.obs_names)
    assert (found["gmvae_cluster"].astype(str) == written.obs["gmvae_cluster"].to_numpy()).all()
    how["finetune_batch"], how["map_batch"] = False, ["*=0"]
    gmvae_embed(str(tmp_path / "run"), str(file), **how)  # its own table may be replaced
    table.write_text("mine")
    with pytest.raises(ValueError, match="is no such table"):
        gmvae_embed(str(tmp_path / "run"), str(file), **how)
    before, how["overwrite"] = file.read_bytes(), True
    for csv, said in ((file, "is the input, which is never"), (how["out"], "two names")):
        with pytest.raises(ValueError, match=said):
            gmvae_embed(str(tmp_path / "run"), str(file), **how | dict(csv=str(csv)))
    assert file.read_bytes() == before


def test_the_columns_of_other_covariates_stay_behind_those_of_the_batches(old, new):
    old, new = old.copy(), new.copy()
    for adata in (old, new):
        adata.obs["chemistry"] = np.where(np.arange(adata.n_obs) % 3, "v2", "v3")
    keys = dict(batch_key="batch", categorical_covariate_keys=["chemistry"])
    model = GMVAE(old, 4, preset=SMALL, **keys).train(3, progress=False)
    wider = with_new_batches(model, new, n_steps=20)
    before, after = (m.network.decoder[0].weight.detach() for m in (model, wider))
    end = model.preset.n_x + len(model.batches)
    assert torch.equal(after[:, :end], before[:, :end])
    assert torch.equal(after[:, end + 2 :], before[:, end:])
    assert not torch.equal(after[:, end], after[:, end + 1])
    mapped = dict.fromkeys("xy", model.batches[0])
    theirs = np.isin(new.obs["batch"], ["x", "y"])
    gain = wider.get_iwae(new) - model.get_iwae(new, map_batch=mapped)
    assert gain[theirs].mean() > 0


def test_a_new_cell_without_a_count_in_the_models_genes_is_named(model, new):
    counts = new.X.toarray() if hasattr(new.X, "toarray") else new.X.copy()
    i = int(np.flatnonzero(new.obs["batch"] == "x")[3])
    counts[i] = 0
    more = np.column_stack([counts, np.ones(len(counts), dtype=counts.dtype)])
    var = pd.DataFrame(index=[*new.var_names, "another"])
    adata = ad.AnnData(more, obs=new.obs, var=var)
    with pytest.raises(ValueError, match=f"cell '{new.obs_names[i]}' has no count in any of"):
        with_new_batches(model, adata, n_steps=5)


def test_where_all_is_mapped_no_column_is_needed_and_the_map_is_read(model, new):
    bare = ad.AnnData(new.X, obs=new.obs[[]], var=new.var)
    assert with_new_batches(model, bare, map_batch={"*": model.batches[0]}) is model
    with pytest.raises(ValueError, match="the model has no batch 'nope'"):
        with_new_batches(model, bare, map_batch={"*": "nope"})
    for bad, words in (
        (dict(map_batch="0"), "expected a dict"),
        (dict(n_steps=0), "n_steps is 0; expected a whole number"),
        (dict(n_steps="3"), "n_steps is '3'"),
    ):
        with pytest.raises(ValueError, match=words):
            with_new_batches(model, new, **bad)
