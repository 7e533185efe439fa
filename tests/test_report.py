"""The page: complete in itself, small, and safe from what users call things."""

import base64
import csv
import inspect
import json
import os
import re
import shutil
import zlib
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation
from gmvae_nb.annotation import annotate_run
from gmvae_nb.clusters import ALPHA, TOLD_APART
from gmvae_nb.data import kang_pbmc
from gmvae_nb.drawing import GROUNDS, contrast, on_map, palette
from gmvae_nb.findings import cluster_rows, marker_genes, remarks, unsure_pairs
from gmvae_nb.network import PRESETS, Preset
from gmvae_nb.reading import read_input
from gmvae_nb.report import (
    ReportInput,
    cells_on_map,
    legend_of,
    page_values,
    plural,
    read_report_input,
    render_page,
    report_counts,
    report_markers,
    template_text,
    titled_groups,
    write_report,
)
from gmvae_nb.runs import layer_of_run, train_run
from gmvae_nb.stability import data_of_run
from gmvae_nb.tables import read_table
from gmvae_nb.train import GMVAE
from jinja2 import Environment
from scipy.sparse import csr_matrix

from hazards import TINY, no_map
from hazards import cells as some_cells

NASTY = "<script>alert(1)</script>"
TEMPLATES = ("report.html", "report.css", "report.js", "methods.html", "references.bib")


def nasty_cells():
    "200 cells whose every name is one that a browser would run or misread."
    cells = kang_pbmc()[::20]
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    types = {"NK": NASTY, "B": '$\\frac{" onclick="x'}
    donors = {"stim": "</style><b>&"}
    cells.obs["type"] = cells.obs["cell_type"].astype(str).replace(types)
    cells.obs["donor"] = cells.obs["batch"].astype(str).replace(donors)
    first = cells.var_names[np.asarray(cells.X.sum(0)).ravel().argmax()]
    names = {first: "=HYPERLINK(1)", cells.var_names[-1]: "-AS1"}
    cells.var_names = ["<img src=x>", *(names.get(name, name) for name in cells.var_names[1:])]
    cells.obs_names = ["<i>cell</i>", "@cell", '=1+1,"x"', *cells.obs_names[3:]]
    return cells


def unpack(text: str) -> tuple[dict, list[np.ndarray]]:
    "What the script of explore.html finds: the header and the blocks."
    packed = re.search('id="cells">([A-Za-z0-9+/=]*)<', text)[1]
    data = zlib.decompress(base64.b64decode(packed))
    at = 4 + int.from_bytes(data[:4], "little")
    header, blocks = json.loads(data[4:at]), []
    for kind, size in header["blocks"]:
        blocks.append(np.frombuffer(data, f"<{kind}", size, at))
        at += blocks[-1].nbytes
    assert at == len(data)
    return header, blocks


@pytest.fixture(scope="module", params=[True, False], ids=["with batches and labels", "bare"])
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    nasty_cells().write_h5ad(folder / "<u>.h5ad")
    keys = dict(batch_key="donor", labels_key="type") if request.param else {}
    run_input = read_input(folder / "<u>.h5ad", **keys)
    small = Preset(n_x=3, prior="parameters", encoder_hidden=(16,), decoder_hidden=(16,), M=1)
    model = train_run(
        run_input,
        folder / "run",
        K=3,
        preset=small,
        max_epochs=1,
        progress=False,
        command="gmvae_train '<u>.h5ad'",
        **keys,
    )
    with pytest.MonkeyPatch.context() as patch:
        # the real one spends half a minute compiling
        patch.setattr(annotation, "umap", no_map)
        annotate_run(model, run_input, folder / "run")
    text = write_report(folder / "run").read_text(encoding="utf-8")
    return request.param, text, folder / "run"


def test_it_is_one_small_file_without_an_address_outside(page):
    text = page[1]
    assert len(text.encode()) < 5e6
    assert not re.search(r"https?://|url\(|@import|<link|src=[\"'](?!data:)", text)
    assert "default-src 'none'" in text


