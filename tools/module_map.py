"""Writes the map of the package's modules into CONTRIBUTING.md, and checks their imports.

    python tools/module_map.py            write the map
    python tools/module_map.py --check    change nothing; exit status 1 if the map is out of step

In both forms a broken rule is a line, and the exit status is 1: no circle of imports, no private
name of another module, no `gmvae_nb.` inside the package (imports are relative), no module over
1,000 lines. An import inside a function happens later, when it is called; it may close a circle.
"""

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE, GUIDE = ROOT / "gmvae_nb", ROOT / "CONTRIBUTING.md"
START, END = "<!-- module map: by tools/module_map.py -->", "<!-- end of the module map -->"
MOST_LINES = 1000
UNMAPPED = {"__init__", "_modidx"}  # the version and the settings of threads; nbdev's index


# --- what a module imports ------------------------------------------------------------------------
class Module(NamedTuple):
    name: str
    lines: int
    page: str  # the notebook that exports it; empty: none
    promise: str  # the first line of its docstring
    imports: set[str]  # modules of the package, when it is imported itself
    later: set[str]  # likewise, but inside functions or for types alone
    faults: list[str]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


class Imports(ast.NodeVisitor):
    "Collects the imports of one module, and what is wrong with them."

    def __init__(self, package: str, names: set[str]):
        self.package, self.names = package, names  # all modules of the package
        self.now: set[str] = set()
        self.later: set[str] = set()
        self.faults: list[str] = []
        self.aliases: dict[str, str] = {}  # what another module is called here
        self.inside = 0  # functions, or a block for type checkers

    def add(self, module: str) -> None:
        if module in self.names:
            (self.later if self.inside else self.now).add(module)

    def visit_later(self, node: ast.AST) -> None:
        self.inside += 1
        self.generic_visit(node)
        self.inside -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_later

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self.visit_later(node)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            first, _, module = alias.name.partition(".")
            if first == self.package:
                self.faults.append(f"line {node.lineno}: import {alias.name} is not relative")
                self.add(module)
                self.aliases[alias.asname or alias.name] = module

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        first, _, module = (node.module or "").partition(".")
        if node.level == 0:
            if first != self.package:
                return
            self.faults.append(f"line {node.lineno}: from {node.module} import … is not relative")
        else:
            module = node.module or ""
        for alias in node.names:
            if not module:  # from . import data
                self.add(alias.name)
                self.aliases[alias.asname or alias.name] = alias.name
            elif is_private(alias.name):
                self.faults.append(f"line {node.lineno}: {module}.{alias.name} is private")
        self.add(module)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        module = self.aliases.get(ast.unparse(node.value))
        if module in self.names and is_private(node.attr):
            self.faults.append(f"line {node.lineno}: {module}.{node.attr} is private")
        self.generic_visit(node)


def read_module(path: Path, names: set[str]) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = Imports(path.parent.name, names)
    found.visit(tree)
    page = re.search(r"File to edit: \S*?(\w+\.ipynb)", text)
    promise = (ast.get_docstring(tree) or "").partition("\n")[0]
    lines = text.count("\n")
    if lines > MOST_LINES and path.stem not in UNMAPPED:
        found.faults.append(f"{lines:,} lines, more than {MOST_LINES:,}")
    later = found.later - found.now
    page_name = page[1] if page else ""
    return Module(path.stem, lines, page_name, promise, found.now, later, found.faults)


def read_package(package: Path) -> dict[str, Module]:
    "Every module, by name."
    paths = sorted(package.glob("*.py"))
    names = {path.stem for path in paths}
    return {path.stem: read_module(path, names) for path in paths}


# --- the rules ------------------------------------------------------------------------------------
def circle(modules: dict[str, Module]) -> list[str]:
    "Modules that import each other in a circle, the first one again at the end; empty: none."
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(modules[name].imports):
            if found := search(other, [*path, name]):
                return found
        done.add(name)
        return []

    for name in modules:
        if found := search(name, []):
            return found
    return []


def faults(modules: dict[str, Module]) -> list[str]:
    "Every broken rule, a line for each."
    found = [f"{m.name}.py: {fault}" for m in modules.values() for fault in m.faults]
    if around := circle(modules):
        found.append(f"a circle of imports: {' -> '.join(around)}")
    return found


# --- the map --------------------------------------------------------------------------------------
def in_order(modules: dict[str, Module]) -> list[Module]:
    "A module after all that it imports, as far as there is no circle; else by name."
    left = {name: m for name, m in modules.items() if name not in UNMAPPED}
    ordered: list[Module] = []
    while left:
        free = [m for m in left.values() if not m.imports & left.keys()]
        for m in free or list(left.values()):
            ordered.append(left.pop(m.name))
    return ordered


def table(modules: dict[str, Module]) -> str:
    "The map as Markdown: a row imports only from rows above it."
    rows = ["| module | lines, up to | imports | later | what it is for |", "|---|--:|---|---|---|"]
    for m in in_order(modules):
        name = f"[{m.name}](nbs/{m.page})" if m.page else m.name
        lines = f"{-(-m.lines // 100) * 100:,}"  # to the hundred: the map need not change each day
        now, later = (", ".join(sorted(names - UNMAPPED)) for names in (m.imports, m.later))
        rows.append(f"| {name} | {lines} | {now} | {later} | {m.promise.replace('|', '/')} |")
    return "\n".join(rows)


def with_map(guide: str, new: str) -> str:
    "The guide with a new map between its two markers."
    before, start, after = guide.partition(START)
    _, end, after = after.partition(END)
    if not start or not end:
        raise ValueError(f"the guide has not both markers: {START} and {END}")
    return f"{before}{START}\n{new}\n{END}{after}"


def main(words: list[str], package: Path = PACKAGE, guide: Path = GUIDE) -> int:
    modules = read_package(package)
    problems = faults(modules)
    old = guide.read_text(encoding="utf-8")
    new = with_map(old, table(modules))
    if words != ["--check"]:
        guide.write_text(new, encoding="utf-8")
    elif new != old:
        problems.append(f"the map in {guide.name} is out of step: run python tools/module_map.py")
    print(*problems, sep="\n", end="\n" * bool(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
