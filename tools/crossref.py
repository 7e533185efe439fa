"""What quarto does to a notebook's text and smalldocs does not.

Numbers for equations, figures and tables, links where the text says `@eq-name` or `[@key]`, a list
of references. `Numbered(page, cells, entries, home)` gives the cells of one notebook back numbered,
with the pictures of its figures and a list of problems. Nothing here reads or writes a file.
"""

import base64
import json
import re
import unicodedata
from collections import Counter
from html import escape

import yaml

NAMES = {"eq": "Equation", "fig": "Figure", "tbl": "Table"}  # as in _quarto.yml
KINDS = (*NAMES, "sec")  # a section is called by its title
IMAGES = ("image/svg+xml", "image/png", "image/jpeg")

CODE = re.compile(
    r"(?ms)^ *(```+|~~~+).*?^ *\1[`~]*[ \t]*$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)|<!--.*?-->"
)
MATHS = r"\$\$.*?\$\$|(?<![\\$])\$(?![\s$])(?:(?!\n\n)[^$])*?(?<![\s\\])\$(?!\d)"
ADDRESS = r"(?<=\])\([^)]*\)|https?://[^\s)>]+"
VERBATIM = re.compile(f"{CODE.pattern}|{MATHS}|{ADDRESS}")  # where an @ refers to nothing
LABEL = re.compile(r"\{#((?:eq|fig|tbl|sec)-[\w-]+)")
CELL_LABEL = re.compile(r"(?m)^#\|\s*label:\s*[\"']?((?:fig|tbl)-[\w-]+)")
EQUATION = re.compile(r"(?ms)^([ \t]*)\$\$(.*?)\$\$[ \t]*\{#(eq-[\w-]+)\}")
SECTION = re.compile(r"(?m)^#+[ \t]+(.+?)[ \t]*\{#(sec-[\w-]+)[^}]*\}")
TABLE = re.compile(r"(?m)^(:[ \t]+)(.*?\{#(tbl-[\w-]+))")
PICTURE = re.compile(r"!\[(?=[^\n]*?\]\([^)]*\)\{#(fig-[\w-]+))")
KEY = r"@(\w+(?:[-:.]\w+)*)"
GROUP = re.compile(rf"\[([^\[\]]*?(?<![\w@]){KEY}[^\[\]]*)\](?![(\[{{])")
BARE = re.compile(rf"(?<![\w@/.\\]){KEY}")
# the module of a type; nbdev runs the cells in __main__
LONG_NAME = re.compile(
    r"\b(?:__main__|anndata\._core\.anndata|collections\.abc|gmvae_nb\.\w+|pathlib)\.(?=[A-Z])"
)
NAMED = re.compile(
    r"(?<![\w@#/-])(?:eq|fig|tbl)-[a-z][\w-]*\w"
)  # a label without @, as docstrings have it


# --- the text of a notebook -----------------------------------------------------------------------
def joined(text: str | list[str]) -> str:
    "A notebook stores a text whole or as a list of lines."
    return text if isinstance(text, str) else "".join(text)


def outside(pattern: re.Pattern, edit, text: str) -> str:
    "Apply `edit` to the pieces of `text` between the matches of `pattern`."
    pieces, end = [], 0
    for m in pattern.finditer(text):
        pieces += [edit(text[end : m.start()]), m.group()]
        end = m.end()
    return "".join([*pieces, edit(text[end:])])


def options(source: str) -> tuple[dict, str]:
    "The `#| key: value` lines at the top of a code cell, and its code. Raises yaml.YAMLError."
    lines = source.split("\n")
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    found = yaml.safe_load("\n".join(line[2:].removeprefix(" ") for line in lines[:n]))
    return (found if isinstance(found, dict) else {}), "\n".join(lines[n:])


def repeated_options(source: str) -> list[str]:
    """The keys that the `#|` lines at the top of a code cell give more than once.

    Quarto refuses such a page; YAML's readers in Python take the last one."""
    top = re.match(r"(?:#\|.*\n?)*", source).group()
    keys = Counter(re.findall(r"(?m)^#\|[ \t]*([\w-]+):", top))
    return [key for key, times in keys.items() if times > 1]


def labels(cells: list[dict]) -> list[str]:
    "Every label that the cells define, in order, repeated ones too."
    found = []
    for cell in cells:
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            found += LABEL.findall(CODE.sub("", source))
        elif cell["cell_type"] == "code":
            found += CELL_LABEL.findall(source)
    return found


