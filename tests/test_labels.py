"""Labels in part: who may know them, what they change, and what is called none of these."""

import re
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from gmvae_nb import annotation, tl
from gmvae_nb.after_training import gmvae_embed
from gmvae_nb.clusters import cluster_tree, cut_tree
from gmvae_nb.commands import gmvae_train
from gmvae_nb.data import training_split
from gmvae_nb.gmvae_loss import label_cross_entropy
from gmvae_nb.labels import (
    NONE,
    allowed_components,
    best_labels,
    fit_temperature,
    have_no_labels,
    name_clusters,
    shares,
    tempered,
    with_types_to_train_on,
)
from gmvae_nb.network import PRESETS, SMOOTHING
from gmvae_nb.report import told_types
from gmvae_nb.tables import read_table
from gmvae_nb.train import GMVAE
from scipy.optimize import minimize_scalar

from test_promises import rewritten, tensor
from test_report import unpack

TINY = replace(
    PRESETS["recommended"],
    n_x=4,
    encoder_hidden=(32,),
    decoder_hidden=(32,),
    batch_size=32,
    min_steps=0,
    max_epochs=20,
    lr=1e-2,
    input_dropout=0.1,
    weight_decay=0.0,
    dtype="float32",
)
KINDS = ["alpha", "beta", "gamma"]


def simulated(n: int = 330) -> ad.AnnData:
    "Cells of three kinds; half of the first two have a label, none of the third."
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=n)
    profile = np.exp(rng.normal(size=(3, 50)))
    counts = rng.poisson(400 * (profile / profile.sum(1, keepdims=True))[kind])
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    obs["batch"] = np.where(rng.random(n) < 0.5, "one", "two")
    obs["kind"] = np.array(KINDS)[kind]
    has_label = (rng.random(n) < 0.5) & (kind < 2)
    obs["mine"] = obs["kind"].where(has_label)
    return ad.AnnData(counts.astype(np.float32), obs=obs)


def fit(adata: ad.AnnData, key: str | None = "mine", epochs: int = 20, **kw) -> GMVAE:
    model = GMVAE(adata, 12, labels_key=key, preset=TINY)
    return model.train(epochs, progress=False, **kw)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return simulated()


@pytest.fixture(scope="module")
def model(cells) -> GMVAE:
    return fit(cells)


def test_a_kind_without_labels_is_none_of_these(cells, model):
    prob = model.predict_labels()
    assert list(prob.columns) == ["alpha", "beta", NONE]
    np.testing.assert_allclose(prob.sum(axis=1), 1, atol=1e-5)
    kind = cells.obs["kind"].to_numpy()
    expected = np.where(kind == "gamma", NONE, kind)
    assert (np.asarray(best_labels(prob)) == expected).mean() > 0.97


def test_a_label_leaves_the_components_of_its_type():
    codes, type_of = torch.tensor([-1, 0, 1]), torch.tensor([0, 1, -1, 0])
    allowed = allowed_components(codes, type_of)
    assert allowed.tolist() == [[True] * 4, [True, False, False, True], [False, True, False, False]]


def test_the_cross_entropy_of_a_label_is_that_of_its_type():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    log_gamma = logits.log_softmax(-1).requires_grad_()
    allowed = torch.rand(5, 4, generator=generator) < 0.5
    allowed[:, 0], allowed[:, 3], allowed[0] = True, False, True
    found = label_cross_entropy(log_gamma, allowed, 0.1)
    for n in range(1, 5):
        p = (log_gamma[:, n].exp() * allowed[n]).sum(-1)
        by_hand = -(0.9 * p.log() + 0.1 * (1 - p).log()).mean()
        torch.testing.assert_close(found[n], by_hand)
    assert found[0] == 0
    (gradient,) = torch.autograd.grad(found.sum(), log_gamma)
    assert not gradient[:, 0].any() and gradient[:, 1:].any()


