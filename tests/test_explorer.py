"""The page to explore: small, safe from names, packed without loss, and used in a real browser."""

import csv
import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from gmvae_nb import annotation, drawing, explorer, findings, report, runs
from gmvae_nb.after_training import gmvae_report
from gmvae_nb.explorer import (
    absences,
    cell_quality,
    cross_table,
    dot_genes,
    find_genes,
    map_before,
    narrowest,
    remark_on_dying,
    telling_order,
    with_sums,
)
from gmvae_nb.model_folder import verify
from gmvae_nb.reading import read_input
from gmvae_nb.report import template_text, write_report
from scipy.sparse import csr_matrix

from browser import Browser, find_browser
from hazards import TINY
from test_report import Tags, unpack

NASTY = "</script><script>alert(1)</script>"
RTL, NUL = "\u202egnp", "nul\0l"
TYPES = ["B", NASTY, RTL, 'dying" onclick="x']
GENES = ["MT-CO1", "MT-ND1", "RPL3", "CD3D", "MS4A1", "LYZ", "<img src=x>", "=HYPERLINK(1)"]


def cells(n=240) -> ad.AnnData:
    "Four groups in three donors; the last is dying; names that a browser could obey."
    rng = np.random.default_rng(0)
    group = np.arange(n) % 4
    rates = np.full((4, 60), 0.6)
    for g in range(4):
        rates[g, 3 + 6 * g : 9 + 6 * g] = 6.0
    rates[:, :2] = 1.0
    rates[3] *= 0.3
    rates[3, :2] = 12
    donor = np.array(["d0", "d1", "</style><b>"])[rng.integers(0, 3, n)]
    donor[group == 2] = "d0"
    obs = pd.DataFrame({"donor": donor, "type": np.array(TYPES)[group]})
    obs.index = ["<i>cell</i>", "@cell", '=1+1,"x"', *(f"cell{i}" for i in range(3, n))]
    genes = [*GENES, *(f"g{i}" for i in range(60 - len(GENES)))]
    counts = csr_matrix(rng.poisson(rates[group]).astype(np.float32))
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))