def numbers(cells: list[dict]) -> dict[str, str]:
    "How the text refers to a label: `eq-elbo` -> `Equation 2`, `sec-model` -> its title."
    titles = {}
    for cell in cells:
        for title, label in SECTION.findall(joined(cell["source"])):
            titles[label] = title
    count, names = Counter(), {}
    for label in dict.fromkeys(labels(cells)):
        kind = label.partition("-")[0]
        count[kind] += 1
        names[label] = titles.get(label, label) if kind == "sec" else f"{NAMES[kind]} {count[kind]}"
    return names


# --- the bibliography -----------------------------------------------------------------------------
def closing(text: str, start: int) -> int:
    "The index of the brace that closes the one at `start`."
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return i
    after = text[start + 1 : start + 40]
    raise ValueError(f"references.bib: the brace before {after!r} is never closed")


def plain(tex: str) -> str:
    "BibTeX's text without its braces, accents composed."
    marks = dict(zip("\"'`^~cv", "\u0308\u0301\u0300\u0302\u0303\u0327\u030c"))
    accent = re.compile(r"\\([\"'`^~]|[cv](?=[\s{]))\s*\{?(\w)\}?")
    tex = accent.sub(lambda m: unicodedata.normalize("NFC", m[2] + marks[m[1]]), tex)
    tex = re.sub(r"[{}]", "", tex).replace("\\&", "&").replace("---", "—").replace("--", "–")
    return " ".join(tex.split())


def bibliography(text: str) -> dict[str, dict[str, str]]:
    """The entries of a BibTeX file, by key.

    The value of a field stands in braces or quotes, or is a number."""
    field = re.compile(r"[\s,]*(\w+)\s*=\s*(?:(\{)|\"([^\"]*)\"|(\w+))")
    entries = {}
    for m in re.finditer(r"(?m)^\s*@\w+\{\s*([^,\s]+)\s*,", text):
        body = text[m.end() : closing(text, text.index("{", m.start()))]
        fields, at = {}, 0
        while f := field.match(body, at):
            at = closing(body, f.start(2)) + 1 if f[2] else f.end()
            fields[f[1].lower()] = plain(body[f.end() : at - 1] if f[2] else f[3] or f[4])
        entries[m[1]] = fields
    return entries


def authors(entry: dict[str, str]) -> list[list[str]]:
    "[family, given] of each author; `others` stays as it is."
    found = []
    for name in entry.get("author", "").split(" and "):
        if "," in name:  # Kingma, Diederik P.
            found.append([part.strip() for part in name.split(",", 1)])
        elif name.strip():  # Diederik P. Kingma
            found.append(name.strip().rsplit(" ", 1)[::-1])
    return found


def short(entry: dict[str, str]) -> str:
    "Who wrote it, as the text says it: `Kingma and Welling`, `Kang et al.`"
    family = [a[0] for a in authors(entry)] or ["Anonymous"]
    if len(family) > 3 or "others" in family:
        return f"{family[0]} et al."
    if len(family) == 3:
        return f"{family[0]}, {family[1]}, and {family[2]}"
    return " and ".join(family)


def reference(key: str, entry: dict[str, str]) -> str:
    "One entry of the list of references, as HTML."
    people = [a for a in authors(entry) if a[0] != "others"]
    names = [", ".join(a) if i == 0 else " ".join(a[::-1]) for i, a in enumerate(people)]
    if len(people) < len(authors(entry)):
        names.append("et al.")
    elif len(names) > 1:
        names[-1] = "and " + names[-1]
    e = {k: escape(v, quote=False) for k, v in entry.items()}
    places = ("journal", "booktitle", "publisher", "institution")
    where = next((f"<em>{e[k]}</em>" for k in places if k in e), "")
    where += "".join(before + e[k] for before, k in ((" ", "volume"), (": ", "pages")) if k in e)
    url = "https://doi.org/" + e["doi"] if "doi" in e else e.get("url")
    link = f' <a href="{url}">{url}</a>' if url else ""
    who = escape(", ".join(names)).rstrip(".")
    text = f"{who}. {e.get('year', 'n.d.')}. “{e.get('title', '')}.”{where and f' {where}.'}{link}"
    return f'<div id="ref-{key}" class="reference">{text}</div>'


