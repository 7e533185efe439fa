"""Write README.md from nbs/index.ipynb: prose, code, and tables of results as text.

python tools/readme.py [OUTPUT]    README.md, or another file
python tools/readme.py --check     exit status 1 if README.md is out of step
"""

import re
import sys
from pathlib import Path

import nbformat

from crossref import bibliography, short

ROOT = Path(__file__).parents[1]
WORKS = bibliography((ROOT / "nbs/references.bib").read_text(encoding="utf-8"))
SITE = "https://gmvae-nb.github.io/gmvae_nb"


def prose(text: str) -> str:
    """Markdown that reads well outside of the site: pages and images are links.

    A citation is names and a year, or the year alone after names. A callout is quoted."""
    text = re.sub(r"\[(-?)@([\w-]+)\]", cited, text)
    text = re.sub(r"\]\((?:\d+_)?(\w+)\.ipynb(#[\w-]+)?\)", rf"]({SITE}/\1.html\2)", text)
    text = re.sub(r"(?ms)^::: \{\.callout-\w+\}\n## ([^\n]+)\n(.*?)^:::$", quoted, text)
    return text.replace("](images/", "](nbs/images/")


def cited(citation: re.Match) -> str:
    "(Kang et al. 2018), or (2018) where the text has the names."
    entry = WORKS[citation[2]]
    names = "" if citation[1] else f"{short(entry)} "
    return f"({names}{entry['year']})"


def quoted(callout: re.Match) -> str:
    "A callout as a quotation, its title in bold."
    lines = [f"**{callout[1]}**", "", *callout[2].rstrip().split("\n")]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def code(cell) -> str:
    "A code cell with its text output; of one that says `#| echo: false`, the output alone."
    source = "\n".join(line for line in cell.source.split("\n") if not line.startswith("#|"))
    parts = [] if "#| echo: false" in cell.source else [f"```python\n{source}\n```"]
    for output in cell.outputs:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        if text.strip() and output.get("name") != "stderr":
            parts.append("\n".join("    " + line for line in text.rstrip().split("\n")))
    return "\n\n".join(parts)


def readme(path: Path) -> str:
    "README.md as text."
    cells = nbformat.read(path, as_version=4).cells
    visible = [c for c in cells if c.source.strip() and not c.source.startswith("#| hide")]
    parts = ["<!-- made from nbs/index.ipynb by `make readme`; edit that -->"]
    parts += [prose(c.source) if c.cell_type == "markdown" else code(c) for c in visible]
    return "\n\n".join(parts) + "\n"


def main(words: list[str]) -> int:
    target, text = ROOT / "README.md", readme(ROOT / "nbs/index.ipynb")
    if words == ["--check"]:
        in_step = target.read_text(encoding="utf-8") == text
        if not in_step:
            print("README.md is not what index.ipynb says: run make readme")
        return not in_step
    Path(words[0] if words else target).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
