"""Covariates: what the decoder is told, by name, in memory and on disk, saved, resumed, matched."""

import json
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb import commands, data, tl
from gmvae_nb.commands import gmvae_sweep
from gmvae_nb.covariates import Covariate, Design, find_covariates, keys_of
from gmvae_nb.differential import differential_expression, group_means
from gmvae_nb.embed import embed_file, map_of_pairs
from gmvae_nb.model_folder import model_digest, read_model
from gmvae_nb.network import PRESETS
from gmvae_nb.new_batches import with_new_batches
from gmvae_nb.reading import read_input
from gmvae_nb.report import settings_rows
from gmvae_nb.runs import compare_settings, train_run
from gmvae_nb.train import GMVAE
from safetensors.torch import load_file, save_file

from hazards import SMALL, cells

CAT, CON = ["chemistry", "site"], ["mito"]
NAMED = dict(categorical_covariate_keys=CAT, continuous_covariate_keys=CON)
KEYS = dict(batch_key="batch", **NAMED)


def mine(n=120, seed=0) -> ad.AnnData:
    "Cells with two categorical covariates and a continuous one, by chance."
    adata, rng = cells(n, seed=seed), np.random.default_rng(seed)
    adata.obs["chemistry"] = rng.choice(["v2", "v3"], n)
    adata.obs["site"] = rng.choice(["s1", "s2", "s3"], n)
    adata.obs["mito"] = rng.uniform(0, 0.1, n)
    return adata


def fitted(adata=None, epochs=2, preset=SMALL, out=None, **keys) -> GMVAE:
    adata, keys = mine() if adata is None else adata, keys or KEYS
    return GMVAE(adata, 4, preset=preset, **keys).train(epochs, out=out, progress=False)


def answers(model: GMVAE, adata=None) -> list[np.ndarray]:
    return [model.get_elbo(adata), model.get_latent_representation(adata)]


def same(some, others) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.fixture(scope="module")
def model() -> GMVAE:
    return fitted()


@pytest.fixture(scope="module")
def plain() -> GMVAE:
    return fitted(batch_key="batch")


def test_without_covariates_a_model_is_what_it_was(plain):
    "The same codes, weights and tensors: nothing is added, nothing drawn."
    assert find_covariates(mine(), "batch", [], None) == ([], [])
    assert plain.batch.dtype == np.int64 and plain.batch.ndim == 1
    assert plain.network.decoder[0].in_features == SMALL.n_x + 2
    assert not any("design" in name for name in plain.network.state_dict())
    assert plain.config()["covariates"] == []


def test_one_covariate_alone_is_told_as_a_batch_is():
    "The decoder of a model whose only column is a covariate is that of the batch, in bits."
    adata, n_x = mine(), SMALL.n_x
    as_batch = GMVAE(adata, 4, preset=SMALL, batch_key="chemistry")
    told = GMVAE(adata, 4, preset=replace(SMALL, align=0.0), categorical_covariate_keys=CAT[:1])
    state = {k: v for k, v in as_batch.network.state_dict().items() if "align" not in k}
    # before the chemistry stands the only batch, which weighs nothing here
    weight = state["decoder.0.weight"]
    parts = weight[:, :n_x], torch.zeros_like(weight[:, :1]), weight[:, n_x:]
    state["decoder.0.weight"] = torch.cat(parts, 1)
    told.network.load_state_dict(state)
    for model in (told, as_batch):
        model.network.y_mean.fill_(1)
    np.testing.assert_allclose(told.get_elbo(), as_batch.get_elbo(), rtol=1e-5)


def test_the_order_of_the_names_changes_nothing(model):
    reverse = dict(categorical_covariate_keys=CAT[::-1], continuous_covariate_keys=CON)
    other = fitted(mine(), batch_key="batch", **reverse)
    assert [c.key for c in other.covariates] == ["chemistry", "mito", "site"]
    assert same(answers(model), answers(other))


def test_training_cells_alone_set_the_scale():
    adata, held_out = mine(), np.arange(40)
    adata.obs.iloc[:40, adata.obs.columns.get_loc("mito")] += 5
    trained = GMVAE(adata, 4, preset=SMALL, **KEYS)
    trained.train(1, test_idx=held_out, progress=False)
    mito = adata.obs["mito"].to_numpy()[40:]
    np.testing.assert_allclose(trained.network.design.mean, [mito.mean()])
    np.testing.assert_allclose(trained.network.design.std, [mito.std()])
    assert np.isfinite(trained.history["test_neg_elbo"]).all()
    adata.obs["mito"] = np.arange(120) < 40
    with pytest.raises(ValueError, match="'mito' is the same in all 80 training cells"):
        GMVAE(adata, 4, preset=SMALL, **KEYS).train(1, test_idx=held_out, progress=False)


