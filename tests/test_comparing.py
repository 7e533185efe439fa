"""Two groups of cells of a file, and a table of genes: the one of Python, and safely written."""

import json
import sys
from dataclasses import replace
from itertools import count

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import counts
from gmvae_nb.comparing import gmvae_differential
from gmvae_nb.differential import differential_expression
from gmvae_nb.tables import read_table
from gmvae_nb.train import GMVAE
from scipy.sparse import csr_matrix

from hazards import SMALL, cells

GROUPS = dict(group="cell_type=type0", against="cell_type=type1,type2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A folder with a model, its cells as somebody's file, and the two in memory."
    folder, adata = tmp_path_factory.mktemp("comparing"), cells(240)
    preset = replace(SMALL, lr=1e-2, input_dropout=0.0, weight_decay=0.0)
    model = GMVAE(adata, 4, batch_key="batch", preset=preset).train(20, progress=False)
    model.save(folder / "run")
    theirs = adata[::-1, ::-1].copy()
    theirs.obs["gmvae_cluster"] = np.where(np.arange(240) < 100, "0", "1")
    theirs.write_h5ad(folder / "mine.h5ad")
    return folder, adata, model


def table_of(run, out, data="mine.h5ad", **words) -> tuple[pd.DataFrame, dict]:
    words = dict(quiet=True) | words
    said = gmvae_differential(str(run[0] / "run"), str(run[0] / data), str(out), **words)
    return read_table(out), said


def test_the_table_is_that_of_python(run, tmp_path):
    folder, adata, model = run
    table, said = table_of(run, tmp_path / "t.csv", **GROUPS, fdr_target=0.2)
    kind = np.where(adata.obs["cell_type"] == "type0", "one", "other")
    rates = dict(delta=0.25, fdr_target=0.2)
    same = differential_expression(model, adata, kind, "one", "other", **rates)
    assert set(zip(table["group1"], table["group2"])) == {tuple(GROUPS.values())}
    pd.testing.assert_frame_equal(table.iloc[:, 2:], same.iloc[:, 2:], rtol=1e-5, atol=1e-6)
    assert [said["cells1"], said["cells2"]] == [80, 160] and said["notes"] == []
    assert said["named"] == same["is_de"].sum() and 0 < said["named"] < 20
    named = (table["fdr"] <= 0.2) & (table["proba_de"] > 0.5)
    assert table["fdr"].between(0, 1).all() and table["is_de"].eq(named).all()
    # means are of the decoder, and in the right order
    most = table["lfc"].abs().idxmax()
    assert (table["mean1"] > table["mean2"])[most] == (table["lfc"] > 0)[most]
    rest, _ = table_of(run, tmp_path / "t.csv", group=GROUPS["group"], fdr_target=0.2)
    pd.testing.assert_frame_equal(rest.drop(columns="group2"), table.drop(columns="group2"))


def test_cells_that_are_left_out_do_not_matter(run, tmp_path):
    words = dict(GROUPS, subset="gmvae_cluster=1")
    table, said = table_of(run, tmp_path / "t.csv", **words)
    part = ad.read_h5ad(run[0] / "mine.h5ad")[100:].copy()
    part.write_h5ad(run[0] / "part.h5ad")
    alone, _ = table_of(run, tmp_path / "alone.csv", "part.h5ad", **GROUPS)
    pd.testing.assert_frame_equal(table, alone, rtol=1e-5, atol=1e-6)
    assert said["cells1"] + said["cells2"] == 140


def test_what_was_found_in_these_counts_is_said(run, tmp_path):
    _, said = table_of(run, tmp_path / "t.csv", group="gmvae_cluster=1")
    assert [n for n in said["notes"] if n.startswith("gmvae_cluster was found in these counts")]
    _, said = table_of(run, tmp_path / "t.csv", group="batch=0", against="batch=1")
    assert [n for n in said["notes"] if "the groups have no batch in common" in n]


@pytest.mark.parametrize(
    "words, said",
    [
        (dict(group="kind=B"), "group='kind=B': 'kind' is not a column of obs"),
        (dict(group="cell_type=x"), "group='cell_type=x': no cell has cell_type 'x'"),
        (dict(group="batch=0", against="cell_type=x"), "against='cell_type=x': no cell has"),
        (dict(group="batch=0", against="cell_type=type0"), "40 cells are of both groups"),
        (dict(group="batch=0", subset="batch=1"), "no cell that is looked at is in 'batch=0'"),
        (dict(group="batch=0", subset="batch=0"), "looked at have batch=0: there are no others"),
        (dict(group="batch=0", delta=-1.0), "delta is -1.0"),
        (dict(group="batch=0", map_batch=["2=1"]), "the data have no batch '2'"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused(run, tmp_path, words, said):
    with pytest.raises(ValueError, match=said):
        table_of(run, tmp_path / "t.csv", **words)
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_others_is_replaced(run, tmp_path, monkeypatch):
    out, theirs = tmp_path / "t.csv", "barcode,mine\n"
    out.write_text(theirs)
    monkeypatch.setattr(GMVAE, "load", lambda *a: pytest.fail("read before it was refused"))
    with pytest.raises(ValueError, match="is no table of gmvae_differential"):
        table_of(run, out, **GROUPS)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is the input, which is never changed"):
            table_of(run, run[0] / "mine.h5ad", **GROUPS, overwrite=overwrite)
    monkeypatch.undo()
    assert out.read_text() == theirs
    table_of(run, out, **GROUPS, overwrite=True)
    table_of(run, out, **GROUPS)  # its own


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "run.json", "clusters.csv"])
def test_no_file_of_a_model_is_replaced(run, name):
    path = run[0] / "run" / name
    before = path.read_bytes() if path.exists() else None
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"{name} is of the model, or of the run"):
            table_of(run, path, **GROUPS, overwrite=overwrite)
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_shell_gets_codes_and_a_sentence(run, tmp_path, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["gmvae_differential", *map(str, words), "--quiet"])
        try:
            gmvae_differential()
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    given = run[0] / "run", run[0] / "mine.h5ad", "--out", tmp_path / "t.csv", "--group"
    code, out, said = call(*given, "cell_type=type0", "--json")
    assert code == 0 and said == "" and json.loads(out)["cells1"] == 80
    code, out, said = call(*given, "cell_type=x")
    assert code == 2 and out == "" and said.count("\n") == 1
    code, out, said = call(run[0], *given[1:], "cell_type=type0")
    assert code == 2 and said.count("\n") == 1
    states = count()
    with monkeypatch.context() as patch:
        patch.setattr("gmvae_nb.files.file_state", lambda path: next(states))
        code, out, said = call(*given, "cell_type=type0")
    assert code == 4 and "was changed or replaced while it was read" in said


def test_cells_outside_the_subset_may_be_such_as_the_model_does_not_know(run, tmp_path):
    folder, _, _ = run
    theirs = ad.read_h5ad(folder / "mine.h5ad")
    words = dict(group="cell_type=type0", subset="kept=yes")
    theirs.obs["kept"] = np.where(np.arange(240) < 150, "yes", "no")
    theirs[:150].copy().write_h5ad(tmp_path / "part.h5ad")
    theirs.obs["batch"] = np.where(theirs.obs["kept"] == "no", "new", theirs.obs["batch"])
    y = theirs.X.toarray()
    y[200] = 0
    theirs.X = csr_matrix(y)
    theirs.write_h5ad(tmp_path / "all.h5ad")
    tables = [
        table_of((folder,), tmp_path / f"{name}.csv", tmp_path / f"{name}.h5ad", **words)
        for name in ("part", "all")
    ]
    pd.testing.assert_frame_equal(tables[0][0], tables[1][0])
    assert tables[0][1]["cells1"] == tables[1][1]["cells1"]
    del words["subset"]
    with pytest.raises(ValueError, match="'new' was not trained on"):
        table_of((folder,), tmp_path / "t.csv", tmp_path / "all.h5ad", **words)


def test_what_is_refused_is_refused_before_counts_are_looked_at(run, tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "find_counts", None)
    theirs = ad.read_h5ad(run[0] / "mine.h5ad")
    theirs.obs["batch"] = "new"
    theirs.write_h5ad(tmp_path / "new.h5ad")
    odd = [dict(delta=-1.0), dict(fdr_target=5.0), dict(min_matched=2.0), dict(batch_key="nope")]
    for words in (*odd, dict(data=tmp_path / "new.h5ad")):
        with pytest.raises(ValueError, match="expected|not a column|not trained on"):
            table_of(run, tmp_path / "t.csv", **{"group": "cell_type=type0", **words})