def test_names_of_users_are_text(page):
    labelled, text, _ = page
    tags = set(re.findall(r"<(\w+)", text))
    assert "u" not in tags
    for raw in ("<i>cell", "<img src=x>", NASTY, "</style><b>", '" onclick="x'):
        assert raw not in text, raw
    assert len(re.findall(r"<script", text)) == len(re.findall(r"</script>", text))
    if labelled:
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "$\\frac{" in text


def test_it_says_what_has_become_of_the_batch_effect_where_there_are_batches(page):
    several, text, _ = page
    words = " ".join(re.sub("<[^>]+>", " ", text).split())
    assert ("Is the batch effect gone?" in words) == several
    assert (
        "batch effect is" in words or "little to remove" in words or "cannot be told" in words
    ) == several
    scores = re.findall(r"(?:iLISI|kBET|PCR) (?:(?:\d\.\d\d|–) ){3}", words)
    assert len(scores) == 3 * several and "5,000 cells drawn" not in words


def test_clusters_and_markers_are_tables_that_a_spreadsheet_only_shows(page):
    _, _, folder = page
    cells = ad.read_h5ad(folder / "annotated.h5ad")
    table = pd.read_csv(folder / "clusters.csv", dtype={"cluster": str})
    assert table.columns.tolist() == ["barcode", "cluster", "probability", "confidence"]
    assert table["barcode"].tolist()[:3] == ["<i>cell</i>", "'@cell", '\'=1+1,"x"']
    assert table["cluster"].tolist() == cells.obs["gmvae_cluster"].tolist()
    np.testing.assert_allclose(table["probability"], cells.obsm["gmvae_prob"].max(1), rtol=1e-6)
    np.testing.assert_allclose(table["confidence"], cells.obs["gmvae_confidence"], rtol=1e-6)
    assert read_table(folder / "clusters.csv")["barcode"].tolist() == cells.obs_names.tolist()
    for name in ("clusters.csv", "markers.csv"):
        for row in csv.reader(open(folder / name, newline="", encoding="utf-8")):
            numbers = (
                cell.lstrip("-").replace(".", "").replace("e-", "").isdigit() for cell in row
            )
            assert all(n or cell[:1] not in "=+-@" for n, cell in zip(numbers, row) if cell), row
    markers = read_table(folder / "markers.csv")
    assert set(markers["gene"]) <= set(cells.var_names)


class Tags(HTMLParser):
    "Fails at a tag that is closed where it was not open."

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()


def test_every_tag_is_closed_where_it_was_opened(page):
    tags = Tags()
    tags.feed(page[1])
    tags.close()
    assert tags.open == []


def test_sections_are_there_when_there_is_something_to_show(page):
    labelled, text, _ = page
    assert ('id="scores"' in text) == labelled and (">batches<" in text) == labelled
    for part in ("maps", "clusters", "unsure", "training", "settings", "methods"):
        assert f'id="{part}"' in text
    assert "@article{dilokthanakul2016gmvae" in text and "200 cells" in text


def test_the_methods_paragraph_reads_as_one_wrote_it(page):
    labelled, text, _ = page
    paragraph = re.search(r'<p id="methods-text"[^>]*>(.*?)</p>', text, re.DOTALL)[1]
    words = " ".join(paragraph.split())
    assert words.startswith("Raw counts of 200 cells and ") and words.endswith(".")
    assert not re.search(r" [,.;)]|\( |[a-z][.;,][A-Za-z]", words.replace("obs.", "")), words
    assert ("in 2 batches (obs column donor)" in words) == labelled
    assert ("scored on the held-out cells against the labels in obs column type:" in words) == (
        labelled
    )


@pytest.fixture(scope="module")
def methods(page):
    "The paragraph of this run, with some values in place of its own."
    report = read_report_input(page[2])
    values = page_values(report, report_markers(report), None)

    def written(**other):
        settings = report.run["settings"] | dict(supervise=dict(labels_key="sort"))
        run = report.run | dict(settings=settings) | other.pop("run", {})
        return " ".join(render_page(values | dict(run=run) | other, "methods.html").split())

    return written


