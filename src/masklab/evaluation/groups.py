"""Which objects are found, by their size and the number of their neighbours; metrics by kind of image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from masklab.datasets.ground_truth import Region
from masklab.evaluation.coco import ap_of_groups
from masklab.evaluation.inputs import EvaluationInputs
from masklab.evaluation.matching import Overlaps, match
from masklab.ops.box_index import BoxIndex
from masklab.utils.types import Bools, Doubles, Integers

_NEAR = 0.5  # of an object's side: boxes this far apart are neighbours
_NEIGHBOURS = ((0, "none"), (1, "1 or 2"), (3, "3 to 5"), (6, "6 or more"))  # the least of each group
_PARTS = 4  # groups of objects by size, and at most of images by number of objects


@dataclass(frozen=True)
class Group:
    """Some objects: how many, the share found at the score threshold, mean IoU of those found, and the mask AP and AP50.

    A figure is None where there is no object to measure.
    """

    name: str
    objects: int
    found: float | None
    iou: float | None
    ap: float | None
    ap50: float | None


def object_groups(
    inputs: EvaluationInputs, overlaps: Overlaps, threshold: float, max_detections: int
) -> dict[str, list[Group]]:
    """Groups of objects by ``size`` and by ``neighbours``; "found" is matched at a mask IoU of 0.5 as in `match`.

    By size there are four groups of about equally many objects, and the side that is named is the root of the mask's
    pixels; a neighbour is an object of any class whose box is at most half of the object's own side away.  Average
    precision is that of `ap_of_groups`: a wrong detection counts in the group of its own size, and of the objects around
    it other than the one that it lies on.
    """
    ious = np.zeros(len(overlaps.crowds))
    _, owners, matched = match(overlaps, threshold)
    ious[owners] = matched
    objects, detections = np.sqrt(overlaps.object_areas), np.sqrt(overlaps.areas)
    borders = np.zeros(0)
    if (~overlaps.crowds).any():
        shares = np.arange(1, _PARTS) / _PARTS
        borders = np.unique(np.round(np.quantile(objects[~overlaps.crowds], shares), 1))
    near_objects, near_detections = _neighbours(inputs)
    lowest = np.array([low for low, _ in _NEIGHBOURS[1:]], np.float64)
    by: dict[str, tuple[list[str], Doubles, Doubles | Integers, Doubles | Integers]] = {
        "size": (_size_names(borders), borders, objects, detections),
        "neighbours": ([name for _, name in _NEIGHBOURS], lowest, near_objects, near_detections),
    }
    found: dict[str, list[Group]] = {}
    for key, (names, edges, *values) in by.items():
        of_objects, of_detections = (np.searchsorted(edges, each, side="right") for each in values)
        aps = ap_of_groups(inputs, max_detections, of_objects, of_detections, len(names))
        inside = [(of_objects == k) & ~overlaps.crowds for k in range(len(names))]
        found[key] = [
            _group(name, ious[chosen], *ap) for name, chosen, ap in zip(names, inside, aps, strict=True) if chosen.any()
        ]
    return found


def _group(name: str, ious: Doubles, ap: float | None, ap50: float | None) -> Group:
    found = ious[ious > 0]
    return Group(name, len(ious), len(found) / len(ious), float(found.mean()) if len(found) else None, ap, ap50)


def _size_names(borders: Doubles) -> list[str]:
    if not len(borders):
        return ["any size"]
    words = [f"up to {borders[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(borders.tolist()))]
    return [f"{words} pixels" for words in (*words, f"{borders[-1]:g} or more")]


def _neighbours(inputs: EvaluationInputs) -> tuple[Integers, Integers]:
    """The number of annotated objects whose box is near, of each object but itself, and of each detection but one it is on.

    Crowds are nobody's neighbours.
    """
    near = np.zeros(len(inputs.objects), np.int64), np.zeros(len(inputs.detections), np.int64)
    rows = [defaultdict[int | str, list[int]](list) for _ in near]
    for places, regions in zip(rows, (inputs.objects, inputs.detections), strict=True):
        for row, region in enumerate(regions):
            places[region.image_id].append(row)
    for image_id, objects in rows[0].items():
        index = BoxIndex(_corners([inputs.objects[row] for row in objects if not inputs.objects[row].crowd]))
        for counts, regions, places in zip(near, (inputs.objects, inputs.detections), rows, strict=True):
            boxes = _corners([regions[row] for row in places[image_id]])
            reach = _NEAR * np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
            around = boxes + reach[:, None] * np.array([-1, -1, 1, 1])
            # what lies on the box itself is the object, or what the detection stands for
            counts[places[image_id]] = _touched(index, around) - (_touched(index, boxes) > 0)
    return near


def _corners(regions: Sequence[Region]) -> Doubles:
    """Boxes ``(n, 4)`` xyxy."""
    boxes = np.array([region.box for region in regions], np.float64).reshape(-1, 4)
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _touched(index: BoxIndex, boxes: Doubles) -> Integers:
    """The number of boxes of the index that share an area with each of ``boxes`` ``(n, 4)``, ``(n,)``."""
    counts = np.zeros(len(boxes), np.int64)
    for part in index.pairs(boxes):
        counts += np.bincount(part.rows, minlength=len(boxes))
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
