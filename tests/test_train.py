"""The estimator from outside: bad input, interruption, resumption, files.

The ideas themselves are checked in nbs/04."""

import json
import os
import sys
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb.counts_on_disk import CountsOnDisk
from gmvae_nb.data import to_torch
from gmvae_nb.gmvae_loss import cluster_usage
from gmvae_nb.model_folder import read_model
from gmvae_nb.nb_likelihood import log_nb
from gmvae_nb.network import PRESETS, Preset, training_loss
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix

from hazards import cells, every_warning_an_error, stop_at_step

TINY = Preset(
    n_x=4,
    n_w=3,
    encoder_hidden=(16, 8),
    decoder_hidden=(8, 16),
    prior_hidden=16,
    M=2,
    batch_size=16,
    max_epochs=3,
)


def simulated(n=120, G=30, seed=0):
    "Three groups of cells in two batches."
    rng = np.random.default_rng(seed)
    rates = rng.gamma(1.0, 2.0, (3, G))
    group, batch = rng.integers(3, size=n), rng.integers(2, size=n)
    y = rng.poisson(rates[group] * np.where(batch, 1.5, 1.0)[:, None]) + (np.arange(G) == 0)
    obs = pd.DataFrame(
        {"batch": batch.astype(str), "cell_type": group.astype(str)},
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(G)])
    return ad.AnnData(csr_matrix(y.astype(np.float32)), obs=obs, var=var)


def untrained(preset=TINY, K=3, **kw):
    return GMVAE(simulated(), K=K, batch_key="batch", preset=preset, **kw)


def fitted(epochs=2, **kw):
    return untrained(**kw).train(epochs, progress=False)


@pytest.fixture(scope="module")
def model():
    "Trained once for all tests that only ask it."
    return fitted()


def with_counts(change):
    adata = simulated()
    y = adata.X.toarray()
    change(y)
    adata.X = csr_matrix(y)
    return adata


def put(value):
    def change(y):
        y[7, 3] = value

    return change


@pytest.mark.parametrize(
    "adata, options, words",
    [
        (with_counts(put(-1)), {}, ["cell7", "gene3", "-1"]),
        (with_counts(put(1.5)), {}, ["cell7", "gene3", "1.5"]),
        (with_counts(put(np.nan)), {}, ["cell7", "gene3", "nan"]),
        (with_counts(put(np.inf)), {}, ["cell7", "gene3", "inf"]),
        (with_counts(lambda y: y.__setitem__(5, 0)), {}, ["cell5"]),
        (simulated(), {"batch_key": "donor"}, ["donor", "batch"]),
        (simulated(), {"layer": "raw"}, ["raw"]),
        (simulated(), {"K": 0}, ["K is 0"]),
        (simulated(), {"K": 2.5}, ["K is 2.5"]),
        (simulated(), {"K": True}, ["K is True"]),
        (simulated(), {"preset": "best"}, ["best", "blog"]),
    ],
)
def test_bad_input_is_told_in_one_sentence_before_training(adata, options, words):
    with pytest.raises(ValueError) as error:
        GMVAE(adata, **{"K": 3, "batch_key": "batch", "preset": TINY, **options})
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_missing_batches_are_named():
    adata = simulated()
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(120) != 11)
    with pytest.raises(ValueError, match="cell11"):
        GMVAE(adata, K=3, batch_key="batch", preset=TINY)


def test_fewer_cells_than_a_minibatch_shrink_it(tmp_path):
    model = GMVAE(simulated(), K=2, preset=TINY)
    with pytest.warns(UserWarning, match="10 cells to train on are fewer than a mini-batch of 16"):
        model.train(1, test_idx=np.arange(110), out=tmp_path, progress=False)
    assert model.preset.batch_size == 10 and len(model.train_idx) == 10
    again = GMVAE.load(tmp_path, simulated()).train(2, progress=False)
    np.testing.assert_array_equal(
        again.get_latent_representation(),
        model.train(2, progress=False).get_latent_representation(),
    )
    with pytest.raises(ValueError, match="names all 120 cells: none is left"):
        GMVAE(simulated(), K=2, preset=TINY).train(test_idx=np.arange(120), progress=False)