def test_saved_loaded_and_resumed_to_the_bit(model, tmp_path):
    model.save(tmp_path / "saved")
    adata = mine()
    again = GMVAE.load(tmp_path / "saved", adata)
    assert again.covariates == model.covariates
    assert same(answers(again), answers(model))
    whole = fitted(epochs=3, out=tmp_path / "whole")
    half = GMVAE(mine(), 4, preset=SMALL, **KEYS)

    class Stop(Exception):
        pass

    def stop_after_one(epoch, max_epochs, go=half._train_epoch):
        if epoch == 1:
            raise Stop
        return go(epoch, max_epochs)

    half._train_epoch = stop_after_one
    with pytest.raises(Stop):
        half.train(3, out=tmp_path / "half", progress=False)
    resumed = fitted(epochs=3, out=tmp_path / "half")
    assert same(answers(resumed), answers(whole))
    states = [read_model(tmp_path / name)[2] for name in ("whole", "half")]
    assert states[0].keys() == states[1].keys()
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


def test_other_covariates_are_another_model(model, tmp_path):
    fitted(epochs=1, out=tmp_path)
    keys = dict(batch_key="batch", categorical_covariate_keys=CAT)
    with pytest.raises(ValueError, match="its covariates are others"):
        fitted(epochs=1, out=tmp_path, **keys)
    with pytest.raises(ValueError, match="its covariates are others"):
        fitted(epochs=1, out=tmp_path, batch_key="batch")
    changed = mine()
    changed.obs["mito"] = changed.obs["mito"] ** 2
    with pytest.raises(ValueError, match="other counts, cells or batches"):
        fitted(changed, epochs=1, out=tmp_path)


def test_a_file_of_before_there_were_covariates_is_read(plain, tmp_path):
    plain.save(tmp_path)
    path = tmp_path / "model.safetensors"
    config, rows, state = read_model(tmp_path)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    del config["covariates"]
    content = dict(config=config, history=rows, sha256=model_digest(config, rows, state))
    save_file(load_file(path), path, {"gmvae_nb": json.dumps(content)})
    old = GMVAE.load(tmp_path, mine())
    assert old.covariates == [] and same(answers(old), answers(plain))
    older = {"K": 4, "preset": {}}
    compare_settings(tmp_path, older, older | keys_of([]))  # of a run that notes none
    with pytest.raises(ValueError, match=r"continuous_covariate_keys was \[\], now \['mito'\]"):
        compare_settings(tmp_path, older, older | keys_of([Covariate("mito", None)]))


STRANGE = (3, [3], [{"key": "a"}], [dict(key="a", values=["x"])], [dict(key="a", values="xy")])


@pytest.mark.parametrize("bad", STRANGE)
def test_strange_covariates_in_a_file_are_damage(bad, tmp_path, model):
    model.save(tmp_path)
    config, rows, state = read_model(tmp_path)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    config["covariates"] = bad
    content = dict(config=config, history=rows, sha256=model_digest(config, rows, state))
    save_file(state, tmp_path / "model.safetensors", {"gmvae_nb": json.dumps(content)})
    with pytest.raises(ValueError, match="not a model written by gmvae_nb"):
        GMVAE.load(tmp_path)


def test_counts_on_disk_give_the_same(model, tmp_path, monkeypatch):
    adata = mine()
    adata.write_h5ad(tmp_path / "mine.h5ad")
    backed = ad.read_h5ad(tmp_path / "mine.h5ad", backed="r")
    assert same(answers(model, adata), answers(model, backed))
    # the same order of the cells
    monkeypatch.setattr(data, "shuffle_blocks", lambda idx, rng, fetch: rng.permutation(idx))
    assert same(answers(fitted(backed)), answers(model))


def test_new_cells_are_matched_by_name(model):
    new = mine(60, seed=3)
    reordered = new[::-1, ::-1].copy()
    reordered.obs = reordered.obs[reordered.obs.columns[::-1]]
    for one, other in zip(answers(model, new), answers(model, reordered)):
        np.testing.assert_allclose(one[::-1], other, rtol=1e-4, atol=1e-4)
    own = model.match_cells(mine())
    np.testing.assert_array_equal(own.batch, model.batch)
    few = new[new.obs["chemistry"] == "v3"].copy()  # one value is enough here
    assert set(model.match_cells(few).batch[:, 1]) == {1.0}


