"""Render the site into _docs without quarto, and check it.

`make site` calls this from the repository's root.
nbdev stages the notebooks in _proc, with the documentation of what they export. crossref.py gives
each staged notebook what quarto would give it: numbers, links where the text says `@eq-name` or
`[@key]`, a list of references. smalldocs turns that into pages, and the pages are read again: every
link, anchor, picture and formula must be sound. look.py then looks at them in a Chromium, where
there is one. Each problem is one line, "page: what is wrong"; the exit status is 1 if there is any.
"""

import ast
import base64
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml

from crossref import Numbered, bibliography, joined, labels
from look import find_browser, measured

KATEX = "katex@0.16.11"  # the version that smalldocs writes into a page
CDN = f"https://cdn.jsdelivr.net/npm/{KATEX}/dist"
# what smalldocs says of the settings that only quarto or crossref.py reads
UNKNOWN_KEYS = "bibliography|link-citations|crossref"
QUARTO_ONLY = rf"execute|unknown key ({UNKNOWN_KEYS})|.*(html-math-method|output-file|Sass|grid)"
MARKUP = re.compile(
    r"\{#[^}]*\}?|:::.*|\$\$.*|\$[^\s$](?:[^$\n]*[^\s$])?\$|\]\([^)\s]*\)"
    r"|(?<![\w/@-])(?:@(?:eq|fig|tbl|sec)-\w+|(?:eq|fig|tbl)-[a-z][\w-]*)"
)
MOST_WIDE = 1300  # px of a picture: 6 in at the 200 dpi of nbs/matplotlibrc, and its margin
MOST_COLUMNS = 82  # of a line of code
MEMORY = re.compile(r"<[\w. ]+ at 0x[0-9a-f]+>")
OPTION = re.compile(r"(?<!\S)[–—][a-z]\w+")  # two hyphens outside of code are set as a dash
MACHINE_PATH = re.compile(r"/[\w./-]*(?:site-packages|ipykernel_\d+)/[\w./-]*")


# --- a notebook as it is committed ----------------------------------------------------------------
def mixes_imports(source: str) -> bool:
    """Whether a code cell has an import beside other code.

    To document what a notebook exports, nbdev runs the cells that import, and would run this one
    without the cells it leans on."""
    if re.search(r"(?m)^#\|\s*(exports?\b|eval:\s*false)|nbdev_export\(\)", source):
        return False
    try:
        statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    except SyntaxError:  # a cell with a magic command
        return False
    imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in statements]
    return any(imports) and not all(imports)


def output_problems(outputs: list[dict]) -> list[str]:
    "What a reader would stumble over in the outputs of a cell."
    found = []
    for output in outputs:
        if output.get("name") == "stderr":
            found.append(f"shows what was meant for stderr: {joined(output['text']).strip()[:60]}")
    for data in (output.get("data", {}) for output in outputs):
        table = joined(data.get("text/html", ""))
        if nameless := re.search(r">((?:col|row)_\d)<", table):
            found.append(f"has a table with {nameless[1]}: name its sides (rownames, colnames)")
        if long := re.search(r">(-?\d+\.\d{6,})<", table):
            found.append(f"has a table with {long[1]}: round it")
        if "image/png" in data:
            png = base64.b64decode(joined(data["image/png"]))
            wide = int.from_bytes(png[16:20], "big")
            if wide > MOST_WIDE:
                found.append(f"has a picture of {wide} px: draw it 6 in wide, or its text is small")
    return found


def long_lines(text: str) -> list[str]:
    "The lines of code in a piece of Markdown that are too long for the page."
    blocks = re.findall(r"(?ms)^```[^\n]*\n(.*?)^```", text)
    return [line for block in blocks for line in block.split("\n") if len(line) > MOST_COLUMNS]


def source_problems(cells: list[dict]) -> list[str]:
    "What is wrong with a notebook before nbdev stages it."
    found = []
    documented = any(re.search(r"(?m)^#\|\s*exports?\b", joined(c["source"])) for c in cells)
    for cell in cells:
        source, outputs = joined(cell["source"]), cell.get("outputs", [])
        name = f"the cell {source[:60]!r}"
        errors = (o for o in outputs if o["output_type"] == "error")
        found += [f"{name} ended in {o['ename']}: {o['evalue'][:80]}" for o in errors]
        paths = dict.fromkeys(MACHINE_PATH.findall(json.dumps(outputs)))
        found += [f"{name} printed a path of this machine: {path}" for path in paths]
        found += [f"{name} {problem}" for problem in output_problems(outputs)]
        if cell["cell_type"] == "markdown":
            found += [f"a line of {len(line)} characters: {line}" for line in long_lines(source)]
        if re.search(r"(?m)^[^#\n]+\bshow_doc\(", source) and "#| exec_doc" not in source:
            found.append(f"{name} documents nothing, or what once was: begin it with #| exec_doc")
        if documented and cell["cell_type"] == "code" and mixes_imports(source):
            found.append(f"{name} imports beside other code: give the imports a cell of their own")
    # nbdev turns the cell with the title into front matter: of its words, only these reach the page
    title = next((joined(c["source"]) for c in cells if c["cell_type"] == "markdown"), "")
    if not re.fullmatch(r"# [^\n]+\n*(> [^\n]+\n*)?(- \w[^\n]*:[^\n]*\n*)*", title):
        kept = "'# title' and one '> line'"
        found.append(f"the page loses all of the first cell but {kept}: {title[:60]!r}")
    return found


