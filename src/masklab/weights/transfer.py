"""Transfer of matching weights from one model to another."""

from __future__ import annotations

from typing import Any

from masklab.config.schema import Config
from masklab.model.backbone import backbone_facts, trained_norm
from masklab.model.masklab import MaskLab
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model

# layers with one output or more per class
OF_CLASSES = (
    "box_head.classes",
    "box_head.deltas",
    "mask_head.semantic",
    "mask_head.classes",
    "mask_head.sides",
)


def load_start(config: Config) -> MaskLab | None:
    """The model that ``train.start_from`` names, on the CPU; None where it names none.

    Its norm may be group where ours is batch or frozen_batch: see `masklab.model.fixed_norm.freeze_norms`.  Raises `InputError`
    as `load_model` does, and for a model whose backbone is not the configuration's otherwise.
    """
    path = config.train.start_from
    if path is None:
        return None
    start, ours = load_model(path, "cpu"), config.model.backbone
    theirs = backbone_facts(start.config.model.backbone)
    for field, value in backbone_facts(ours).items():
        if theirs[field] != value and not (field == "norm" and norms_to_freeze(start, config)):
            raise InputError(
                f"model.backbone.{field} is {getattr(ours, field)} but train.start_from, {path}, was trained with "
                f"{theirs[field]}: change model.backbone.{field}, or leave train.start_from out."
            )
    return start


def norms_to_freeze(start: MaskLab, config: Config) -> bool:
    """Whether the group norms of ``start`` are to become the batch norms of a configuration, trained or frozen."""
    return start.config.model.backbone.norm == "group" and trained_norm(config.model.backbone.norm) == "batch"


def load_matching(model: MaskLab, start: MaskLab) -> list[str]:
    """Copy the weights of matching layers from ``start`` into ``model``; returns the layers that do not match.

    Layers match if they have the same name, shapes and meaning.  Outputs per class have the same meaning if the class
    names are equal or there is one class on both sides, whatever it is called; outputs per direction if the direction
    settings are equal.
    """
    own, theirs = model.state_dict(), start.state_dict()
    meanings, other = _meaning(model), _meaning(start)
    differing = tuple(f"{part}." for part, meaning in meanings.items() if other[part] != meaning)
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
    """The meaning of the outputs of layers, as far as it is not in their shapes."""
    mask = model.config.model.mask
    classes = model.classes.names if len(model.classes) > 1 else ("object",)
    return {
        **dict.fromkeys(OF_CLASSES, classes),
        **dict.fromkeys(("box_head.classes", "box_head.deltas"), (model.config.model.box.head, classes)),
        "mask_head.direction": (mask.directions, mask.distance_bins, mask.distance_metric, mask.start_degrees),
        "refinement": mask.refinement,
    }
