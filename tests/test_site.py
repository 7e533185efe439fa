"""The checks of tools/site.py: each fault is told, a sound page passes.

The repository's own site has no fault."""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import crossref  # noqa: E402
import look  # noqa: E402

# by path, because `import site` is Python's own
spec = importlib.util.spec_from_file_location("site_tool", ROOT / "tools" / "site.py")
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)

BIB = r"""
@article{kang2018, title={Multiplexed {scRNA}-seq}, author={Kang, Hyun Min and Ye, Chun and others},
  journal={Nature}, volume={36}, pages={89--94}, year={2018}, doi={10.1038/nbt.4042}}
@inproceedings{kingma2014vae, title = "Auto-Encoding",
  author = {Kingma, Diederik P. and Welling, Max},
  year = 2014, booktitle={ICLR}}
@techreport{mfa1996, title={Factors}, author={Hinton, Geoffrey}, year={1996}, institution={Toronto}}
@misc{bare, title={Nowhere}, author={Ann, A}, year={2000}}
@article{buttner2019, title={kBET}, author={B{\"u}ttner, Maren}, journal={Nature}, year={2019}}
"""
PNG = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBORw0KGgo="}}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no such batch", "traceback": []}
EQUATION = "$$\na = b\n$$ {#eq-one}"


def md(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, *outputs: dict) -> dict:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": list(outputs)}


def numbered(*cells: dict, home: dict | None = None) -> crossref.Numbered:
    return crossref.Numbered("page", list(cells), crossref.bibliography(BIB), home or {})


def text(*cells: dict) -> str:
    done = numbered(*cells)
    assert done.problems == []
    return "\n".join(crossref.joined(c["source"]) for c in done.cells)


# --- numbers and links ----------------------------------------------------------------------------
def test_equations_are_numbered_in_order_and_linked():
    second = "$$ c $$ {#eq-any}"
    out = text(md("See @eq-any."), md(EQUATION), md(second), md("From [@eq-one; @eq-any]."))
    assert "See [Equation 2](#eq-any)." in out
    assert "From [Equation 1](#eq-one); [Equation 2](#eq-any)." in out
    assert "::: {#eq-one}\n$$\na = b\n\\tag{1}\n$$\n:::" in out and "\\tag{2}" in out


def test_equation_in_a_list_keeps_its_indent():
    assert "\n   $$\n   a\n   \\tag{1}\n   $$\n" in text(md("1. First\n\n   $$ a $$ {#eq-one}\n"))


def test_labels_that_a_docstring_names_are_linked():
    documented = {"output_type": "display_data", "metadata": {}}
    documented["data"] = {"text/markdown": "*The sum (eq-one; eq-far, eq-no).* `eq-one`"}
    cell = numbered(md(EQUATION), code("f()", documented), home={"eq-far": "b"}).cells[1]
    said = cell["outputs"][0]["data"]["text/markdown"]
    linked = "[Equation 1](#eq-one); [equation of b](b.ipynb#eq-far), eq-no"
    assert said == f"*The sum ({linked}).* `eq-one`"


def test_signatures_that_say_nothing_are_mended():
    fields = "### A\n\n```python\n\ndef A(\n    *args, **kwargs\n):\n\n```\n\n*One.*"
    assert crossref.signed(fields) == "### A\n\n```python\n\nclass A\n\n```\n\n*One.*"
    assert (
        crossref.signed("#### A.run\n\ndef _run(\n    x:int") == "#### A.run\n\ndef run(\n    x:int"
    )
    long = "def f(\n    x:__main__.Part | gmvae_nb.match.Cells | collections.abc.Mapping"
    assert crossref.signed(long) == "def f(\n    x:Part | Cells | Mapping"
    plain = "### f\n\ndef f(\n    x, *args, **kwargs\n):\n\ndef _g(\n"
    assert crossref.signed(plain) == plain


