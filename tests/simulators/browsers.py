"""A real Chromium without a window, driven over its debugging pipe.

::

    with browser() as tab:
        tab.open("http://127.0.0.1:8000/")
        tab.await_true("document.querySelectorAll('h2').length > 0")
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_S = 30.0


class Tab:
    """One tab; what its page logs as an error is kept in ``errors``."""

    def __init__(self, to: int, back: int) -> None:
        self._to = to
        self._back = os.fdopen(back, "rb")
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._call("Page.navigate", url=url)
        self.await_true("document.readyState == 'complete' && location.href != ''")

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """The window's size and the colour scheme that its user prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        done = self._call(
            "Runtime.evaluate",
            expression=expression, awaitPromise=True, returnByValue=True,
        )  # fmt: skip
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"]["exception"]["description"])
        return done["result"].get("value")

    def await_true(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + WAIT_S
        while not self.evaluate(expression):
            if time.monotonic() > end:
                text = self.evaluate("document.body.innerText")
                raise TimeoutError(f"never true: {expression}\n{text}\n{self.errors}")
            time.sleep(0.05)

    def give(self, selector: str, path: Path) -> None:
        """Choose a file in an input."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        found = self._call("DOM.querySelector", nodeId=root, selector=selector)
        self._call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(path)])

    def draw(self, *points: tuple[float, float]) -> None:
        """Press the mouse at the first point, move along the others, let go."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1)]
        for kind, (x, y) in zip(kinds, points, strict=True):
            self._mouse(kind, x, y, 1)
        self._mouse("mouseReleased", *points[-1], 0)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self._call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def _mouse(self, kind: str, x: float, y: float, buttons: int) -> None:
        self._call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
            buttons=buttons, clickCount=1,
        )  # fmt: skip

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        entry = params.get("entry", {})
        if event.get("method") == "Log.entryAdded" and entry["level"] == "error":
            self.errors.append(entry["text"])

    def _read(self) -> dict[str, Any]:
        parts = []
        while (byte := self._back.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("chromium has ended")
            parts.append(byte)
        return json.loads(b"".join(parts))


@contextmanager
def browser() -> Iterator[Tab]:
    """A browser with a profile of its own, for a test's time."""
    assert CHROMIUM is not None
    (read, to), (back, write) = os.pipe(), os.pipe()

    def ends() -> None:  # it reads commands from 3 and answers on 4
        first, second = os.dup(read), os.dup(write)
        os.dup2(first, 3)
        os.dup2(second, 4)

    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
                "--disable-dev-shm-usage", "--remote-debugging-pipe",
                "--disable-background-networking", "--no-first-run",
                f"--user-data-dir={profile}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=ends, start_new_session=True,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        try:
            yield Tab(to, back)
        finally:
            os.close(to)  # it ends when nobody can command it any more
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