def test_new_cells_without_a_column_or_with_an_unknown_value_are_refused(model):
    new = mine(60, seed=3)
    for key, role in (("site", "categorical"), ("mito", "continuous")):
        lacks = new.copy()
        del lacks.obs[key]
        with pytest.raises(ValueError, match=f"{role}_covariate_keys='{key}' is not a column"):
            model.get_elbo(lacks)
    new.obs.loc["cell5", "mito"] = np.nan
    with pytest.raises(ValueError, match="'mito' has no value for 1 of 60 cells.*'cell5'"):
        model.get_elbo(new)
    new.obs["mito"], new.obs["site"] = 0.05, "s9"
    with pytest.raises(ValueError, match="site 's9' was not trained on.*site:s9=s1"):
        model.get_elbo(new)
    mapped = model.match_cells(new, map_batch={"site": {"s9": "s2"}})
    assert mapped.batches == {
        "0": "0", "1": "1", "chemistry:v2": "chemistry:v2", "chemistry:v3": "chemistry:v3",
        "site:s9": "site:s2",
    }  # fmt: skip
    assert set(mapped.batch[:, 3]) == {1.0}
    del new.obs["site"]
    assert set(model.match_cells(new, map_batch={"site": {"*": "s3"}}).batch[:, 3]) == {2.0}
    with pytest.raises(ValueError, match="a map for 'mito'.*chemistry, site"):
        model.get_elbo(new, map_batch={"mito": {"*": "0"}})
    pairs = ["7=1", "site:s9=s2", "site:*=s1", "a:b=0"]
    expected = {"7": "1", "a:b": "0", "site": {"s9": "s2", "*": "s1"}}
    assert map_of_pairs(pairs, model.covariates) == expected


def test_a_new_batch_is_learned_beside_the_covariates(model):
    "Its column stands behind the other batches'; those of the covariates stay."
    new = mine(60, seed=3)
    new.obs["batch"] = "9"
    wider = with_new_batches(model, new, n_steps=5)
    before, after = (m.network.decoder[0].weight for m in (model, wider))
    end = SMALL.n_x + 2
    assert after[:, :end].equal(before[:, :end]) and after[:, end + 1 :].equal(before[:, end:])
    assert not after[:, end].allclose(before[:, end - 2 : end].mean(1))
    for one, other in zip(answers(wider, mine()), answers(model, mine())):
        np.testing.assert_allclose(one, other, rtol=1e-5)  # sums of one more product
    assert set(wider.match_cells(new).batch[:, 0]) == {2.0}


