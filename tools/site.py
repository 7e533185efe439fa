"""Render the site into _docs without quarto, and check it. `make site` calls this from the repository's root.

nbdev stages the notebooks in _proc, with the documentation of what they export. Here each staged notebook gets what quarto would
give it: numbers for its equations, figures and tables, links where the text says `@eq-name` or `[@key]`, a list of references.
smalldocs turns that into pages, and the pages are read again: every link, anchor, picture and formula must be sound.
Each problem is one line, "page: what is wrong", and the exit status is 1 if there is any.
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
import unicodedata
from collections import Counter
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml

NAMES = {"eq": "Equation", "fig": "Figure", "tbl": "Table"}  # as in _quarto.yml; a section is called by its title
KATEX = "katex@0.16.11"  # the version that smalldocs writes into a page
CDN = f"https://cdn.jsdelivr.net/npm/{KATEX}/dist"
QUARTO_ONLY = r"execute\.enabled|unknown key (bibliography|link-citations|crossref)|.*(html-math-method|output-file)"

CODE = re.compile(r"(?ms)^ *(```+|~~~+).*?^ *\1[`~]*[ \t]*$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)|<!--.*?-->")
VERBATIM = re.compile(  # where an @ is no reference: code, maths, the target of a link
    CODE.pattern + r"|\$\$.*?\$\$|(?<![\\$])\$(?![\s$])(?:(?!\n\n)[^$])*?(?<![\s\\])\$(?!\d)|(?<=\])\([^)]*\)|https?://[^\s)>]+")
LABEL = re.compile(r"\{#((?:eq|fig|tbl|sec)-[\w-]+)")
EQUATION = re.compile(r"(?ms)^([ \t]*)\$\$(.*?)\$\$[ \t]*\{#(eq-[\w-]+)\}")
SECTION = re.compile(r"(?m)^#+[ \t]+(.+?)[ \t]*\{#(sec-[\w-]+)[^}]*\}")
TABLE = re.compile(r"(?m)^(:[ \t]+)(.*?\{#(tbl-[\w-]+))")
PICTURE = re.compile(r"!\[(?=[^\n]*?\]\([^)]*\)\{#(fig-[\w-]+))")
KEY = r"@(\w+(?:[-:.]\w+)*)"
GROUP = re.compile(rf"\[([^\[\]]*?(?<![\w@]){KEY}[^\[\]]*)\](?![(\[{{])")
BARE = re.compile(rf"(?<![\w@/.\\]){KEY}")


# --- the text of a notebook ------------------------------------------------------------------------------------------
def outside(pattern: re.Pattern, edit, text: str) -> str:
    "Apply `edit` to the pieces of `text` between the matches of `pattern`."
    pieces, end = [], 0
    for m in pattern.finditer(text):
        pieces += [edit(text[end:m.start()]), m.group()]
        end = m.end()
    return "".join([*pieces, edit(text[end:])])


def joined(text: str | list[str]) -> str:
    "A notebook stores a text whole or as a list of lines."
    return text if isinstance(text, str) else "".join(text)


def options(source: str) -> tuple[dict, str]:
    "The `#| key: value` lines at the top of a code cell, and its code. Raises yaml.YAMLError."
    lines = source.split("\n")
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    found = yaml.safe_load("\n".join(line[2:].removeprefix(" ") for line in lines[:n])) or {}
    return (found if isinstance(found, dict) else {}), "\n".join(lines[n:])


def labels(cells: list[dict]) -> list[str]:
    "Every label that a notebook's cells define, in order, repeated ones too."
    found = []
    for cell in cells:
        if cell["cell_type"] == "markdown":
            outside(CODE, lambda t: found.extend(LABEL.findall(t)) or "", joined(cell["source"]))
        elif cell["cell_type"] == "code":
            found += re.findall(r"(?m)^#\|\s*label:\s*[\"']?((?:fig|tbl)-[\w-]+)", joined(cell["source"]))
    return found


def numbers(cells: list[dict]) -> dict[str, str]:
    "How the text refers to each label: `eq-elbo` -> `Equation 2`, `sec-model` -> the section's title."
    count, names = Counter(), {}
    titles = {label: title for cell in cells for title, label in SECTION.findall(joined(cell["source"]))}
    for label in dict.fromkeys(labels(cells)):
        kind = label.partition("-")[0]
        count[kind] += 1
        names[label] = titles.get(label, label) if kind == "sec" else f"{NAMES[kind]} {count[kind]}"
    return names


# --- the bibliography ------------------------------------------------------------------------------------------------
def closing(text: str, start: int) -> int:
    "The index of the brace that closes the one at `start`."
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return i
    raise ValueError(f"references.bib: the brace before {text[start + 1:start + 40]!r} is never closed")


def plain(tex: str) -> str:
    "BibTeX's text without its braces, accents composed."
    marks = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "c": "\u0327", "v": "\u030c"}
    tex = re.sub(r"\\([\"'`^~]|[cv](?=[\s{]))\s*\{?(\w)\}?", lambda m: unicodedata.normalize("NFC", m[2] + marks[m[1]]), tex)
    return re.sub(r"\s+", " ", re.sub(r"[{}]", "", tex).replace("\\&", "&").replace("---", "—").replace("--", "–")).strip()


def bibliography(text: str) -> dict[str, dict[str, str]]:
    "The entries of a BibTeX file, by key; the value of a field stands in braces or quotes, or is a number."
    entries = {}
    for m in re.finditer(r"(?m)^\s*@\w+\{\s*([^,\s]+)\s*,", text):
        body = text[m.end():closing(text, text.index("{", m.start()))]
        fields, at = {}, 0
        while f := re.compile(r"[\s,]*(\w+)\s*=\s*(?:(\{)|\"([^\"]*)\"|(\w+))").match(body, at):
            at = closing(body, f.start(2)) + 1 if f[2] else f.end()
            fields[f[1].lower()] = plain(body[f.end():at - 1] if f[2] else f[3] or f[4])
        entries[m[1]] = fields
    return entries


def authors(entry: dict[str, str]) -> list[list[str]]:
    "[family, given] of each author; `others` stays as it is."
    names = [n.strip() for n in entry.get("author", "").split(" and ") if n.strip()]
    return [[p.strip() for p in n.split(",", 1)] if "," in n else n.rsplit(" ", 1)[::-1] for n in names]


def short(entry: dict[str, str]) -> str:
    "Who wrote it, as the text says it: `Kingma and Welling`, `Kang et al.`"
    family = [a[0] for a in authors(entry)]
    if len(family) > 3 or "others" in family:
        return f"{family[0]} et al."
    return " and ".join(family) if len(family) < 3 else f"{family[0]}, {family[1]}, and {family[2]}"


def reference(key: str, entry: dict[str, str]) -> str:
    "One entry of the list of references, as HTML."
    names = [", ".join(a) if i == 0 else " ".join(a[::-1]) for i, a in enumerate(authors(entry)) if a[0] != "others"]
    if len(names) < len(authors(entry)):
        names.append("et al.")
    elif len(names) > 1:
        names[-1] = "and " + names[-1]
    e = {k: escape(v, quote=False) for k, v in entry.items()}
    venue = f"<em>{e.get('journal') or e.get('booktitle') or e.get('publisher', '')}</em>"
    venue += "".join(before + e[k] for before, k in ((" ", "volume"), (": ", "pages")) if k in e)
    url = "https://doi.org/" + e["doi"] if "doi" in e else e.get("url")
    link = f' <a href="{url}">{url}</a>' if url else ""
    return f'<div id="ref-{key}" class="reference">{escape(", ".join(names)).rstrip(".")}. {e.get("year")}. “{e.get("title")}.” {venue}.{link}</div>'


# --- one notebook, numbered ------------------------------------------------------------------------------------------
class Numbered:
    "A staged notebook with numbers and links in its text: `cells`, the `pictures` of its figures, the `problems` found."

    def __init__(self, page: str, cells: list[dict], entries: dict[str, dict], home: dict[str, str]):
        self.page, self.entries, self.home = page, entries, home  # home: the page that defines each label of the site
        self.names, self.cited, self.pictures, self.problems = numbers(cells), {}, {}, []
        self.cells = [self.cell(dict(c)) for c in cells]
        if self.cited:
            listed = sorted(self.cited, key=lambda k: (short(entries[k]).lower(), entries[k].get("year", "")))
            text = "\n\n".join(["## References {.unnumbered}", *(reference(k, entries[k]) for k in listed)])
            self.cells.append({"cell_type": "markdown", "metadata": {}, "id": "references", "source": text})

    def cell(self, cell: dict) -> dict:
        "One cell, numbered and linked."
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = outside(VERBATIM, self.links, outside(CODE, self.captions, source))
        elif cell["cell_type"] == "code":
            try:
                opts, code = options(source)
            except yaml.YAMLError as e:
                self.problems.append(f"the #| lines above {source[:60]!r} are no YAML: {str(e).splitlines()[0]}")
                return cell
            kind = str(opts.get("label", "")).partition("-")[0]
            if kind in ("fig", "tbl"):
                label, caption = opts.pop("label"), str(opts.pop(f"{kind}-cap", ""))
                caption = outside(VERBATIM, self.links, f"{self.names[label]}: {caption}" if caption else self.names[label])
                made = self.figure if kind == "fig" else self.table
                cell["outputs"] = made(label, caption, opts.pop("fig-alt", ""), cell["outputs"])
                cell["source"] = "".join(f"#| {k}: {json.dumps(v)}\n" for k, v in opts.items()) + code
        return cell

    def captions(self, text: str) -> str:
        "Number the equations, tables and pictures of a piece of Markdown."
        def equation(m: re.Match) -> str:
            number = self.names[m[3]].split()[-1]
            lines = ["", f"::: {{#{m[3]}}}", "$$", *m[2].strip().split("\n"), rf"\tag{{{number}}}", "$$", ":::", ""]
            return "\n".join(m[1] + line.removeprefix(m[1]) if line else line for line in lines)
        text = EQUATION.sub(equation, text)
        text = TABLE.sub(lambda m: f"{m[1]}{self.names[m[3]]}: {m[2]}", text)
        return PICTURE.sub(lambda m: f"![{self.names[m[1]]}: ", text)

    def links(self, text: str) -> str:
        "Turn the references and citations of a piece of Markdown into links."
        text = GROUP.sub(lambda m: self.group(m[1]), text)
        return BARE.sub(lambda m: self.link(m[1], prose=True), text)

    def group(self, inside: str) -> str:
        "What stands in brackets: `see @a, p. 3; @b`, or references such as `@eq-a; @eq-b`."
        items = [re.fullmatch(rf"\s*(.*?)(-?){KEY}(.*?)\s*", item, re.S) for item in inside.split(";")]
        if not all(items):
            self.problems.append(f"[{inside}] has a part without a key: write each as @key")
            return inside
        text = "; ".join(m[1] + self.link(m[3], year_only=bool(m[2])) + m[4] for m in items)
        return text if all(m[3].partition("-")[0] in (*NAMES, "sec") for m in items) else f"({text})"

    def link(self, key: str, prose: bool = False, year_only: bool = False) -> str:
        "The link for one label or citation key."
        if key.partition("-")[0] in (*NAMES, "sec") and "-" in key:
            if key in self.names:
                return f"[{self.names[key]}](#{key})"
            where = self.home.get(key)
            self.problems.append(f"@{key} is a label of {where}: write [words]({where}.ipynb#{key})" if where else f"@{key} is defined nowhere")
        elif key in self.entries:
            self.cited[key] = True
            who, year = short(self.entries[key]), self.entries[key].get("year", "n.d.")
            if prose:
                return f"{who} ([{year}](#ref-{key}))"
            return f"[{year if year_only else f'{who} {year}'}](#ref-{key})"
        else:
            self.problems.append(f"@{key} is neither a label nor a key of references.bib")
        return f"**{key}?**"

    def figure(self, label: str, caption: str, alt: str, outputs: list[dict]) -> list[dict]:
        "Save the pictures among a cell's outputs as files, and show them with the caption under the last."
        images = [(i, mime) for i, o in enumerate(outputs) for mime in ("image/svg+xml", "image/png", "image/jpeg") if mime in o.get("data", {})]
        if not images:
            self.problems.append(f"{label}: the cell has no picture among its outputs; run it")
        for n, (i, mime) in enumerate(images):
            data, last = joined(outputs[i]["data"][mime]), n == len(images) - 1
            name = f"{self.page}_files/{label}-{n + 1}.{mime[6:9].replace('jpe', 'jpg')}"
            self.pictures[name] = data.encode() if mime == "image/svg+xml" else base64.b64decode(data)
            attrs = '{fig-alt="' + alt.replace('"', "'") + '"}' if alt else ""
            picture = f"![{caption if last else ''}]({name}){attrs}"
            text = f"::: {{#{label}}}\n\n{picture}\n\n:::" if last else picture
            outputs[i] = {"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}}
        return outputs

    def table(self, label: str, caption: str, alt: str, outputs: list[dict]) -> list[dict]:
        "Put the caption over a cell's outputs."
        if not outputs:
            self.problems.append(f"{label}: the cell has no output; run it")
        text = f"::: {{#{label} .quarto-float-caption}}\n{caption}\n:::"
        return [{"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}}, *outputs]


def mixes_imports(source: str) -> bool:
    "Whether a code cell has an import beside other code. nbdev runs such a cell, without the cells it leans on, to document the notebook."
    if re.search(r"(?m)^#\|\s*(exports?\b|eval:\s*false)|nbdev_export\(\)", source):
        return False
    try:
        imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    except SyntaxError:  # a cell with a magic command
        return False
    return any(imports) and not all(imports)


def source_problems(cells: list[dict]) -> list[str]:
    "What is wrong with a notebook as it is committed: errors among its outputs, what nbdev would run or drop on the way to the page."
    code = [(joined(c["source"]), c.get("outputs", [])) for c in cells if c["cell_type"] == "code"]
    found = [f"the cell {source[:60]!r} ended in {o['ename']}: {o['evalue'][:80]}"
             for source, outputs in code for o in outputs if o["output_type"] == "error"]
    found += [f"the cell {source[:60]!r} imports beside other code: give the imports a cell of their own" for source, _ in code if mixes_imports(source)]
    title = next((joined(c["source"]) for c in cells if c["cell_type"] == "markdown"), "")
    # nbdev makes the cell with the title into front matter, of which only the title and one quoted line reach the page
    if not re.fullmatch(r"# [^\n]+\n*(> [^\n]+\n*)?(- \w[^\n]*:[^\n]*\n*)*", title):
        found.append(f"the first cell must be '# title' and one '> line' alone, the page loses the rest: {title[:60]!r}")
    return found


# --- the pages -------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    "What a page defines and uses: `ids`, `links`, `formulas` as (TeX, display), `leftover` markup in its text."

    def __init__(self, html: str):
        super().__init__()
        self.ids, self.links, self.formulas, self.leftover, self.inside = Counter(), [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list):
        given = dict(attrs)
        if given.get("id"):
            self.ids[given["id"]] += 1
        self.links += [given[k] for k in ("href", "src") if given.get(k)]
        if tag in ("code", "pre", "script", "style", "span"):
            self.inside.append(given.get("class", "") or "" if tag == "span" else tag)

    def handle_endtag(self, tag: str):
        if tag in ("code", "pre", "script", "style", "span") and self.inside:
            self.inside.pop()

    def handle_data(self, text: str):
        if self.inside and self.inside[-1].startswith("math"):
            self.formulas.append((text.strip()[2:-2], "display" in self.inside[-1]))
        elif not {"code", "pre", "script", "style"} & set(self.inside):
            self.leftover += re.findall(r"\{#[^}]*\}?|:::.*|\$\$.*|[^\n]{0,20}(?<![\w/])@(?:eq|fig|tbl|sec)-\w+", text)


def page_problems(pages: dict[str, Page], files: set[str]) -> list[str]:
    "The links, anchors, pictures and pieces of markup on the pages that are not sound; `files` are the site's."
    found = []
    for name, page in pages.items():
        found += [f"{name}: the id {i} is defined {n} times" for i, n in page.ids.items() if n > 1]
        found += [f"{name}: markup is left in the text: {text.strip()!r}" for text in page.leftover]
        for url in dict.fromkeys(page.links):
            if re.match(r"[a-zA-Z][\w+.-]*:|//", url):
                continue
            path, _, anchor = unquote(url).partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path.partition("?")[0])) if path else name
            target = posixpath.normpath(target + "/index.html") if path.endswith("/") or target == "." else target
            if target not in files:
                found.append(f"{name}: {url} leads nowhere: the site has no file {target}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                found.append(f"{name}: {url} leads nowhere: {target} has no anchor #{anchor}")
    return found


def formula_problems(pages: dict[str, Page], katex: Path) -> list[str]:
    "The formulas that KaTeX cannot read, asked through node."
    script = """const katex = require(process.argv[1]), all = JSON.parse(require('fs').readFileSync(0));
