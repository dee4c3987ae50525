"""Renamed configuration fields: reading configurations of earlier versions."""

from __future__ import annotations

from typing import Any

_RENAMED_FIELDS = {
    "pictures": "image",
    "image.augment.crop": "image.augment.crop_size",
    "model.rpn.rate": "model.rpn.dilation",
    "model.box.crop": "model.box.roi_size",
    "model.box.rates": "model.box.dilations",
    "model.box.deformable_rate": "model.box.deformable_lr_factor",
    "model.box.quality": "model.box.iou_aware_score",
    "model.mask.crop": "model.mask.mask_size",
    "model.mask.rates": "model.mask.dilations",
    "train.validate_pictures": "train.validate_images",
}
"""Old and new name of each field renamed since version 0.1; a section comes before its fields."""


def migrate_config(values: dict[str, Any]) -> dict[str, Any]:
    """Nested fields under their present names; a section with both names of a field is left for `validate` to refuse."""
    for old, new in _RENAMED_FIELDS.items():
        values = _rename(values, old.split("."), new.rpartition(".")[2])
    model = values.get("model")
    if isinstance(model, dict) and model.get("coord_mode") == "exact":  # the only convention since
        values = values | {"model": {name: value for name, value in model.items() if name != "coord_mode"}}
    return values


def _rename(values: dict[str, Any], path: list[str], name: str) -> dict[str, Any]:
    first, *rest = path
    if first not in values:
        return values
    if not rest:
        return values if name in values else {name if key == first else key: v for key, v in values.items()}
    inner = values[first]
    return values | {first: _rename(inner, rest, name)} if isinstance(inner, dict) else values
