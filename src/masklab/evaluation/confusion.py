"""Confusion of classes: what each annotated object was taken for, background included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from masklab.datasets.ground_truth import Region
from masklab.evaluation.inputs import EvaluationInputs
from masklab.evaluation.matching import Overlaps, largest_matching, match, overlaps_of
from masklab.utils.types import Integers

_IOU = 0.5


@dataclass(frozen=True)
class Confusion:
    """``matrix`` ``(K + 1, K + 1)`` int64: objects of each class (row) by the class of their detection (column).

    The last row is background: detections without an object; the last column is objects without a detection.
    ``detections`` and ``objects``, ``(m,)`` each, are the pairs of different class.
    """

    matrix: Integers
    detections: Integers
    objects: Integers


def confusion(inputs: EvaluationInputs, overlaps: Overlaps, threshold: float) -> Confusion:
    """Match the detections with at least ``threshold`` with objects of their class at a mask IoU of 0.5 as in `match`.

    What is left is then matched whatever the class.  Detections in crowds and crowds are left out.
    """
    classes = len(inputs.class_names)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    taken = np.array([region.label for region in inputs.detections], np.int64)
    owned = np.array([region.label for region in inputs.objects], np.int64)
    matched, owners, _ = match(overlaps, threshold, _IOU)
    free_detections = (overlaps.scores >= threshold) & ~overlaps.in_crowd
    free_objects = ~overlaps.crowds
    free_detections[matched], free_objects[owners] = False, False
    np.add.at(matrix, (owned[owners], taken[matched]), 1)
    others, their = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if classes > 1:
        left, right = np.flatnonzero(free_detections), np.flatnonzero(free_objects)
        rest = replace(inputs, objects=_as_one(inputs.objects, right), detections=_as_one(inputs.detections, left))
        near = overlaps_of(rest)
        close = near.pair_ious >= _IOU
        pairs = largest_matching(near.pair_detections[close], near.pair_objects[close], -near.scores)
        others, their = left[pairs[0]], right[pairs[1]]
        np.add.at(matrix, (owned[their], taken[others]), 1)
        free_detections[others], free_objects[their] = False, False
    np.add.at(matrix, (np.full(int(free_detections.sum()), classes), taken[free_detections]), 1)
    np.add.at(matrix, (owned[free_objects], np.full(int(free_objects.sum()), classes)), 1)
    return Confusion(matrix, others, their)


def _as_one(regions: Sequence[Region], rows: Integers) -> list[Region]:
    """Some regions, all of class 0."""
    return [msgspec.structs.replace(regions[row], label=0) for row in rows.tolist()]