def test_a_type_that_is_certain_or_impossible_has_a_finite_cross_entropy():
    logits = torch.tensor([[[3e4, -3e4, 0.0], [-3e4, 3e4, 0.0]]], requires_grad=True)
    told = torch.tensor([[True, False, False]] * 2)
    found = label_cross_entropy(logits.log_softmax(-1), told, 0.02)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(found).all() and torch.isfinite(gradient).all()
    assert found[0] <= 0.02 * 50 + 1e-6  # nothing is won, or lost, by being surer
    assert not gradient[0, 0].any()


def alike(seed: int, n: int = 400) -> ad.AnnData:
    "Two kinds, 2-fold apart in 15 of 50 genes; a state that is none moves 15 genes 3-fold."
    rng = np.random.default_rng(seed)
    kind, state = rng.integers(2, size=n), rng.integers(2, size=n)
    rate = np.tile(np.exp(rng.normal(size=50)), (n, 1))
    of_kind = rng.choice(50, 15, replace=False)
    rate[np.ix_(kind == 1, of_kind)] *= 2.0 ** rng.choice([-1, 1], 15)
    rate[np.ix_(state == 1, rng.choice(50, 15, replace=False))] *= 3
    counts = rng.poisson(400 * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame({"kind": np.array(["a", "b"])[kind]}, index=[f"c{i}" for i in range(n)])
    obs["mine"] = obs["kind"].where(rng.random(n) < 0.5)
    return ad.AnnData(counts, obs=obs)


def test_asked_for_types_the_encoder_tells_alike_ones_apart():
    cells, right = alike(1), {}
    for weight in (0.0, 10.0):
        preset = replace(TINY, lr=3e-3, label_weight=weight)
        model = GMVAE(cells, 8, labels_key="mine", preset=preset).train(40, progress=False)
        is_right = np.asarray(best_labels(model.predict_labels())) == cells.obs["kind"]
        right[weight] = is_right[cells.obs["mine"].isna()].mean()
    assert right[10.0] > 0.65 and right[0.0] < 0.6, right  # five seeds: .74 to .88, .48 to .53


def test_labels_of_held_out_cells_set_the_temperature_alone(cells, model):
    other = cells.copy()
    labels = other.obs["mine"].to_numpy(dtype=object)
    labels[model.test_idx] = np.roll(["alpha", "beta", "Unknown"], 1)[model.test_idx % 3]
    other.obs["mine"] = labels
    again = fit(other)
    theirs = again.network.state_dict()
    before, after = model.network.label_temperature, theirs.pop("label_temperature")
    assert before == 1 and after > 2  # what they say now is what nobody could know
    for name, t in theirs.items():
        assert torch.equal(t, model.network.state_dict()[name]), name
    sure, unsure = (m.predict_labels() for m in (model, again))
    assert list(best_labels(sure)) == list(best_labels(unsure))
    assert unsure.max(axis=1).mean() < sure.max(axis=1).mean() - 0.1


def test_without_a_label_among_the_held_out_cells_the_temperature_is_1(cells):
    unlabelled = np.flatnonzero(cells.obs["mine"].isna() | (cells.obs["mine"] == "Unknown"))[:20]
    for held_out in (np.arange(0), unlabelled):
        one = fit(cells, epochs=2, test_idx=held_out)
        assert one.network.label_temperature == 1
        np.testing.assert_allclose(one.predict_labels().sum(axis=1), 1, atol=1e-5)


def test_a_label_may_be_wrong_but_not_of_no_type():
    prob = torch.tensor([[1, 0, 0, 0], [0.2, 0, 0, 0.8], [0, 0, 0, 1]], dtype=torch.float64)
    found = tempered(prob, 1.0)
    wrong = SMOOTHING / 3
    expected = torch.tensor([1 - SMOOTHING + wrong, wrong, wrong, 0])
    torch.testing.assert_close(found[0], expected.double())
    torch.testing.assert_close(found[:, 3], prob[:, 3])
    softer = tempered(prob, 2.0)
    torch.testing.assert_close(softer, found.sqrt() / found.sqrt().sum(1, keepdim=True))


def test_the_temperature_is_what_the_answers_are_too_sure_by_and_never_below_1():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(2 * rng.normal(size=(3000, 3)))
    codes = np.array([rng.choice(3, p=p) for p in logits.softmax(1).numpy()])

    def times(T: float) -> torch.Tensor:
        return torch.nn.functional.pad((T * logits).softmax(1), (0, 1))

    T = fit_temperature(times(3), codes)

    def loss(T: float) -> float:
        own = tempered(times(3), T)[torch.arange(3000), torch.from_numpy(codes)]
        return 2 * np.log(T) ** 2 - own.log().sum().item()

    best = minimize_scalar(loss, bounds=(1, 7), method="bounded").x
    assert abs(T - best) < 0.02 * best and T > 1.5
    assert fit_temperature(times(0.5), codes) == 1
    none = times(3)[:0]
    assert fit_temperature(none, codes[:0]) == 1
    # sure of none of these, where there is a type: no temperature mends it, and none is invented
    lost = torch.tensor([[0.0, 0, 0, 1]])
    assert fit_temperature(lost, np.array([0])) == 1


def test_a_model_of_before_has_no_temperature(model, tmp_path):
    model.save(tmp_path)

    def without(header, state):
        del state["network.label_temperature"]

    rewritten(tmp_path, without)
    old = GMVAE.load(tmp_path)
    assert old.network.label_temperature == 1
    rewritten(tmp_path, tensor("network.label_temperature", lambda _: torch.tensor(0.5)))
    with pytest.raises(ValueError, match="label_temperature is below 1"):
        GMVAE.load(tmp_path)


def test_other_names_in_another_order_are_the_same_answer(cells, model):
    other = cells.copy()
    other.obs["mine"] = other.obs["mine"].map({"alpha": "z", "beta": "b"})
    prob, before = fit(other).predict_labels(), model.predict_labels()
    renamed = pd.Series(best_labels(prob)).astype(str).replace({"z": "alpha", "b": "beta"})
    assert (renamed.to_numpy() == np.asarray(best_labels(before))).mean() > 0.97


def test_without_labels_nothing_of_them_is_kept(cells):
    plain = GMVAE(cells, 12, preset=TINY)
    assert not {"type_of", "name_of", "label_temperature"} & set(plain.network.state_dict())
    assert not {"types", "labels_key"} & set(plain.config())
    with pytest.raises(ValueError, match="trained without labels"):
        plain.predict_labels()


def test_saved_loaded_and_gone_on_with_it_is_the_same(cells, model, tmp_path):
    fit(cells, out=tmp_path / "whole")
    stopped = GMVAE(cells, 12, labels_key="mine", preset=TINY)
    train_epoch, n = stopped._train_epoch, 0

    def stop_in_the_seventh(*args):
        nonlocal n
        n += 1
        if n == 7:
            raise KeyboardInterrupt
        return train_epoch(*args)

    stopped._train_epoch = stop_in_the_seventh
    with pytest.raises(KeyboardInterrupt):
        stopped.train(20, out=tmp_path / "parts", progress=False)
    fit(cells, out=tmp_path / "parts")
    whole, parts = (GMVAE.load(tmp_path / name) for name in ("whole", "parts"))
    for name, t in model.network.state_dict().items():
        assert torch.equal(t, whole.network.state_dict()[name]), name
        assert torch.equal(t, parts.network.state_dict()[name]), name
    assert whole.types == ["alpha", "beta"]
    pd.testing.assert_frame_equal(
        whole.predict_labels(cells).reset_index(drop=True), model.predict_labels()
    )


def test_a_folder_with_other_labels_is_another_model(cells, tmp_path):
    other = cells.copy()
    first = np.flatnonzero(other.obs["mine"].notna())[0]
    other.obs.loc[other.obs_names[first], "mine"] = np.nan
    for given, key, words in (
        (other, "mine", "labels_sha256"),
        (cells, None, "its types are others"),
    ):
        out = tmp_path / str(key)
        fit(cells, epochs=1, out=out)
        with pytest.raises(ValueError, match=words):
            fit(given, key, epochs=1, out=out)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda obs: obs.drop(columns="mine"), "'mine' is not a column"),
        (lambda obs: obs.assign(mine=np.nan), "has a label for 0 of 330 cells"),
        (lambda obs: obs.assign(mine="Unknown"), "has a label for 0 of 330 cells"),
        (lambda obs: obs.assign(mine=obs["mine"].fillna(NONE)), "what the answer calls"),
        (
            lambda obs: obs.assign(mine=["one"] + ["alpha"] * (len(obs) - 1)),
            "type 'one' has 1 labelled cell",
        ),
    ],
)
def test_labels_that_cannot_be_trained_with_are_named(cells, change, words):
    bad = ad.AnnData(cells.X, obs=change(cells.obs))
    with pytest.raises(ValueError, match=words) as error:
        GMVAE(bad, 12, labels_key="mine", preset=TINY)
    assert "\n" not in str(error.value)


