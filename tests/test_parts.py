"""Many files as one: what is matched, what is refused, and a run that is the joined file's."""

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation, embed
from gmvae_nb.after_training import gmvae_embed, gmvae_report, gmvae_verify
from gmvae_nb.commands import gmvae_train
from gmvae_nb.embed import embed_file
from gmvae_nb.new_batches import with_new_batches
from gmvae_nb.parts import join_files, named_files, read_files
from gmvae_nb.reading import read_input
from gmvae_nb.runs import train_run
from gmvae_nb.stability import data_of_run
from gmvae_nb.train import GMVAE
from scipy.sparse import csc_matrix, csr_matrix

from hazards import SMALL, cells, no_map

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(annotation, "umap", no_map)


def write(folder, parts) -> list[str]:
    "One file for each, and their names."
    folder.mkdir(exist_ok=True)
    for name, part in zip(NAMES, parts):
        part.copy().write_h5ad(folder / f"{name}.h5ad")
    return [str(folder / f"{name}.h5ad") for name in NAMES[: len(parts)]]


def thirds(n=120, G=20) -> list[ad.AnnData]:
    whole = cells(n, G)
    return [whole[i::3].copy() for i in range(3)]


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "samples", thirds())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of a folder of three files by the command, with what it returned."
    folder = tmp_path_factory.mktemp("parts")
    write(folder / "samples", thirds())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation, "umap", no_map)
        options = dict(K=3, max_epochs=1, preset="blog", quiet=True)
        result = gmvae_train(str(folder / "samples"), out=str(folder / "run"), **options)
    return folder / "run", folder / "samples", result, options


def test_three_files_give_the_bytes_of_the_joined_one(files, tmp_path):
    # stored in another way, and with its genes in another order
    second = ad.read_h5ad(files[1])[:, ::-1].copy()
    second.X = csc_matrix(second.X)
    second.write_h5ad(files[1])
    whole = ad.concat(dict(zip(NAMES, thirds())), label="file")
    whole.write_h5ad(tmp_path / "whole.h5ad")
    inputs = {
        "parts": read_files(files),
        "whole": read_input(tmp_path / "whole.h5ad", batch_key="file"),
    }
    options = dict(batch_key="file", preset=SMALL, max_epochs=3, progress=False)
    for name, data in inputs.items():
        train_run(data, tmp_path / name, **options)
    of_parts, of_whole = (tmp_path / n / "model.safetensors" for n in inputs)
    assert of_parts.read_bytes() == of_whole.read_bytes()
    assert inputs["parts"].sha256 == inputs["whole"].sha256


def test_the_order_of_the_files_is_part_of_the_run(files):
    assert read_files(files).sha256 != read_files(files[::-1]).sha256


def test_a_run_of_a_folder_lists_its_parts_and_annotates_all_cells(run):
    out, samples, result, options = run
    told = json.loads((out / "run.json").read_text())
    assert [part["file"] for part in told["parts"]] == list(NAMES)
    assert [part["cells"] for part in told["parts"]] == [40, 40, 40]
    assert {part["path"] for part in told["parts"]} == set(named_files(samples))
    assert told["batches"] == list(NAMES) and told["settings"]["batch_key"] == "file"
    assert told["notes"][0] == "genes of the 3 files: a 20, b 20, c 20"
    annotated = ad.read_h5ad(out / "annotated.h5ad")
    assert list(annotated.obs["file"]) == [name for name in NAMES for _ in range(40)]
    whole = cells(120)
    assert (annotated.X != whole[annotated.obs_names].X).nnz == 0
    assert {"gmvae_cluster", "cell_type"} <= set(annotated.obs)
    gmvae_report(str(out))
    assert "a and 2 more" in (out / "report.html").read_text()
    gmvae_verify([str(out)])
    assert data_of_run(out)[1].sha256 == told["settings"]["counts_sha256"]
    with pytest.raises(ValueError, match="has no .h5ad file"):  # but the run's own
        named_files(out)


def test_a_run_goes_on_with_the_same_files_and_with_no_others(run, tmp_path):
    out, samples, _, options = run
    listed = named_files(f"{samples}/*.h5ad")
    options = dict(options, out=str(out), resume=True)
    again = gmvae_train(listed, **options)
    assert again["clusters"] == run[2]["clusters"]
    changed = ad.read_h5ad(listed[2])
    changed.X[0, 0] += 1
    changed.write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(ValueError, match="other counts, cells or genes"):
        gmvae_train([*listed[:2], str(tmp_path / "c.h5ad")], **options)


