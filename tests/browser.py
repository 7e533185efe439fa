"""A real browser for tests: pages are opened, asked, clicked and photographed.

Where there is none, `find_browser` says so with None.
"""

import base64
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import devtools  # noqa: E402
from devtools import find_browser  # noqa: E402, F401

KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}


class Browser(devtools.Browser):
    "One page of a headless browser, as a person uses it."

    call, ask = devtools.Browser.send, devtools.Browser.value

    def open(self, file: Path, width=1200, height=900, dark=False, script=True) -> None:
        "A file, in a window of this size; waits until its script says that it is ready."
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [dict(name="prefers-color-scheme", value="dark" if dark else "light")]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.load(file.resolve().as_uri())
        end = time.monotonic() + 60
        ready = (
            "document.readyState === 'complete' && (document.documentElement.dataset.ready ?? '')"
        )
        while script and not self.ask(ready):
            assert time.monotonic() < end, "the page is never ready"
            time.sleep(0.02)

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