# --- one notebook, numbered -----------------------------------------------------------------------
class Numbered:
    """A notebook with numbers and links in its text.

    `cells`, the `pictures` of its figures, the `problems`."""

    def __init__(
        self,
        page: str,
        cells: list[dict],
        entries: dict[str, dict],  # of the bibliography
        home: dict[str, str],  # the page that defines each label of the site
    ):
        self.page, self.entries, self.home = page, entries, home
        self.names, self.cited, self.pictures, self.problems = numbers(cells), set(), {}, []
        self.referred: set[str] = set()
        self.cells = [self.cell(dict(c)) for c in cells]
        for label in self.names:
            if label.startswith("fig-") and label not in self.referred:
                self.problems.append(f"{label}: the text does not refer to it, say @{label}")
        if self.cited:
            self.cells.append(self.references())

    def references(self) -> dict:
        "A cell with the list of what is cited."

        def order(key: str) -> tuple[str, str, str]:
            entry = self.entries[key]
            return short(entry).lower(), entry.get("year", ""), key

        listed = [reference(key, self.entries[key]) for key in sorted(self.cited, key=order)]
        text = "\n\n".join(["## References {.unnumbered}", *listed])
        return {"cell_type": "markdown", "metadata": {}, "id": "references", "source": text}

    def cell(self, cell: dict) -> dict:
        "One cell, numbered and linked."
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            text = outside(VERBATIM, self.links, outside(CODE, self.captions, source))
            cell["source"] = outside(VERBATIM, self.named, text)
        elif cell["cell_type"] == "code":
            cell["outputs"] = coalesced(cell.get("outputs", []))
            self.code(cell, source)
            for output in cell["outputs"]:
                if "text/markdown" in output.get("data", {}):  # what nbdev documents
                    text = signed(joined(output["data"]["text/markdown"]))
                    output["data"]["text/markdown"] = outside(VERBATIM, self.named, text)
        return cell

    def code(self, cell: dict, source: str) -> None:
        "Caption the outputs of a code cell with the label of a figure or a table."
        try:
            opts, code = options(source)
        except yaml.YAMLError as e:
            why = str(e).splitlines()[0]
            self.problems.append(f"the #| lines of {source[:60]!r} are no YAML: {why}")
            return
        for key in repeated_options(source):
            first = code.strip().split("\n")[0]
            self.problems.append(f"the cell {first!r} says {key} twice, which quarto refuses")
        label = str(opts.pop("label", ""))
        kind = label.partition("-")[0]
        if kind not in ("fig", "tbl"):
            return
        caption, alt = opts.pop(f"{kind}-cap", None), opts.pop("fig-alt", "")
        caption = self.names[label] + ("" if caption is None else f": {caption}")
        caption = outside(VERBATIM, self.links, caption)
        captioned = self.figure if kind == "fig" else self.table
        cell["outputs"] = captioned(label, caption, alt, cell["outputs"])
        kept = [f"#| {key}: {json.dumps(value)}\n" for key, value in opts.items()]
        cell["source"] = "".join(kept) + code

    def captions(self, text: str) -> str:
        "Number the equations, tables and pictures of a piece of Markdown."

        def equation(m: re.Match) -> str:
            indent, tex, label = m.groups()
            number = self.names[label].split()[-1]
            inside = [*tex.strip().split("\n"), rf"\tag{{{number}}}"]
            lines = ["", f"::: {{#{label}}}", "$$", *inside, "$$", ":::", ""]
            return "\n".join(line and indent + line.removeprefix(indent) for line in lines)

        text = EQUATION.sub(equation, text)
        text = TABLE.sub(lambda m: f"{m[1]}{self.names[m[3]]}: {m[2]}", text)
        return PICTURE.sub(lambda m: f"![{self.names[m[1]]}: ", text)

    def links(self, text: str) -> str:
        "Turn the references and citations of a piece of Markdown into links."
        text = GROUP.sub(lambda m: self.group(m[1]), text)
        return BARE.sub(lambda m: self.link(m[1], prose=True), text)

    def named(self, text: str) -> str:
        "Link the labels that a docstring names, `eq-elbo`, on this page or another."

        def link(m: re.Match) -> str:
            label = m.group()
            if label in self.names:
                return f"[{self.names[label]}](#{label})"
            if label in self.home:
                kind = NAMES[label.partition("-")[0]].lower()
                page = self.home[label]
                return f"[{kind} of {page}]({page}.ipynb#{label})"
            return label  # site.py tells what is left

        return NAMED.sub(link, text)

    def group(self, inside: str) -> str:
        "What stands in brackets: `see @a, p. 3; @b`, or references such as `@eq-a; @eq-b`."
        item = re.compile(rf"\s*(.*?)(-?){KEY}(.*?)\s*", re.S)
        items = [item.fullmatch(part) for part in inside.split(";")]
        if not all(items):
            self.problems.append(f"[{inside}] has a part without a key: write each as @key")
            return inside.replace("@", "")
        text = "; ".join(m[1] + self.link(m[3], year_only=bool(m[2])) + m[4] for m in items)
        return text if all(m[3].partition("-")[0] in KINDS for m in items) else f"({text})"

    def link(self, key: str, prose: bool = False, year_only: bool = False) -> str:
        "The link for one label or citation key."
        if key in self.names:
            self.referred.add(key)
            return f"[{self.names[key]}](#{key})"
        if key in self.entries:
            self.cited.add(key)
            who, year = short(self.entries[key]), self.entries[key].get("year", "n.d.")
            if prose:
                return f"{who} ([{year}](#ref-{key}))"
            return f"[{year if year_only else f'{who} {year}'}](#ref-{key})"
        if key in self.home:
            page = self.home[key]
            self.problems.append(f"@{key} is a label of {page}: write [words]({page}.ipynb#{key})")
        elif key.partition("-")[0] in KINDS:
            self.problems.append(f"@{key} is defined nowhere")
        else:
            self.problems.append(f"@{key} is neither a label nor a key of references.bib")
        return f"**{key}?**"

    def figure(self, label: str, caption: str, alt: str, outputs: list[dict]) -> list[dict]:
        "Make a cell's pictures into files, shown with the caption under the last."
        images = []
        for i, output in enumerate(outputs):
            images += [(i, mime) for mime in IMAGES if mime in output.get("data", {})]
        if not images:
            self.problems.append(f"{label}: the cell has no picture among its outputs; run it")
        elif not alt:
            self.problems.append(f"{label}: say in fig-alt what is seen, for who cannot see it")
        for n, (i, mime) in enumerate(images, 1):
            data, last = joined(outputs[i]["data"][mime]), n == len(images)
            name = f"{self.page}_files/{label}-{n}.{mime[6:9].replace('jpe', 'jpg')}"
            is_text = mime == "image/svg+xml"
            self.pictures[name] = data.encode() if is_text else base64.b64decode(data)
            attrs = '{fig-alt="' + alt.replace('"', "'") + '"}' if alt else ""
            text = f"![{caption if last else ''}]({name}){attrs}"
            outputs[i] = markdown_output(f"::: {{#{label}}}\n\n{text}\n\n:::" if last else text)
        return outputs

    def table(self, label: str, caption: str, alt: str, outputs: list[dict]) -> list[dict]:
        "Put the caption over a cell's outputs."
        if not outputs:
            self.problems.append(f"{label}: the cell has no output; run it")
        above = markdown_output(f"::: {{#{label} .quarto-float-caption}}\n{caption}\n:::")
        return [above, *outputs]


