"""A real browser for tests: headless Chromium, driven over its debugging pipe; nothing but the standard library.

The protocol: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each ended by a zero byte, on the
browser's file descriptors 3 (commands) and 4 (answers and events).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-pipe",
)
_PATIENCE = 60.0  # seconds for one answer: shared machines start browsers slowly
#: Events that mean that something went wrong, or wants attention, on a page.
_NOISE = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")


def find() -> str | None:
    """The path of a Chromium, the one that $CHROMIUM names first; None where there is none."""
    return next((path for name in (os.environ.get("CHROMIUM"), *_NAMES) if name and (path := shutil.which(name))), None)


@dataclass
class Page:
    """One tab: `noise` collects console messages, exceptions, reports and dialogs, `requested` every address."""

    commands: int
    answers: int
    session: str = ""
    noise: list[dict[str, Any]] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    _last: int = 0
    _buffer: bytes = b""
    _loaded: bool = False

    def open(self, path: Path) -> None:
        """Load a file from disk and wait until it has run."""
        self.noise.clear()
        self.requested.clear()
        self._loaded = False
        self.send("Page.navigate", url=path.resolve().as_uri())
        self._until(lambda: self._loaded)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def type(self, selector: str, content: str) -> None:
        """Replace what is in an input, as somebody at the keyboard would."""
        self.run(f"(e => {{ e.focus(); e.select(); }})(document.querySelector({json.dumps(selector)}))")
        if not content:
            for kind in ("keyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, key="Delete", code="Delete", windowsVirtualKeyCode=46)
        else:
            self.send("Input.insertText", text=content)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        answer: dict[str, Any] = {}

        def answered() -> bool:
            return bool(answer)

        def keep(found: dict[str, Any]) -> None:
            if found.get("id") == self._last:
                answer.update(found)

        self._until(answered, keep)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _until(self, done: Any, keep: Any = None) -> None:
        end = time.monotonic() + _PATIENCE
        while not done():
            for message in self._receive(end - time.monotonic()):
                self._note(message)
                if keep is not None:
                    keep(message)

    def _receive(self, seconds: float) -> Iterator[dict[str, Any]]:
        if seconds <= 0 or not select.select([self.answers], [], [], seconds)[0]:
            raise TimeoutError("the browser does not answer")
        data = os.read(self.answers, 1 << 16)
        if not data:
            raise ConnectionError("the browser is gone")
        *whole, self._buffer = (self._buffer + data).split(b"\0")
        return iter([json.loads(part) for part in whole])

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            case method if method in _NOISE:
                self.noise.append(message)
                if method == "Page.javascriptDialogOpening":
                    closing = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": False}}
                    os.write(self.commands, json.dumps({**closing, "sessionId": self.session}).encode() + b"\0")


@contextmanager
def chromium(binary: str) -> Iterator[Page]:
    """A browser with one empty tab and a profile of its own; both are gone afterwards."""
    down, up = os.pipe(), os.pipe()
    with TemporaryDirectory(prefix="qatc-browser-") as folder:
        flags = [*_FLAGS, f"--user-data-dir={folder}/profile", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        command = ["bash", "-c", f'exec "$@" 3<&{down[0]} 4>&{up[1]}', "chromium", binary, *flags, "about:blank"]
        process = subprocess.Popen(
            command,
            pass_fds=(down[0], up[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": folder, "XDG_RUNTIME_DIR": folder},
        )
        os.close(down[0])
        os.close(up[1])
        page = Page(down[1], up[0])
        try:
            targets = page.send("Target.getTargets")["targetInfos"]
            tab = next(t["targetId"] for t in targets if t["type"] == "page")
            page.session = page.send("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.send(f"{domain}.enable")
            yield page
        finally:
            os.close(down[1])  # the end of the pipe ends the browser
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(up[0])