def test_what_is_printed_in_pieces_stands_in_one_block():
    pieces = [{"output_type": "stream", "name": name, "text": [name]} for name in ("a", "a", "b")]
    kept = numbered(code("f()", *pieces)).cells[0]["outputs"]
    assert [crossref.joined(output["text"]) for output in kept] == ["aa", "b"]


def test_a_series_is_shown_without_its_dtype():
    series = {"output_type": "execute_result", "metadata": {}}
    series["data"] = {"text/plain": ["a    1\n", "b    2\n", "Name: n, dtype: int64"]}
    shown = numbered(code("s", series)).cells[0]["outputs"][0]["data"]
    assert shown == {"text/plain": "a    1\nb    2"}


def test_figures_get_number_caption_and_file():
    options = '#| label: fig-a\n#| fig-cap: "Cells by $K$, @kang2018"\n#| fig-alt: Dots'
    figure = code(f"{options}\nplot()", PNG)
    done = numbered(figure, md("@fig-a"))
    assert done.problems == [] and list(done.pictures) == ["page_files/fig-a-1.png"]
    shown = done.cells[0]["outputs"][0]["data"]["text/markdown"]
    caption = "Figure 1: Cells by $K$, Kang et al. ([2018](#ref-kang2018))"
    assert f'![{caption}](page_files/fig-a-1.png){{fig-alt="Dots"}}' in shown
    assert "::: {#fig-a}" in shown and "fig-cap" not in done.cells[0]["source"]
    assert done.cells[1]["source"] == "[Figure 1](#fig-a)"


def test_tables_and_sections():
    frame = {
        "output_type": "execute_result",
        "metadata": {},
        "data": {"text/html": "<table></table>"},
    }
    done = numbered(
        md("## The prior {#sec-prior}\n\n| a |\n|---|\n\n: Scores {#tbl-a}"),
        code("#| label: tbl-b\n#| tbl-cap: More\ndf", frame),
        md("@tbl-a @tbl-b @sec-prior"),
    )
    assert done.problems == [] and ": Table 1: Scores {#tbl-a}" in done.cells[0]["source"]
    caption = done.cells[1]["outputs"][0]["data"]["text/markdown"]
    assert caption == "::: {#tbl-b .quarto-float-caption}\nTable 2: More\n:::"
    assert done.cells[2]["source"] == "[Table 1](#tbl-a) [Table 2](#tbl-b) [The prior](#sec-prior)"


def test_citations_and_references():
    out = text(md("As @kingma2014vae [see @kang2018, p. 3; @buttner2019] and [-@kang2018]."))
    assert "As Kingma and Welling ([2014](#ref-kingma2014vae)) (see [Kang" in out
    assert "(see [Kang et al. 2018](#ref-kang2018), p." in out
    assert "; [Büttner 2019](#ref-buttner2019))" in out
    assert "([2018](#ref-kang2018))." in out and "## References" in out
    at = [out.index(f'id="ref-{key}"') for key in ("buttner2019", "kang2018", "kingma2014vae")]
    assert at == sorted(at)
    assert "Kang, Hyun Min, Chun Ye, et al. 2018. “Multiplexed scRNA-seq.”" in out
    assert "“Multiplexed scRNA-seq.” <em>Nature</em> 36: 89–94" in out
    assert "https://doi.org/10.1038/nbt.4042" in out
    assert "Kingma, Diederik P., and Max Welling. 2014." in out
    reports = text(md("@mfa1996 @bare"))
    assert "“Factors.” <em>Toronto</em>.</div>" in reports and "“Nowhere.”</div>" in reports


@pytest.mark.parametrize(
    "verbatim",
    [
        "`@patch`",
        "```python\n@patch\n```",
        "$x @y$",
        "$$ x @y $$",
        "<!-- @todo -->",
        "[a](https://h.org/@b)",
        "https://h.org/@b",
        "me@host.org",
    ],
)
def test_an_at_sign_that_is_no_reference(verbatim):
    assert text(md(f"Here {verbatim} stays")) == f"Here {verbatim} stays"


