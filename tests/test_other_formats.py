"""Zarr stores and output of Cell Ranger: the same cells as from h5ad, or a sentence."""

import gzip
import json
import os
import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from gmvae_nb import files
from gmvae_nb.commands import gmvae_train
from gmvae_nb.h5ad import read_h5ad
from gmvae_nb.other_formats import other_format
from gmvae_nb.parts import named_files, read_files
from gmvae_nb.reading import read_input
from scipy.io import mmwrite
from scipy.sparse import csr_matrix, vstack

from hazards import cells as cells_of

KINDS = ("v2.zarr", "v3.zarr", "sharded.zarr", "packed", "solo", "old", "v3.h5", "v2.h5")


def cells(n=60):
    "Counts with a batch, and names of genes that a symbol and an identifier can have."
    found = cells_of(n)
    found.X = csr_matrix(found.X).astype("f4")
    return found


def same(found, expected):
    return found.shape == expected.shape and (found != expected).nnz == 0


def write_store(path, adata, version=3, sharded=False):
    pytest.importorskip("zarr")
    can_shard = hasattr(ad.settings, "auto_shard_zarr_v3")
    if sharded and not can_shard:
        pytest.skip("this anndata writes no sharded stores")
    if version == 3 and not hasattr(ad.settings, "zarr_write_format"):
        pytest.skip("this anndata writes no stores of version 3")
    kind = dict(zarr_write_format=version) if version == 3 or can_shard else {}
    kind |= dict(auto_shard_zarr_v3=sharded) if can_shard else {}
    with ad.settings.override(**kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


def write_text(folder, adata, genes="features.tsv", packed=True, prefix=""):
    "As Cell Ranger, or unpacked as STARsolo."
    folder.mkdir()
    mmwrite(folder / "tmp.mtx", adata.X.T.astype(int))
    kind = "\tGene Expression" if genes == "features.tsv" else ""
    rows = [f"ENSG{i}\t{name}{kind}" for i, name in enumerate(adata.var_names)]
    texts = {
        "matrix.mtx": (folder / "tmp.mtx").read_text(),
        genes: "\n".join(rows) + "\n",
        "barcodes.tsv": "\n".join(adata.obs_names) + "\n",
    }
    (folder / "tmp.mtx").unlink()
    for name, text in texts.items():
        if packed:
            (folder / f"{prefix}{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{prefix}{name}").write_text(text)


def write_10x(path, adata, version=3, kinds=None):
    "The datasets that Cell Ranger writes."
    y, text = adata.X.tocsr(), lambda values: np.array(list(values), dtype="S")
    ids = text(f"ENSG{i}" for i in range(adata.n_vars))
    with h5py.File(path, "w") as f:
        group = f.create_group("matrix" if version == 3 else "GRCh38")
        group["data"], group["indices"] = y.data.astype("i4"), y.indices.astype("i8")
        group["indptr"], group["shape"] = y.indptr.astype("i8"), np.array(y.shape[::-1], "i4")
        group["barcodes"] = text(adata.obs_names)
        if version == 2:
            group["genes"], group["gene_names"] = ids, text(adata.var_names)
            return
        features = group.create_group("features")
        features["id"], features["name"] = ids, text(adata.var_names)
        features["genome"] = text(["GRCh38"] * adata.n_vars)
        features["feature_type"] = text(kinds or ["Gene Expression"] * adata.n_vars)


def write(folder, kind, adata):
    path = folder / kind
    if kind.endswith(".zarr"):
        write_store(path, adata, version=2 if kind[1] == "2" else 3, sharded=kind[0] == "s")
    elif kind.endswith(".h5"):
        write_10x(path, adata, version=int(kind[1]))
    else:
        genes = "genes.tsv" if kind == "old" else "features.tsv"
        write_text(path, adata, genes, kind == "packed", "GSM7_" if kind == "packed" else "")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_each_form_gives_the_cells_of_the_h5ad(kind, tmp_path):
    adata = cells()
    path = write(tmp_path, kind, adata)
    adata.write_h5ad(tmp_path / "mine.h5ad")
    before = {file: file.stat().st_mtime_ns for file in (path, *path.rglob("*"))}
    for _ in range(2):  # the second time from the copy
        data, expected = read_input(path), read_input(tmp_path / "mine.h5ad")
        assert same(data.cells.X, expected.cells.X)
        assert list(data.cells.var_names) == list(expected.cells.var_names)
        assert list(data.cells.obs_names) == list(expected.cells.obs_names)
        assert data.sha256 == expected.sha256
        assert data.path == path.with_name(f"{kind}.h5ad")
        assert f"{data.path} was made of it" in data.notes[0] and data.notes[1:] == expected.notes
    assert before == {file: file.stat().st_mtime_ns for file in before}  # only read
    if kind.endswith(".zarr"):
        pd.testing.assert_frame_equal(read_h5ad(path).obs, adata.obs)
    else:
        ids = [f"ENSG{i}" for i in range(adata.n_vars)]
        assert list(read_input(path, gene_key="gene_ids").cells.var_names) == ids


def write_h5mu(path, adata, name="rna"):
    "As mudata writes it, in short: a group for each modality."
    with h5py.File(path, "w") as f:
        f.create_group("obs"), f.create_group("var"), f.create_group("mod/adt")
        ad.io.write_elem(f, f"mod/{name}", adata)


def test_the_rna_of_a_mudata_file_is_read(tmp_path):
    adata = cells()
    adata.layers["spliced"] = adata.X.tocsc()
    write_h5mu(tmp_path / "mine.h5mu", adata)
    data, copy = read_input(tmp_path / "mine.h5mu"), tmp_path / "mine.h5mu.h5ad"
    assert same(data.cells.X, adata.X) and data.path == copy
    assert data.notes[0].startswith("mine.h5mu is a MuData file") and '["rna"]' in data.notes[0]
    pd.testing.assert_frame_equal(ad.read_h5ad(copy).obs, adata.obs)
    write_h5mu(tmp_path / "other.h5mu", adata, "atac")
    with pytest.raises(ValueError, match="no modality rna, but adt, atac"):
        read_input(tmp_path / "other.h5mu")


@pytest.mark.parametrize("kind", ["v3.zarr", "packed", "v3.h5"])
def test_a_source_that_was_replaced_is_read_anew(kind, tmp_path):
    for n in (60, 40):
        adata = cells(n)
        path = write(tmp_path, kind, adata)
        os.utime(next(p for p in (path, *path.rglob("*")) if p.is_file()), ns=(n * 10**16,) * 2)
        if path.is_dir():
            for file in path.rglob("*"):
                os.utime(file, ns=(n * 10**16, n * 10**16))
            os.utime(path, ns=(n * 10**16, n * 10**16))
        assert same(read_input(path).cells.X, adata.X)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_somebodys_file_of_the_copys_name_is_neither_taken_nor_replaced(tmp_path):
    path, mine = write(tmp_path, "v3.h5", cells()), tmp_path / "v3.h5.h5ad"
    mine.write_bytes(b"notes")
    assert same(read_input(path).cells.X, cells().X) and mine.read_bytes() == b"notes"


def test_all_of_an_anndata_in_a_store_is_in_the_copy(tmp_path):
    adata = cells()
    adata.raw, adata.layers["spliced"] = adata.copy(), adata.X.tocsc()
    adata.layers["dense"] = adata.X.toarray()
    adata.obs["note"] = pd.array(["a", None] * 30, dtype="string")
    adata.obsm["X_pca"], adata.uns["a"] = np.eye(60, 2), {"b": ["c", "d"]}
    with ad.settings.override(allow_write_nullable_strings=True):
        write_store(tmp_path / "mine.zarr", adata)
    found = read_h5ad(tmp_path / "mine.zarr")
    for ours, theirs in (
        (found.X, adata.X),
        (found.raw.X, adata.raw.X),
        (found.layers["spliced"], adata.layers["spliced"]),
    ):
        assert ours.format == theirs.format and same(ours, theirs)
    np.testing.assert_array_equal(found.layers["dense"], adata.layers["dense"])
    pd.testing.assert_frame_equal(found.obs.astype(object), adata.obs.astype(object))
    np.testing.assert_array_equal(found.obsm["X_pca"], adata.obsm["X_pca"])
    assert list(found.uns["a"]["b"]) == ["c", "d"]


def test_a_store_within_a_store_is_named_and_its_copy_lies_outside(tmp_path):
    zarr = pytest.importorskip("zarr")
    store = tmp_path / "sd.zarr"
    zarr.open_group(str(store), mode="w").create_group("tables")
    write_store(store / "tables" / "table", cells(), version=2 if zarr.__version__ < "3" else 3)
    with pytest.raises(ValueError, match=r"no obs and no var; name what is in it.*tables/table\)"):
        read_input(store)
    data = read_input(store / "tables/table")
    assert same(data.cells.X, cells().X) and data.path == tmp_path / "sd.zarr.tables.table.h5ad"


def change_json(path, **new):
    path.write_text(json.dumps(json.loads(path.read_text()) | new))


def drop_chunk(store):
    next(file for file in (store / "X/indices/c").rglob("*") if file.is_file()).unlink()


def drop_ends(store):
    next(file for file in (store / "X/indptr/c").rglob("*") if file.is_file()).unlink()


def cut_chunk(store):
    chunk = next(file for file in (store / "X/data/c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:40])


HARMS = {
    "a chunk is missing": (drop_chunk, r"1 of 1 chunks of X/indices are not there"),
    "ends of rows are missing": (drop_ends, "X/indptr does not rise to the number of counts"),
    "a chunk is cut": (cut_chunk, r"no h5ad can be made of it \(\w+"),
    "no group": (lambda s: (shutil.rmtree(s), s.mkdir()), "No group found|nothing found"),
    "no obs": (lambda s: shutil.rmtree(s / "obs"), r"it has no obs\)"),
    "broken metadata": (lambda s: (s / "X/data/zarr.json").write_text("{"), "Expecting property"),
    "a pickle": (
        lambda s: change_json(
            s / "obs/_index/zarr.json",
            codecs=[
                {"name": "sharding_indexed", "configuration": {"codecs": [{"name": "pickle"}]}}
            ],
        ),
        "'obs/_index' is packed by 'pickle'",
    ),
    "tables larger than the memory": (
        lambda s: change_json(s / "obs/_index/zarr.json", shape=[10**14]),
        "beside the counts in it takes 800,000.0 GB in memory",
    ),
    "counts larger than the disk": (
        lambda s: change_json(s / "X/data/zarr.json", shape=[10**15]),
        "its disk has",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_store_is_refused_and_leaves_nothing(harm, tmp_path):
    harms, says = HARMS[harm]
    write_store(tmp_path / "mine.zarr", cells())
    harms(tmp_path / "mine.zarr")
    with pytest.raises((ValueError, OSError), match=says) as refused:
        read_input(tmp_path / "mine.zarr")
    assert "\n" not in str(refused.value) and os.listdir(tmp_path) == ["mine.zarr"]


def test_a_codec_of_an_old_store_that_runs_code_is_refused(tmp_path):
    write_store(tmp_path / "mine.zarr", cells(), version=2)
    change_json(tmp_path / "mine.zarr/obs/_index/.zarray", filters=[{"id": "pickle"}])
    with pytest.raises(ValueError, match="packed by 'pickle', which is not among"):
        read_input(tmp_path / "mine.zarr")


FOLDERS = {
    "features of another sample": ("features.tsv", lambda t: t[: len(t) // 2], "not of one sample"),
    "no sizes": ("matrix.mtx", lambda t: "%%MatrixMarket matrix\n", "no line with three sizes"),
    "too many counts": (
        "matrix.mtx",
        lambda t: "%%MatrixMarket matrix coordinate integer general\n20 60 999999999999\n",
        "matrix.mtx takes 24,000.0 GB in memory",
    ),
    "cut": ("matrix.mtx", lambda t: t[: len(t) // 2], r"no h5ad can be made of it \(\w+"),
    "not gzip": ("barcodes.tsv.gz", lambda t: "AAAC", "not one file of the name barcodes.tsv"),
}


@pytest.mark.parametrize("harm", FOLDERS)
def test_a_harmed_folder_of_counts_is_refused_and_leaves_nothing(harm, tmp_path):
    name, change, says = FOLDERS[harm]
    folder = write(tmp_path, "solo", cells())
    file = folder / name
    file.write_text(change(file.read_text() if file.exists() else ""))
    with pytest.raises(ValueError, match=f"a folder of Cell Ranger, but .*{says}") as refused:
        read_input(folder)
    assert "\n" not in str(refused.value) and os.listdir(tmp_path) == ["solo"]


def test_the_line_that_is_named_for_a_folder_has_the_prefix_of_its_files(tmp_path):
    folder = write(tmp_path, "packed", cells())
    (folder / "GSM7_barcodes.tsv.gz").rename(folder / "barcodes.tsv.gz")
    (folder / "genes.tsv").touch()
    with pytest.raises(ValueError, match="not one file of the name features.tsv or genes.tsv") as e:
        read_input(folder)
    (folder / "genes.tsv").unlink()
    (folder / "barcodes.tsv.gz").rename(folder / "GSM7_barcodes.tsv.gz")
    line = str(e.value).split("make one with ")[1].split(".write_h5ad")[0]
    assert same(eval(line, {"sc": sc}).X, cells().X)


def test_no_line_is_named_for_a_folder_that_scanpy_does_not_read(tmp_path):
    folder = write(tmp_path, "solo", cells())
    assert (
        "was made of it" in read_input(folder).notes[0] and "sc." not in read_input(folder).notes[0]
    )
    (folder / "barcodes.tsv").write_text("A")
    os.utime(folder, ns=(10**18, 10**18))
    with pytest.raises(ValueError, match="not of one sample\\): mend that$"):
        read_input(folder)


def test_antibodies_beside_the_genes_are_left_out_and_named(tmp_path):
    kinds = ["Gene Expression"] * 18 + ["Antibody Capture"] * 2
    write_10x(tmp_path / "cite.h5", cells()[:, :20].copy(), kinds=kinds)
    data = read_input(tmp_path / "cite.h5")
    assert data.cells.n_vars == 18 and any(
        "2" in note and "left out" in note for note in data.notes
    )


def test_samples_of_cell_ranger_are_trained_on_together_and_their_copies_are_not_counted(tmp_path):
    for sample, rows in (("donor1", slice(0, 40)), ("donor2", slice(40, 80))):
        (tmp_path / sample / "outs").mkdir(parents=True)
        write_10x(tmp_path / sample / "outs/filtered.h5", cells(80)[rows].copy())
    pattern, out = f"{tmp_path}/*/outs/filtered.h5", str(tmp_path / "run")
    options = dict(K=2, preset="blog", max_epochs=1, quiet=True)
    gmvae_train([pattern], out=out, **options)
    annotated = ad.read_h5ad(tmp_path / "run/annotated.h5ad")
    assert list(annotated.obs["file"].unique()) == ["donor1", "donor2"]
    assert same(annotated.X, vstack([cells(80)[:40].X, cells(80)[40:].X]).tocsr())
    again = read_files(named_files(f"{tmp_path}/*/outs/*"))  # the copies are there now
    assert again.cells.n_obs == 80 and len(again.parts) == 2
    gmvae_train([pattern], out=out, resume=True, **options)


def test_a_folder_with_a_store_and_its_copy_has_its_cells_once(tmp_path):
    write_store(tmp_path / "a.zarr", cells())
    cells(40).write_h5ad(tmp_path / "b.h5ad")
    names = [str(tmp_path / name) for name in ("a.zarr", "b.h5ad")]
    assert named_files(tmp_path) == names
    read_input(names[0])
    assert (tmp_path / "a.zarr.h5ad").exists() and named_files(tmp_path) == names
    os.utime(tmp_path / "a.zarr.h5ad")
    with pytest.raises(ValueError, match="are both there, from different times"):
        named_files(tmp_path)


def test_a_copy_is_known_from_the_moment_on_that_it_has_its_name(tmp_path, monkeypatch):
    source = write(tmp_path, "v2.zarr", cells())
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):

        def stopped(folder):  # the first thing after the renaming
            raise KeyboardInterrupt

        m.setattr(files, "_sync_folder", stopped)
        read_input(source)
    assert [copy.name for copy in tmp_path.glob("*.h5ad")] == ["v2.zarr.h5ad"]
    assert same(read_input(source).cells.X, cells().X)
    assert [copy.name for copy in tmp_path.glob("*.h5ad")] == ["v2.zarr.h5ad"]


def test_what_is_not_copied_is_still_called_what_it_is(tmp_path):
    assert "a loom file" in other_format(tmp_path / "a.loom")
    assert other_format(tmp_path / "a.h5ad") == ""
