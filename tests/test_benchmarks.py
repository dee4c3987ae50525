"""Each benchmark says what it measures and how to run it; no timings here."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "side_by_side.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # the scripts set it
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code in (None, 0)
    assert f"uv run python benchmarks/{script.name}" in capsys.readouterr().out
