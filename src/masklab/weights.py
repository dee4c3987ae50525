"""Weights files: safetensors whose header holds the configuration, the class table and the score threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from masklab.config import Config, Precision, merge, validate
from masklab.errors import InputError
from masklab.hardware import check_precision, default_device
from masklab.model.backbone import backbone_facts
from masklab.model.masklab import MaskLab, build_model
from masklab.model.tensors import header_value, read_tensors, write_tensors
from masklab.structures import ClassTable

FORMAT = "masklab 1"
MODELS = Path(__file__).parent / "models"
# layers with outputs for each class
OF_CLASSES = (
    "box_classifier.classes",
    "box_classifier.codes",
    "mask_branch.semantic",
    "mask_branch.classes",
    "mask_branch.sides",
)


def save_model(model: MaskLab, path: str | Path, notes: dict[str, Any] | None = None, half: bool = False) -> None:
    """Write a weights file that `load_model` opens with no other file; written beside and renamed.

    ``notes`` are further facts for the header: how the weights came about and what they scored.  ``half`` writes
    float16, half the size, which `load_model` gives back as float32; `InputError` for weights beyond its range.
    """
    config = model.config.model_dump(mode="json")
    del config["data"], config["output"]  # paths of the machine it was trained on
    config["model"]["backbone"] |= {"weights": None, "segmentation_weights": None}
    config["train"]["start_from"] = None
    header = {
        "format": FORMAT,
        "config": json.dumps(config),
        "classes": json.dumps({"ids": model.classes.ids, "names": model.classes.names}),
        "score_threshold": json.dumps(model.score_threshold),
        "notes": json.dumps(notes or {}),
    }
    write_tensors(path, model.state_dict(), header, half)


def model_names() -> list[str]:
    """The trained models that come with the package."""
    return sorted(path.stem for path in MODELS.glob("*.safetensors"))


def find_weights(model: str | Path) -> Path:
    """The weights file that MODEL names: a file, a run folder, whose ``best`` wins over its ``last``, or one of `model_names`.

    A file or run of that name wins over a model that comes with the package; a folder of anything else does not.
    Raises `InputError` when there is none.
    """
    path = Path(model)
    for file in (path, path / "best.safetensors", path / "last.safetensors"):
        if file.is_file():
            return file
    if str(model) in model_names() and not (path / "config.yaml").exists():  # with it, a run that has no weights yet
        return MODELS / f"{model}.safetensors"
    if path.is_dir():
        raise InputError(f"{path} holds no best.safetensors or last.safetensors: give the folder of a finished run.")
    raise InputError(
        f"{path}: there is no such run folder or weights file, nor a model that comes with masklab "
        f"({', '.join(model_names())}): give the folder that `masklab train` wrote."
    )


def load_model(
    model: str | Path,
    device: str | torch.device | None = None,
    max_detections: int | None = None,
    precision: Precision | None = None,
) -> MaskLab:
    """Load MaskLab from a run folder, a weights file or by the name of a model that comes with the package.

    It is in evaluation mode on ``device``, by default a GPU if there is one, and finds at most ``max_detections``
    objects in a picture, by default as many as its configuration says, and so with ``precision``, the number format
    of its convolutions.  Raises `InputError` for a missing file, one of another kind, one whose tensors do not fit its
    header, and a precision that the device does not have.
    """
    place = torch.device(device or default_device())
    path = find_weights(model)
    header, tensors = read_tensors(path, FORMAT, "train")
    settings = header_value(header, "config", dict, path)
    if precision is not None:
        check_precision(precision, place, "precision")
        settings = merge(settings, {"train": {"precision": precision}})
    config = validate(settings, str(path))
    threshold = header_value(header, "score_threshold", object, path)
    if not (threshold is None or (isinstance(threshold, (int, float)) and 0 <= threshold <= 1)):
        raise InputError(
            f"{path}: its score_threshold is {threshold}, not from 0 to 1: take the file as it was written."
        )
    classes = _class_table(header, path)
    _check_sizes(config, classes, tensors, path)
    loaded = build_model(config, classes, load_pretrained=False)
    loaded.load_state_dict(tensors)
    loaded.score_threshold = threshold
    if max_detections is not None:
        loaded.box_classifier.max_detections = max_detections
    return loaded.to(place).to(memory_format=torch.channels_last).eval()


def load_start(config: Config) -> MaskLab | None:
    """The model that ``train.start_from`` names, on the CPU; None where it names none.

    Raises `InputError` as `load_model` does, and for a model whose backbone is not the configuration's.
    """
    path = config.train.start_from
    if path is None:
        return None
    start, ours = load_model(path, "cpu"), config.model.backbone
    theirs = backbone_facts(start.config.model.backbone)
    for field, value in backbone_facts(ours).items():
        if theirs[field] != value:
            raise InputError(
                f"model.backbone.{field} is {getattr(ours, field)} but train.start_from, {path}, was trained with "
                f"{theirs[field]}: change model.backbone.{field}, or leave train.start_from out."
            )
    return start


def take_over(model: MaskLab, start: MaskLab) -> list[str]:
    """Give a model the weights of another, in place, and return the names of the layers that keep their own.

    A layer is taken whole, if the other model has one of the same name, shapes and meaning: outputs that belong to
    classes mean the same where the class names are equal, those of directions where these are laid out alike.
    """
    own, theirs = model.state_dict(), start.state_dict()
    meant, other = _meaning(model), _meaning(start)
    differing = tuple(f"{part}." for part, meaning in meant.items() if other[part] != meaning)
    layers: dict[str, list[str]] = {}
    for name in own:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    kept = [
        layer
        for layer, names in layers.items()
        if f"{layer}.".startswith(differing)
        or any(name not in theirs or theirs[name].shape != own[name].shape for name in names)
    ]
    model.load_state_dict({name: theirs[name] for name in own if name.rpartition(".")[0] not in kept}, strict=False)
    return kept


def _meaning(model: MaskLab) -> dict[str, Any]:
    """What the outputs of parts stand for, where their shapes do not say it."""
    mask = model.config.model.mask
    return {
        **dict.fromkeys(OF_CLASSES, model.classes.names),
        "mask_branch.direction": (mask.directions, mask.distance_bins, mask.distance_metric, mask.start_degrees),
        "refinement": mask.refinement,
    }


def read_notes(model: str | Path) -> dict[str, Any]:
    """The facts that were saved with the weights."""
    path = find_weights(model)
    notes: dict[str, Any] = header_value(read_tensors(path, FORMAT, "train")[0], "notes", dict, path)
    return notes


def _check_sizes(config: Config, classes: ClassTable, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that are not the model's, before it takes memory: a header may ask for any size."""
    try:
        with torch.device("meta"):
            model = build_model(config, classes, load_pretrained=False)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"{path}: its configuration cannot be built ({str(error).splitlines()[0]}): take the file as it was written."
        ) from None
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{path}: its tensors do not fit its configuration ({name} is {found.get(name, 'missing')}, not "
                f"{wanted.get(name, 'expected')}): take the file as it was written."
            )


def _class_table(header: dict[str, str], path: Path) -> ClassTable:
    given = header_value(header, "classes", dict, path)
    ids, names = given.get("ids"), given.get("names")
    if not isinstance(ids, list) or not isinstance(names, list) or len(ids) != len(names):
        raise InputError(f"{path}: the classes of its header are no table: take the file as it was written.")
    table = ClassTable.from_categories([{"id": i, "name": n} for i, n in zip(ids, names, strict=True)], path)
    if table.ids != tuple(ids):
        raise InputError(f"{path}: the classes of its header are not in order: take the file as it was written.")
    return table


def describe(model: str | Path) -> str:
    """What a weights file says of itself, as YAML, and below it the card: the ``.md`` file beside it, if there is one.

    Raises `InputError` as `load_model` does for a file that cannot be used.
    """
    path = find_weights(model)
    header, tensors = read_tensors(path, FORMAT, "train")
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