def test_the_methods_say_whether_held_out_counts_agree(methods):
    merging = dict(n_x=3, merge=True, lr=1, lr_schedule="cosine", batch_size=1, M=1)
    assert "two independent halves" not in methods(preset=merging, halves_agree_p=None)
    words = methods(preset=merging, halves_agree_p=0.004, alpha=0.03)
    assert "did not agree on (p above 0.03; twice the median" in words
    assert "For all clusters together p = 0.004." in words
    typed = methods(preset=merging, halves_agree_p=None, branches_asked=True, types=[dict(given=1)])
    assert "A branch that holds two types was not asked." in typed and "together p" not in typed
    words = methods(preset=merging, halves_agree_p=0.004, alpha=0.0005)
    assert "(p above 0.002; twice" in words and "of 0.0005 at most" in words


@pytest.mark.parametrize("merge", [True, False])
def test_clusters_that_no_held_out_counts_speak_for_are_remarked(page, merge):
    report = read_report_input(page[2])
    report.run["settings"]["preset"]["merge"] = merge
    report.metrics.pop("halves_agree_p")
    markers = report_markers(report)
    asked_or_not = ({}, {"halves_agree_p": None}, {"halves_agree_p": 0.002})
    for asked, types in ((a, t) for a in asked_or_not for t in ({}, {"labels_key": "sort"})):
        report.run["settings"]["supervise"] = types  # clusters of types need no proof
        values = page_values(replace(report, metrics=report.metrics | asked), markers, None)
        said = [s for s in values["remarks"] if "No counts were asked but those that" in s]
        p = asked.get("halves_agree_p")
        assert len(said) == (merge and asked == {"halves_agree_p": None} and not types)
        assert values["halves_agree_p"] == p


def test_the_methods_are_those_of_the_run(methods):
    merging = dict(n_x=3, merge=True, lr=1, lr_schedule="cosine", batch_size=1, M=1)
    words = methods(preset=merging, alpha=0.3)
    assert f"kappa of {TOLD_APART} or more" in words
    assert "one population of 0.3 at most" in words and "of two types" not in words
    n_draws = inspect.signature(GMVAE.predict_proba).parameters["n_samples"].default
    assert f"averaged over {n_draws} draws" in words
    assert f"population of {ALPHA} at most" in methods(preset=merging)
    typed = methods(preset=merging, types=[dict(given=1)])
    assert "unless they are of two types, or cells looked at twice" in typed
    assert "given the types of 1 cell (" in typed and "batches of 1 cell;" in typed


def test_the_methods_say_how_genes_were_chosen(methods):
    notes = ["50 highly variable genes were chosen, ranked in each donor"]
    assert "highly variable" not in methods()
    assert "(highly variable ones, ranked with scanpy" in methods(run=dict(notes=notes))
    assert "(Wolf et al. 2018) in each batch)" in methods(run=dict(notes=notes))
    assert "in each batch)" not in methods(run=dict(notes=[notes[0].split(",")[0]]))


def test_forks_of_two_types_are_explained(page):
    report = read_report_input(page[2])
    values = page_values(report, report_markers(report), None)
    typed = dict(name="T", given=1, cells=200, probability=1.0)
    for row in values["clusters"]:
        row.update(type="T", type_share=1.0)
    settings = report.run["settings"] | dict(supervise=dict(labels_key="sort"))
    values |= dict(tree="data:", run=report.run | dict(settings=settings))
    said = "Clusters of two types are never merged"
    assert said not in render_page(values)
    assert said in render_page(values | dict(types=[typed]))
    assert said in template_text("explore.html")
    confirmed = "confirm that there are clusters\n    (p = 0.002)"
    assert confirmed in render_page(values | dict(halves_agree_p=0.002))
    assert "confirm that there" not in render_page(values | dict(halves_agree_p=None))


def test_one_is_written_as_one(page):
    assert plural(1, "cell") == "cell" and plural(0, "cell") == "cells"
    assert plural(2, "batch", "batches") == "batches"
    assert "1 epoch in" in " ".join(page[1].split()) and "1 epochs" not in page[1]
    for name in ("report.html", "explore.html", "methods.html"):
        counted = r"\}\} (cell|gene|cluster|component|epoch|batche|marker|second)s\b(?! drawn)"
        assert not re.findall(counted, template_text(name)), name


