"""Imports point one way, importing masklab runs nothing, and every module says what it is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "masklab"
MODULES = sorted(SOURCE.rglob("*.py"))

ROOMS = [
    {"utils"},
    {"config"},
    {"structures", "ops", "masks"},
    {"images", "results"},
    {"model", "datasets"},
    {"weights"},
    {"inference"},
    {"runtime"},
    {"evaluation", "export"},
    {"training"},
    {"paper", "plots"},
    {"report"},
    {"serve"},
    {"cli", ""},
]


def room(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "masklab":
            yield [*node.module.split("."), ""][1]
        if isinstance(node, ast.Import):
            yield from ([*name.name.split("."), ""][1] for name in node.names if name.name.split(".")[0] == "masklab")


def floor(name):
    return next(level for level, names in enumerate(ROOMS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = room(path)
    for other in imported_rooms(path):
        if own == "cli" and other == "":
            continue  # the version
        assert other == own or floor(other) <= floor(own), f"{own} must not import {other}"
        assert not (own == "model" and other == "datasets"), "the model knows nothing of data sets"
        assert not (own == "datasets" and other == "model")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_say_what_they_are(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} has no docstring"


def test_import_loads_no_heavy_library():
    code = "import masklab, sys; print([n for n in ('torch', 'lightning', 'timm') if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_exists():
    import masklab

    for name in masklab.__all__:
        assert getattr(masklab, name) is not None
    with pytest.raises(AttributeError):
        masklab.nothing_of_that_name  # noqa: B018


@pytest.mark.parametrize("words", [["--help"], ["train", "nuclei", "--help"], ["data", "check", "--help"]])
def test_help_needs_no_torch(words):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['rich'] = None\n"
        f"from masklab.cli.app import main; main({words})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: masklab" in done.stdout


def test_the_library_sets_up_no_logging():
    code = (
        "import logging, masklab, masklab.cli; logger = logging.getLogger('masklab')\n"
        "print([type(h).__name__ for h in logger.handlers], logger.level, logger.propagate, logging.root.handlers)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['NullHandler'] 0 True []"


def import_closure(*modules):
    """The modules that importing some loads, in a process of its own."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def own_imports(closure):
    """The libraries that masklab's modules of a closure import themselves."""
    for name in closure:
        if name.split(".")[0] == "masklab":
            path = SOURCE.joinpath(*name.split(".")[1:])
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.split(".")[0]
                if isinstance(node, ast.Import):
                    yield from (each.name.split(".")[0] for each in node.names)


def test_the_network_and_the_training_step_know_tensors_only():
    """No decoder, no masks as run lengths, no results, no data sets and no files of weights."""
    closure = import_closure("masklab.model.build", "masklab.model.segmentation", "masklab.training.step")
    rooms = {name.split(".")[1] for name in closure if name.startswith("masklab.")}
    assert (
        {"config", "model", "ops", "training"} <= rooms <= {"config", "model", "ops", "structures", "training", "utils"}
    )
    assert not {"tifffile", "hotcoco", "lightning", "rich"} & closure
    # torchvision and timm import Pillow and safetensors, masklab's modules do not
    assert not {"PIL", "tifffile", "hotcoco", "safetensors"} & set(own_imports(closure))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_long_file_gives_its_reason(path):
    text = path.read_text()
    assert text.count("\n") <= 300 or "long" in ast.get_docstring(ast.parse(text)), "split it, or say why it is long"


def test_the_top_level_is_small():
    names = {p.stem for p in SOURCE.iterdir() if p.name[0] not in "._" and p.suffix in ("", ".py")}
    assert names == set().union(*ROOMS) - {""}
