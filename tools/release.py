"""Is everything ready for this release? Prints its part of the changelog.

    python tools/release.py v0.1.0

Exit status 1, and a line for each thing that is not ready: the tag is not the version, a file names
another version, or the changelog has no date for it.
"""

import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def versions(root: Path) -> dict[str, str]:
    "What each file says that the version is."
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    module = (root / "gmvae_nb/__init__.py").read_text(encoding="utf-8")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    return {
        "settings.ini": settings["DEFAULT"]["version"],
        "gmvae_nb/__init__.py": re.search(r'^__version__ = "(.*)"', module, re.M)[1],
        "CITATION.cff": re.search(r"^version: (.*)$", citation, re.M)[1],
        ".zenodo.json": json.loads((root / ".zenodo.json").read_text(encoding="utf-8"))["version"],
    }


def part_of_changelog(root: Path, version: str) -> tuple[str, str]:
    "What stands behind the version in its heading, and what stands below."
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(version)} (.*)\n((?:(?!## ).*\n?)*)", text, re.M)
    return (found[1], found[2].strip()) if found else ("", "")


def faults(root: Path, tag: str) -> list[str]:
    "What is not ready, a sentence each."
    version = tag.removeprefix("v")
    found = [
        f"{name} says {said}, the tag {tag}"
        for name, said in versions(root).items()
        if f"v{said}" != tag
    ]
    heading, changes = part_of_changelog(root, version)
    if not re.fullmatch(r"\(\d{4}-\d\d-\d\d\)", heading):
        found.append(f"CHANGELOG.md has no heading '## {version} (YYYY-MM-DD)'")
    elif not changes:
        found.append(f"CHANGELOG.md says nothing of {version}")
    return found


def main(words: list[str], root: Path = ROOT) -> int:
    found = faults(root, words[0])
    for fault in found:
        print(fault, file=sys.stderr)
    if not found:
        print(part_of_changelog(root, words[0].removeprefix("v"))[1])
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