def test_a_file_that_comes_later_is_a_batch_by_its_name(run, tmp_path):
    out, samples, _, _ = run
    model, target = GMVAE.load(out), tmp_path / "new.h5ad"
    report = embed_file(model, samples / "b.h5ad", target)
    assert report["batches"] == {"b": "b"}
    of_b = np.arange(120) % 3 == 1
    expected = ad.read_h5ad(out / "annotated.h5ad")[cells(120).obs_names[of_b]]
    found = ad.read_h5ad(target).obsm["X_gmvae"]
    np.testing.assert_allclose(found, expected.obsm["X_gmvae"], atol=1e-5)
    assert "file" not in ad.read_h5ad(target).obs
    other = tmp_path / "d.h5ad"
    other.write_bytes((samples / "b.h5ad").read_bytes())
    with pytest.raises(ValueError, match="'d'"):
        embed_file(model, other, target)


def test_genes_by_a_column_in_which_a_name_occurs_twice(tmp_path):
    "The joined cells can be written: no index has the name of a column."
    parts = thirds()[:2]
    for part in parts:
        symbols = list(part.var_names)
        symbols[7] = symbols[3]
        part.var["symbol"] = symbols
        part.var_names = [f"ENS{i}" for i in range(20)]
    files = write(tmp_path / "samples", parts)
    found = join_files(files, gene_key="symbol")
    assert list(found.cells.var_names[[3, 7]]) == ["gene3", "gene3-1"]
    assert found.cells.var_names.name is None
    found.cells.write_h5ad(tmp_path / "joined.h5ad")
    again = ad.read_h5ad(tmp_path / "joined.h5ad")
    assert (again.X != ad.concat(parts).X).nnz == 0
    assert list(again.var["symbol"][["gene3", "gene3-1"]]) == ["gene3", "gene3"]
    said = [note for note in found.notes if "genes of the same name, as 'gene3'" in note]
    assert len(said) == 1 and said[0].startswith("warning: ")
    assert not any("same name" in note for note in join_files(files).notes)


@pytest.mark.parametrize("name", ["barcode", "file"])
def test_names_of_cells_that_are_a_column_too(name, tmp_path):
    parts = thirds()[:2]
    for part in parts:
        part.obs_names = [f"cell{i}" for i in range(40)]  # in both files
        part.obs_names.name = name
        if name == "barcode":
            part.obs[name] = part.obs_names
    found = join_files(write(tmp_path / "samples", parts)).cells
    assert found.obs_names[0] == "a:cell0"
    found.write_h5ad(tmp_path / "joined.h5ad")
    again = ad.read_h5ad(tmp_path / "joined.h5ad").obs
    assert again["file"].iloc[0] == "a" and list(again.index) == list(found.obs_names)
    assert name == "file" or again[name].iloc[0] == "cell0"


def test_covariates_of_files_are_named_in_a_list(files):
    for one in ("batch", 5):
        says = f"^categorical_covariate_keys is {one!r}; expected a list"
        for some in (files, files[:1]):
            with pytest.raises(ValueError, match=says):
                read_files(some, categorical_covariate_keys=one)
    named = pd.Index(["batch"])
    expected = read_files(files, categorical_covariate_keys=["batch"])
    assert read_files(files, categorical_covariate_keys=named).notes == expected.notes


@pytest.fixture
def no_answer(monkeypatch):
    "Nothing may be asked of a model."

    def annotate(*_):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(embed, "annotate", annotate)


def same_cells(one: ad.AnnData, other: ad.AnnData) -> None:
    "To the bit, what was written of the same cells."
    assert list(one.obs_names) == list(other.obs_names)
    for key in ("X_gmvae", "gmvae_prob", "X_gmvae_umap"):
        assert one.obsm[key].tobytes() == other.obsm[key].tobytes(), key
    for key in ("gmvae_cluster", "gmvae_confidence", "gmvae_novelty"):
        assert list(one.obs[key]) == list(other.obs[key]), key