# --- faults of a notebook -------------------------------------------------------------------------
@pytest.mark.parametrize(
    "cells, home, told",
    [
        ([md("@eq-none")], {}, "@eq-none is defined nowhere"),
        ([md("@eq-far")], {"eq-far": "01_vae"}, "write [words](01_vae.ipynb#eq-far)"),
        ([md("[@nobody1999]")], {}, "@nobody1999 is neither a label nor a key"),
        ([md("@nobody1999 says")], {}, "@nobody1999 is neither a label nor a key"),
        ([md("[@kang2018; and others]")], {}, "has a part without a key"),
        (
            [code("#| label: fig-a\n#| fig-cap: Cells\nplot()"), md("@fig-a")],
            {},
            "fig-a: the cell has no picture",
        ),
        (
            [code("#| label: fig-a\nplot()", ERROR), md("@fig-a")],
            {},
            "fig-a: the cell has no picture",
        ),
        ([code("#| label: fig-a\nplot()", PNG), md("@fig-a")], {}, "say in fig-alt what is seen"),
        (
            [code("#| label: fig-a\n#| fig-alt: Dots\nplot()", PNG)],
            {},
            "fig-a: the text does not refer to it",
        ),
        ([code("#| label: tbl-a\ndf")], {}, "tbl-a: the cell has no output"),
        ([code("#| label: tbl-a\n#| tbl-cap: Left: a\nplot()", PNG)], {}, "no YAML"),
        ([code("#| code-fold: show\n#| echo: true\n#| code-fold: true\nx")], {}, "code-fold twice"),
    ],
)
def test_faults_in_numbering_are_told(cells, home, told):
    problems = numbered(*cells, home=home).problems
    assert len(problems) == 1 and told in problems[0]


TQDM = "/a/lib/site-packages/tqdm/auto.py"
BAR = {"output_type": "stream", "name": "stderr", "text": "\rask:  78%|#| 25/32"}
WARNING = {"output_type": "stream", "text": f"{TQDM}:21: TqdmWarning"}


def table(html: str) -> dict:
    return {"output_type": "execute_result", "metadata": {}, "data": {"text/html": html}}


def picture(wide: int) -> dict:
    "The head of a PNG."
    head = base64.b64encode(bytes(16) + wide.to_bytes(4, "big")).decode()
    return {"output_type": "display_data", "metadata": {}, "data": {"image/png": head}}


@pytest.mark.parametrize(
    "cell, told",
    [
        (code("f()", ERROR), "ended in ValueError: no such batch"),
        (code("import os\nf()"), "imports beside other code"),
        (code("def f():\n    import os"), "imports beside other code"),
        (code("f()", WARNING), f"printed a path of this machine: {TQDM}"),
        (code("t", table("<th>col_0</th>")), "a table with col_0: name"),
        (code("t", table("<td>0.123456</td>")), "a table with 0.123456: round it"),
        (code("f()", picture(1301)), "has a picture of 1301 px"),
        (code("f()", BAR), "shows what was meant for stderr: ask:  78%"),
        (md("```sh\n" + 83 * "a" + "\n```"), "a line of 83 characters"),
        (code("for f in g:\n    display(show_doc(f))"), "begin it with #| exec_doc"),
    ],
)
def test_faults_in_cells_are_told(cell, told):
    problems = site.source_problems([md("# T\n\n> promise"), cell, code("#| export\nx = 1")])
    assert len(problems) == 1 and told in problems[0]


@pytest.mark.parametrize(
    "title", ["# T\n\n> promise\n\nMore words", "Words", "# T\n\n> two\n> lines"]
)
def test_a_first_cell_whose_words_would_be_lost(title):
    assert "the page loses all of the first cell" in site.source_problems([md(title)])[0]


