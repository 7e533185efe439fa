"""Puts one version of the site among the others.

    python tools/versions.py _docs pages NAME

`main` goes to the address itself, a tag such as v0.1.0 into a folder of its own; versions.html
lists them. The folders of other versions stay as they are.
"""

import re
import shutil
import sys
from pathlib import Path

IS_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)(\D.*)?")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Versions</title>
<h1>Versions of these pages</h1>
<ul>
{}
</ul></html>
"""


def releases(pages: Path) -> list[str]:
    "The folders of releases, newest first."
    found = [path.name for path in pages.iterdir() if IS_RELEASE.fullmatch(path.name)]

    def number(name: str) -> tuple:
        *parts, rest = IS_RELEASE.fullmatch(name).groups()
        return *map(int, parts), rest is None, rest or ""

    return sorted(found, key=number, reverse=True)


def put(site: Path, pages: Path, name: str) -> None:
    "The site among the others; what was there under this name is replaced."
    if IS_RELEASE.fullmatch(name):
        shutil.rmtree(pages / name, ignore_errors=True)
        shutil.copytree(site, pages / name)
    else:
        kept = {".git", *releases(pages)}
        for path in pages.iterdir():
            if path.name in kept:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(site, pages, dirs_exist_ok=True)
    links = [("./", "main, not yet released"), *((f"{v}/", v) for v in releases(pages))]
    lines = [f'<li><a href="{link}">{text}</a></li>' for link, text in links]
    (pages / "versions.html").write_text(PAGE.format("\n".join(lines)), encoding="utf-8")


if __name__ == "__main__":
    put(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
