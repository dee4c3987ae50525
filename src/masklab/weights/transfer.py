"""Weights of one model given to another, as far as they fit."""

from __future__ import annotations

from typing import Any

from masklab.config.schema import Config
from masklab.model.backbone import backbone_facts
from masklab.model.masklab import MaskLab
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model

# layers with outputs for each class
OF_CLASSES = (
    "box_head.classes",
    "box_head.deltas",
    "mask_head.semantic",
    "mask_head.classes",
    "mask_head.sides",
)


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


def load_matching(model: MaskLab, start: MaskLab) -> list[str]:
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
        "mask_head.direction": (mask.directions, mask.distance_bins, mask.distance_metric, mask.start_degrees),
        "refinement": mask.refinement,
    }