for (const [page, tex, displayMode] of all) { try { katex.renderToString(tex, {displayMode}) }
catch (e) { console.log(page + ': ' + e.message.replaceAll('\\n', ' ')) } }"""
    formulas = [(name, *f) for name, page in pages.items() for f in page.formulas]
    run = subprocess.run(["node", "-e", script, str(katex / "katex.min.js")], input=json.dumps(formulas), text=True, capture_output=True)
    return run.stdout.splitlines() + ([f"node: {run.stderr.strip().splitlines()[-1]}"] if run.returncode else [])


# --- the steps -------------------------------------------------------------------------------------------------------
def number_all(proc: Path) -> list[str]:
    "Number every staged notebook in place; returns the problems."
    staged = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(proc.glob("*.ipynb"))}
    site = yaml.safe_load((proc / "nbdev.yml").read_text(encoding="utf-8"))["website"]["site-url"]
    entries = bibliography((proc / "references.bib").read_text(encoding="utf-8"))
    problems, home, address = [], {}, {}
    for page, nb in staged.items():
        for label in labels(nb["cells"]):
            if label in home:
                problems.append(f"{page}: the label {label} is defined twice, first in {home[label]}")
            home.setdefault(label, page)
        for name in re.findall(r"output-file: (\S+)", joined(nb["cells"][0]["source"])):
            address[f"{site}/{name}"] = f"{page}.ipynb"  # nbdev links a documented name to the public site
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
    "KaTeX's `dist` folder, fetched once with npm into the environment; None without npm or when npm cannot reach its registry."
    folder = Path(sys.prefix) / "share" / KATEX
    if not (folder / "package" / "dist" / "katex.min.js").exists():
        if not shutil.which("npm"):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["npm", "pack", "--silent", KATEX], cwd=folder, capture_output=True).returncode:
            return None
        shutil.unpack_archive(next(folder.glob("*.tgz")), folder, filter="data")
    return folder / "package" / "dist"


def vendor_katex(docs: Path, katex: Path):
    "Copy KaTeX into the site and point the pages at the copy."
    to = docs / "site_libs" / "katex"
    for f in [katex / "katex.min.css", katex / "katex.min.js", katex / "contrib/auto-render.min.js", *katex.glob("fonts/*.woff2")]:
        (to / f.relative_to(katex)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to / f.relative_to(katex))
    for page in docs.glob("*.html"):
        page.write_text(page.read_text(encoding="utf-8").replace(CDN, "site_libs/katex"), encoding="utf-8")


def main() -> int:
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    from smalldocs.site import build

    problems = [f"{p.stem}: {problem}" for p in sorted(Path("nbs").glob("*.ipynb"))
                for problem in source_problems(json.loads(p.read_text(encoding="utf-8"))["cells"])]
    refresh_quarto_yml()
    try:
        proc = Path(proc_nbs(force=True))
    except Exception as e:  # whatever a cell raises
        print(*problems, f"nbdev: {' '.join(str(e).split())[:200]} …", sep="\n")
        return 1
    problems += number_all(proc)
    problems += [w for w in build(proc, quiet=True).warnings if not re.match(QUARTO_ONLY, w) and "broken link" not in w]
    docs = Path("_docs")
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc / "_docs", docs)

    katex = fetch_katex()
    if katex:
        vendor_katex(docs, katex)
    pages = {p.name: Page(p.read_text(encoding="utf-8")) for p in sorted(docs.glob("*.html"))}
    problems += page_problems(pages, {p.relative_to(docs).as_posix() for p in docs.rglob("*") if p.is_file()})
    if katex and shutil.which("node"):
        problems += formula_problems(pages, katex)
    print(*problems, sep="\n", end="\n" * bool(problems))
    print(f"_docs: {len(pages)} pages, {sum(len(p.formulas) for p in pages.values())} formulas, {len(problems)} problems.",
          "Maths: KaTeX, copied into the site." if katex else "Maths: KaTeX from its CDN, so the pages need a network (npm would copy it).",
          f"Look: {os.path.relpath(sys.executable)} -m http.server -d _docs")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