def test_decoding_as_of_other_values(model):
    "Setting a column of all cells is what cells with these values have."
    adata = mine(40, seed=5)
    ask = model.get_normalized_expression
    changed = adata.copy()
    changed.obs["chemistry"], changed.obs["mito"] = "v3", 0.03
    as_of = ask(adata, transform_batch={"chemistry": "v3", "mito": 0.03})
    pd.testing.assert_frame_equal(as_of, ask(changed), rtol=1e-5)  # the encoder is not told
    assert not np.allclose(as_of, ask(adata))
    several = ask(adata, transform_batch={"site": ["s1", "s3"], "batch": ["0", "1"]})
    each = [ask(adata, transform_batch={"site": s, "batch": b}) for s in ("s1", "s3") for b in "01"]
    np.testing.assert_allclose(several, np.mean(each, 0), rtol=1e-5)
    pd.testing.assert_frame_equal(ask(adata, transform_batch="1"),
                                  ask(adata, transform_batch={"batch": "1"}))  # fmt: skip
    as_number = ask(adata, transform_batch=1)  # of a column of whole numbers, say
    pd.testing.assert_frame_equal(as_number, ask(adata, transform_batch=np.array("1")))
    for wrong, said in (
        ({"site": None}, "transform_batch is None; expected"),
        ({"donor": "1"}, "names 'donor'.*batch, chemistry, mito, site"),
        ({"site": "s9"}, "s1, s2, s3"),
        ({"mito": np.nan}, "finite"),
        ({"mito": []}, "finite"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(adata, transform_batch=wrong)


def test_genes_are_compared_at_the_same_covariates(model):
    "The same counts under other covariates are no change of any gene."
    one, other = mine(), mine()
    one.obs["chemistry"], other.obs["chemistry"] = "v2", "v3"
    other.obs["mito"] += 0.1
    both = ad.concat([one, other], index_unique="-")
    group = np.repeat([0, 1], 120)
    found = differential_expression(model, both, group.astype(str), group1="1")
    assert abs(found["lfc_measured"]).max() < 1e-5
    rows, matched = np.arange(240), model.match_cells(both)
    own = group_means(model.network, matched, group, None, rows).share
    assert abs(np.log2(own[1] / own[0])).max() > 1e-3
    with pytest.raises(ValueError, match="names 'donor'"):
        differential_expression(model, both, group.astype(str), transform_batch={"donor": "1"})


def test_what_is_refused_before_training():
    adata = mine()
    obs = adata.obs
    obs["all"] = "one batch"
    assert find_covariates(adata, "all", ["site"], None)[1] == []
    obs["twin"] = obs["mito"]
    obs["renamed"] = obs["site"].map({"s1": "a", "s2": "b", "s3": "c"})
    obs["text"], obs["constant"] = "0.1", 1.0
    obs["lane"] = obs["batch"] + obs["chemistry"]
    obs["level"] = obs["lane"].map({"0v2": 0.0, "0v3": 1.0, "1v2": 1.0, "1v3": 3.5})
    obs["dose"] = obs["batch"].map({"0": 0.0, "1": 3.5})
    for cat, con, said in (
        (["site", "renamed"], [], "'renamed' and 'site' say the same|'site' and 'renamed' say"),
        ([], ["mito", "twin"], "say the same of every cell"),
        ([], ["dose"], "'batch' and 'dose' say the same|'dose' and 'batch' say"),
        (["site", "site"], [], "'site' is named twice"),
        (["batch"], [], "'batch' is named twice"),
        (["nothing"], [], "'nothing' is not a column"),
        ([], ["nothing"], "'nothing' is not a column"),
        ([], ["text"], "expected numbers"),
        ([], ["constant"], "'constant' is '1.0' in all 120 cells"),
        (["text"], [], "'text' is '0.1' in all 120 cells"),
        (["mito"], [], "120 values in 120 cells"),
        ("site", [], r"expected a list: \['site'\]"),
    ):
        with pytest.raises(ValueError, match=said):
            GMVAE(adata, batch_key="batch", categorical_covariate_keys=cat,
                  continuous_covariate_keys=con)  # fmt: skip
    with pytest.warns(UserWarning, match="each lane has one level: the effects"):
        GMVAE(adata, categorical_covariate_keys=["lane"], continuous_covariate_keys=["level"])
    found, notes = find_covariates(adata, None, ["site"], ["level"])
    assert found == [Covariate("level", None), Covariate("site", ["s1", "s2", "s3"])]
    assert notes == []


EXTREME = {
    "huge": np.linspace(1, 2, 120) * 1e160,
    "tiny": np.linspace(1, 2, 120) * 1e-200,
    "both ends": np.resize([-1e308, 1e308], 120),
    "complex": 1.0 + np.arange(120) * 1j,
}


@pytest.mark.parametrize("name", EXTREME)
def test_what_cannot_be_scaled_is_refused_before_training(name):
    adata = mine()
    adata.obs["dose"] = EXTREME[name]
    says = "continuous_covariate_keys='dose' .*expected (real )?numbers"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # overflow is no news
        with pytest.raises(ValueError, match=says):
            find_covariates(adata, None, None, ["dose"])


def test_what_cannot_be_scaled_in_the_training_cells_is_refused():
    design, table = Design(1, [Covariate("dose", None)]), np.zeros((4, 2))
    table[:, 1] = 1e-200, 2e-200, 3e-200, 1
    with pytest.raises(ValueError, match="'dose' goes from 1e-200 to 3e-200 and cannot be scaled"):
        design.standardise(table, np.arange(3))
    for size in (1e-140, 1e140):
        table[:3, 1] = [size, 2 * size, 3 * size]
        design.standardise(table, np.arange(3))
        np.testing.assert_allclose(design.std / size, np.std([1, 2, 3]))


def test_names_in_an_index_and_a_name_that_occurs_twice():
    adata = mine()
    wanted = find_covariates(adata, "batch", CAT, CON)
    assert find_covariates(adata, "batch", pd.Index(CAT), pd.Index(CON)) == wanted
    assert find_covariates(adata, "batch", np.array(CAT), pd.Index([]))[0] == [
        c for c in wanted[0] if c.key in CAT
    ]
    adata.obs = pd.concat([adata.obs, adata.obs[["mito", "site"]]], axis=1)
    for role, key in (("categorical", "site"), ("continuous", "mito")):
        with pytest.raises(ValueError, match=f"{role}_covariate_keys='{key}' names 2 columns"):
            GMVAE(adata, 4, preset=SMALL, **{f"{role}_covariate_keys": [key]})


def test_one_line_of_python_takes_them(monkeypatch):
    monkeypatch.setattr(tl, "umap", lambda X, seed=0: X[:, :2])
    adata = mine()
    tl.gmvae(adata, "batch", **NAMED, K=4, preset=SMALL, max_epochs=1, progress=False)
    assert adata.uns["gmvae"]["params"]["categorical_covariate_keys"] == CAT
    same_model = fitted(epochs=1)
    np.testing.assert_array_equal(adata.obsm["X_gmvae"], same_model.get_latent_representation())


def test_a_run_says_what_its_decoder_was_told(tmp_path):
    adata = mine()
    adata.obs["lane"] = adata.obs["batch"] + adata.obs["chemistry"]
    keys = dict(KEYS, categorical_covariate_keys=["chemistry", "lane"])
    file = tmp_path / "mine.h5ad"
    adata.write_h5ad(file)
    given = read_input(file, **keys)
    assert [n.split(":")[0] for n in given.notes] == [
        "each lane has one batch", "each lane has one chemistry",
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Sparse CSR")
        warnings.filterwarnings("ignore", "The 'mode.chained_assignment'")  # anndata, pandas 3
        model = train_run(given, tmp_path / "run", K=3, preset=SMALL, max_epochs=1,
                          progress=False, **keys)  # fmt: skip
    told = json.loads((tmp_path / "run/run.json").read_text())
    assert told["settings"]["categorical_covariate_keys"] == ["chemistry", "lane"]
    assert told["settings"]["continuous_covariate_keys"] == ["mito"]
    assert told["notes"] == given.notes
    assert dict(settings_rows(told, 1))["covariates"] == "chemistry, lane, mito"
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["covariates"][2] == dict(key="mito", values=None)
    # new cells whose batch has another name
    adata.obs = adata.obs.rename(columns={"batch": "donor"})
    adata[:50].copy().write_h5ad(tmp_path / "new.h5ad")
    report = embed_file(model, tmp_path / "new.h5ad", tmp_path / "out.h5ad", batch_key="donor")
    assert report["cells"] == 50


@pytest.fixture
def typed(tmp_path):
    "A file with covariates, and types of some cells."
    adata = mine()
    adata.obs["mine"] = adata.obs["cell_type"].where(np.arange(120) % 2 == 0)
    adata.write_h5ad(tmp_path / "mine.h5ad")
    return adata, str(tmp_path / "mine.h5ad")


def test_a_sweep_takes_covariates_and_types_as_one_training_does(typed, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    adata, file = typed
    words = dict(batch_key="batch", **NAMED, supervise="mine", max_epochs=1, quiet=True)
    gmvae_sweep(file, out=str(tmp_path / "s"), K=[6], **words)
    gmvae_sweep(file, out=str(tmp_path / "s"), K=[6], **words)  # goes on: it is the same run
    model = GMVAE(adata, 6, labels_key="mine", preset=SMALL, **KEYS)
    model.train(1, progress=False)
    swept = GMVAE.load(tmp_path / "s/K6-seed0", adata)
    assert swept.types == model.types == ["type0", "type1", "type2"]
    assert [c.key for c in swept.covariates] == ["chemistry", "mito", "site"]
    assert same(answers(swept, adata), answers(model, adata))
    out = str(tmp_path / "t")
    with pytest.raises(ValueError, match="K is 3, and the labels have 3 types"):
        gmvae_sweep(file, out=out, K=[6, 3], **words)
    with pytest.raises(ValueError, match="categorical_covariate_keys='lane'"):
        gmvae_sweep(file, out=out, K=[6], **words | dict(categorical_covariate_keys=["lane"]))
    with pytest.raises(ValueError, match="categorical_covariate_keys"):  # another run
        gmvae_sweep(
            file,
            out=str(tmp_path / "s"),
            K=[6],
            **words | dict(NAMED, categorical_covariate_keys=["site"]),
        )
    assert not (tmp_path / "t").exists()


def test_a_process_that_follows_is_told_the_same(typed, tmp_path, monkeypatch):
    "torchrun's others train the first one's model, and not one without covariates and types."
    made = []
    monkeypatch.setitem(PRESETS, "recommended", SMALL)
    monkeypatch.setattr(commands, "follows", lambda: True)
    monkeypatch.setattr(GMVAE, "train", lambda self, *a, **k: made.append(self.config()))
    words = dict(batch_key="batch", **NAMED, supervise="mine", K=6, quiet=True)
    commands.gmvae_train(typed[1], str(tmp_path / "run"), **words)
    first = GMVAE(typed[0], 6, labels_key="mine", preset=SMALL, **KEYS).config()
    assert made == [first] and first["types"] and first["covariates"]