def test_three_files_are_embedded_as_the_joined_one_and_as_each_alone(run, files, tmp_path):
    out, samples, _, _ = run
    whole = ad.concat(dict(zip(NAMES, thirds())), label="file")
    whole.write_h5ad(tmp_path / "whole.h5ad")
    how = dict(quiet=True, csv=str(tmp_path / "cells.csv"))
    report = gmvae_embed(str(out), str(Path(files[0]).parent), **how)
    assert report["out"] == str(tmp_path / "samples/a_and_2_more_gmvae.h5ad")
    assert report["cells"] == 120 and report["batches"] == {n: n for n in NAMES}
    assert report["notes"][0] == "genes of the 3 files: a 20, b 20, c 20"
    assert report["counts"] == "X of a, …"
    assert [part["file"] for part in report["parts"]] == list(NAMES)
    joined = ad.read_h5ad(report["out"])
    assert (joined.X != whole.X).nnz == 0 and list(joined.obs["file"]) == list(whole.obs["file"])
    table = pd.read_csv(tmp_path / "cells.csv")
    assert list(table["barcode"]) == list(whole.obs_names)
    of_whole = gmvae_embed(str(out), str(tmp_path / "whole.h5ad"), quiet=True)
    same_cells(joined, ad.read_h5ad(of_whole["out"]))
    alone = gmvae_embed(str(out), files[1], quiet=True)
    assert alone["out"] == str(tmp_path / "samples/b_gmvae.h5ad") and not alone["parts"]
    found, of_b = ad.read_h5ad(alone["out"]), joined[joined.obs["file"] == "b"]
    np.testing.assert_allclose(found.obsm["X_gmvae"], of_b.obsm["X_gmvae"], atol=1e-6)
    # its own copies are no parts, unless they are named
    assert named_files(tmp_path / "samples") == files == named_files(f"{tmp_path}/samples/*.h5ad")
    assert named_files(alone["out"]) == [alone["out"]]


def test_a_gene_that_one_file_lacks_is_zero_in_its_cells_alone(run, files, tmp_path):
    model = GMVAE.load(run[0])
    target, second = tmp_path / "out.h5ad", ad.read_h5ad(files[1])
    second[:, 1:].copy().write_h5ad(files[1])
    report = embed_file(model, files, target)
    words = "b: 1 of the model's 20 genes are missing and count as zero here: gene0"
    assert words in report["notes"] and report["missing"] == 0
    joined = ad.read_h5ad(target)
    for file, name in zip(files, NAMES):
        embed_file(model, file, tmp_path / "alone.h5ad")
        expected = ad.read_h5ad(tmp_path / "alone.h5ad").obsm["X_gmvae"]
        found = joined[joined.obs["file"] == name].obsm["X_gmvae"]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_cannot_be_embedded_with_others_is_refused_before_the_model_is_asked(
    run, files, tmp_path, no_answer
):
    model, target = GMVAE.load(run[0]), tmp_path / "out.h5ad"
    other = tmp_path / "d.h5ad"
    part = cells(40, seed=3)
    part.write_h5ad(other)
    with pytest.raises(ValueError, match=r"^batch 'd' was not trained on \(1 such\)"):
        embed_file(model, [*files, other], target)
    part[:, :10].copy().write_h5ad(other)
    with pytest.raises(ValueError, match=r"^\S+/d\.h5ad: 10 of the model's 20 genes"):
        embed_file(model, [*files, other], target)
    part.var_names = [f"other{i}" for i in range(20)]
    part.write_h5ad(other)
    with pytest.raises(ValueError, match=r"^\S+/d\.h5ad: 0 of the model's 20 genes"):
        embed_file(model, [*files, other], target, min_matched=0)
    with pytest.raises(ValueError, match="c.h5ad is the input"):
        embed_file(model, files, files[2], overwrite=True)
    with pytest.raises(ValueError, match="b.h5ad is the input"):
        embed_file(model, files, target, csv=files[1])
    target.write_text("mine")
    with pytest.raises(ValueError, match="out.h5ad is there and was not written"):
        embed_file(model, files, target)
    with pytest.raises(ValueError, match=r"a\.h5ad is named 2 times"):
        gmvae_embed(str(run[0]), [files[0], files[0]], quiet=True)
    assert target.read_text() == "mine" and not list(tmp_path.rglob("*_gmvae.h5ad"))


