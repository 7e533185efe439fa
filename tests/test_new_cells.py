"""Cells that a model was not made for, in memory and on disk.

Also what a fitted model expects and simulates.
"""

import copy
import warnings
from dataclasses import replace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb import embed
from gmvae_nb.counts_on_disk import CountsOnDisk, take_genes
from gmvae_nb.embed import embed_file
from gmvae_nb.h5ad import open_h5ad
from gmvae_nb.inference import cells_in_order
from gmvae_nb.match import Cells
from gmvae_nb.network import PRESETS
from gmvae_nb.reading import read_input
from gmvae_nb.schedule import is_planned
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix
from scipy.stats import kstest

from hazards import stop_at_step
from test_train import TINY, simulated

LIKE = {  # small, with what the shipped presets have
    "blog": TINY,
    "recommended": replace(
        PRESETS["recommended"],
        n_x=4,
        encoder_hidden=(32, 16),
        decoder_hidden=(16, 32),
        batch_size=16,
        min_steps=0,
    ),
}


@pytest.fixture(scope="module", params=LIKE)
def model(request):
    model = GMVAE(simulated(), K=3, batch_key="batch", preset=LIKE[request.param])
    return model.train(3, progress=False)


def assert_close(one, other, **tolerance):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), **tolerance)


def with_genes(adata, keep, extra=0):
    "Some of the genes, in another order, and others that nobody knows."
    known = adata[:, keep][:, ::-1].copy()
    if not extra:
        return known
    ones = csr_matrix(np.ones((adata.n_obs, extra), dtype=np.float32))
    var = pd.DataFrame(index=[f"other{i}" for i in range(extra)])
    unknown = ad.AnnData(ones, obs=adata.obs, var=var)
    return ad.concat([known, unknown], axis=1, merge="same")


def test_a_draw_is_as_unsure_as_the_model_and_each_cell_has_its_own(model):
    model, cells = copy.deepcopy(model), model._own_cells()
    with torch.no_grad():
        model.network.q_x.linear.bias[model.preset.n_x :] -= 1  # more sure of it
    q = model.network.encode(*next(iter(cells_in_order(model.network, cells)))[:2])
    drawn = model.get_latent_representation(give_mean=False)[: len(q.x_mean)]
    eps = (drawn - q.x_mean.detach().numpy()) / q.x_log_std.exp().detach().numpy()
    chance = kstest(eps.ravel(), "norm").pvalue
    assert chance > 0.01
    assert np.ptp(eps, axis=0).min() > 1  # of the cells, in each dimension
    again = model.get_latent_representation(give_mean=False)
    np.testing.assert_array_equal(again[: len(drawn)], drawn)


def test_missing_genes_are_zeros_and_said_and_extra_ones_are_ignored(model):
    adata = simulated(60, seed=3)
    zeros = adata.copy()
    zeros.X = csr_matrix(zeros.X.multiply(np.arange(adata.n_vars) >= 2))
    n = adata.n_vars
    fewer = with_genes(adata, np.arange(2, n), extra=7)
    says = f"2 of the model's {n} genes are missing and count as zero: gene0, gene1$"
    with pytest.warns(UserWarning, match=says):
        matched = model.match_cells(fewer)
    assert matched.genes.matched == n - 2
    assert matched.genes.missing == ["gene0", "gene1"] and matched.genes.extra == 7
    for method in ("get_latent_representation", "predict_proba", "get_elbo", "get_iwae"):
        call = getattr(model, method)
        assert_close(call(matched), call(zeros), rtol=1e-5, atol=1e-5)
    call = model.get_normalized_expression
    assert_close(call(matched), call(zeros), rtol=1e-5)


