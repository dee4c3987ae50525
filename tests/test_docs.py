"""The documents name code that exists."""

import ast
import re
from pathlib import Path

from masklab.cli.app import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "masklab"
DOCS = ROOT / "docs"
FILE = re.compile(r"[\w./-]+\.(py|yaml|md)")


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


def bound(statement):
    """The names that a statement of a module or class binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def names_in(path):
    """The names of a module, and ``Class.member`` for the methods, fields and attributes of its classes."""
    found = set()
    for statement in ast.parse(path.read_text()).body:
        found |= bound(statement)
        if isinstance(statement, ast.ClassDef):
            members = {name for child in statement.body for name in bound(child)}
            members |= {
                node.attr
                for node in ast.walk(statement)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            }
            found |= {f"{statement.name}.{member}" for member in members}
    return found


def home(file):
    return next((path for path in (PACKAGE / file, ROOT / file, DOCS / file) if path.is_file()), None)


def faults(text):
    """Files that do not exist, and names in the last cell of a row that neither its files nor config.py has."""
    wrong = [word for word in quoted(text) if FILE.fullmatch(word) and home(word) is None]
    for line in text.splitlines():
        words = quoted(line.rstrip(" |").rpartition("|")[2]) if line.startswith("|") else []
        files = [home(word) for word in words if FILE.fullmatch(word) and home(word)]
        if not files:
            continue
        known = set().union(
            *(names_in(file) for file in (PACKAGE / "config").glob("*.py")),
            *(names_in(file) for file in files if file.suffix == ".py"),
        )
        wrong += [word for word in words if not FILE.fullmatch(word) and word not in known]
    return wrong


def test_documents_name_code_that_exists():
    for document in ("paper.md", "architecture.md"):
        assert faults((DOCS / document).read_text()) == [], document


def test_every_statement_choice_and_difference_names_its_file():
    _, says, silent, differs, *_ = re.split(r"^## .*\n", (DOCS / "paper.md").read_text(), flags=re.MULTILINE)
    for part, least in ((says, 40), (silent, 25), (differs, 10)):
        rows = [line for line in part.splitlines() if line.startswith("|")][2:]
        assert len(rows) >= least
        for row in rows:
            assert any(map(FILE.fullmatch, quoted(row.rstrip(" |").rpartition("|")[2]))), row


def test_faults_are_found():
    row = "| 3 | it exists | `model/backbone.py`: `Backbone.strides`, `BackboneConfig.name` |\n"
    assert faults(row) == []
    wrong = row.replace("strides", "paces").replace("Config.name", "Config.nom") + "see `model/spine.py`"
    assert faults(wrong) == ["model/spine.py", "Backbone.paces", "BackboneConfig.nom"]


def test_the_readme_gives_the_cost_that_the_command_prints(capsys):
    """Of one image of 800 x 1200 and 80 classes, to the digits that the README gives."""
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if "`masklab info resnet101`" in line)
    given = re.search(r"([\d.]+) M parameters, ([\d.]+) G multiply-adds", row).groups()
    assert "80 classes), one image of 800 x 1200" in row
    assert main(["info", "resnet101"]) == 0
    said = capsys.readouterr().out
    assert "one image of 800 x 1200, 80 classes" in said
    total = next(line for line in said.splitlines() if "total" in line)
    printed = re.findall(r"[\d.]+", total)[:2]
    for figure, exact in zip(given, printed, strict=True):
        digits = len(figure.partition(".")[2])
        assert digits > 0, "a rounded whole number hides what the command prints"
        assert figure == f"{float(exact):.{digits}f}"
