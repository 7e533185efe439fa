"""A real browser for tests: chromium, driven through a pipe, without a library between.

Where there is none, `find_browser` says so with None.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}


def find_browser() -> str | None:
    if os.name == "nt":
        return None
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    "One page of a headless browser: it is opened, asked, clicked and photographed."

    def __init__(self, profile: Path):
        to_it, ours = os.pipe()
        theirs, from_it = os.pipe()

        def three_and_four():  # where the browser looks for its pipe
            for number, end in ((10, to_it), (11, from_it)):
                os.dup2(end, number)
            os.dup2(10, 3)
            os.dup2(11, 4)

        self.process = subprocess.Popen(
            [
                find_browser(),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            close_fds=False,
            preexec_fn=three_and_four,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_it)
        os.close(from_it)
        self.pipe, self.answers = os.fdopen(ours, "wb"), os.fdopen(theirs, "rb")
        self.number, self.rest, self.events, self.session = 0, b"", [], None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = dict(id=self.number, method=method, params=params)
        if self.session:
            message["sessionId"] = self.session
        self.pipe.write(json.dumps(message).encode() + b"\0")
        self.pipe.flush()
        while True:
            while b"\0" not in self.rest:
                block = os.read(self.answers.fileno(), 2**20)
                assert block, "the browser has ended"
                self.rest += block
            text, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def open(self, file: Path, width=1200, height=900, dark=False, script=True) -> None:
        "A file, in a window of this size; waits until its script says that it is ready."
        self.events.clear()
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [dict(name="prefers-color-scheme", value="dark" if dark else "light")]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + 60
        ready = "document.documentElement.dataset.ready ?? ''"
        while not self.ask(f"document.readyState === 'complete' && ({ready})" if script else "1"):
            assert time.monotonic() < end, "the page is never ready"
            time.sleep(0.02)

    def ask(self, expression: str):
        "The value of a JavaScript expression on the page."
        options = dict(expression=expression, returnByValue=True, awaitPromise=True)
        answer = self.call("Runtime.evaluate", **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def place(self, selector: str) -> tuple[float, float, float, float]:
        "Left, top, width and height of an element, which is brought into view."
        return self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const b = e.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        )

    def mouse(self, kind: str, x: float, y: float, button="left", **more) -> None:
        options = dict(type=kind, x=x, y=y, button=button, clickCount=1)
        self.call("Input.dispatchMouseEvent", **options | more)

    def click(self, selector: str) -> None:
        left, top, width, height = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, left + width / 2, top + height / 2)

    def drag(self, points: list[tuple[float, float]]) -> None:
        self.mouse("mousePressed", *points[0])
        for x, y in points[1:]:
            self.mouse("mouseMoved", x, y, buttons=1)
        self.mouse("mouseReleased", *points[-1])

    def key(self, key: str, shift=False) -> None:
        code = KEYS.get(key, ord(key[0]))
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        options = dict(key=key, windowsVirtualKeyCode=code, modifiers=8 * shift)
        self.call("Input.dispatchKeyEvent", type="keyDown", **options, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def photograph(self, file: Path, whole=True) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        "What the browser has logged, and every address outside that was asked for."
        self.ask("1")
        said = []
        for event in self.events:
            params, method = event.get("params", {}), event.get("method")
            if method == "Log.entryAdded":
                said.append(params["entry"]["text"])
            elif method == "Runtime.exceptionThrown":
                said.append(json.dumps(params["exceptionDetails"])[:500])
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    said.append(f"asked for {url}")
        return said

    def close(self) -> None:
        self.call("Browser.close") if self.process.poll() is None else None
        self.process.wait(20)
        self.pipe.close()
        self.answers.close()
