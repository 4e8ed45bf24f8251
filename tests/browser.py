"""A headless Chromium for tests of pages, driven through chromedriver (WebDriver, w3.org/TR/webdriver2)."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
]


class Browser:
    """One tab. Its methods raise urllib.error.HTTPError, with the driver's message, if a command fails."""

    def __init__(self, session: str) -> None:
        self.session = session

    def call(self, command: str, **values: Any) -> Any:
        """POST of a WebDriver command; returns its value."""
        return request(f"{self.session}/{command}", values)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file in a viewport of that size, after the logs of the page before are dropped."""
        self.call("url", url="about:blank")
        self.call("url", url="about:blank")
        for kind in ("browser", "performance"):
            self.logs(kind)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.call("url", url=path.resolve().as_uri())

    def devtools(self, method: str, **params: Any) -> Any:
        return self.call("goog/cdp/execute", cmd=method, params=params)

    def run(self, script: str, *args: Any) -> Any:
        """The value that `script`, the body of a function of `arguments`, returns."""
        return self.call("execute/sync", script=script, args=list(args))

    def wait(self, script: str, *args: Any, seconds: float = 10) -> Any:
        """The first true value of `script`. Raises AssertionError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.run(script, *args):
                return value
            time.sleep(0.02)
        raise AssertionError(f"not true after {seconds} s: {script}")

    def pointer(self, *actions: dict[str, Any]) -> None:
        """Move and press the mouse: {"type": "pointerMove", "x": 10, "y": 20}, {"type": "pointerDown"}, ..."""
        steps = [{"button": 0, "duration": 0, **action} for action in actions]
        self.call("actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("actions", actions=[{"type": "key", "id": "keyboard", "actions": steps}])

    def logs(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last call: "browser" is the console, "performance" also the network."""
        return self.call("se/log", type=kind)

    def requested(self) -> list[str]:
        """The URLs that the page requested, without the contents of data: URLs."""
        messages = (json.loads(entry["message"])["message"] for entry in self.logs("performance"))
        sent = (one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent")
        return [url if not url.startswith("data:") else "data:" for url in sent]

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """Save the page, or the viewport, as PNG."""
        picture = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(picture["data"]))


def request(url: str, values: dict[str, Any] | None = None, method: str = "POST") -> Any:
    data = None if values is None else json.dumps(values).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        error.msg += ": " + error.read().decode()[:500]
        raise


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in `folder`; the driver listens on loopback and ends with the block."""
    binary = shutil.which("chromium") or "chromium"
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    session = None
    try:
        assert driver.stdout is not None
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        root = f"http://127.0.0.1:{port}/session"
        session = f"{root}/{request(root, {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        yield Browser(session)
    finally:
        if session is not None:
            request(session, method="DELETE")
        driver.terminate()
        driver.wait()
        if driver.stdout is not None:
            driver.stdout.close()
