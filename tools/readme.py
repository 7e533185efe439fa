"""Write README.md from nbs/index.ipynb: prose, code, and tables of results as text. Usage: readme.py [output]"""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
SITE = "https://gmvae-nb.github.io/gmvae_nb"


def prose(text: str) -> str:
    "Markdown that reads well outside of the site: pages and images as links, citations as the authors' names suffice."
    text = re.sub(r" ?\[@[^\]]+\]", "", text)
    text = re.sub(r"\]\((\w+)\.ipynb\)", rf"]({SITE}/\1.html)", text)
    return text.replace("](images/", "](nbs/images/")


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
    head = "<!-- made from nbs/index.ipynb by `make readme`; edit that -->\n\n"
    return (
        head
        + "\n\n".join(prose(c.source) if c.cell_type == "markdown" else code(c) for c in visible)
        + "\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "README.md").write_text(
        readme(ROOT / "nbs/index.ipynb")
    )
