"""Look at the pages of a site in a real browser, and measure what a reader would see.

`site.py` calls `measured(_docs)`; alone: `python tools/look.py _docs`.
Each page is laid out at 390, 1,200 and 1,440 px, in the light and in the dark theme. A problem is
one line, "page: what is wrong": code, a formula or a table that is cut at 1,200 or 1,440 px, a page
wider than a phone, a table that does not say there that it scrolls or that shows NaN, a box that
says so and does not scroll, text that is hard to read on its ground, an error in the console, a
request to another host.
"""

import functools
import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools import Browser, find_browser

WIDTHS = (390, 1200, 1440)

# What is wrong with the page as it lies, in sentences. `narrow`: a phone, where blocks scroll.
MEASURE = r"""(narrow, contrast) => {
  const found = [], main = document.querySelector("main") || document.body;
  const words = e => (e.textContent || e.alt || e.tagName).trim().replace(/\s+/g, " ").slice(0, 60);
  const shown = e => e.checkVisibility() && e.getClientRects().length;
  const wide = e => e.scrollWidth > e.clientWidth + 1;
  const page = document.documentElement;
  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX);
  if (!narrow)
    for (const e of main.querySelectorAll("pre, .katex-display"))
      if (shown(e) && wide(e)) {
        const what = e.matches("pre") ? "code" : "a formula";
        const lines = e.matches("pre") ? e.textContent.split("\n") : [words(e)];
        const line = lines.reduce((a, b) => b.length > a.length ? b : a).trim().slice(0, 90);
        found.push(`${what} is cut, ${e.scrollWidth} of ${e.clientWidth} px: ${line}`);
      }
  if (page.scrollWidth > innerWidth + 1) found.push(`the page is ${page.scrollWidth} px wide`);
  const inBox = e => { for (; e && e !== page; e = e.parentElement) if (scrolls(e)) return true; };
  const seen = "p, li, h1, h2, h3, pre, table, img, svg, iframe, .katex";
  for (const e of main.querySelectorAll(seen)) {
    if (e.parentElement.closest(".katex, svg") || !shown(e)) continue;
    const right = e.getBoundingClientRect().right;
    if (right > innerWidth + 1 && !inBox(e)) found.push(`cut at the window's edge: ${words(e)}`);
  }
  for (const table of main.querySelectorAll("table")) {
    let box = table.parentElement;
    while (box !== main && !scrolls(box)) box = box.parentElement;
    if (!shown(table) || box === main) continue;
    if (wide(box) && !narrow)
      found.push(`a table is cut, ${box.scrollWidth} of ${box.clientWidth} px: ${words(table)}`);
    else if (wide(box) && !box.classList.contains("scrolls-sideways"))
      found.push(`a table does not say that it scrolls: ${words(table)}`);
  }
  for (const box of main.querySelectorAll(".scrolls-sideways"))
    if (shown(box) && !wide(box))
      found.push(`it says that it scrolls, and does not: ${words(box)}`);
  for (const cell of main.querySelectorAll("td"))
    if (/^(NaN|nan|NaT|None|<NA>)$/.test(cell.textContent.trim()))
      found.push(`a table shows ${cell.textContent.trim()}: ${words(cell.closest("table"))}`);
  if (!contrast) return found;
  const channels = c => c.match(/[\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], [R, G, B]) => [r*a + R*(1-a), g*a + G*(1-a), b*a + B*(1-a)];
  const light = c => [.2126, .7152, .0722].reduce((sum, part, i) => { const v = c[i] / 255;
    return sum + part * (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); }, 0);
  const grounds = new Map(), parse = c => c.startsWith("rgb") ? channels(c) : null;
  const ground = e => {
    if (!e) return [255, 255, 255];
    if (!grounds.has(e)) {
      const own = parse(getComputedStyle(e).backgroundColor), below = ground(e.parentElement);
      grounds.set(e, own ? over(own, below) : below);
    }
    return grounds.get(e);
  };
  const told = new Set();
  for (const e of document.body.querySelectorAll("*")) {
    if (e.closest("svg, .katex-mathml, .katex :not([style*=color])")) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e), color = parse(style.color);
    if (!color || !shown(e) || style.opacity < .5) continue;
    const at = ground(e), [a, b] = [light(over(color, at)), light(at)];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const where = `${e.tagName.toLowerCase()}.${e.className}`;
    if (ratio < 3 && !told.has(where))
      found.push(`hard to read, contrast ${ratio.toFixed(1)}: ${where}, ${words(e)}`);
    if (ratio < 3) told.add(where);
  }
  return found;
}"""
# what is folded, opened
OPENED = """document.querySelectorAll("main details").forEach(d => { d.open = true; });
  document.querySelectorAll("main .collapse").forEach(c => c.classList.add("show"))"""