def test_too_few_genes_are_refused_at_the_stated_share(model):
    adata = simulated(60, seed=3)
    n = adata.n_vars
    least = int(np.ceil(0.9 * n))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.predict(adata[:, :least])
        says = f"{least - 1} of the model's {n} genes are in the data, fewer than 90%"
        with pytest.raises(ValueError, match=says):
            model.predict(adata[:, : least - 1])
        assert model.match_cells(adata[:, : n // 2], min_matched=0.5).genes.matched == n // 2
        with pytest.raises(ValueError, match="0 of the model's"):
            model.match_cells(with_genes(adata, [], extra=3), min_matched=0)


def test_cells_to_train_on_need_all_genes(model, tmp_path):
    model.save(tmp_path)
    with pytest.raises(ValueError, match="1 missing: gene0"):
        GMVAE.load(tmp_path, simulated()[:, 1:])


def test_a_folder_that_has_gone_further_is_not_begun_again(model, tmp_path):
    def train(epochs):
        begun = GMVAE(simulated(), K=3, batch_key="batch", preset=model.preset)
        return begun.train(epochs, out=tmp_path, progress=False)

    train(2)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="after 2 epochs, more than the 1 asked for"):
        train(1)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(train(2).history) == 2
    if is_planned(model.preset):
        with pytest.raises(ValueError, match="planned for 2 epochs"):
            train(3)
    else:
        assert len(train(3).history) == 3


def test_every_method_takes_a_map_of_batches(model):
    adata = simulated(60, seed=3)
    stranger = adata.copy()
    stranger.obs["batch"] = "9"
    as_known = adata.copy()
    as_known.obs["batch"] = "1"
    for method in (
        "get_latent_representation",
        "predict_proba",
        "predict",
        "get_elbo",
        "get_iwae",
        "cluster_report",
        "get_normalized_expression",
        "posterior_predictive",
    ):
        call = getattr(model, method)
        with pytest.raises(ValueError, match="batch '9' was not trained on"):
            call(stranger)
        with pytest.raises(ValueError, match="the model has no batch 'nowhere'"):
            call(stranger, map_batch={"9": "nowhere"})
        a, b = call(stranger, map_batch={"9": "1"}), call(as_known)
        if method == "posterior_predictive":
            assert (a[0] != b[0]).nnz == 0
        elif method == "cluster_report":
            assert a == b
        else:
            assert (np.asarray(a) == np.asarray(b)).all()
    del stranger.obs["batch"]
    assert (model.predict(stranger, map_batch={"*": "1"}) == model.predict(as_known)).all()


def test_a_cell_without_counts_in_the_models_genes_is_named(model):
    adata = with_genes(simulated(60, seed=3), np.arange(simulated().n_vars), extra=1)
    y = adata.X.tolil()
    y[41, : adata.n_vars - 1] = 0
    adata.X = y.tocsr()
    adata.obs_names = [f"c{i}" for i in range(60)]
    for cells in (adata, model.match_cells(adata)):
        with pytest.raises(ValueError, match="cell 'c41' has no count in any of the model's genes"):
            model.predict(cells)


@pytest.mark.parametrize("layer", [None, "counts"])
def test_on_disk_in_memory_any_order_any_chunk_all_the_same(model, layer, tmp_path):
    adata = simulated(60, seed=3)
    adata.obs_names = [f"c{i}" for i in range(60)]
    fewer = with_genes(adata, np.arange(1, adata.n_vars), extra=4)
    other = fewer[::-1].copy()
    other.X = csr_matrix(other.X)
    if layer:
        other.layers[layer], other.X = other.X, csr_matrix(other.X * 0.5)
    other.write_h5ad(tmp_path / "a.h5ad")
    model_layer = copy.copy(model)
    model_layer.layer, model_layer.preset = layer, replace(model.preset, batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = model.match_cells(fewer)
        with open_h5ad(tmp_path / "a.h5ad") as (_, on_disk):
            there = model_layer.match_cells(on_disk)
            assert isinstance(there, Cells)
            assert not hasattr(there.counts, "data")  # not a matrix in memory
            for method in (
                "get_latent_representation",
                "predict_proba",
                "get_elbo",
                "get_normalized_expression",
            ):
                from_disk = np.asarray(getattr(model_layer, method)(there))[::-1]
                in_memory = getattr(model, method)(cells)
                assert_close(from_disk, in_memory, rtol=2e-4, atol=2e-5)


def test_simulated_counts_do_not_depend_on_chunks_and_differ_between_samples(model):
    adata = simulated(60, seed=3)
    other = copy.copy(model)
    other.preset = replace(model.preset, batch_size=7)
    one, two = model.posterior_predictive(adata, 2)
    assert (one != two).nnz > 0
    assert one.shape == adata.shape and one.dtype == np.float32
    assert (one.data == np.floor(one.data)).all()
    again = other.posterior_predictive(adata, 2)
    # products of other sizes may round otherwise, and a draw may tip over
    assert (one != again[0]).nnz < 0.01 * one.nnz
    with pytest.raises(ValueError, match="n_samples is 0"):
        model.posterior_predictive(adata, 0)


NO_SIZES = True, None, np.inf, np.nan, 1e39, np.ones(60), [1]


def test_expected_expression_has_shares_depths_and_batches(model):
    adata, expression = simulated(60, seed=3), model.get_normalized_expression
    shares = expression(adata)
    assert_close(shares.sum(1), 1, rtol=1e-5)
    assert_close(expression(adata, library_size=500), 500 * shares, rtol=1e-5)
    latent = expression(adata, library_size="latent", n_samples=1)
    latent_shares = latent.div(latent.sum(1), axis=0)
    assert_close(latent_shares, expression(adata, n_samples=1), rtol=1e-4, atol=1e-7)
    twice = adata.copy()
    twice.X = twice.X * 2
    if model.preset.library_size:  # and the encoder sees shares
        at_twice = expression(twice, library_size="latent", n_samples=1)
        assert_close(at_twice, 2 * latent, rtol=1e-3)
    for name in model.batches:
        here = (adata.obs["batch"] == name).to_numpy()
        assert_close(expression(adata, transform_batch=name)[here], shares[here], rtol=1e-5)
    one, other = (expression(adata, transform_batch=name) for name in ("0", "1"))
    assert not np.allclose(one, other, rtol=1e-4)
    for wrong, words in (
        ({"transform_batch": []}, "one or more"),
        ({"library_size": 0}, "positive"),
        ({"library_size": "big"}, "'latent'"),
        ({"gene_list": ["x"]}, "'x'"),
        ({"gene_list": model.genes[0]}, "gene_list is .*expected a list of names of genes"),
        ({"gene_list": 5}, "gene_list is 5"),
        *(({"library_size": size}, "(?s)library_size is .*positive") for size in NO_SIZES),
    ):
        with pytest.raises(ValueError, match=words):
            expression(adata, **wrong)


def test_the_mean_of_many_simulated_counts_is_what_is_expected(model):
    adata = simulated(60, seed=3)
    drawn = np.stack([np.asarray(y.sum(0)).ravel() for y in model.posterior_predictive(adata, 300)])
    expected = model.get_normalized_expression(adata, library_size="latent", n_samples=3000).sum()
    assert np.median(abs(drawn.mean(0) / expected - 1)) < 0.02
    np.testing.assert_allclose(drawn.mean(0), expected, rtol=0.06)


def test_embedding_a_file_never_reads_its_matrix_whole(tmp_path, monkeypatch):
    "20,000 cells in the file; no read takes more than the 8,192 cells of one block."
    preset, n = replace(TINY, batch_size=128), 20_000
    model = GMVAE(simulated(200), K=3, batch_key="batch", preset=preset).train(0, progress=False)
    small = simulated(200, seed=3)
    y = csr_matrix(small.X)[np.arange(n) % 200]
    obs = pd.DataFrame({"batch": np.resize(["0", "1"], n)}, index=[f"c{i}" for i in range(n)])
    layers = {"counts": y, "other": csr_matrix(y * 0.1)}
    whole = ad.AnnData(csr_matrix(y * 0.5), obs=obs, var=small.var, layers=layers)
    whole.write_h5ad(tmp_path / "a.h5ad")
    read = []
    plain = h5py.Dataset.__getitem__

    def watched(self, *args, **kw):
        out = plain(self, *args, **kw)
        if self.name.endswith(("/data", "/indices")):
            read.append(np.size(out))
        return out

    def refused(*args, **kw):
        pytest.fail("a whole matrix is read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    monkeypatch.setattr(h5py.Dataset, "read_direct", refused)
    monkeypatch.setattr(h5py.Dataset, "__array__", refused)
    report = embed_file(model, tmp_path / "a.h5ad", tmp_path / "b.h5ad")
    assert report["counts"] == "layers['counts']"
    assert max(read) < 0.6 * y.nnz and sum(read) >= y.nnz, (max(read), y.nnz)
    monkeypatch.undo()
    kept = ad.read_h5ad(tmp_path / "b.h5ad")
    x = kept.obsm["X_gmvae"]
    assert_close(x[:100], x[200:300], atol=1e-5)
    assert set(kept.layers) - {None} == {"counts", "other"} and kept.n_obs == n


def test_rows_that_lie_apart_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    "Every seventh row is nearer to the next than what is worth skipping."
    y = csr_matrix(np.random.default_rng(0).poisson(0.3, (9_000, 20)).astype(np.float32))
    ad.AnnData(y).write_h5ad(tmp_path / "a.h5ad")
    counts = CountsOnDisk(ad.read_h5ad(tmp_path / "a.h5ad", backed="r").X)
    rows, spans, read = np.arange(9_000)[::-7], [], CountsOnDisk.read

    def noted(self, start, stop):
        spans.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(CountsOnDisk, "read", noted)
    assert (counts[rows] != y[rows]).nnz == 0
    assert max(spans) <= 2048 and len(spans) == 5


def test_a_model_whose_training_was_stopped_is_said_to_be_one(tmp_path):
    preset = replace(TINY, max_epochs=4)
    model = GMVAE(simulated(), K=3, batch_key="batch", preset=preset)
    stop_at_step(model, 8, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train(progress=False)
    simulated().write_h5ad(tmp_path / "a.h5ad")
    files = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    done = len(model.history)
    assert 0 < done < 4
    assert f"was stopped {4 - done} epochs before" in embed_file(model, *files)["notes"][-1]
    model.train(progress=False)
    assert embed_file(model, *files)["notes"] == []


def test_an_opened_file_gives_the_counts_that_reading_it_gives(tmp_path):
    "Also counts in raw, by column, and dense."
    adata = simulated(50)
    counts = csr_matrix(adata.X)
    for name, y in (("csr", counts), ("csc", counts.tocsc()), ("dense", counts.toarray())):
        path = tmp_path / f"{name}.h5ad"
        a = ad.AnnData(y * 0.5, obs=adata.obs, var=adata.var)
        a.raw = ad.AnnData(y, obs=adata.obs, var=adata.var)
        a.write_h5ad(path)
        read = read_input(path, batch_key="batch")
        assert read.where == "raw.X" and (read.cells.X != counts).nnz == 0
        a.write_h5ad(path)  # the file is closed again


def test_a_damaged_file_is_one_sentence(tmp_path):
    simulated(50).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        del f["obs"]["batch"]
    with pytest.raises(ValueError, match="cannot be read as h5ad"):
        read_input(tmp_path / "a.h5ad")


def test_missing_genes_come_out_as_zeros_whatever_the_order():
    rng = np.random.default_rng(0)
    y = csr_matrix(rng.poisson(1, (30, 8)).astype(np.float32))
    position = np.array([3, -1, 7, 0, -1])
    dense = np.concatenate([y.toarray(), np.zeros((30, 1))], 1)[:, position]
    assert (take_genes(y, position).toarray() == dense).all() and y.shape == (30, 8)


def with_antibodies(genes, names, first):
    "The cells, with antibodies of these names before or behind the genes."
    counts = csr_matrix(np.full((genes.n_obs, len(names)), 300, dtype=np.float32))
    kind = ["Antibody Capture"] * len(names)
    antibodies = ad.AnnData(counts, obs=genes.obs, var=pd.DataFrame(index=names))
    parts = [genes, antibodies] if not first else [antibodies, genes]
    kinds = ["Gene Expression"] * genes.n_vars
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are not unique
        both = ad.concat(parts, axis=1, merge="same")
    both.var["feature_types"] = kind + kinds if first else kinds + kind
    return both


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("first", [True, False])
def test_an_antibody_is_no_gene_of_that_name(model, first, tmp_path):
    adata = simulated()
    named = model.genes[:2]
    both = with_antibodies(adata, named, first)
    matched = model.match_cells(both)
    assert matched.genes.missing == [] and matched.genes.extra == 0
    own = model.match_cells(adata).counts
    assert (matched.counts != own).nnz == 0
    fewer = with_antibodies(adata[:, 2:].copy(), named, first)
    with pytest.warns(UserWarning, match="genes are missing and count as zero"):
        assert model.match_cells(fewer, min_matched=0.5).genes.missing == named
    both.write_h5ad(tmp_path / "both.h5ad")
    embed_file(model, tmp_path / "both.h5ad", tmp_path / "out.h5ad")
    found = ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_gmvae"]
    np.testing.assert_array_equal(found, model.get_latent_representation(adata))
    again = GMVAE(both, K=3, batch_key="batch", preset=model.preset)
    assert again.genes == read_input(both).cells.var_names.tolist() == model.genes
    assert (again.counts != own).nnz == 0


def test_batches_may_be_named_by_numbers():
    adata = simulated()
    adata.obs["lane"] = adata.obs["batch"].astype("category").cat.codes.to_numpy()
    model = GMVAE(adata, K=2, batch_key="lane", preset=TINY)
    new = adata.copy()
    new.obs["lane"] = 7
    assert set(model.match_cells(new, map_batch={7: 1}).batch) == {1}
    assert model.match_cells(new, map_batch={"*": 0}).batches == {"7": "0"}


def test_none_of_the_genes_is_told_as_such(model):
    strange = with_genes(simulated(), [], extra=3)
    strange.var["symbol"] = model.genes[:3]
    way = r"not one .*gene_key='symbol', or .*adata.var_names = adata.var\['symbol'\]"
    with pytest.raises(ValueError, match=way):
        model.match_cells(strange, min_matched=0)


def test_what_is_refused_is_refused_before_the_file_is_read_through(model, tmp_path, monkeypatch):
    for name in ("sha256_of", "find_counts"):
        monkeypatch.setattr(embed, name, None)
    new = simulated()
    new.write_h5ad(tmp_path / "new.h5ad")
    new.obs["batch"] = "unseen"
    new.write_h5ad(tmp_path / "unseen.h5ad")
    (tmp_path / "theirs.h5ad").write_text("theirs")
    for name, words, said in (
        ("new", dict(min_matched=2), "expected a share from 0 to 1"),
        ("new", dict(min_matched="0.5"), "expected a share from 0 to 1"),
        ("new", dict(batch_key="nope"), "not a column"),
        ("new", dict(target="theirs.h5ad"), "was not written by gmvae_embed"),
        ("unseen", {}, "'unseen' was not trained on"),
    ):
        words = {"target": "out.h5ad", **words}
        target = tmp_path / words.pop("target")
        with pytest.raises(ValueError, match=said):
            embed_file(model, tmp_path / f"{name}.h5ad", target, **words)
    assert (tmp_path / "theirs.h5ad").read_text() == "theirs"


def test_the_run_of_another_model_is_refused(model, tmp_path):
    simulated().write_h5ad(tmp_path / "new.h5ad")
    other = GMVAE(simulated(), K=3, batch_key="batch", preset=model.preset, seed=1)
    other.train(1, progress=False).save(tmp_path / "other")
    args = model, tmp_path / "new.h5ad", tmp_path / "out.h5ad"
    with pytest.raises(ValueError, match="another state of the model than the one in memory"):
        embed_file(*args, run=tmp_path / "other")
    assert not args[2].exists()
    model.save(tmp_path / "own")
    assert embed_file(*args, run=tmp_path / "own")["map"].startswith("none: ")


def test_one_file_under_two_names_is_not_both_copy_and_table(model, tmp_path):
    simulated().write_h5ad(tmp_path / "new.h5ad")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for csv in ("link/out.h5ad", "there/../there/out.h5ad"):
        with pytest.raises(ValueError, match="give them two names"):
            target = tmp_path / "there/out.h5ad"
            embed_file(model, tmp_path / "new.h5ad", target, csv=tmp_path / csv)