def test_two_groupings_have_two_titles_and_one_has_one():
    obs = pd.DataFrame({"gmvae_cluster": pd.Categorical(["0", "1"])}, index=["a", "b"])
    cells = ad.AnnData(csr_matrix((2, 1), dtype=np.float32), obs=obs)
    groups = pd.Categorical(["x", "y"])

    def titles(batch_key, labels_key, types=None):
        run = dict(settings=dict(batch_key=batch_key), labels_key=labels_key)
        asked = ReportInput(run, {}, pd.DataFrame(), cells, groups, groups, types)
        return list(titled_groups(asked))

    assert titles("cluster", "type") == ["cluster", "cluster of the file", "type"]
    assert titles("d", "type", groups) == ["cluster", "type", "d", "type of the file"]
    assert titles("d", "d") == ["cluster", "d"]
    assert titles("confidence", "d") == ["cluster", "confidence of the file", "d"]


def test_a_label_none_is_not_the_missing_one():
    assert legend_of(pd.Categorical(["B", None]))[0] == ["B", "none"]
    assert legend_of(pd.Categorical(["none", None]))[0] == ["none", "no label"]
    assert legend_of(pd.Categorical(["no label", "none", None]))[0][2] == "(no label)"


def test_each_colour_is_seen_by_day_and_by_night(methods, page):
    for n in (8, 20, 28, 150):
        for colour in palette(n):
            assert min(contrast(colour, ground) for ground in GROUNDS) >= 1.5
    assert len(palette(150)) == 150 and len(set(palette(19))) == 19
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_names_that_share_a_colour_are_told(page):
    report = read_report_input(page[2])
    values = page_values(report, report_markers(report), None)
    assert "share" not in re.findall(r'class="small">([^<]*)<', render_page(values))[0]
    values["maps"][0] |= dict(names=["a", "b", "c"], colours=["#000", "#111", "#000"])
    assert "3 names share 2 colours." in render_page(values)


def test_styles_script_and_references_are_the_files_of_the_package(page):
    assert f"<style>\n{template_text('report.css').rstrip()}\n</style>" in page[1]
    assert f"<script>\n{template_text('report.js').rstrip()}\n</script>" in page[1]
    assert "VERSION" in template_text("references.bib") and "VERSION" not in page[1]


def test_nothing_in_a_template_is_marked_as_safe():
    for name in TEMPLATES[:4]:
        source = template_text(name)
        Environment().parse(source)
        assert not re.search(r"\|\s*safe|autoescape|Markup", source), name


def test_no_page_without_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match="run.json does not exist"):
        write_report(tmp_path)


def test_a_map_survives_any_coordinates():
    assert on_map(np.full((3, 2), np.nan)).shape == (3, 2)
    assert (on_map(np.zeros((4, 2))) < 65536).all()


def test_a_map_of_very_many_cells_draws_some_of_them():
    assert cells_on_map(5).tolist() == [0, 1, 2, 3, 4]
    some = cells_on_map(70_000)
    assert len(some) == 60_000 and (np.diff(some) > 0).all() and some[-1] < 70_000


def test_a_page_that_cannot_be_written_leaves_the_old_one(page, monkeypatch):
    folder, before = page[2], page[1]
    plain = os.replace

    def full_disk(source, target):
        if Path(target).name == "report.html":
            raise OSError("disk full")
        plain(source, target)

    monkeypatch.setattr("gmvae_nb.files.os.replace", full_disk)
    with pytest.raises(OSError):
        write_report(folder)
    monkeypatch.undo()
    assert (folder / "report.html").read_text(encoding="utf-8") == before
    assert {p.name for p in folder.glob(".*")} == {".lock"}


def test_cells_without_coordinates_lie_in_the_middle():
    xy = np.array([[0.0, 5], [2, 5], [np.nan, np.inf]])
    assert on_map(xy)[2].tolist() == [32767, 32767]


