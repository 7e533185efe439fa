"""Open the pages of a site in a real browser, and measure what a reader would see.

`site.py` calls `measured(_docs)`; alone: `python tools/browser.py _docs`.
One headless Chromium, driven through its DevTools protocol over a pipe, so that it takes no package
beside the standard library. Each page is laid out at 390, 1,200 and 1,440 px, in the light and in
the dark theme. A problem is one line, "page: what is wrong": code or a formula that is cut
at 1,200 or 1,440 px, a page wider than a phone, a table that does not say that it scrolls, text
that is hard to read on its ground, an error in the console, a request to another host.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WIDTHS = (390, 1200, 1440)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
PATIENCE = 60  # seconds for one answer of the browser

# What is wrong with the page as it lies, in sentences. `narrow`: a phone, where blocks scroll.
MEASURE = r"""(narrow, contrast) => {
  const found = [], main = document.querySelector("main") || document.body;
  const words = e => (e.textContent || e.alt || e.tagName).trim().replace(/\s+/g, " ").slice(0, 60);
  const shown = e => e.checkVisibility() && e.getClientRects().length;
  main.querySelectorAll("details").forEach(d => { d.open = true; });
  main.querySelectorAll(".collapse").forEach(c => c.classList.add("show"));
  const wide = e => e.scrollWidth > e.clientWidth + 1;
  if (!narrow)
    for (const e of main.querySelectorAll("pre, .katex-display"))
      if (shown(e) && wide(e)) {
        const what = e.matches("pre") ? "code" : "a formula";
        const lines = e.matches("pre") ? e.textContent.split("\n") : [words(e)];
        const line = lines.reduce((a, b) => b.length > a.length ? b : a).trim().slice(0, 90);
        found.push(`${what} is cut, ${e.scrollWidth} of ${e.clientWidth} px: ${line}`);
      }
  const page = document.documentElement;
  if (page.scrollWidth > innerWidth + 1) found.push(`the page is ${page.scrollWidth} px wide`);
  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX);
  const inBox = e => { for (; e && e !== page; e = e.parentElement) if (scrolls(e)) return true; };
  const seen = "p, li, h1, h2, h3, pre, table, img, svg, iframe, .katex";
  for (const e of main.querySelectorAll(seen)) {
    if (e.parentElement.closest(".katex, svg") || !shown(e)) continue;
    const right = e.getBoundingClientRect().right;
    if (right > innerWidth + 1 && !inBox(e)) found.push(`cut at the window's edge: ${words(e)}`);
  }
  if (narrow)
    for (const table of main.querySelectorAll("table")) {
      let box = table.parentElement;
      while (box !== main && !scrolls(box)) box = box.parentElement;
      if (shown(table) && box !== main && wide(box) && !box.classList.contains("scrolls-sideways"))
        found.push(`a table does not say that it scrolls: ${words(table)}`);
    }
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
# fonts loaded, formulas set, and two frames drawn
SETTLED = """document.fonts.ready.then(() => new Promise(done =>
  requestAnimationFrame(() => requestAnimationFrame(() => done(true)))))"""

RESIZED = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(true))))"
# the other theme, and a moment for the script that colours the code after it
SWITCH = """document.querySelector(".quarto-color-scheme-toggle").click();
  new Promise(done => setTimeout(() => done(true), 120))"""


def find_browser() -> str | None:
    """The path of a Chromium or Chrome, or None.

    The variable BROWSER_PATH names another one; empty, it means none. FileNotFoundError if there
    is none where it says."""
    named = os.environ.get("BROWSER_PATH")
    if named is not None:
        if named and not shutil.which(named):
            raise FileNotFoundError(f"BROWSER_PATH={named} is no program: name a Chromium")
        return named or None
    return next(filter(None, map(shutil.which, (*NAMES, MAC))), None)


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


class Browser:
    "A headless Chromium: `send` asks it, `events` are what it told meanwhile."

    def __init__(self, path: str):
        self.profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
        flags += [f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe"]
        # Chromium reads the descriptor 3 and writes the descriptor 4
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", shell, "browser", path, *flags, "about:blank"]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, pass_fds=(to_read, to_write), **quiet)
        os.close(to_read), os.close(to_write)
        self.events, self.buffer, self.number, self.session = [], b"", 0, None
        # a browser that hangs is ended, and the read below then ends too
        self.watch = threading.Timer(PATIENCE, self.process.kill)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def message(self) -> dict:
        "The next message of the browser."
        while b"\0" not in self.buffer:
            piece = os.read(self.read, 1 << 20)
            if not piece:
                raise RuntimeError(f"the browser ended, or gave no answer in {PATIENCE} s")
            self.buffer += piece
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def wait(self, is_it) -> dict:
        "The next message that is it; the others are kept as events."
        self.watch.cancel()
        self.watch = threading.Timer(PATIENCE, self.process.kill)
        self.watch.daemon = True
        self.watch.start()
        while True:
            message = self.message()
            if "method" in message:
                self.events.append(message)
            if is_it(message):
                self.watch.cancel()
                return message

    def send(self, method: str, **params) -> dict:
        "Ask, and wait for the answer."
        self.number += 1
        asked = {"id": self.number, "method": method, "params": params}
        if self.session:
            asked["sessionId"] = self.session
        os.write(self.write, json.dumps(asked).encode() + b"\0")
        answer = self.wait(lambda message: message.get("id") == asked["id"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def value(self, expression: str):
        "What a JavaScript expression says on the page."
        options = dict(returnByValue=True, awaitPromise=True)
        answer = self.send("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def width(self, pixels: int):
        size = dict(width=pixels, height=900, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def theme(self) -> str:
        "The theme that the page has now, by its ground."
        red = self.value("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        return "light" if red > 127 else "dark"

    def open(self, url: str):
        "Load a page, and wait until it lies still."
        self.events.clear()
        self.send("Page.navigate", url=url)
        is_loaded = lambda message: message.get("method") == "Page.loadEventFired"  # noqa: E731
        if not any(map(is_loaded, self.events)):
            self.wait(is_loaded)
        self.value(SETTLED)

    def close(self):
        self.watch.cancel()
        self.process.kill()
        self.process.wait()
        os.close(self.write), os.close(self.read)
        self.profile.cleanup()


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
    browser.width(WIDTHS[-1])
    browser.open(f"{host}/{name}")
    for turn in range(2):
        if turn:
            browser.value(SWITCH)
        themes.append(browser.theme())
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