def test_files_of_a_model_whose_batch_is_a_column(files, tmp_path):
    model = GMVAE(cells(120), K=3, batch_key="batch", preset=SMALL)
    target = tmp_path / "out.h5ad"
    assert embed_file(model, files, target)["batches"] == {"0": "0", "1": "1"}
    found = ad.read_h5ad(target)[cells(120).obs_names].obsm["X_gmvae"]
    expected = model.get_latent_representation()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for file in files[1:]:
        part = ad.read_h5ad(file)
        del part.obs["batch"]
        part.write_h5ad(file)
    with pytest.raises(ValueError, match=r"b\.h5ad: 'batch' is not a column of obs"):
        embed_file(model, files, target)
    report = embed_file(model, files[1:], target, map_batch={"*": "1"})
    assert set(report["batches"].values()) == {"1"}
    report = embed_file(model, files, target, batch_key="file", map_batch={"*": "0"})
    assert set(report["batches"].values()) == {"0"}


PEAK = """
import resource, sys
from gmvae_nb.parts import join_files
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
joined = join_files(sys.argv[1:]).cells
print((peak() - before) / (8 * joined.X.nnz))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes is Linux")
def test_joining_takes_little_more_memory_than_the_parts(tmp_path):
    rng, files = np.random.default_rng(0), []
    for k in range(4):
        n, G, each = 4000, 4000, 1000
        indices = (np.arange(each) * 4 + rng.integers(0, 4, (n, each))).astype(np.int32)
        values = np.ones(n * each, dtype=np.float32)
        y = csr_matrix((values, indices.ravel(), np.arange(n + 1) * each), shape=(n, G))
        names = [f"{k}_{i}" for i in range(n)]
        part = ad.AnnData(y, obs=pd.DataFrame(index=names))
        part = part[:, ::-1].copy() if k % 2 else part
        part.write_h5ad(tmp_path / f"{k}.h5ad")
        files.append(str(tmp_path / f"{k}.h5ad"))
    done = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True)
    assert float(done.stdout) < 1.8, done.stderr


def test_genes_of_all_files_or_of_any_and_it_is_said(tmp_path):
    a, b, c = thirds()
    b.var_names = [*b.var_names[:15], *(f"other{i}" for i in range(5))]
    files = write(tmp_path, [a, b, c[:, ::-1]])
    inner, outer = join_files(files), join_files(files, join="outer")
    assert inner.cells.X.has_canonical_format  # else each look at the counts copies them
    assert list(inner.cells.var_names) == list(a.var_names[:15])
    assert list(outer.cells.var_names) == [*a.var_names, *b.var_names[15:]]
    assert "15 genes are in all files and are kept; 10 are not in all" in inner.notes[1]
    assert "warning: a lacks 5, b lacks 5, c lacks 5 of them, which count 0" in outer.notes[2]
    for name, part in zip(NAMES, (a, b, c)):
        of = outer.cells[outer.cells.obs["file"] == name]
        assert (of[:, part.var_names].X != part.X).nnz == 0
        lacking = outer.cells.var_names.difference(part.var_names)
        assert of[:, lacking].X.nnz == 0
        kept = inner.cells[inner.cells.obs["file"] == name]
        assert (kept.X != part[:, inner.cells.var_names].X).nnz == 0
    with pytest.raises(ValueError, match="join is 'left'; expected inner or outer"):
        join_files(files, join="left")


def test_genes_are_matched_by_a_column_that_is_named(tmp_path):
    a, b, c = thirds()
    b.var["symbol"], b.var_names = list(b.var_names), [f"ENSG{i}" for i in range(20)]
    for part in (a, c):
        part.var["symbol"] = list(part.var_names)
    files = write(tmp_path, [a, b, c])
    with pytest.raises(ValueError, match=r"share 0 genes.*'ENSG0' in b.*--gene_key"):
        join_files(files)
    found = read_files(files, gene_key="symbol")
    assert found.sha256 == read_files(write(tmp_path / "plain", thirds())).sha256


def test_names_of_cells_get_their_file_only_where_they_clash(files):
    assert list(join_files(files).cells.obs_names[:2]) == ["cell0", "cell3"]
    third = ad.read_h5ad(files[2])
    third.obs_names = ["cell0", *third.obs_names[1:]]
    third.write_h5ad(files[2])
    found = join_files(files)
    assert found.cells.obs_names.is_unique
    assert list(found.cells.obs_names[[0, 40, 80]]) == ["a:cell0", "b:cell1", "c:cell0"]
    assert "1 cell names are in more than one file" in found.notes[-1]


def test_columns_that_differ_can_be_written(files, tmp_path):
    first, second = (ad.read_h5ad(file) for file in files[:2])
    first.obs["plate"], second.obs["plate"] = np.arange(40), ["x"] * 40
    first.obs["good"], second.obs["depth"] = True, 1.5
    for part, file in ((first, files[0]), (second, files[1])):
        part.write_h5ad(file)
    obs = join_files(files).cells.obs
    assert list(obs["plate"].iloc[[0, 39, 40]]) == ["0", "39", "x"]
    assert obs["plate"].isna().sum() == 40 and obs["good"].isna().sum() == 80
    assert list(obs["depth"].iloc[[0, 40]].isna()) == [True, False]
    path = tmp_path / "joined.h5ad"
    annotation.write_cells(join_files(files).cells, path)
    back = ad.read_h5ad(path).obs
    pd.testing.assert_series_equal(back["plate"].isna(), obs["plate"].isna())


def test_another_batch_is_that_of_all_files(files):
    data = read_files(files, batch_key="batch", labels_key="cell_type")
    whole = ad.concat(dict(zip(NAMES, thirds())), label="file")
    assert list(data.cells.obs["batch"]) == list(whole.obs["batch"])
    lacking = ad.read_h5ad(files[1])
    del lacking.obs["batch"], lacking.obs["cell_type"]
    lacking.write_h5ad(files[1])
    with pytest.raises(ValueError, match=r"b\.h5ad: 'batch' is not a column of obs"):
        read_files(files, batch_key="batch")
    notes = read_files(files, labels_key="cell_type").notes
    assert "80 of 120 cells have a label in cell_type: no other is scored, all are used" in notes
    options = dict(continuous_covariate_keys=["depth"])
    with pytest.raises(ValueError, match=r"a\.h5ad: 'depth' is not a column of obs"):
        read_files(files, **options)


def test_what_is_refused_names_the_file(files, tmp_path):
    def spoilt(change) -> list[str]:
        part = thirds()[1]
        change(part)
        part.write_h5ad(tmp_path / "b.h5ad")
        return [files[0], str(tmp_path / "b.h5ad"), files[2]]

    def normalise(part):
        part.X = part.X * 0.5 / 3

    def own_file(part):
        part.obs["file"] = "mine"

    def no_shared_count(part):
        part.X = part.X.multiply(np.arange(20) == 0).tocsr()
        part.var_names = ["new", *part.var_names[1:]]

    for change, words in [
        (normalise, r"/b\.h5ad: adata.X holds 0\.\d+"),
        (own_file, r"/b\.h5ad: obs has a column 'file' of its own"),
        (no_shared_count, "40 of 120 cells have no count in the 19 genes.*--join outer"),
    ]:
        with pytest.raises(ValueError, match=words):
            join_files(spoilt(change))
    same = tmp_path / "same.h5ad"
    same.write_bytes((tmp_path / "samples/a.h5ad").read_bytes())
    with pytest.raises(ValueError, match=r"same\.h5ad and .*a\.h5ad are the same"):
        join_files([*files, str(same)])
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    for other, words in [
        (tmp_path / "t.csv", "t.csv' is a table"),
        (tmp_path / "no.h5ad", "there is no file .*no.h5ad"),
        ("kang_pbmc", "'kang_pbmc' is a data set by its name"),
    ]:
        with pytest.raises(ValueError, match=words):
            join_files([files[0], str(other)])


def test_fractional_counts_of_one_file_are_rounded_if_asked(files):
    second = ad.read_h5ad(files[1])
    second.X = second.X * 0.9
    second.write_h5ad(files[1])
    with pytest.raises(ValueError, match=r"b\.h5ad: .*--round_counts"):
        read_files(files)
    data = read_files(files, round_counts="nearest")
    assert data.round_counts == "nearest"
    assert any(note.startswith("b: ") and "rounded to the" in note for note in data.notes)


def test_a_file_that_changes_while_it_is_read_is_refused(files, monkeypatch):
    from gmvae_nb import parts

    def read(adata, path, *how):
        path.touch()
        return counts(adata, path, *how)

    counts = parts.counts_in_memory
    monkeypatch.setattr(parts, "counts_in_memory", read)
    with pytest.raises(OSError, match=r"a\.h5ad was changed or replaced"):
        join_files(files)


def test_no_part_is_written_over(files, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    third = out / "annotated.h5ad"
    thirds()[2].write_h5ad(third)
    data = read_files([*files[:2], str(third)])
    with pytest.raises(ValueError, match="annotated.h5ad"):
        annotation.check_annotation(data, third)
    annotation.check_annotation(data, out / "other.h5ad")


def test_some_of_the_cells_of_several_files(files, tmp_path):
    data = read_files(files, subset="file=a,c")
    assert data.cells.n_obs == 80 and data.notes[2].startswith("80 of 120 cells")
    assert set(data.source.obs["file"]) == {"a", "c"}


def test_one_file_in_a_folder_is_that_file(files, tmp_path):
    alone = tmp_path / "alone"
    write(alone, thirds()[:1])
    data = read_files(named_files(alone))
    assert data.path == alone / "a.h5ad" and data.parts is None
    assert "file" not in data.cells.obs


def test_a_column_of_numbers_here_and_of_text_there_is_text(tmp_path):
    parts = thirds()
    for part, values in zip(parts, ([1, 2], ["a", "b"], [0.5, 1.5])):
        part.obs["mix"] = pd.Categorical(np.resize(np.array(values, dtype=object), part.n_obs))
        part.obs["kind"] = pd.Categorical(np.resize(["v", "u"], part.n_obs), ["v", "u"])
    found = join_files(write(tmp_path / "samples", parts)).cells
    found.write_h5ad(tmp_path / "joined.h5ad")
    again = ad.read_h5ad(tmp_path / "joined.h5ad").obs
    assert sorted(again["mix"].cat.categories) == ["0.5", "1", "1.5", "2", "a", "b"]
    assert list(again["kind"].astype(str)[:2]) == ["v", "u"]


@pytest.mark.parametrize("kinds", ["float text", "int float", "int text", "int none float"])
def test_a_whole_number_is_one_batch_whatever_a_file_has_it_as(kinds, tmp_path):
    "As 1, as 1.0 where values are missing or a program made it so, or as text."
    parts, as_kind = thirds(), dict(int=[1, 2], float=[1.0, 2.0], text=["1", "2"])
    for part, kind in zip(parts, kinds.split()):
        if kind != "none":
            part.obs["lane"] = np.resize(as_kind[kind], part.n_obs)
    files = write(tmp_path / "samples", parts[: len(kinds.split())])
    joined = join_files(files).cells
    there = joined.obs["lane"].notna().to_numpy()
    model = GMVAE(joined[there].copy(), K=2, batch_key="lane", preset=SMALL)
    assert model.batches == ["1", "2"]
    for file, kind in zip(files, kinds.split()):
        if kind != "none":
            found = embed_file(model, file, tmp_path / "out.h5ad", map_batch={"*": "1"})
            assert set(found["batches"].values()) == {"1", "2"}
            assert with_new_batches(model, ad.read_h5ad(file)) is model


def test_a_star_is_also_for_the_file_without_the_column_among_others(files, tmp_path):
    model = GMVAE(cells(120), K=3, batch_key="batch", preset=SMALL)
    lacks = ad.read_h5ad(files[1])
    del lacks.obs["batch"]
    lacks.write_h5ad(tmp_path / "lacks.h5ad")
    both, out = [files[0], tmp_path / "lacks.h5ad"], tmp_path / "out.h5ad"
    assert embed_file(model, both, out, map_batch={"*": "1"})["batches"] == {"0": "0", "1": "1"}


def test_a_batch_that_is_a_folder_is_found_by_a_single_file_in_it(run, tmp_path):
    out, samples, _, _ = run
    (tmp_path / "b/outs").mkdir(parents=True)
    file = tmp_path / "b/outs/filtered.h5ad"
    file.write_bytes((samples / "b.h5ad").read_bytes())
    found = embed_file(GMVAE.load(out), file, tmp_path / "new.h5ad")["batches"]
    assert found == {"b": "b"}
