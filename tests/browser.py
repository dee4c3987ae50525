"""A headless Chromium that is driven through its debugging pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

PATIENCE = 60  # seconds


def find_chromium():
    """The program; the test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed, so the page is not opened in a browser")
    return program


class Browser:
    """A browser with one page; ``console`` has what the page said or threw."""

    def __init__(self, folder, program):
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()

        def give_pipes():  # the browser reads from 3 and writes to 4
            high = [os.dup(theirs_in), os.dup(theirs_out)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [
                *(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *(
                    "--disable-background-networking",
                    "--remote-debugging-pipe",
                    f"--user-data-dir={folder / 'profile'}",
                ),
                "about:blank",
            ],
            preexec_fn=give_pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._waiting, self._number = ours_in, ours_out, b"", 0
        self.console, self.session = [], None
        self.downloads = folder / "downloads"
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for area in ("Runtime", "Log", "Page", "DOM"):
            self.send(f"{area}.enable")
        self.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def close(self):
        """End the browser."""
        self.process.kill()
        self.process.wait()
        os.close(self._in)
        os.close(self._out)

    def send(self, method, **values):
        """A command of the DevTools protocol; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        if event.get("method") == "Runtime.exceptionThrown":
            self.console.append(event["params"]["exceptionDetails"])
        if event.get("method") == "Log.entryAdded":
            self.console.append(event["params"]["entry"]["text"])

    def _read(self):
        while b"\0" not in self._waiting:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser does not answer"
            more = os.read(self._in, 2**20)
            assert more, "the browser has ended"
            self._waiting += more
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def open(self, address, width=1280, height=900):
        """Open an address in a window of a size."""
        self.size(width, height)
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def size(self, width, height):
        """Change the size of the window."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def do(self, script):
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script):
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := self.do(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; {self.console}; {self.do('document.body.innerText')}")

    def upload(self, selector, *paths):
        """Choose files in an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def press(self, key, text=None):
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            values = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, **values)

    def mouse(self, kind, x, y, **values):
        """An event of the mouse at a place of the window."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **values)

    def click(self, x, y):
        """Press and release the left button."""
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", buttons=int(kind == "mousePressed"), clickCount=1)

    def downloaded(self, name):
        """The bytes of a file that the page downloads."""
        end = time.monotonic() + PATIENCE
        path = Path(self.downloads) / name
        while time.monotonic() < end:
            if path.is_file():
                return path.read_bytes()
            time.sleep(0.05)
        raise AssertionError(f"no {name}: {self.do('document.body.innerText')}")

    def screenshot(self, path, full=True):
        """Write what is seen as PNG."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        Path(path).write_bytes(base64.b64decode(answer["data"]))