def test_a_mixture_without_room_or_cells_without_labels_are_refused(cells, model):
    with pytest.raises(ValueError, match="K is 2, and the labels have 2 types"):
        GMVAE(cells, 2, labels_key="mine", preset=TINY)
    alphas = np.flatnonzero(cells.obs["mine"] == "alpha")
    with pytest.raises(ValueError, match="type 'alpha' are held out"):
        fit(cells, test_idx=alphas)


def test_two_types_are_never_one_cluster_and_a_free_component_joins_one():
    shared = np.array([[50.0, 49, 49], [49, 50, 49], [49, 49, 50]])
    assert cluster_tree(shared).n_clusters == 1
    tree = cluster_tree(shared, type_of=np.array([0, 1, -1]))
    of = cut_tree(tree.forks, tree.n_clusters)
    assert tree.n_clusters == 2 and of[0] != of[1]


def test_a_stray_label_does_not_name_a_cluster():
    codes = np.r_[np.tile([0, -1], 50), np.full(99, -1), 1, np.tile([1, -1], 50)]
    gamma = torch.eye(3)[torch.arange(3).repeat_interleave(100)]
    owners = torch.tensor([0, 1, 1])
    named = name_clusters(gamma, codes, torch.arange(3), owners)
    assert named.tolist() == [0, -1, 1]
    few = have_no_labels(np.array([0, 0, 4]), np.array([5, 50, 50]), 0.5)
    assert few.tolist() == [False, True, False]