def test_markers_are_higher_in_their_cluster_and_tiny_clusters_have_none():
    rng = np.random.default_rng(0)
    y = rng.poisson(1.0, (63, 30))
    y[:20, 7] += 9
    y[:20, 8] = 0
    genes = [f"g{i}" for i in range(30)]
    clusters = pd.Categorical(["a"] * 20 + ["b"] * 41 + ["c"] * 2)
    found = marker_genes(csr_matrix(y.astype(np.float32)), genes, clusters)
    assert set(found["cluster"]) == {"a", "b"}
    assert (found["log2_fold_change"] > 0).all()
    scaled = y / y.sum(1, keepdims=True)
    ratio = scaled[:20, 7].mean() / scaled[20:, 7].mean()
    assert found["log2_fold_change"][0] == pytest.approx(np.log2(ratio), abs=0.01)
    of_a = list(found.loc[found["cluster"] == "a", "gene"])
    assert of_a[0] == "g7" and "g8" not in of_a


def test_a_gene_of_lower_mean_marks_no_cluster_however_many_of_its_cells_have_it():
    y = np.full((40, 3), 10)
    y[:, 2] = 100  # so that cells are of about one depth
    y[:20, 0] = 2  # in each cell of the first cluster
    y[20:, 0] = np.tile([0, 0, 0, 40], 5)  # in few cells of the other, but five times as much
    clusters = pd.Categorical(["a"] * 20 + ["b"] * 20)
    found = marker_genes(csr_matrix(y.astype(np.float32)), ["few", "same", "much"], clusters)
    assert "few" not in set(found.loc[found["cluster"] == "a", "gene"])


def test_an_antibody_marks_no_cluster():
    "Four genes and two antibodies, of which one of each is high in cluster 0."
    counts = np.random.default_rng(0).poisson(2, (40, 6)).astype(np.float32)
    counts[:20, [0, 4]] += 20
    var = pd.DataFrame(
        {"feature_types": ["Gene Expression"] * 4 + ["Antibody Capture"] * 2},
        index=[*"abcd", "CD3", "CD19"],
    )
    cells = ad.AnnData(csr_matrix(counts), var=var)
    cells.obs["gmvae_cluster"] = pd.Categorical(["0"] * 20 + ["1"] * 20)
    found = report_markers(
        ReportInput({"layer": None, "settings": {}}, {}, pd.DataFrame(), cells, None, None)
    )
    assert set(found["gene"]) <= set("abcd")
    assert found.loc[found["cluster"] == "0", "gene"].iloc[0] == "a"


def test_the_pages_genes_are_those_of_the_file_that_is_read():
    "An antibody with the name of a gene gives the gene no number; a gene twice does."
    counts = csr_matrix(np.arange(1, 13, dtype=np.float32).reshape(3, 4))
    kinds = ["Antibody Capture", *["Gene Expression"] * 3]
    var = pd.DataFrame({"feature_types": kinds}, index=["CD3D", "CD3D", "LYZ", "LYZ"])
    cells = ad.AnnData(counts, obs=pd.DataFrame(index=["a", "b", "c"]), var=var)
    run = {"layer": None, "settings": {}}
    names = report_counts(ReportInput(run, {}, pd.DataFrame(), cells, None, None))[1]
    assert names == read_input(cells).file_genes == ["CD3D", "LYZ", "LYZ-1"]


