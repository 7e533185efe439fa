"""A real browser: a headless Chromium, driven through its DevTools protocol over a pipe.

It takes no package beside the standard library. `look.py` measures the pages of the site with it,
`tests/browser.py` uses pages as a person would.
"""

import json
import os
import shutil
import subprocess
import tempfile
import threading

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
PATIENCE = 60  # seconds for one answer of the browser
# fonts loaded, formulas set, and two frames drawn
SETTLED = """document.fonts.ready.then(() => new Promise(done =>
  requestAnimationFrame(() => requestAnimationFrame(() => done(true)))))"""


def find_browser() -> str | None:
    """The path of a Chromium or Chrome, or None.

    The variable BROWSER_PATH names another one; empty, it means none. FileNotFoundError if there
    is none where it says."""
    if os.name == "nt":  # which hands no pipe on
        return None
    named = os.environ.get("BROWSER_PATH")
    if named is not None:
        if named and not shutil.which(named):
            raise FileNotFoundError(f"BROWSER_PATH={named} is no program: name a Chromium")
        return named or None
    return next(filter(None, map(shutil.which, (*NAMES, MAC))), None)


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

    def load(self, url: str):
        "Load a page."
        self.events.clear()
        self.send("Page.navigate", url=url)
        is_loaded = lambda message: message.get("method") == "Page.loadEventFired"  # noqa: E731
        if not any(map(is_loaded, self.events)):
            self.wait(is_loaded)

    def open(self, url: str):
        "Load a page, and wait until it lies still."
        self.load(url)
        self.value(SETTLED)

    def close(self):
        self.watch.cancel()
        self.process.kill()
        self.process.wait()
        os.close(self.write), os.close(self.read)
        self.profile.cleanup()