# --- the pages ------------------------------------------------------------------------------------
class Page(HTMLParser):
    "The `ids`, `links`, `formulas` (TeX, display) and `leftover` markup of a page."

    VERBATIM = ("code", "pre", "script", "style")

    def __init__(self, html: str):
        super().__init__()
        self.ids, self.links, self.formulas, self.leftover, self.inside = Counter(), [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list):
        value = dict(attrs)
        if value.get("id"):
            self.ids[value["id"]] += 1
        self.links += [value[k] for k in ("href", "src") if value.get(k)]
        if tag in self.VERBATIM:
            self.inside.append(tag)
        elif tag == "span":
            self.inside.append(value.get("class") or "")

    def handle_endtag(self, tag: str):
        if tag in (*self.VERBATIM, "span") and self.inside:
            self.inside.pop()

    def handle_data(self, text: str):
        self.leftover += [f"an address in memory, {a}" for a in MEMORY.findall(text)]
        if self.inside and self.inside[-1].startswith("math"):
            self.formulas.append((text.strip()[2:-2], "display" in self.inside[-1]))
        elif "pre" in self.inside:
            # nbdev links names between backticks even in the comments of a signature
            for name in re.findall(r"# .*?\[`([\w.]+)`\]\(\S+\)", text):
                advice = "write it without backticks there"
                self.leftover.append(f"a link to {name} in a signature: {advice}")
        elif not set(self.VERBATIM) & set(self.inside):
            self.leftover += MARKUP.findall(text)
            self.leftover += [f"{o}: write an option in backticks" for o in OPTION.findall(text)]


def link_problem(url: str, name: str, pages: dict[str, Page], files: set[str]) -> str | None:
    "Why a link on the page `name` leads nowhere, or None when it is sound or leaves the site."
    if re.match(r"[a-zA-Z][\w+.-]*:|//", url):
        return None
    path, _, anchor = unquote(url).partition("#")
    path = path.partition("?")[0] or posixpath.basename(name)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
    if path.endswith("/") or target == ".":
        target = posixpath.normpath(target + "/index.html")
    if target not in files:
        return f"{url} leads nowhere: the site has no file {target}"
    if anchor and target in pages and anchor not in pages[target].ids:
        return f"{url} leads nowhere: {target} has no anchor #{anchor}"
    return None


def page_problems(pages: dict[str, Page], files: set[str]) -> list[str]:
    """What is unsound on the pages: ids, markup left in the text, links and pictures.

    `files` are the site's."""
    found = []
    for name, page in pages.items():
        here = [f"the id {i} is defined {n} times" for i, n in page.ids.items() if n > 1]
        here += [f"markup is left: {text.strip()}" for text in dict.fromkeys(page.leftover)]
        broken = [link_problem(url, name, pages, files) for url in dict.fromkeys(page.links)]
        here += [problem for problem in broken if problem]
        found += [f"{name}: {problem}" for problem in here]
    return found


def formula_problems(pages: dict[str, Page], katex: Path) -> list[str]:
    "The formulas that KaTeX cannot read, asked through node."
    script = """const katex = require(process.argv[1]);
const all = JSON.parse(require('fs').readFileSync(0));
for (const [page, tex, displayMode] of all) { try { katex.renderToString(tex, {displayMode}) }
catch (e) { console.log(page + ': ' + e.message.replaceAll('\\n', ' ')) } }"""
    formulas = json.dumps([(name, *f) for name, page in pages.items() for f in page.formulas])
    command = ["node", "-e", script, str(katex / "katex.min.js")]
    run = subprocess.run(command, input=formulas, text=True, capture_output=True)
    found = run.stdout.splitlines()
    if run.returncode:
        found.append(f"node: {run.stderr.strip()[-200:]}")
    return found