def test_each_type_has_a_component_however_few_its_cells():
    assert shares(np.array([1000, 1, 0]), 10).tolist() == [9, 1, 0]
    assert shares(np.array([0, 1, 50]), 10).sum() == 10
    assert shares(np.array([0, 1, 50]), 10).min() == 1


def test_the_command_and_the_line_tell_the_types(cells, tmp_path, monkeypatch):
    def place(X, seed=0):
        return np.asarray(X[:, :2], dtype=np.float32)

    monkeypatch.setattr(annotation, "umap", place)
    monkeypatch.setattr(tl, "umap", place)
    monkeypatch.setitem(PRESETS, "recommended", TINY)
    file, out = tmp_path / "mine.h5ad", tmp_path / "run"
    cells.write_h5ad(file)
    how = dict(supervise="mine", K=12, max_epochs=3, quiet=True)
    gmvae_train(str(file), str(out), **how)
    written = ad.read_h5ad(out / "annotated.h5ad")
    gmvae_embed(str(out), str(file), out=str(tmp_path / "new.h5ad"), quiet=True)
    new = ad.read_h5ad(tmp_path / "new.h5ad")
    ours = cells.copy()
    tl.gmvae(ours, labels_key="mine", K=12, max_epochs=3, progress=False)
    for other in (written, new):
        assert list(other.uns["gmvae"]["types"]) == ["alpha", "beta", NONE]
        types = other.obs["gmvae_type"].astype(str).to_numpy()
        np.testing.assert_array_equal(types, ours.obs["gmvae_type"].astype(str))
        sure = other.obs["gmvae_type_probability"]
        np.testing.assert_allclose(sure, ours.obs["gmvae_type_probability"], atol=1e-6)
    with pytest.raises(ValueError, match="other settings"):
        gmvae_train(str(file), str(out), **(how | dict(unlabeled_category="x")), resume=True)
    see_types_on_pages(out, written, int(cells.obs["mine"].notna().sum()))