def test_a_sound_notebook_has_no_faults():
    cells = [
        md("# T\n\n> promise"),
        code("import os\nimport sys"),
        code("f()", PNG),
        code("#| export\nimport os\n\ndef f(): return os"),
    ]
    assert site.source_problems(cells) == []
    exports_nothing = [md("# T"), code("import os\nf()")]  # nbdev runs nothing of it
    assert site.source_problems(exports_nothing) == []


def stage(proc: Path, name: str, *cells: dict):
    "What nbdev leaves in _proc for one notebook: the page loses the number of the notebook's name."
    front = md(f"---\noutput-file: {name.lstrip('0123456789_')}.html\n---")
    (proc / f"{name}.ipynb").write_text(json.dumps({"cells": [front, *cells]}))
    (proc / "nbdev.yml").write_text("website:\n  site-url: https://h.org/p\n")
    (proc / "references.bib").write_text(BIB)


def test_repeated_labels_are_told(tmp_path):
    for name in ("a", "b"):
        stage(tmp_path, name, md(EQUATION))
    assert site.number_all(tmp_path) == ["b: the label eq-one is defined twice, first in a"]


def test_links_to_the_public_site_become_links_between_the_pages(tmp_path):
    stage(tmp_path, "01_vae", md("[`kl`](https://h.org/p/vae.html#kl)"))
    assert site.number_all(tmp_path) == []
    assert "[`kl`](01_vae.ipynb#kl)" in (tmp_path / "01_vae.ipynb").read_text()


def test_a_bibliography_with_an_open_brace_is_told():
    with pytest.raises(ValueError, match="never closed"):
        crossref.bibliography("@article{a, title={Open}")


# --- faults of a page -----------------------------------------------------------------------------
GOOD = """<h2 id="top">T</h2><a href="#top">a</a><a href="b.html#c">b</a>
<a href="https://x.org/y">x</a>
<img src="p.png"><img src="data:image/png;base64,AA">"""


@pytest.mark.parametrize(
    "html, told",
    [
        (GOOD, None),
        ('<a href="#nowhere">a</a>', "a.html has no anchor #nowhere"),
        ('<a href="b.html#nowhere">a</a>', "b.html has no anchor #nowhere"),
        ('<a href="c.html">a</a>', "the site has no file c.html"),
        ('<img src="missing.png">', "the site has no file missing.png"),
        ('<p id="x"></p><p id="x"></p>', "the id x is defined 2 times"),
        ("<p>left ::: {.callout-note}</p>", "markup is left"),
        ("<p>left {#eq-one}</p>", "markup is left"),
        ("<p>left @fig-one</p>", "markup is left"),
        ("<p>left $$ a $$</p>", "markup is left"),
        ("<td>$n_x$ is 20</td>", "markup is left: $n_x$"),
        ("<p>[<code>f</code>](a.ipynb)</p>", "markup is left: ](a.ipynb)"),
        ("<em>The mean (eq-nb-mean).</em>", "markup is left: eq-nb-mean"),
        ("<p>It costs $5 or $ 6.</p>", None),
        ("<em>What –map_batch says.</em>", "–map_batch: write an option in backticks"),
        ("<p>One – or two – of 3–4, and –1.</p>", None),
        ("<pre>f(x=&lt;function f at 0x7ff2&gt;)</pre>", "an address in memory, <function f at"),
        ('<pre>f(h) <span class="co"># of [`A`](04_train.ipynb#a)</span></pre>', "a link to A"),
        ("<pre>::: @fig-one $$</pre><p><code>{#eq-one}</code></p>", None),
    ],
)
def test_faults_of_a_page(html, told):
    pages = {"a.html": site.Page(html), "b.html": site.Page('<p id="c"></p>')}
    found = site.page_problems(pages, {"a.html", "b.html", "p.png"})
    assert len(found) == bool(told)
    assert all(told in problem for problem in found)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_formulas_are_read_by_katex():
    katex = site.fetch_katex()
    if not katex:
        pytest.skip("needs npm and its registry")
    page = site.Page(
        r'<span class="math inline">\(\frac{a}{b}\)</span>'
        r'<span class="math display">\[\frac{a}{\]</span>'
    )
    assert page.formulas == [(r"\frac{a}{b}", False), (r"\frac{a}{", True)]
    found = site.formula_problems({"a.html": page}, katex)
    assert len(found) == 1 and found[0].startswith("a.html: KaTeX parse error")


