"""What weights files say about themselves, and where they are, without torch: what `masklab info` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.weights.header import header_value, open_weights

FORMAT = "masklab 2"
READABLE = (FORMAT, "masklab 1")
_MODELS = Path(__file__).parent / "released"


def model_names() -> list[str]:
    """The trained models that come with the package."""
    return sorted(path.stem for path in _MODELS.glob("*.safetensors"))


def find_weights(model: str | Path) -> Path:
    """The weights file of a name: a file, a run folder (``best`` before ``last``), or one of `model_names`.

    A file or run folder of that name comes before a model of the package; any other folder does not.
    Raises `InputError` when there is none.
    """
    path = Path(model)
    if path.suffix.lower() in (".onnx", ".xml", ".pt2") and not path.is_dir():
        raise InputError(
            f"{path} is an exported model, which `masklab predict` and `masklab.runtime.load` alone take: give the weights."
        )
    for file in (path, path / "best.safetensors", path / "last.safetensors"):
        if file.is_file():
            return file
    if str(model) in model_names() and not (path / "config.yaml").exists():  # a run without weights yet
        return _MODELS / f"{model}.safetensors"
    if path.is_dir():
        raise InputError(f"{path} holds no best.safetensors or last.safetensors: give the folder of a finished run.")
    raise InputError(
        f"{path}: there is no such run folder or weights file, nor a model that comes with masklab "
        f"({', '.join(model_names())}): give the folder that `masklab train` wrote."
    )


def read_notes(model: str | Path) -> dict[str, Any]:
    """The ``notes`` that were saved with the weights."""
    path = find_weights(model)
    with open_weights(path, READABLE, "train") as (header, _):
        notes: dict[str, Any] = header_value(header, "notes", dict, path)
    return notes


def class_table(header: Mapping[str, str], path: Path) -> ClassTable:
    """The classes of a header; `InputError` where they do not form a class table."""
    given = header_value(header, "classes", dict, path)
    ids, names = given.get("ids"), given.get("names")
    if not isinstance(ids, list) or not isinstance(names, list) or len(ids) != len(names):
        raise InputError(
            f"{path}: the classes of its header do not form a class table: use the file as it was written."
        )
    table = ClassTable.from_categories([{"id": i, "name": n} for i, n in zip(ids, names, strict=True)], path)
    if table.ids != tuple(ids):
        raise InputError(f"{path}: the classes of its header are not in order: use the file as it was written.")
    return table


def describe(model: str | Path) -> str:
    """The facts of a weights file as YAML, followed by its card, the ``.md`` file beside it, if there is one.

    Raises `InputError` as `load_model` does for a file that cannot be used.
    """
    path = find_weights(model)
    with open_weights(path, READABLE, "train") as (header, opened):
        shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
    facts = {
        "weights": str(path),
        "bytes": path.stat().st_size,
        "parameters": sum(math.prod(shape) for shape in shapes),
        "classes": list(class_table(header, path).names),
        "score_threshold": header_value(header, "score_threshold", object, path),
        **header_value(header, "notes", dict, path),
    }
    card = path.with_suffix(".md")
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return f"{text}\n{card.read_text(encoding='utf-8', errors='replace')}" if card.is_file() else text