def see_types_on_pages(out: Path, written: ad.AnnData, given: int) -> None:
    "What she opens: the map, the table of cells and the report name the types."
    types = written.obs["gmvae_type"].astype(str).to_numpy()
    sure = written.obs["gmvae_type_probability"].to_numpy()
    header, blocks = unpack((out / "explore.html").read_text(encoding="utf-8"))
    group = next(g for g in header["groups"] if g["title"] == "type")
    np.testing.assert_array_equal(np.array(group["names"])[blocks[group["block"]]], types)
    number = next(n for n in header["numbers"] if n["title"] == "type probability")
    np.testing.assert_allclose(blocks[number["block"]] * number["unit"], sure, atol=1e-4)
    table = read_table(out / "clusters.csv")
    assert table["type"].tolist() == types.tolist()
    np.testing.assert_allclose(table["type_probability"], sure, atol=1e-6)
    page = " ".join((out / "report.html").read_text(encoding="utf-8").split())
    assert f"given the types of {given} cells (obs column mine; of held-out cells they set" in page
    names, cells = np.unique(types, return_counts=True)
    for name, n in zip(names, cells):
        assert re.search(rf"<b>{name}</b></td> <td[^>]*>\d+</td> <td[^>]*>{n}</td>", page), name


def test_types_of_an_earlier_run_are_not_those_of_this_one(cells):
    old = cells.copy()
    old.obs["gmvae_type"] = "alpha"
    old.uns["gmvae"] = {"K": 2}
    assert told_types(old) is None


@pytest.mark.parametrize("none", [-1, -1.0, "-1"])
@pytest.mark.parametrize("kind", [int, float])
def test_a_number_may_stand_for_no_label(cells, tmp_path, none, kind):
    "A column of numbers with a missing value is one of floats."
    adata = cells.copy()
    adata.obs["code"] = pd.factorize(adata.obs["mine"])[0].astype(kind)  # -1 where none is
    settings = dict(labels_key="code", unlabeled_category=none, preset=TINY, K=8)
    model = GMVAE(adata, **settings).train(1, progress=False)
    end = ".0" if kind is float else ""
    assert model.types == [f"0{end}", f"1{end}"] and model.unlabeled_category == f"-1{end}"
    model.save(tmp_path)
    assert GMVAE.load(tmp_path, adata).types == model.types


@pytest.mark.parametrize("none", [None, np.nan, ["a"], True, np.inf])
def test_what_cannot_stand_for_no_label_is_refused(cells, none):
    with pytest.raises(ValueError, match="unlabeled_category is .*; expected the text or"):
        GMVAE(cells, labels_key="mine", unlabeled_category=none)


def test_a_type_whose_labels_a_seed_would_hold_out_keeps_one_to_train_on(cells):
    codes = np.array([0, 0, 1, 1, -1, 2, 2, -1])
    split = np.array([0, 1, 4]), np.array([2, 3, 5, 6, 7])
    train, test = with_types_to_train_on(split, codes)
    assert train.tolist() == [0, 1, 2, 4, 5] and test.tolist() == [3, 6, 7]
    nothing = with_types_to_train_on(split, np.array([0, 1, 0, 1, -1, 0, 0, -1]))
    assert nothing is split
    adata, held_out = cells.copy(), training_split(cells.n_obs, None, 0)[1]
    adata.obs["mine"] = adata.obs["mine"].astype(object)
    adata.obs.iloc[held_out[:3], adata.obs.columns.get_loc("mine")] = "rare"
    model = GMVAE(adata, 12, labels_key="mine", preset=TINY).train(1, progress=False)
    assert held_out[0] in model.train_idx and len(model.test_idx) == len(held_out) - 1