RESIZED = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(true))))"
# the other theme, and a moment for the script that colours the code after it
SWITCH = """document.querySelector(".quarto-color-scheme-toggle").click();
  new Promise(done => setTimeout(() => done(true), 120))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    "The address at which this machine, and no other, reads the folder."
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def theme_of(browser: Browser) -> str:
    "The theme that the page has now, by its ground."
    red = browser.value("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    return "light" if red > 127 else "dark"


def told(events: list[dict], host: str) -> list[str]:
    "The errors and the requests to another host among what the browser told."
    found = []
    for event in events:
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith((host, "data:", "blob:")):
                found.append(f"a request to another host: {url[:100]}")
        elif event["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            why = details.get("exception", {}).get("description", details["text"])
            found.append(f"an error in the console: {why.splitlines()[0]}")
        elif event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            why = " ".join(str(a.get("value", a.get("description", ""))) for a in params["args"])
            found.append(f"an error in the console: {why[:200]}")
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            found.append(f"an error in the console: {entry['text']} {entry.get('url', '')}".strip())
    return found


def page_problems(browser: Browser, host: str, name: str) -> list[str]:
    """What is wrong with one page, in both themes, at all widths; said once where it is everywhere.

    A page opens in the theme of the last one, which the reader's browser remembers."""
    where: dict[str, dict[str, None]] = {}
    themes = []
    browser.width(WIDTHS[1])  # not the first that is measured, for the page to learn of it
    browser.open(f"{host}/{name}")
    browser.value(OPENED)
    for turn in range(2):
        if turn:
            browser.value(SWITCH)
        themes.append(theme_of(browser))
        for width in WIDTHS[:: 1 if turn else -1]:  # it is at the narrowest when it is switched
            browser.width(width)
            browser.value(RESIZED)
            arguments = f"{json.dumps(width < 768)}, {json.dumps(width == WIDTHS[0])}"
            for problem in browser.value(f"({MEASURE})({arguments})"):
                where.setdefault(problem, {})[f"{width} px {themes[-1]}"] = None
    for problem in told(browser.events, host):
        where.setdefault(problem, {})["console"] = None
    found = [f"{name} ({', '.join(places)}): {problem}" for problem, places in where.items()]
    if sorted(themes) != ["dark", "light"]:
        found.append(f"{name}: its switch does not change the theme, which is {themes[0]}")
    return found


def measured(folder: Path, path: str) -> list[str]:
    "Every problem of every page in the folder, seen with the browser at `path`."
    browser = Browser(path)
    try:
        with served(folder) as host:
            names = sorted(p.name for p in folder.glob("*.html"))
            return [line for name in names for line in page_problems(browser, host, name)]
    finally:
        browser.close()


if __name__ == "__main__":
    started, found = time.monotonic(), find_browser()
    if not found:
        sys.exit("no Chromium or Chrome found: name one with BROWSER_PATH")
    problems = measured(Path(sys.argv[1]), found)
    print(*problems, sep="\n", end="\n" * bool(problems))
    print(f"{len(problems)} problems seen in {time.monotonic() - started:.0f} s")
    sys.exit(bool(problems))