def test_what_goes_wrong_is_remarked():
    said_of = partial(remarks, preset=PRESETS["blog"])
    fine = pd.DataFrame({"effective_K": 6.0, "test_neg_elbo": [500.0, 480, 479, 479, 479, 479]})
    fine = fine.assign(mutual_information=1.8, test_kl_w=0.0, test_kl_z=2.0, test_cond=0.1)
    assert said_of(fine, 8, 7, 0.01) == []
    none = fine.assign(mutual_information=0.0)
    assert "collapsed" in said_of(none.assign(effective_K=1.0), 8, 1, 0)[0]
    assert "collapsed" in said_of(none.assign(effective_K=8.0), 8, 8, 0)[0]  # all alike
    assert "collapsed" in said_of(fine.assign(test_kl_z=0.0, test_cond=0.05), 8, 8, 0)[0]
    uneven = fine.assign(effective_K=1.29, mutual_information=0.25)  # 93 and 7 % of the cells
    assert said_of(uneven, 2, 2, 0) == []
    assert "20% of the cells are unsure" in said_of(fine, 8, 7, 0.2)[0]
    assert "more with a larger max_epochs" in said_of(fine[:3], 8, 7, 0)[0]
    assert "more with a larger max_epochs" in said_of(fine[2:5], 8, 7, 0)[0]  # flat, but few
    assert said_of(fine.assign(test_neg_elbo=np.nan), 8, 7, 0) == []
    assert "after 1 epoch: too few to see" in said_of(fine[:1], 8, 7, 0)[0]
    assert "Of 8 clusters 3 are in use" in said_of(fine, 8, 3, 0)[0]
    flat = fine.assign(mutual_information=0.2, test_kl_w=0.0, test_kl_z=0.03, test_cond=0.01)
    said_of = partial(remarks, preset=PRESETS["recommended"])
    (said,) = said_of(flat, 1, 1, 0)  # of six components one cluster is left
    assert "by 0.04 nats at most" in said and "--preset centred" in said
    assert said_of(flat.assign(test_kl_z=2.0), 1, 1, 0) == []
    assert said_of(flat.assign(effective_K=1.0), 1, 1, 0) == []  # of one component
    (said,) = remarks(flat, 1, 1, 0, PRESETS["centred"])
    assert "--preset" not in said  # that was tried
    rising = fine[:3].assign(test_neg_elbo=[500.0, 503, 507])
    (said,) = said_of(rising, 8, 7, 0)  # of a schedule that was planned
    assert "falling by" not in said and "in another folder" in said and "resume" not in said


def test_rows_and_pairs_count_cells():
    obs = pd.DataFrame(
        {
            "gmvae_cluster": pd.Categorical(["0", "0", "1"]),
            "gmvae_confidence": [0.9, 0.4, 0.8],
            "gmvae_unsure": [False, True, False],
        }
    )
    batch, labels = pd.Categorical(["a", "b", "a"]), pd.Categorical(["T", "T", "B"])
    markers = pd.DataFrame({"cluster": ["0"], "gene": ["g"]})
    large, small = cluster_rows(obs, batch, labels, markers)
    assert large["cells"] == 2 and large["unsure"] == 0.5
    assert large["batches"] == [0.5, 0.5]
    assert large["label"] == "T" and large["genes"] == ["g"]
    assert small["confidence"] == 0.8 and small["genes"] == []
    prob = np.array([[0.4, 0.35, 0.25], [0.9, 0.1, 0]])
    assert unsure_pairs(prob, np.array([True, False])) == [(0, 1, 1)]


def test_markers_are_of_the_matrix_that_was_trained_on(tmp_path):
    "X was asked for, and a layer with the name of counts is there too."
    adata = some_cells(n=90)
    adata.layers["counts"] = adata.X[:, ::-1].copy()
    read = read_input(adata, batch_key="batch", layer="X")
    model = train_run(read, tmp_path, batch_key="batch", preset=TINY, K=2, max_epochs=1)
    annotate_run(model, read, tmp_path)
    report = read_report_input(tmp_path)
    counts, names = report_counts(report)
    assert names == list(adata.var_names)
    np.testing.assert_array_equal(counts.toarray(), adata.X.toarray())
    assert data_of_run(tmp_path)[1].where == "X"
    layer = read_input(adata, batch_key="batch", layer="counts")
    describe = layer_of_run(dict(where=layer.where, layer=layer.layer))
    assert describe == "counts"


def test_a_page_replaces_no_file_that_no_run_has_made(page, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(page[2], run)
    (run / "clusters.csv").write_text("mine")
    with pytest.raises(ValueError, match="clusters.csv was not written by a run"):
        write_report(run)
    assert (run / "clusters.csv").read_text() == "mine"
    write_report(run, overwrite=True)
    assert read_table(run / "clusters.csv")["barcode"].size


def test_clusters_with_too_few_cells_beside_them_have_no_markers():
    counts = np.random.default_rng(0).poisson(1.0, (120, 10)).astype(np.float32)
    for few in (1, 2, 3):
        clusters = pd.Categorical(np.where(np.arange(120) < few, "1", "0"))
        markers = marker_genes(csr_matrix(counts), pd.Index([f"g{g}" for g in range(10)]), clusters)
        assert set(markers["cluster"]) == ({"0", "1"} if few == 3 else set())