def test_without_npm_the_pages_keep_katex_from_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(site.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(site.shutil, "which", lambda name: None)
    assert site.fetch_katex() is None


# --- what a browser sees --------------------------------------------------------------------------
SWITCH = "document.body.classList.toggle('dark')"
SOUND = f"""<!doctype html><html><head><link rel="icon" href="data:,"><style>
body {{ margin: 1em; background: white }} body.dark {{ background: black; color: white }}
pre, .box {{ overflow-x: auto }}</style></head><body>
<button class="quarto-color-scheme-toggle" onclick="{SWITCH}">dark</button>
<main><p>Words</p><pre>code</pre><!-- here --></main></body></html>"""
LONG = "word" * 60
FAULTS = {
    "code": (f"<pre>{LONG}</pre>", "1440 px dark): code is cut"),
    "folded": (f"<details><pre>{LONG}</pre></details>", "code is cut"),
    "page": (f"<div>{LONG}</div>", "390 px light"),
    "table": (
        f"<div class='box'><table><td>{LONG}<td>NaN</table></div>",
        "does not say that it scrolls",
        "1440 px dark): a table is cut",
        "a table shows NaN",
    ),
    "says": ("<p class='scrolls-sideways'>Words</p>", "it says that it scrolls, and does not"),
    "pale": ("<p style='color: #ccc; background: white'>pale</p>", "hard to read, contrast 1.6"),
    "console": ("<script>throw new Error('oh')</script>", "an error in the console: Error: oh"),
    "missing": ("<img src='none.png'>", "404"),
    "host": (
        "<img src='http://127.0.0.1:9/a.png'>",
        "a request to another host: http://127.0.0.1:9",
    ),
}


@pytest.mark.skipif(not look.find_browser(), reason="needs a Chromium")
def test_a_browser_sees_each_fault_and_none_on_a_sound_page(tmp_path):
    (tmp_path / "sound.html").write_text(SOUND)
    for name, (html, *_) in FAULTS.items():
        (tmp_path / f"{name}.html").write_text(SOUND.replace("<!-- here -->", html))
    (tmp_path / "stuck.html").write_text(SOUND.replace("toggle('dark')", "contains('dark')"))
    found = look.measured(tmp_path, look.find_browser())
    assert not [line for line in found if line.startswith("sound")]
    for name, (_, *all_told) in FAULTS.items():
        for told in all_told:
            assert [line for line in found if line.startswith(name) and told in line], told
    assert [line for line in found if line.startswith("stuck") and "switch" in line]


def test_a_browser_that_is_named_must_be_there(monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")
    with pytest.raises(FileNotFoundError, match="BROWSER_PATH=/no/such/browser"):
        look.find_browser()
    monkeypatch.setenv("BROWSER_PATH", "")
    assert look.find_browser() is None


# --- the repository's own site --------------------------------------------------------------------
def test_the_site_builds_without_a_fault(tmp_path):
    "The whole build, on a copy: 20 to 40 s."
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "gmvae_nb", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unwanted, symlinks=True)
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    # the copy's package, not the installed one; `make site` looks at the pages too
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "BROWSER_PATH": ""}
    command = [sys.executable, "tools/site.py"]
    run = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    pages = {p.stem for p in (tmp_path / "_docs").glob("*.html")}
    assert pages == {p.stem for p in (ROOT / "nbs").glob("*.ipynb")}
