"""Writes nbs/api.ipynb: every public function and class, a line each, grouped as they are used.

    python tools/api_page.py            write the page
    python tools/api_page.py --check    change nothing; exit status 1 if the page is out of step

The modules' source is read, not imported. Public is what a module lists in `__all__`; a module that
stands in no group below, and one that is no more, are errors.
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "gmvae_nb", ROOT / "nbs/api.ipynb"
GROUPS = {
    "The model": "tl estimator train network thinning covariates schedule clusters placing offsets",
    "Counts": "data counts counts_on_disk fractional h5ad other_formats reading parts match",
    "What a model says of cells": "inference questions count_splitting proof stability "
    "differential novelty batch_effect labels calibration reference_map new_batches",
    "Scores": "metrics kbet neighbors scib_check",
    "Runs, tables and pages": "runs annotation embed cost sweep scale results in_words report "
    "drawing findings explorer tables",
    "Commands": "commands after_training comparing command_line stopping umbrella options",
    "The mathematics": "vae gmvae_loss nb_likelihood gaussian_products nb_heads counts_linear gpu "
    "distributed",
    "Files, and what is checked": "files looking checkpoints model_folder preset_checks "
    "arguments finite reproducible machine_code progress old_names",
}
INTRODUCTION = """\
# All functions

> Every public function and class of the package, a line each, with the page that derives it"""
PROSE = """\
What is called most often comes with `from gmvae_nb.all import *`. Constants are on the \
pages of their modules. This page is made by `tools/api_page.py` from the modules themselves."""
UNLISTED = {"__init__", "__main__", "_modidx", "all"}


def public(tree: ast.Module) -> list[str]:
    "What the module lists in __all__."
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    return []


def arguments(node: ast.FunctionDef | ast.ClassDef) -> str:
    "Names of the arguments; of a class those of its __init__, if it has one."
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if getattr(n, "name", "") == "__init__"]
        return arguments(inits[0]).replace("self, ", "").replace("self", "") if inits else ""
    a = node.args
    names = [arg.arg for arg in a.posonlyargs + a.args]
    if a.vararg or a.kwonlyargs:
        names.append(f"*{a.vararg.arg}" if a.vararg else "*")
    names += [arg.arg for arg in a.kwonlyargs]
    names += [f"**{a.kwarg.arg}"] if a.kwarg else []
    return ", ".join(names)


def one_line(node: ast.AST) -> str:
    "The first sentence of the docstring."
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def of_module(name: str) -> list[str]:
    "A heading with the page, and a row for each function and class."
    text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    page = re.search(r"File to edit: \.\./nbs/(\w+\.ipynb)", text)[1]
    listed, rows = set(public(tree)), []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in listed:
            said = one_line(node).replace("|", r"\|")
            rows.append(f"| `{node.name}({arguments(node)})` | {said} |")
    head = [f"### [{name}]({page})", "", one_line(tree), ""]
    return head + (["| | |", "|---|---|", *rows, ""] if rows else [])


def cells() -> list[str]:
    "The page's cells, in markdown."
    grouped = " ".join(GROUPS.values()).split()
    modules = {path.stem for path in PACKAGE.glob("*.py")} - UNLISTED
    if wrong := modules ^ set(grouped):
        raise ValueError(f"in no group of tools/api_page.py, or no module: {sorted(wrong)}")
    groups = []
    for title, names in GROUPS.items():
        lines = [f"## {title}", ""]
        for name in names.split():
            lines += of_module(name)
        groups.append("\n".join(lines).strip())
    return [INTRODUCTION, PROSE, *groups]


def page() -> str:
    "The notebook, as nbdev_clean leaves it."
    made = [
        {"cell_type": "markdown", "id": f"a9100{i:03x}", "metadata": {}, "source": text}
        for i, text in enumerate(cells())
    ]
    for cell in made:
        cell["source"] = cell["source"].splitlines(keepends=True)
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    notebook = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4}
    notebook |= {"nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(words: list[str]) -> int:
    text = page()
    if "--check" not in words:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
    if not same:
        print("nbs/api.ipynb is out of step with the modules: run python tools/api_page.py")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