def signed(text: str) -> str:
    """What nbdev documents, with signatures that say something.

    That of a class whose fields nbdev does not see is its name; a method that was bound under
    another name has that name; a type is named without its module."""
    text = re.sub(r"(?m)^def (\w+)\(\s*\*args, \*\*kw(?:arg|d)s\s*\):$", r"class \1", text)
    text = LONG_NAME.sub("", text)
    bound = re.search(r"(?m)^#+ [\w.]+\.(\w+)$", text)
    if bound:
        text = re.sub(rf"(?m)^def _{bound[1]}\(", f"def {bound[1]}(", text)
    return text


def coalesced(outputs: list[dict]) -> list[dict]:
    "What was printed in several pieces, in one."
    found = []
    for output in outputs:
        stream = output.get("output_type") == "stream" and output.get("name")
        if stream and found and found[-1].get("name") == stream:
            text = joined(found[-1]["text"]) + joined(output["text"])
            found[-1] = {**output, "text": text}
        else:
            found.append(output)
    return [without_dtype(output) for output in found]


def without_dtype(output: dict) -> dict:
    "What a pandas Series prints, without the line on its name and type, which says nothing here."
    shown = output.get("data", {})
    if set(shown) != {"text/plain"}:
        return output
    text = re.sub(r"\n(Name: .*, )?(Length: \d+, )?dtype: \w+$", "", joined(shown["text/plain"]))
    return {**output, "data": {"text/plain": text}}


def markdown_output(text: str) -> dict:
    "An output that shows Markdown."
    return {"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}}
