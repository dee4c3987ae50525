"""Weights files: safetensors whose header holds the configuration, the class table, the score threshold and more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from masklab.config.schema import Config
from masklab.model.build import build_model
from masklab.model.masklab import MaskLab
from masklab.structures import ClassTable
from masklab.utils.device import default_device
from masklab.utils.errors import InputError
from masklab.weights.header import class_table, header_of, header_value, read_facts
from masklab.weights.migrate import migrate_tensors
from masklab.weights.tensors import read_tensors, write_tensors

_FORMAT = "masklab 2"
_READABLE = (_FORMAT, "masklab 1")
_MODELS = Path(__file__).parent / "released"


def save_model(model: MaskLab, path: str | Path, notes: dict[str, Any] | None = None, half: bool = False) -> None:
    """Write a weights file that `load_model` needs nothing else for, atomically.

    ``notes`` are further facts for the header: how the model was trained and what it scored.  ``half`` writes float16,
    half the size, which `load_model` returns as float32; `InputError` for weights beyond its range.
    """
    header = {"format": _FORMAT, **header_of(model), "notes": json.dumps(notes or {})}
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


def load_model(model: str | Path, device: str | torch.device | None = None) -> MaskLab:
    """Load the network from a run folder, a weights file or by the name of a model that comes with the package.

    It is in evaluation mode on ``device``, by default a GPU if there is one.  Raises `InputError` for a missing file,
    a file that is not masklab's, and one whose tensors do not fit its header.
    """
    place = torch.device(device or default_device())
    path = find_weights(model)
    header, tensors = read_tensors(path, _READABLE, "train")
    config, classes, threshold, training_data = read_facts(header, path)
    tensors = migrate_tensors(tensors)
    _check_shapes(config, classes, tensors, path)
    loaded = build_model(config, classes, load_pretrained=False)
    loaded.load_state_dict(tensors)
    loaded.score_threshold = threshold
    loaded.training_data = training_data
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
        "classes": list(class_table(header, path).names),
        "score_threshold": header_value(header, "score_threshold", object, path),
        **header_value(header, "notes", dict, path),
    }
    card = path.with_suffix(".md")
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return f"{text}\n{card.read_text(encoding='utf-8', errors='replace')}" if card.is_file() else text