def known_clusters(model, of=None):
    "In place of what a short training would find: the groups, a few cells unsure."
    group = np.arange(240) % 4
    prob = np.full((240, 4), 0.02)
    prob[np.arange(240), group] = 0.94
    prob[:12] = [0.4, 0.3, 0.2, 0.1]
    confidence = prob.max(1).astype(np.float32)
    rng = np.random.default_rng(1)
    X = np.stack([group % 2 * 10, group // 2 * 10, 0 * group], 1) + rng.normal(size=(240, 3))
    cluster = pd.Categorical.from_codes(prob.argmax(1), list("0123"))
    obs = dict(gmvae_cluster=cluster, gmvae_confidence=confidence, gmvae_unsure=confidence < 0.5)
    return obs, {"X_gmvae": X.astype(np.float32), "gmvae_prob": prob}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    data = cells()
    data.write_h5ad(folder / "<u>.h5ad")
    keys = dict(batch_key="donor", labels_key="type")
    read = read_input(folder / "<u>.h5ad", **keys)
    options = dict(K=4, preset=TINY, max_epochs=1, progress=False)
    model = runs.train_run(read, folder / "run", **options, **keys)
    nodes = np.array([[0, 1, 0.9, 2], [2, 3, 0.95, 2], [4, 5, 0.99, 4]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation, "umap", lambda X, seed: X[:, :2])
        patch.setattr(annotation, "annotate", known_clusters)
        patch.setattr(annotation, "cluster_linkage", lambda network: nodes)
        patch.setattr(annotation, "branch_p", lambda network: np.array([np.nan, 0.004, 0.002]))
        annotation.annotate_run(model, read, folder / "run")
    gmvae_report(str(folder / "run"), genes=["cd3d"])
    return folder / "run", data


@pytest.fixture(scope="module")
def page(run):
    return (run[0] / "explore.html").read_text(encoding="utf-8")


def test_the_page_is_one_small_file_that_obeys_its_own_script_alone(page):
    assert len(page.encode()) < 5e6
    assert not re.search(r"https?://|url\(|@import|<link|style=|src=[\"'](?!data:)", page)
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert "unsafe" not in page and "'SCRIPT'" not in page
    assert len(re.findall("<script", page)) == len(re.findall("</script>", page)) == 2
    assert f"{template_text('explore.js').rstrip()}\n</script>" in page


def test_names_are_text(page):
    for raw in ("<i>cell", "<img src=x", "alert(1)</script>", "</style><b>", '" onclick="x', "<u>"):
        assert raw not in page, raw
    assert "&lt;img src=x&gt;" in page and f"<bdi>{RTL}</bdi>" in page
    tags = Tags()
    tags.feed(re.sub("<input[^>]*>", "", page))
    tags.close()
    assert tags.open == []


def test_what_is_packed_is_what_the_file_holds(run, page):
    header, blocks = unpack(page)
    folder, data = run
    counts = data.X.toarray()
    assert header["names"] == data.obs_names.tolist()
    assert [g["title"] for g in header["groups"]] == ["cluster", "donor", "type"]
    for group in header["groups"][1:]:
        found = np.array(group["names"])[blocks[group["block"]]]
        assert found.tolist() == data.obs[group["title"]].tolist()
    of = {gene["name"]: blocks[gene["block"]] for gene in header["genes"]}
    assert next(iter(of)) == "CD3D"  # what was asked for comes first
    for name, values in of.items():
        assert values.tolist() == counts[:, data.var_names.get_loc(name)].tolist()
    assert blocks[header["total"]].tolist() == counts.sum(1).tolist()
    numbers = {x["title"]: blocks[x["block"]] * x["unit"] for x in header["numbers"]}
    mitochondrial = counts[:, :2].sum(1) / counts.sum(1)
    np.testing.assert_allclose(numbers["mitochondrial share"], mitochondrial, atol=1e-4)
    kept = ad.read_h5ad(folder / "annotated.h5ad")
    for name in ("confidence", "novelty"):
        np.testing.assert_allclose(numbers[name], kept.obs[f"gmvae_{name}"], atol=1e-4)
    after = blocks[header["maps"][1]["block"]].reshape(-1, 2)
    assert after.tolist() == drawing.on_map(kept.obsm["X_gmvae_umap"]).tolist()


def test_tables_say_what_she_asks(page):
    words = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "Cluster 3 may be of dying cells: " in words and "Cluster 1 may be" not in words
    assert "d1 has no cell in cluster 2." in words
    assert "5.0 % of the cells (12) are unsure" in words and "-ELBO" not in words
    assert re.search("(gone|smaller|still there|little before|cannot be told) batch effect", words)


def test_the_page_is_one_of_the_run_and_replaces_no_other(run):
    folder, _ = run
    assert "explore.html" in verify(folder)["files"]
    whole = (folder / "explore.html").read_bytes()
    with pytest.raises(ValueError, match="'CD3E' is no gene of the file.*similar: CD3D"):
        gmvae_report(str(folder), genes=["CD3E"])
    assert (folder / "explore.html").read_bytes() == whole
    (folder / "explore.html").write_text("mine")
    try:
        with pytest.raises(ValueError, match="explore.html was not written by a run"):
            gmvae_report(str(folder))
    finally:
        (folder / "explore.html").write_bytes(whole)


def test_more_cells_than_the_maps_take_are_sampled_and_it_is_said(run, monkeypatch):
    folder, data = run
    monkeypatch.setattr(report, "MAP_CELLS", 50)
    monkeypatch.setattr(report, "write_page", lambda path, text: texts.update({path.name: text}))
    texts = {}
    write_report(folder)
    page = texts["explore.html"]
    header, blocks = unpack(page)
    on = report.cells_on_map(240)
    assert header["cells"] == len(on) == 50
    assert header["names"] == data.obs_names[on].tolist()
    assert all(blocks[gene["block"]].size == 50 for gene in header["genes"])
    assert "50 of 240 cells, drawn at random with a fixed seed" in " ".join(page.split())
    assert ">240<" in page  # the tables count all


def test_a_run_without_batches_labels_markers_and_a_map_before(tmp_path):
    data = cells()[:3, 20:23].copy()
    data.X = csr_matrix(np.ones((3, 3), dtype=np.float32))
    data.obsm["X_gmvae_umap"] = np.zeros((3, 2), dtype=np.float32)
    data.obsm["X_gmvae"] = data.obsm["X_gmvae_umap"]
    data.obsm["gmvae_prob"] = np.ones((3, 1))
    data.obs["gmvae_cluster"] = pd.Categorical(["0"] * 3)
    data.obs["gmvae_confidence"] = np.float32(1)
    data.obs["gmvae_unsure"] = False
    data.uns["gmvae"] = {}
    run = dict(settings=dict(batch_key=None), labels_key=None, layer=None)
    asked = report.ReportInput(run, {}, pd.DataFrame(), data, None, None)
    clusters = findings.cluster_rows(
        data.obs, None, None, pd.DataFrame(columns=["cluster", "gene"])
    )
    src = report.group_map("cluster", data.obs["gmvae_cluster"].values, np.zeros((3, 2)))
    values = dict(maps=[src], clusters=clusters, unsure_cells=0, effect={})
    none = findings.marker_genes(data.X, data.var_names, data.obs["gmvae_cluster"].values)
    found = explorer.explore_values(asked, values, none, data.X, list(data.var_names))
    assert [m["title"] for m in found["maps_here"]] == ["After"]
    data.obs["gmvae_cluster"] = pd.Categorical(["0"] * 3)
    one = report.ReportInput(run, {}, pd.DataFrame(), data, pd.Categorical(["a"] * 3), None)
    packer = explorer.Packer(np.arange(3))
    after = explorer.map_rows(one, src, data.X, packer, np.ones(3))[-1]
    assert after["words"] == "UMAP of the embedding."  # of one batch nothing was removed
    assert found["tables"] == [] and found["tree"] is None and found["markers"] == []
    assert [tile["words"] for tile in found["tiles"]][:2] == ["cells", "cluster"]
    assert found["rule"].startswith("No gene is named MT-")


def test_telling_genes_are_not_those_of_all_cells():
    markers = pd.DataFrame(
        {
            "cluster": ["0", "0", "1"],
            "gene": ["RPL3", "CD3D", "LYZ"],
            "share_in": [0.99, 0.7, 0.9],
            "share_out": [0.98, 0.1, 0.2],
        }
    )
    ordered = telling_order(markers)
    assert ordered["gene"].tolist() == ["LYZ", "CD3D", "RPL3"]
    assert dot_genes(ordered) == ["CD3D", "RPL3", "LYZ"]
    assert telling_order(markers[:0]).empty


def test_a_gene_is_found_by_its_own_case_first():
    twins = ["CD3D", "Cd3d", "LYZ"]
    assert find_genes(["Cd3d", "CD3D", "lyz"], twins) == ["Cd3d", "CD3D", "LYZ"]
    with pytest.raises(ValueError, match="'cd3d' may be CD3D or Cd3d"):
        find_genes(["cd3d"], twins)


def test_one_gene_is_a_name_and_no_list_of_letters():
    assert find_genes("g5", ["g", "5", "g5"]) == ["g5"]
    for asked in ([5], 5):
        with pytest.raises(ValueError, match="genes is .*5.*; expected the name of a gene, or"):
            find_genes(asked, ["g5"])


def test_quality_counts_what_is_there():
    counts = csr_matrix(np.array([[3, 1, 4, 0]], dtype=np.float32))
    counts.data[1] = 0  # stored, and none
    found = cell_quality(counts, ["hg38_MT-CO1", "CD3D", "RPLP0", "RPS6KA1"])
    assert found.iloc[0].tolist() == [7, 2, 3 / 7, 4 / 7]
    assert list(cell_quality(counts, list("abcd"))) == ["counts", "genes"]


def test_a_rich_cluster_is_not_dying():
    others = pd.DataFrame({"genes": [500.0] * 5, "mitochondrial": 0.04})
    rich = pd.DataFrame({"genes": [900.0] * 5, "mitochondrial": 0.3})
    assert remark_on_dying("1", rich, others) == ""
    assert remark_on_dying("1", rich.assign(genes=100.0), others) != ""
    assert remark_on_dying("1", rich.assign(genes=100.0), others[:0]) == ""


def test_the_files_own_map_is_the_one_before():
    data = cells()
    total = np.asarray(data.X.sum(1)).ravel()
    ours = np.arange(480.0).reshape(-1, 2)
    on = np.arange(0, 240, 2)
    data.obsm["X_gmvae_umap"] = data.obsm["X_umap"] = ours
    assert map_before(data, data.X, on, total)[0].startswith("Two principal components")
    data.obsm["X_pca"] = np.hstack([ours + 1, ours])
    words, place = map_before(data, data.X, on, total)
    assert words == "X_pca of the file." and place.tolist() == (ours[on] + 1).tolist()
    data.obsm["X_umap"] = pd.DataFrame(ours + 2, index=data.obs_names)
    assert map_before(data, data.X, on, total)[1].tolist() == (ours[on] + 2).tolist()


def test_many_names_share_a_column():
    groups = pd.Categorical([f"t{i % 60}" for i in range(600)] + ["t7"] * 5)
    table = cross_table("t", pd.Categorical(["0"] * 605), groups, {"0": "#000"})
    assert table["names"][0] == "t7" and table["names"][-1] == "20 others"
    assert table["rows"][1]["cells"][-1] == (200, 200 / 605)
    groups = pd.Categorical([f"t{i}" for i in range(41)])
    table = cross_table("t", pd.Categorical(["0"] * 41), groups, {"0": "#000"})
    assert len(table["names"]) == 41 and "1 others" not in table["names"]


def test_every_batch_that_lacks_a_cluster_is_counted():
    "100 batches: 90 with both clusters, and ten, the smallest, with the first alone."
    batch = pd.Categorical([f"d{i:02}" for i in range(100)] + [f"d{i:02}" for i in range(90)])
    said = absences(pd.Categorical(["0"] * 100 + ["1"] * 90), batch)
    assert said.startswith("d90 has no cell in cluster 1. d91 has")
    assert said.endswith(" 2 other batches lack clusters too.") and said.count("has no cell") == 8
    assert absences(pd.Categorical(["0", "1"]), pd.Categorical(["a", "a"])) == ""


def test_a_page_with_two_scripts_is_refused():
    with pytest.raises(ValueError, match="2 plain <script>"):
        with_sums("<style>a</style><script>b</script><script>c</script>")
    assert narrowest(np.array([256])).dtype == "<u2" and narrowest(np.array([])).dtype == "<u1"


# --- in a real browser ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    if not find_browser():
        pytest.skip("needs chromium")
    browser = Browser(find_browser())
    yield browser
    browser.close()


def pixels(browser, k=1) -> int:
    "How many pixels of a map are not of its ground."
    return browser.ask(
        f"(() => {{ const c = document.querySelectorAll('canvas.cells')[{k}], "
        "px = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; "
        "for (let i = 4; i < px.length; i += 4) n += px[i] !== px[0] || px[i + 1] !== px[1]; "
        "return n; })()"
    )


def settle(browser) -> None:
    "After the next frame has been drawn."
    browser.ask("new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_maps_are_drawn_and_nothing_is_asked_for(browser, run, width, dark):
    browser.open(run[0] / "explore.html", width=width, dark=dark)
    settle(browser)
    assert browser.ask("document.documentElement.dataset.ready") == "maps"
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert pixels(browser, 0) > 1000 < pixels(browser, 1)
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) == dark
    assert browser.complaints() == []


def test_long_names_and_settings_are_no_wider_than_a_telephone(browser, run, tmp_path):
    text = (run[0] / "report.html").read_text(encoding="utf-8")
    (tmp_path / "long.html").write_text(re.sub(r"\bd1\b", "d1" * 60, text))
    browser.open(tmp_path / "long.html", width=390, script=False)
    assert browser.ask("document.documentElement.scrollWidth") <= 390


# what the script finds, in place of which the page then has two genes that differ in case
TWINS = """
(async () => {
  const data = await unpack(), two = data.genes.slice(0, 2);
  two.forEach((gene, i) => gene.name = ["ACTB", "Actb"][i]);
  data.genes[2].name = " sp ";
  document.querySelectorAll("#markers-table button.gene").forEach((b, i) =>
    b.textContent = ["Actb", "ACTB", " sp "][i] ?? "other");
  explore(data);
})()
"""


def test_genes_that_differ_in_case_are_two(browser, run):
    browser.open(run[0] / "explore.html")
    browser.ask(TWINS)
    said = "document.getElementById('said').textContent"
    for i, name in enumerate(["Actb", "ACTB", " sp "]):
        browser.ask(f"document.querySelectorAll('#markers-table button.gene')[{i}].click()")
        assert browser.ask(said) == f"coloured by {name}"
    gene, note = "document.getElementById('gene')", "document.getElementById('gene-note')"
    browser.ask(f"{gene}.value = 'actb'; {gene}.dispatchEvent(new Event('change'))")
    assert browser.ask(f"{note}.textContent") == (
        "actb may be ACTB or Actb: write it as one of them."
    )


def test_one_is_not_many(browser, run):
    browser.open(run[0] / "explore.html")
    words = [browser.ask(f"counted({n}, 'cell') + ' ' + are({n})") for n in (0, 1, 1200)]
    assert words == ["0 cells are", "1 cell is", "1,200 cells are"]
    part = "document.getElementById('markers-gene')"
    names = browser.ask(
        "[...document.querySelectorAll('#markers-table button.gene')].map(b => b.textContent)"
    )
    once = next(n for n in names if sum(n.lower() in other.lower() for other in names) == 1)
    browser.ask(f"{part}.value = {json.dumps(once)}; {part}.dispatchEvent(new Event('input'))")
    assert browser.ask("document.getElementById('said').textContent") == "1 marker is listed"


# the least contrast of a text with what is behind it, as WCAG 2 has it
LEAST_CONTRAST = """
(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    const c = rgb(getComputedStyle(e).backgroundColor);
    return c[3] === 0 && e.parentElement ? behind(e.parentElement) : c;
  };
  const texts = [...document.querySelectorAll("main *")].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  const ratios = texts.map(e => {
    const [a, b] = [rgb(getComputedStyle(e).color), behind(e)].map(light);
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  });
  return [texts.length, Math.min(...ratios)];
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["report.html", "explore.html"])
def test_every_text_is_read_by_day_and_by_night(browser, run, name, dark):
    browser.open(run[0] / name, dark=dark, script=name == "explore.html")
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) == dark
    n_texts, least = browser.ask(LEAST_CONTRAST)
    assert n_texts > 50 and least >= 4.5


def test_she_colours_lassoes_hides_and_sorts(browser, run, tmp_path):
    folder, data = run
    browser.open(folder / "explore.html")
    said = "document.getElementById('said').textContent"
    browser.click("#gene")
    browser.type("cd3d")
    browser.key("Enter")
    settle(browser)
    assert browser.ask(said) == "coloured by CD3D"
    assert browser.ask("document.getElementById('legend').textContent").startswith("0log(1")
    browser.ask("document.getElementById('gene').value = 'nobody'")
    browser.ask("document.getElementById('gene').dispatchEvent(new Event('change'))")
    assert "nobody is not among the" in browser.ask(
        "document.getElementById('gene-note').innerText"
    )

    # a lasso around the lower left quarter of the map of the embedding, where group 0 lies
    browser.click("#mode-lasso")
    left, top, width, height = browser.place("#map1 .marks")
    corners = [(0.01, 0.5), (0.5, 0.5), (0.5, 0.99), (0.01, 0.99)]
    browser.drag([(left + a * width, top + b * height) for a, b in corners])
    chosen = browser.ask("document.getElementById('barcodes').value").split("\n")
    inside = data.obs_names[np.arange(240) % 4 == 0]
    assert chosen == inside.tolist()
    assert browser.ask(said).startswith("60 cells are selected: 60 of cluster 0")

    where = dict(behavior="allow", downloadPath=str(tmp_path))
    browser.call("Page.setDownloadBehavior", **where)
    browser.click("#cells-csv")
    browser.ask("new Promise(f => setTimeout(f, 500))")
    rows = list(csv.reader(open(tmp_path / "cells.csv", encoding="utf-8", newline="")))
    assert rows[0][:4] == ["barcode", "cluster", "donor", "type"] and len(rows) == 61
    assert [row[0] for row in rows[1:]] == inside.tolist()

    # a key instead of the mouse: zoomed in, fewer cells are in view than there are
    browser.ask("document.querySelector('#map1 .marks').focus()")
    browser.key("Escape")
    assert browser.ask(said) == "No cell is selected."
    for key in ("+", "+", "+", "ArrowLeft", "Enter"):
        browser.key(key)
    settle(browser)
    assert re.match("<?[^ ]*cell.*: cluster ", browser.ask(said))
    browser.click("#map0 + .map-tools [data-do=view]")
    assert browser.ask(said).startswith("240 cells are selected")
    browser.click("#map1 + .map-tools [data-do=view]")
    n = int(browser.ask(said).split()[0]) if browser.ask(said)[0].isdigit() else 0
    assert n < 240

    # the legend hides
    browser.ask("document.getElementById('colour-by').value = 'group 2'")
    browser.ask("document.getElementById('colour-by').dispatchEvent(new Event('change'))")
    names = browser.ask("[...document.querySelectorAll('#legend bdi')].map(e => e.textContent)")
    assert sorted(names) == sorted(TYPES)
    browser.click("#legend button")
    shown = "document.getElementById('shown').textContent"
    assert browser.ask(shown) == "180 of 240 cells are shown."
    browser.ask("document.querySelectorAll('#legend button')[1].focus()")
    browser.key("Enter", shift=True)  # that group alone
    assert browser.ask(shown) == "60 of 240 cells are shown."
    browser.click("#show-all")
    assert browser.ask(shown) == ""

    # the table of markers
    def column(i):
        return browser.ask(
            "[...document.getElementById('markers-table').tBodies[0].rows]"
            f".filter(r => !r.hidden).map(r => r.cells[{i}].dataset.value"
            f" ?? r.cells[{i}].textContent)"
        )

    browser.click("th[data-name=gene] button")
    assert len(column(2)) > 4
    assert column(2) == browser.ask(f"{json.dumps(column(2))}.sort((a, b) => a.localeCompare(b))")
    browser.click("th[data-name=share_in] button")
    browser.click("th[data-name=share_in] button")
    shares = [float(v) for v in column(5)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    browser.ask("document.getElementById('markers-cluster').value = '1'")
    browser.ask("document.getElementById('markers-cluster').dispatchEvent(new Event('change'))")
    assert set(column(0)) == {"1"}
    browser.click("#markers-csv")
    browser.ask("new Promise(f => setTimeout(f, 500))")
    with open(tmp_path / "markers.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[2].removeprefix("'") for row in rows[1:]] == column(2)
    assert browser.complaints() == []


def test_without_a_script_there_are_pictures_and_tables(browser, run):
    browser.open(run[0] / "explore.html", script=False)
    root = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]

    def all_of(selector):
        return browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]

    for picture in all_of(".map img"):
        box = browser.call("DOM.getBoxModel", nodeId=picture)["model"]
        assert box["width"] > 200
    assert len(all_of(".map img")) == 2 and len(all_of("#markers-table tbody tr")) > 4
    assert len(all_of("canvas:not([hidden])")) == 0


def test_what_the_page_cannot_unpack_leaves_the_pictures(browser, run, tmp_path):
    text = (run[0] / "explore.html").read_text(encoding="utf-8")
    (tmp_path / "cut.html").write_text(re.sub('(id="cells">.{200})[^<]*', r"\1", text))
    browser.open(tmp_path / "cut.html")
    assert browser.ask("document.documentElement.dataset.ready") == "pictures"
    assert "cannot draw the maps" in browser.ask("document.getElementById('said').textContent")
    assert not browser.ask("document.querySelector('.map img').hidden")
    browser.click("th[data-name=gene] button")
    assert browser.ask("document.querySelector('[aria-sort]').dataset.name") == "gene"


def test_a_script_that_got_in_is_not_obeyed(browser, run, tmp_path):
    "And that the browser complains of it, which the tests above rely on."
    text = (run[0] / "explore.html").read_text(encoding="utf-8")
    foreign = '<script>document.title = "obeyed"</script><img src="http://127.0.0.1:9/x.png">'
    (tmp_path / "in.html").write_text(text.replace("<footer>", "<footer>" + foreign))
    browser.open(tmp_path / "in.html")
    assert browser.ask("document.title") != "obeyed"
    said = " ".join(browser.complaints())
    assert "script-src" in said and "img-src data:" in said
