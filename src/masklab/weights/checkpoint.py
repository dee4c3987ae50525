"""Weights files: safetensors whose header holds the configuration, the class table, the score threshold and more."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from masklab.config.fields import MOST_PIXELS
from masklab.config.migrate import migrate_config
from masklab.config.schema import DATA_AND_OUTPUT, Config, validate
from masklab.model.build import build_model
from masklab.model.masklab import MaskLab
from masklab.structures import ClassTable, TrainingData
from masklab.utils.device import default_device
from masklab.utils.errors import InputError
from masklab.weights.migrate import migrate_tensors
from masklab.weights.tensors import header_value, read_tensors, write_tensors

_FORMAT = "masklab 2"
_READABLE = (_FORMAT, "masklab 1")
_MODELS = Path(__file__).parent / "released"


def save_model(model: MaskLab, path: str | Path, notes: dict[str, Any] | None = None, half: bool = False) -> None:
    """Write a weights file that `load_model` needs nothing else for, atomically.

    ``notes`` are further facts for the header: how the model was trained and what it scored.  ``half`` writes float16,
    half the size, which `load_model` returns as float32; `InputError` for weights beyond its range.
    """
    config = model.config.model_dump(mode="json")
    for field in DATA_AND_OUTPUT:
        del config[field]
    config["model"]["backbone"] |= {"weights": None, "segmentation_weights": None}
    config["train"]["start_from"] = None
    header = {
        "format": _FORMAT,
        "config": json.dumps(config),
        "classes": json.dumps({"ids": model.classes.ids, "names": model.classes.names}),
        "score_threshold": json.dumps(model.score_threshold),
        "training_data": json.dumps(model.training_data and asdict(model.training_data)),
        "notes": json.dumps(notes or {}),
    }
    write_tensors(path, model.state_dict(), header, half)


def model_names() -> list[str]:
    """The trained models that come with the package."""
    return sorted(path.stem for path in _MODELS.glob("*.safetensors"))


def find_weights(model: str | Path) -> Path:
    """The weights file of a name: a file, a run folder (``best`` before ``last``), or one of `model_names`.

    A file or run folder of that name comes before a model of the package; any other folder does not.
    Raises `InputError` when there is none.
    """
    path = Path(model)
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


def load_model(model: str | Path, device: str | torch.device | None = None) -> MaskLab:
    """Load the network from a run folder, a weights file or by the name of a model that comes with the package.

    It is in evaluation mode on ``device``, by default a GPU if there is one.  Raises `InputError` for a missing file,
    a file that is not masklab's, and one whose tensors do not fit its header.
    """
    place = torch.device(device or default_device())
    path = find_weights(model)
    header, tensors = read_tensors(path, _READABLE, "train")
    settings, tensors = migrate_config(header_value(header, "config", dict, path)), migrate_tensors(tensors)
    config = validate(settings, str(path))
    threshold = header_value(header, "score_threshold", object, path)
    if not (threshold is None or (isinstance(threshold, (int, float)) and 0 <= threshold <= 1)):
        raise InputError(
            f"{path}: its score_threshold is {threshold}, not from 0 to 1: use the file as it was written."
        )
    classes = _class_table(header, path)
    _check_shapes(config, classes, tensors, path)
    loaded = build_model(config, classes, load_pretrained=False)
    loaded.load_state_dict(tensors)
    loaded.score_threshold = threshold
    loaded.training_data = _training_data(header, path)
    return loaded.to(place).to(memory_format=torch.channels_last).eval()


def read_notes(model: str | Path) -> dict[str, Any]:
    """The ``notes`` that were saved with the weights."""
    path = find_weights(model)
    notes: dict[str, Any] = header_value(read_tensors(path, _READABLE, "train")[0], "notes", dict, path)
    return notes


def _check_shapes(config: Config, classes: ClassTable, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that do not fit the configuration, before memory is allocated: a header may name any size."""
    try:
        with torch.device("meta"):
            model = build_model(config, classes, load_pretrained=False)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"{path}: its configuration cannot be built ({str(error).splitlines()[0]}): use the file as it was written."
        ) from None
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{path}: its tensors do not fit its configuration ({name} is {found.get(name, 'missing')}, not "
                f"{wanted.get(name, 'expected')}): use the file as it was written."
            )


def _class_table(header: dict[str, str], path: Path) -> ClassTable:
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


def _training_data(header: dict[str, str], path: Path) -> TrainingData | None:
    """What a model was trained on; None in files that do not say it."""
    if header.get("training_data", "null") == "null":
        return None
    given = header_value(header, "training_data", dict, path)
    try:
        size, sides = given["image_size"], (given["smallest_object"], given["largest_object"])
        numbers = [float(number) for number in (*size, *sides)]
        if len(size) != 2 or not all(0 < number < MOST_PIXELS * 64 for number in numbers):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise InputError(
            f"{path}: the training_data of its header is damaged: use the file as it was written."
        ) from None
    return TrainingData((int(size[0]), int(size[1])), *numbers[2:])


def describe(model: str | Path) -> str:
    """The facts of a weights file as YAML, followed by its card, the ``.md`` file beside it, if there is one.

    Raises `InputError` as `load_model` does for a file that cannot be used.
    """
    path = find_weights(model)
    header, tensors = read_tensors(path, _READABLE, "train")
    facts = {
        "weights": str(path),
        "bytes": path.stat().st_size,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "classes": list(_class_table(header, path).names),
        "score_threshold": header_value(header, "score_threshold", object, path),
        **header_value(header, "notes", dict, path),
    }
    card = path.with_suffix(".md")
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return f"{text}\n{card.read_text(encoding='utf-8', errors='replace')}" if card.is_file() else text