# --- the steps ------------------------------------------------------------------------------------
def number_all(proc: Path) -> list[str]:
    "Number every staged notebook in place; returns the problems."
    paths = sorted(proc.glob("*.ipynb"))
    staged = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in paths}
    site = yaml.safe_load((proc / "nbdev.yml").read_text(encoding="utf-8"))["website"]["site-url"]
    entries = bibliography((proc / "references.bib").read_text(encoding="utf-8"))
    problems, home, address = [], {}, {}
    for page, nb in staged.items():
        for label in labels(nb["cells"]):
            if label in home:
                first = f"first in {home[label]}"
                problems.append(f"{page}: the label {label} is defined twice, {first}")
            home.setdefault(label, page)
        # nbdev links a documented name to the public site
        for name in re.findall(r"output-file: (\S+)", joined(nb["cells"][0]["source"])):
            address[f"{site}/{name}"] = f"{page}.ipynb"
    for page, nb in staged.items():
        done = Numbered(page, nb["cells"], entries, home)
        problems += [f"{page}: {p}" for p in done.problems]
        text = json.dumps({**nb, "cells": done.cells}, ensure_ascii=False)
        text = re.sub(re.escape(site) + r"/[\w-]+\.html", lambda m: address.get(m[0], m[0]), text)
        (proc / f"{page}.ipynb").write_text(text, encoding="utf-8")
        for name, data in done.pictures.items():
            (proc / name).parent.mkdir(exist_ok=True)
            (proc / name).write_bytes(data)
    return problems


def fetch_katex() -> Path | None:
    """KaTeX's `dist` folder, got once with npm and kept in the environment.

    None where npm cannot get it."""
    folder = Path(sys.prefix) / "share" / KATEX
    dist = folder / "package" / "dist"
    if not (dist / "katex.min.js").exists():
        if not shutil.which("npm"):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", KATEX]
        if subprocess.run(command, cwd=folder, capture_output=True).returncode:
            return None
        # Python has it from 3.11.4 on
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        shutil.unpack_archive(next(folder.glob("*.tgz")), folder, **safely)
    return dist


def vendor_katex(docs: Path, katex: Path):
    "Copy KaTeX into the site and point the pages at the copy."
    to = docs / "site_libs" / "katex"
    for name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js", "fonts/*.woff2"):
        for f in katex.glob(name):
            (to / f.relative_to(katex)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, to / f.relative_to(katex))
    for page in docs.glob("*.html"):
        html = page.read_text(encoding="utf-8").replace(CDN, "site_libs/katex")
        page.write_text(html, encoding="utf-8")


def drop_fonts(docs: Path):
    "The themes ask another host for their fonts; fonts.scss says the same to quarto."
    for theme in (docs / "site_libs" / "themes").glob("*.css"):
        css = theme.read_text(encoding="utf-8")
        theme.write_text(re.sub(r"@import url\([^)]*\);", "", css), encoding="utf-8")


def seen(docs: Path) -> list[str]:
    "What a browser sees that is wrong; nothing where there is no browser."
    found = find_browser()
    if not found:
        print("no browser: nobody looked for what is cut and what is asked of other hosts")
        return []
    started = time.monotonic()
    problems = measured(docs, found)
    print(f"seen in {Path(found).name}, in {time.monotonic() - started:.0f} s")
    return problems


def main() -> int:
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    from smalldocs.site import build

    problems = []
    for p in sorted(Path("nbs").glob("*.ipynb")):
        cells = json.loads(p.read_text(encoding="utf-8"))["cells"]
        problems += [f"{p.stem}: {problem}" for problem in source_problems(cells)]
    refresh_quarto_yml()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # source_problems is shorter
            # in this process: each worker would import torch and scanpy once more, which takes as
            # long as all pages do
            proc = Path(proc_nbs(force=True, n_workers=0))
    except Exception as e:  # whatever a cell raises
        why = " ".join(str(e).split())[:200]
        print(*problems, f"nbdev cannot stage a notebook: {why}", sep="\n")
        return 1
    problems += number_all(proc)
    said = build(proc, quiet=True).warnings
    # its broken links are found again below
    problems += [w for w in said if not re.match(QUARTO_ONLY, w) and "broken link" not in w]
    docs = Path("_docs")
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc / "_docs", docs)
    shutil.rmtree(proc)  # nbdev_docs would take the numbered notebooks for its own

    drop_fonts(docs)
    katex = fetch_katex()
    if katex:
        vendor_katex(docs, katex)
    pages = {p.name: Page(p.read_text(encoding="utf-8")) for p in sorted(docs.glob("*.html"))}
    files = {p.relative_to(docs).as_posix() for p in docs.rglob("*") if p.is_file()}
    problems += page_problems(pages, files)
    if katex and shutil.which("node"):
        problems += formula_problems(pages, katex)
    problems += seen(docs) if katex else []
    print(*problems, sep="\n", end="\n" * bool(problems))
    formulas = sum(len(p.formulas) for p in pages.values())
    print(f"_docs: {len(pages)} pages, {formulas} formulas, {len(problems)} problems")
    if katex:
        print("maths: KaTeX, copied into the site")
    else:
        print("maths: KaTeX from its CDN: the pages need a network (with npm it would be copied)")
    print(f"to look: {os.path.relpath(sys.executable)} -m http.server -d _docs")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
