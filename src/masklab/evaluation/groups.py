"""Which objects are found, by their size and the number of their neighbours; metrics by kind of image.

Letters for shapes: G annotated objects of all images, crowds left out; N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from masklab.evaluation.inputs import EvaluationInputs
from masklab.evaluation.matching import Overlaps, match
from masklab.ops.box_index import BoxIndex
from masklab.utils.types import Bools, Doubles, Integers

_NEAR = 0.5  # of an object's side: boxes this far apart are neighbours
_NEIGHBOURS = ((0, 0, "none"), (1, 2, "1 or 2"), (3, 5, "3 to 5"), (6, np.inf, "6 or more"))
_PARTS = 4  # groups of objects by size, and at most of images by number of objects


@dataclass(frozen=True)
class Group:
    """Some objects: how many, the share found at the score threshold (None without objects), mean IoU of those found."""

    name: str
    objects: int
    found: float | None
    iou: float | None


def object_groups(inputs: EvaluationInputs, overlaps: Overlaps, threshold: float) -> dict[str, list[Group]]:
    """Groups of objects by ``size`` and by ``neighbours``; "found" is matched at a mask IoU of 0.5 as in `match`.

    By size there are four groups of about equally many objects, and the side that is named is the root of the mask's
    pixels; a neighbour is an object of any class whose box is at most half of the object's own side away.
    """
    kept = np.flatnonzero(~overlaps.crowds)
    iou_of = np.zeros(len(overlaps.crowds))
    _, owners, ious = match(overlaps, threshold)
    iou_of[owners] = ious
    iou_of, sides = iou_of[kept], np.sqrt(overlaps.object_areas[kept])
    neighbours = _neighbours(inputs, kept)
    return {
        "size": [_group(name, chosen, iou_of) for name, chosen in _by_size(sides)],
        "neighbours": [
            _group(name, (neighbours >= low) & (neighbours <= high), iou_of) for low, high, name in _NEIGHBOURS
        ],
    }


def _group(name: str, chosen: Bools, ious: Doubles) -> Group:
    found = ious[chosen & (ious > 0)]
    total = int(chosen.sum())
    return Group(name, total, len(found) / total if total else None, float(found.mean()) if len(found) else None)


def _by_size(sides: Doubles) -> list[tuple[str, Bools]]:
    if not len(sides):
        return []
    inner = np.unique(np.round(np.quantile(sides, np.arange(1, _PARTS) / _PARTS), 1))
    place = np.searchsorted(inner, sides, side="right")
    words = [f"up to {inner[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(inner.tolist()))]
    words.append(f"{inner[-1]:g} and more")
    groups = [(f"{name} pixels", place == k) for k, name in enumerate(words)]
    return [(name, chosen) for name, chosen in groups if chosen.any()]


def _neighbours(inputs: EvaluationInputs, kept: Integers) -> Integers:
    """The number of other objects whose box is near, of each of the objects ``kept`` (G,)."""
    counts = np.zeros(len(kept), np.int64)
    rows_of: dict[int | str, list[int]] = {}
    for place, row in enumerate(kept.tolist()):
        rows_of.setdefault(inputs.objects[row].image_id, []).append(place)
    for places in rows_of.values():
        corners = np.array([inputs.objects[kept[place]].box for place in places], np.float64).reshape(-1, 4)
        boxes = np.concatenate((corners[:, :2], corners[:, :2] + corners[:, 2:]), axis=1)
        reach = _NEAR * np.sqrt(corners[:, 2:].prod(axis=1))
        around = boxes + reach[:, None] * np.array([-1, -1, 1, 1])
        own = np.zeros(len(places), np.int64)
        for part in BoxIndex(boxes).pairs(around):
            others = part.rows[part.rows != part.others]
            own += np.bincount(others, minlength=len(places))
        counts[places] = own
    return counts


def image_kinds(inputs: EvaluationInputs) -> list[tuple[str, list[int | str]]]:
    """The images by the number of their objects, in up to four kinds, those without objects apart; and by their size.

    Sizes are told apart only where the images have two to four.
    """
    ids = list(inputs.images)
    counts = np.zeros(len(ids), np.int64)
    for region in inputs.objects:
        counts[inputs.images[region.image_id]] += not region.crowd
    kinds: list[tuple[str, Bools]] = [("without objects", counts == 0)]
    some = counts[counts > 0]
    if len(some):
        borders = np.unique(np.quantile(some, np.arange(1, _PARTS) / _PARTS).astype(np.int64) + 1)
        place = np.where(counts > 0, np.searchsorted(borders, counts, side="right"), -1)
        for k in range(len(borders) + 1):
            inside = counts[place == k]
            if len(inside):
                low, high = int(inside.min()), int(inside.max())
                kinds.append((f"{low} objects" if low == high else f"{low} to {high} objects", place == k))
    sizes = sorted(set(inputs.sizes))
    if 2 <= len(sizes) <= _PARTS:
        of_size = [(f"{w} x {h} pixels", np.array([s == (h, w) for s in inputs.sizes], bool)) for h, w in sizes]
        kinds += of_size
    return [(name, _chosen(ids, chosen)) for name, chosen in kinds if chosen.any()]


def _chosen(ids: Sequence[Any], chosen: Bools) -> list[int | str]:
    return [ids[row] for row in np.flatnonzero(chosen).tolist()]
