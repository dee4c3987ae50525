"""The mutation run: which faults it puts in, that its draw is the seed's, and that it sees who finds them."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"

DRAWN = '''"""A docstring of 1 < 2."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    DEAD = 1
__all__ = ["first"[:1]]
LIMIT: "list[1]" = 3
SCALE = 0.5

def first(values, low, sign=-1, *, strict=False) -> int | None:
    if low < LIMIT and not values:
        raise ValueError("at least " + str(1 + 1))
    elif low == 4:
        print(5 + 6)
    values.sort(key=abs, reverse=True)
    low += values[2] * 7
    found = [v for v in values[low:] if v > 8]
    while low // 2:
        low -= 1
    kept = values.clamp(9, low) if isinstance(values, int | float) else min(values)
    return f"{low + 1}" if kept is None else zip(found, kept, strict=True)

class Thing:
    width: int = 10

    def __repr__(self):
        return str(11)
'''


@pytest.fixture
def mutation(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("mutation")


def changes(mutation, source=DRAWN):
    """Line, kind and what stands there before and after, of every fault."""
    data = source.encode()
    return {
        (fault.line, fault.kind, data[fault.start : fault.end].decode(), fault.text)
        for fault in mutation.Finder("drawn.py", data).found.values()
    }


WANTED = [
    (6, "constant", "3", "4"),
    (7, "constant", "0.5", "0.55"),
    (9, "constant", "1", "2"),
    (9, "flag", "False", "True"),
    (10, "comparison", "low < LIMIT", "low <= LIMIT"),
    (10, "boolean", "low < LIMIT and not values", "low < LIMIT or not values"),
    (10, "not", "not values", "(values)"),
    (10, "condition", "low < LIMIT and not values", "not (low < LIMIT and (not values))"),
    (10, "condition", "low < LIMIT and not values", "True"),
    (10, "condition", "low < LIMIT and not values", "False"),
    (12, "comparison", "low == 4", "low != 4"),
    (14, "removed", "values.sort(key=abs, reverse=True)", "pass"),
    (14, "keyword", "values.sort(key=abs, reverse=True)", "(values.sort(key=abs))"),
    (14, "keyword", "values.sort(key=abs, reverse=True)", "(values.sort(reverse=True))"),
    (14, "flag", "True", "False"),
    (15, "removed", "low += values[2] * 7", "pass"),
    (15, "arithmetic", "low += values[2] * 7", "low -= values[2] * 7"),
    (15, "arithmetic", "values[2] * 7", "(values[2] / 7)"),
    (15, "constant", "2", "3"),
    (16, "index", "values[low:]", "values[:]"),
    (16, "comparison", "v > 8", "v >= 8"),
    (16, "condition", "v > 8", "True"),
    (17, "arithmetic", "low // 2", "(low / 2)"),
    (17, "condition", "low // 2", "not (low // 2)"),
    (19, "pair", "values.clamp(9, low)", "values.clamp(low, 9)"),
    (19, "pair", "min", "max"),
    (20, "comparison", "kept is None", "kept is not None"),
    (23, "constant", "10", "11"),
]


def test_every_kind_of_fault_is_found(mutation):
    found = changes(mutation)
    assert {wanted for wanted in WANTED if wanted not in found} == set()
    assert any(line == 20 and kind == "return" and after == "None" for line, kind, _, after in found)


def test_nothing_for_people_is_changed(mutation):
    """Docstrings, what is for a type checker, messages, prints, `__all__`, `__repr__`, and zip's strict."""
    found = changes(mutation)
    assert {line for line, *_ in found}.isdisjoint({1, 4, 5, 11, 13, 26})
    assert not any(before == "1" for line, _, before, _ in found if line in (6, 20))
    assert not any(kind in ("keyword", "flag") for line, kind, *_ in found if line == 20)


def test_equal_seeds_draw_equal_faults(mutation):
    sources = {"long.py": DRAWN.encode() * 3, "short.py": DRAWN.encode(), "none.py": b'"""Nothing."""\n' * 9}
    drawn = mutation.draw(sources, 16, 5)
    assert drawn == mutation.draw(sources, 16, 5)
    assert drawn != mutation.draw(sources, 16, 6)
    assert [sum(fault.path == path for fault in drawn) for path in sources] == [12, 4, 0]
    assert len({(fault.path, fault.line) for fault in drawn}) == 16  # each on a line of its own
    for fault in drawn:
        assert fault.put_into(sources[fault.path]) != sources[fault.path]
    assert len(mutation.draw({"a.py": b"x = 1\n"}, 9, 0)) == 1


def test_a_toy_package(tmp_path, monkeypatch):
    """What is tested is killed, at import as well; what is run but not tested lives, as does what nothing runs."""
    files = {
        "src/toy/__init__.py": "",
        "src/toy/part/__init__.py": "",
        "src/toy/part/one.py": "LIMIT = 3\n\n\ndef known(x):\n    return x < LIMIT\n\n\ndef run(x):\n    return x + x\n\n\n"
        "def unknown(x):\n    return x * x\n",
        "tests/test_one.py": "from toy.part.one import known, run\n\n\ndef test_known():\n"
        "    assert known(2) and not known(3)\n\n\ndef test_run():\n    run(0)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, str(FOLDER / "mutation.py"), f"--root={tmp_path}", "--folders=part", "--faults=9"]
    command += ["--preload=coverage pytest_cov.plugin pytest_timeout", f"--output={tmp_path / 'out.json'}"]
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_cov.plugin,pytest_timeout")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {r["line"]: (r["verdict"], r["by"]) for r in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert results == {
        1: ("killed", "tests/test_one.py::test_known"),
        5: ("killed", "tests/test_one.py::test_known"),
        9: ("LIVED", ""),
        13: ("not covered", ""),
    }
    assert "| all | 4 | 2 | 50.0% |" in done.stdout
    assert {name: (tmp_path / name).read_text() for name in files} == files
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert "4 of them known" in again.stdout
    assert "recording" not in again.stdout
