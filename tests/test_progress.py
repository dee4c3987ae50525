"""Progress bars on a terminal: one inside another, time left, and nothing left of them at the end."""

import os
import subprocess
import sys
from itertools import pairwise

import pytest

pty = pytest.importorskip("pty")

NESTED = """
import time
from masklab.utils.progress import track
for _ in track(range(3), "images"):
    for _ in track(iter(range(4)), "tiles", 4):
        time.sleep(0.1)
try:
    for _ in track([1], "failing"):
        raise ValueError
except ValueError:
    pass
for _ in track([1, 2], "after"):
    time.sleep(0.1)
print("done")
"""


def on_terminal(code):
    """What a program writes to a terminal, and its exit code."""
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "30", "NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=child, stdout=child, stderr=child, env=environment
    ) as process:
        os.close(child)
        written = b""
        while True:
            try:
                part = os.read(parent, 1 << 16)
            except OSError:  # Linux, where the other end is closed
                break
            if not part:
                break
            written += part
    os.close(parent)
    return written.decode(), process.returncode


def test_a_bar_inside_another():
    written, code = on_terminal(NESTED)
    assert code == 0, written
    assert "Traceback" not in written
    lines = [line for line in written.replace("\r", "\n").split("\n") if line]
    assert any("images" in one and "tiles" in two for one, two in pairwise(lines)), lines
    assert any("images" in line and "0:00:0" in line for line in lines), "time left"
    assert any("after" in line for line in lines)
    assert not any("images" in line and "after" in line for line in lines)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") > 0, "the cursor is shown again"
    end = written[written.rindex("after") :]
    assert "\x1b[2K" in end, "the bar is removed"
    assert "done" in end


def test_without_a_terminal_nothing_is_written():
    ended = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