def test_held_out_cells_must_exist():
    with pytest.raises(ValueError, match="120 of 120"):
        GMVAE(simulated(), K=2, preset=TINY).train(test_idx=[3, 120], progress=False)


def test_what_cannot_be_trained_on_is_left_out_and_said():
    adata = simulated()
    adata.var_names = ["gene1"] + list(adata.var_names[1:])
    adata.X[:, 9] = 0  # as after taking one cluster
    adata.var["feature_types"] = ["Gene Expression"] * 28 + ["Antibody Capture"] * 2
    adata.var["chosen"] = np.arange(30) != 20
    before = adata.copy()
    with pytest.warns(UserWarning) as said:
        model = GMVAE(adata, K=2, batch_key="batch", mask_var="chosen", preset=TINY)
    said = [str(w.message) for w in said]
    assert len(said) == 3 and "2 'Antibody Capture'" in said[0]
    assert "1 of 27 genes have no count" in said[1] and "'gene9'" in said[1]
    assert "1 gene names occur again (the first is 'gene1')" in said[2]
    expected = [f"gene{i}" for i in range(1, 28) if i not in (1, 9, 20)]
    assert model.genes == ["gene1", "gene1-1", *expected]
    assert (adata.X != before.X).nnz == 0 and list(adata.var_names) == list(before.var_names)
    trained = model.train(1, progress=False)
    np.testing.assert_array_equal(
        trained.get_latent_representation(adata), trained.get_latent_representation()
    )
    for dtype in ("boolean", object):  # as a file may hold it
        adata.var["chosen"] = adata.var["chosen"].astype(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            of = dict(K=2, batch_key="batch", mask_var="chosen", preset=TINY)
            assert GMVAE(adata, **of).genes == model.genes
    with pytest.raises(ValueError, match="mask_var='x' is no boolean .* such are: chosen"):
        GMVAE(adata, K=2, mask_var="x", preset=TINY)


def test_counts_on_disk_stay_there_when_genes_are_left_out(tmp_path):
    adata = simulated()
    adata.X[:, 9] = 0
    adata.write_h5ad(tmp_path / "cells.h5ad")
    in_memory = untrained_of(adata).train(1, progress=False)
    backed = untrained_of(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"))
    assert isinstance(backed.counts, CountsOnDisk) and backed.genes == in_memory.genes
    assert backed.counts.shape == (120, 29)
    assert (backed.counts[np.arange(120)] != in_memory.counts).nnz == 0


def untrained_of(adata):
    with pytest.warns(UserWarning, match="'gene9'"):
        return GMVAE(adata, K=2, batch_key="batch", preset=TINY)


@pytest.mark.parametrize("K", [1, 2, 7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bound": "exact"},
        {"prior": "parameters", "learn_weights": True, "library_size": True},
        {"prior": "offsets", "bound": "exact", "align": 1.0, "merge": True},
        {"encoder_input": "centred_log", "encoder_batch": True, "kl_warmup_epochs": 2, "lam": 0.5},
    ],
)
def test_every_option_trains_and_lowers_the_loss(K, options):
    model = fitted(4, K=K, preset=replace(TINY, lr=5e-3, **options))
    history = model.history
    assert history["test_neg_elbo"].iloc[-1] < history["test_neg_elbo"].iloc[0]
    assert np.isfinite(history.to_numpy()).all()
    assert (history["test_kl_z"] <= np.log(K) + 1e-5).all()
    np.testing.assert_allclose(model.predict_proba().sum(1), 1, atol=1e-5)
    assert model.get_iwae(n_samples=30).mean() > model.get_elbo(n_samples=30).mean() - 0.5
    assert sum(model.cluster_report()["cells"].values()) == 120


def test_a_centred_input_has_the_mean_of_its_training_cells_and_keeps_it(tmp_path):
    model = fitted(1, preset=replace(TINY, encoder_input="centred_log"))
    y = model.counts[model.train_idx].toarray()
    depth = y.sum(1, keepdims=True)
    mean = np.log1p(depth.mean() * y / depth).mean(0)
    np.testing.assert_allclose(model.network.v_mean, mean, rtol=1e-5)
    model.save(tmp_path)
    kept = GMVAE.load(tmp_path, simulated())
    assert kept.network.v_mean.equal(model.network.v_mean)
    assert (kept.get_latent_representation() == model.get_latent_representation()).all()


def test_cells_of_which_thinning_leaves_nothing_are_trained_on():
    adata = simulated()
    adata.X = adata.X.tocsr().minimum(1)  # a few molecules in each cell
    preset = replace(TINY, encoder_input="centred_log", thin_to=0.01)
    model = GMVAE(adata, K=2, batch_key="batch", preset=preset)
    with every_warning_an_error():
        model.train(3, progress=False)
    assert np.isfinite(model.history.to_numpy()).all()


def test_nothing_of_the_global_random_state_is_touched():
    torch.manual_seed(5)
    np.random.seed(5)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fitted(preset=replace(TINY, thin_to=0.2)).predict_proba()
    assert torch.get_rng_state().equal(torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_an_interrupted_epoch_leaves_no_trace():
    whole = fitted(3)._state()
    model = fitted(1)
    stop_at_step(model, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt, match="1 epochs are done"):
        model.train(3, progress=False)
    assert len(model.history) == 1
    model.train(3, progress=False)
    assert all(whole[name].equal(t) for name, t in model._state().items())


def test_a_loss_that_is_not_finite_is_told():
    model = untrained(K=2)
    with torch.no_grad():
        model.network.heads.logits.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        model.train(1, progress=False)


def test_a_killed_command_goes_on_where_it_stopped(tmp_path):
    whole = fitted(3)._state()
    fitted(1).train(2, out=tmp_path, progress=False)  # what a killed run leaves behind
    again = untrained().train(3, out=tmp_path, progress=False)
    assert all(whole[name].equal(t) for name, t in again._state().items())


def test_other_cells_are_not_split_as_its_own(tmp_path):
    model = fitted(1)
    model.save(tmp_path)
    own, others = simulated(), simulated()
    others.X[0, 0] += 1  # as many, and of the same names
    again = GMVAE.load(tmp_path, own)
    np.testing.assert_array_equal(again.test_idx, model.test_idx)
    assert GMVAE.load(tmp_path, others).test_idx is None


def test_a_finished_model_keeps_the_scales_that_it_learned_with():
    model = fitted(2)
    x, mean = model.get_latent_representation(), model.network.y_mean.clone()
    model.train(2, progress=False)
    for epochs in (2, 4):
        with pytest.raises(ValueError, match="test_idx has 30 cells, .* with 18 others held out"):
            model.train(epochs, test_idx=np.arange(30), progress=False)
    assert len(model.test_idx) == 18 and len(model.history) == 2
    assert model.network.y_mean.equal(mean)
    np.testing.assert_array_equal(model.get_latent_representation(), x)


def test_another_model_in_the_folder_is_neither_taken_over_nor_replaced(tmp_path):
    fitted(2, seed=1)._write(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="seed is 1 there, 0 here.*overwrite=True"):
        untrained().train(1, out=tmp_path, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    model = untrained().train(1, out=tmp_path, overwrite=True, progress=False)
    assert len(model.history) == 1 and read_model(tmp_path)[0]["seed"] == 0


@pytest.mark.parametrize("change", ["counts", "names", "batches"])
def test_a_checkpoint_of_other_cells_is_not_taken_over(tmp_path, change):
    one, other = cells(), cells()
    if change == "counts":
        other.X = other.X[::-1].copy()
    elif change == "names":
        other.obs_names = [f"other{i}" for i in range(other.n_obs)]
    else:
        other.obs["batch"] = other.obs["batch"].to_numpy()[::-1]
    options = dict(K=3, batch_key="batch", preset=TINY)
    GMVAE(one, **options).train(1, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match="trained on other counts, cells or batches"):
        GMVAE(other, **options).train(2, out=tmp_path, progress=False)
    GMVAE(one, **options).train(2, out=tmp_path, progress=False)  # its own go on


def test_a_saved_model_is_not_begun_again_by_training_into_its_folder(tmp_path):
    options = dict(K=3, batch_key="batch", preset=TINY)
    saved = GMVAE(cells(), **options).train(2, progress=False)
    saved.save(tmp_path)
    with pytest.raises(ValueError, match="after 2 epochs as GMVAE.save wrote it"):
        GMVAE(cells(), **options).train(3, out=tmp_path, progress=False)
    saved.train(3, out=tmp_path, progress=False)  # the very model goes on
    assert read_model(tmp_path)[0]["epochs"] == 3
    fork = GMVAE.load(tmp_path, cells())
    fork._rows[0]["lr"] = 0.5  # another training of the same settings
    with pytest.raises(ValueError, match="another training of this model, 3 epochs"):
        fork.train(4, out=tmp_path, progress=False)


def test_a_model_loaded_and_trained_further_says_what_it_has_lost(tmp_path):
    whole = fitted(1)
    whole.save(tmp_path / "saved")
    whole._write(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match="without Adam's moments") as said:
        GMVAE.load(tmp_path / "saved", simulated()).train(2, progress=False)
    assert sum(w.category is UserWarning for w in said) == 1
    with pytest.warns(UserWarning, match="not the cells .* split anew") as said:
        GMVAE.load(tmp_path / "checkpoint", simulated()[5:].copy()).train(2, progress=False)
    assert sum(w.category is UserWarning for w in said) == 1
    with every_warning_an_error():
        GMVAE.load(tmp_path / "checkpoint", simulated()).train(2, progress=False)
        GMVAE.load(tmp_path / "saved", simulated()).train(1, progress=False)  # is done
        early = untrained(replace(TINY, patience=0.1, refit=0.25, lr=0.3)).train(40, progress=False)
        assert len(early.history) < 40  # the watch ended it
        early.save(tmp_path / "early")
        GMVAE.load(tmp_path / "early", simulated()).train(40, progress=False)


def test_a_planned_schedule_is_kept_to(tmp_path):
    planned = replace(TINY, lr_schedule="cosine")
    options = dict(K=3, batch_key="batch", preset=planned)
    says = "planned for 2 epochs, .* and 2 are done: ask for 2, or train a new model for 4"
    model = GMVAE(simulated(), **options).train(2, out=tmp_path, progress=False)
    for begun in (model, GMVAE.load(tmp_path, simulated()), GMVAE(simulated(), **options)):
        with pytest.raises(ValueError, match=says):
            begun.train(4, out=tmp_path, progress=False)
    assert len(model.train(2, progress=False).history) == 2
    assert len(fitted(2).train(3, progress=False).history) == 3  # nothing is planned here


def test_stopped_and_begun_again_for_more_epochs_a_planned_schedule_is_not_mixed():
    model = GMVAE(simulated(), K=3, preset=replace(TINY, kl_warmup_share=0.5))
    stop_at_step(model, 9, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train(3, progress=False)
    assert 0 < len(model.history) < 3
    with pytest.raises(ValueError, match="planned for 3 epochs"):
        model.train(6, progress=False)
    assert len(model.train(3, progress=False).history) == 3


def test_a_collapsed_mixture_is_said_to_be_one():
    adata = simulated()
    adata.X = csr_matrix(np.random.default_rng(0).poisson(2.0, adata.shape).astype("f4"))
    flat = GMVAE(adata, K=3, preset=replace(TINY, n_x=1, n_w=1, original_reshape=False))
    flat.network.prior.components.weight.data.zero_()  # all components are one
    flat.network.prior.components.bias.data.zero_()
    flat.optimizer.param_groups[0]["lr"] = 0.0
    flat.preset = replace(flat.preset, lr=1e-12)
    with pytest.warns(UserWarning, match="has collapsed: its 3 components .* than 1.00"):
        flat.train(1, progress=False)


def frozen(adata):
    "The same cells in arrays that nobody may write to."
    for part in (adata.X.data, adata.X.indices, adata.X.indptr):
        part.setflags(write=False)
    return adata


@pytest.mark.parametrize("preset", ["blog", "recommended"])
def test_order_company_and_repetition_do_not_matter(preset):
    "What scikit-learn asks of an estimator; and arrays that are read-only."
    preset = replace(PRESETS[preset], n_x=3, n_w=2, encoder_hidden=(16,), decoder_hidden=(16,))
    preset = replace(preset, prior_hidden=8, M=1, batch_size=16, min_steps=0, dtype="float32")
    options = dict(K=3, batch_key="batch", preset=preset)
    model = GMVAE(frozen(simulated()), **options).train(7, progress=False)
    again = GMVAE(simulated(), **options).train(7, progress=False)
    for method in ("get_latent_representation", "predict_proba", "get_elbo", "get_iwae"):
        whole = getattr(model, method)(frozen(simulated()))
        np.testing.assert_array_equal(whole, getattr(model, method)(), err_msg=method)
        np.testing.assert_array_equal(whole, getattr(again, method)(), err_msg=method)
        mixed = np.random.default_rng(0).permutation(120)
        for cells_ in (mixed, mixed[:7], [5]):
            part = getattr(model, method)(simulated()[cells_].copy())
            np.testing.assert_allclose(part, whole[cells_], rtol=1e-4, atol=1e-5, err_msg=method)


def test_no_clusters_without_cells_are_among_the_categories():
    model = fitted(K=20)
    found = model.predict()
    assert set(found) == set(found.categories) and model.predict_proba().shape[1] == 20


def test_trainings_in_threads_are_the_serial_ones():
    from concurrent.futures import ThreadPoolExecutor

    def digest(seed):
        preset = replace(TINY, dropout=0.3, input_dropout=0.2)
        model = GMVAE(simulated(), K=3, preset=preset, seed=seed).train(2, progress=False)
        return b"".join(t.numpy().tobytes() for t in model._state().values())

    state = torch.get_rng_state()
    alone = [digest(0), digest(1)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(digest, [0, 1, 0, 1]))
    assert together == alone * 2 and alone[0] != alone[1]
    assert torch.get_rng_state().equal(state)  # somebody else's


def test_two_do_not_train_into_one_folder(tmp_path):
    import threading

    inside, may_end = threading.Event(), threading.Event()
    first = untrained()
    one_epoch = first._train_epoch

    def slow_epoch(*args):
        inside.set()
        assert may_end.wait(60)
        return one_epoch(*args)

    first._train_epoch = slow_epoch
    options = dict(out=tmp_path, progress=False)
    thread = threading.Thread(target=lambda: first.train(1, **options))
    thread.start()
    assert inside.wait(60)
    try:
        with pytest.raises(BlockingIOError, match="trains in"):
            untrained(seed=1).train(1, **options)
    finally:
        may_end.set()
        thread.join()
    assert read_model(tmp_path)[0]["seed"] == 0


def test_what_happens_to_the_anndata_later_does_not_reach_the_model():
    adata = cells()
    model = GMVAE(adata, K=3, batch_key="batch", preset=TINY).train(1, progress=False)
    before = model.get_latent_representation()
    adata.X.data[:] = np.log1p(adata.X.data)
    np.testing.assert_array_equal(model.get_latent_representation(), before)


def test_a_map_of_batches_that_cannot_be_used_is_refused():
    model = GMVAE(cells(), K=3, batch_key="batch", preset=TINY)
    for own in (None, model.match_cells(cells())):
        with pytest.raises(ValueError, match="have the model's batches already"):
            model.predict_proba(own, map_batch={"nonsense": "nowhere"})


def test_the_estimator_is_at_the_top_of_the_package():
    import gmvae_nb

    assert gmvae_nb.GMVAE is GMVAE
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        gmvae_nb.__getattr__("nonsense")


def test_a_model_loads_without_cells_and_embeds_new_ones(model, tmp_path):
    model.save(tmp_path)
    loaded = GMVAE.load(tmp_path)
    new = simulated(20, seed=3)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(new), model.get_latent_representation(new)
    )
    with pytest.raises(ValueError, match="loaded without cells"):
        loaded.get_latent_representation()
    history = pd.read_csv(tmp_path / "history.csv")
    pd.testing.assert_frame_equal(history, model.history, check_exact=False)
    assert json.loads((tmp_path / "config.json").read_text())["K"] == 3


DAMAGE = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[: len(raw) // 2],
    "pickle": lambda raw: b"\x80\x04.",
    "text": lambda raw: b"not a model",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_model_is_refused_in_one_sentence(model, tmp_path, how):
    model.save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    with pytest.raises(ValueError, match="is not a model written by gmvae_nb, or is damaged"):
        GMVAE.load(tmp_path)


def test_another_format_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("gmvae_nb.checkpoints.FORMAT", 99)
    model.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 99"):
        GMVAE.load(tmp_path)


def test_results_do_not_depend_on_the_size_of_chunks(model):
    big = untrained(replace(TINY, batch_size=100))
    big.network.load_state_dict(model.network.state_dict())
    for method in ("get_latent_representation", "predict_proba", "get_elbo"):
        one, other = getattr(model, method)(), getattr(big, method)()
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_library_size_scales_the_means_and_leaves_the_dispersion():
    model = fitted(1, K=2, preset=replace(TINY, library_size=True))
    net, x = model.network.eval(), torch.zeros(1, 5, 4)
    y, b = to_torch(model.counts[:5]), torch.zeros(5, dtype=torch.long)
    factor = y.to_dense().sum(1, keepdim=True) / model.counts[model.train_idx].sum(1).mean()
    with torch.no_grad():
        h = net.decode(x, b)
        r, logits = net.heads(h, factor)
        r_1, logits_1 = net.heads(h, None)
        assert torch.equal(r, r_1)
        torch.testing.assert_close((r * logits.exp())[0], factor * (r_1 * logits_1.exp())[0])
        log_lik, plain = net.log_likelihood(y, b, x), log_nb(y.to_dense(), r, logits).sum(-1)
        torch.testing.assert_close(log_lik, plain, rtol=1e-4, atol=1e-3)


def test_bounds_against_the_importance_weights_of_each_draw(model):
    "A mean of weights lies between the smallest and the largest; -ELBO is the sum of four terms."
    net, noise = model.network.eval(), model._noise(20)
    y, b = to_torch(model.counts), torch.from_numpy(model.batch)
    with torch.no_grad():
        log_w = net.log_importance_weights(y, b, *noise)
        terms = net(y, b, *noise)
    iwae = torch.from_numpy(model.get_iwae(n_samples=20))
    assert (log_w.mean(0) <= iwae + 1e-3).all()
    assert (iwae <= log_w.max(0).values + 1e-3).all()
    plain = log_w.double().exp().mean(0).log()
    torch.testing.assert_close(iwae.double(), plain, rtol=1e-3, atol=1e-3)
    parts = sum(terms[name] for name in ("rec", "kl_w", "kl_z", "cond"))
    elbo = torch.from_numpy(model.get_elbo(n_samples=20))
    torch.testing.assert_close(-elbo, parts, rtol=1e-4, atol=1e-3)


def test_mutual_information_of_cluster_and_cell():
    "Against the definition, the sum of p(n, k) log p(n, k) / p(n) p(k)."
    gamma = torch.rand(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gamma /= gamma.sum(1, keepdim=True)
    joint = gamma / 9
    independent = joint.sum(0) * joint.sum(1, keepdim=True)
    information = (joint * (joint / independent).log()).sum().item()
    usage = cluster_usage(gamma)
    assert usage["mutual_information"] == pytest.approx(information)
    assert np.log(usage["effective_K"]) - usage["gamma_entropy"] == pytest.approx(information)


def test_the_presets_are_what_the_text_and_the_code_of_the_seed_say():
    text = dict(n_x=80, n_w=60, prior_hidden=300, dropout=0.05, M=10)
    text |= dict(encoder_hidden=(300, 250), decoder_hidden=(250, 300))
    text |= dict(lr=1e-3, lr_factor=0.7, lr_step=25, max_epochs=40)
    code = dict(encoder_hidden=(300, 200), lr=1e-4, lam_mode="cell")
    code |= dict(norm_first=True, original_reshape=True)
    for preset, expected in ((PRESETS["blog"], text), (PRESETS["original"], code)):
        assert {name: getattr(preset, name) for name in expected} == expected


@pytest.mark.parametrize("options", [{}, {"bound": "exact", "lam": 0.5, "lam_mode": "cell"}])
def test_the_fast_step_gives_the_loss_and_gradients_of_the_plain_form(options):
    """All draws for all genes, against the network as one writes it down.

    What is fast: the sparse first layer, the fused heads, the densities as products."""
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "bench"))
    from training import Plain

    model = untrained(replace(TINY, M_heads=2, M_w=2, dtype="float32", dropout=0.0, **options))
    net = model.network.double().train()
    net.y_mean.fill_(1.3)
    net.y_std.fill_(2.1)
    y, b = to_torch(model.counts[:20]).double(), torch.from_numpy(model.batch[:20])
    noise = [e.double() for e in net.noise(2, 20, M_w=2)]
    found = []
    for kind in (type(net), Plain):
        net.__class__ = kind
        loss = training_loss(net(y, b, *noise, reduction="mean"), model.preset)
        found.append([loss, *torch.autograd.grad(loss, list(net.parameters()))])
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10)


def test_counts_on_disk_train_and_embed_like_counts_in_memory(tmp_path):
    adata = simulated()
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    model, again = (
        GMVAE(backed, K=3, batch_key="batch", preset=replace(TINY, lr=5e-3)) for _ in range(2)
    )
    model.train(3, progress=False)
    assert isinstance(model.counts, CountsOnDisk)
    history = model.history
    assert history["test_neg_elbo"].iloc[-1] < history["test_neg_elbo"].iloc[0]
    again.train(3, progress=False)
    weights = zip(model.network.parameters(), again.network.parameters())
    assert all(one.equal(two) for one, two in weights)
    latent = model.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(adata), latent, atol=1e-6)
    other = adata[::-1, ::-1].copy()  # other cells first, other genes first, on disk
    other.write_h5ad(tmp_path / "b.h5ad")
    backed = ad.read_h5ad(tmp_path / "b.h5ad", backed="r")
    found = model.get_latent_representation(backed)[::-1]
    np.testing.assert_allclose(found, latent, atol=1e-5)


def test_without_held_out_cells_the_usage_is_that_of_the_training_cells():
    row = untrained().train(1, test_idx=[], progress=False).history.iloc[0]
    assert 1 <= row["effective_K"] <= 3 and "test_neg_elbo" not in row


def test_draws_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match="M_w is 4 and M 10; .* give a divisor of M"):
        Preset(M=10, M_w=4)
    assert Preset(M=1, M_w=4).M_w == 4  # M at most
