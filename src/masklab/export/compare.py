"""Comparison of an exported network with the one that it was made of, object by object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masklab.masks import rle
from masklab.results.instances import Instances
from masklab.utils.errors import InputError
from masklab.utils.words import counted


@dataclass(frozen=True)
class Tolerance:
    """How far an exported network may be from its model.

    ``boxes`` in pixels of the image, ``scores``, and the least IoU of an object's ``masks``, where more than 2 pixels
    differ: a small object is no better than its pixels; ``unmatched`` is the share of
    objects that may be found by one of the two alone, as those at the edge of a threshold are, and ``beyond`` the share of
    objects found by both that may be further away.
    """

    boxes: float = 0.5
    scores: float = 0.01
    masks: float = 0.99
    unmatched: float = 0.005
    beyond: float = 0.0


EXACT = Tolerance()
QUANTISED = Tolerance(boxes=4.0, scores=0.1, masks=0.8, unmatched=0.05, beyond=0.05)
"""Of a network in 8-bit integers, where single objects that touch others change their outline: what that costs is for a
measurement on annotated images to say."""
_SAME_OBJECT = 0.5  # IoU of boxes
_SAME_PIXELS = 2


@dataclass
class Agreement:
    """Agreement on some images: number of ``objects``, those ``unmatched``, those ``beyond`` the tolerance, and the
    largest distances seen.

    ``worst`` says which object is the furthest from its own, in units of the tolerance.
    """

    objects: int = 0
    unmatched: int = 0
    beyond: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 1.0
    worst: str = "none"
    excess: float = 0.0

    def add(self, name: str, wanted: Instances, found: Instances, tolerance: Tolerance) -> None:
        """Compare what was ``found`` in the image ``name`` with what the model finds, objects of the model's threshold alone."""
        pairs, alone = matched(wanted, found)
        self.objects += len(wanted)
        self.unmatched += len(alone) + len(found) - len(pairs)
        for row, other in pairs:
            distance = float(np.abs(wanted.boxes[row] - found.boxes[other]).max())
            score = float(abs(wanted.scores[row] - found.scores[other]))
            overlap, pixels = mask_iou(wanted, row, found, other)
            self.boxes, self.scores, self.masks = (
                max(self.boxes, distance),
                max(self.scores, score),
                min(self.masks, overlap),
            )
            excess = max(
                distance / tolerance.boxes,
                score / tolerance.scores,
                (1 - overlap) / (1 - tolerance.masks) if pixels > _SAME_PIXELS else 0.0,
            )
            self.beyond += excess > 1
            if excess > self.excess:
                self.excess = excess
                self.worst = (
                    f"object {row + 1} of {name}, at {wanted.boxes[row].round(1).tolist()}: its box is {distance:.3g} pixels "
                    f"away, its score {score:.3g}, and the IoU of its masks is {overlap:.4f}"
                )
        for row in alone:
            if self.excess < 1:
                self.worst = f"object {row + 1} of {name}, at {wanted.boxes[row].round(1).tolist()}: it is not found"

    def check(self, tolerance: Tolerance, name: str) -> None:
        """Raise `InputError`, which shows the worst object, where an export ``name`` is further away than the tolerance."""
        alone = self.unmatched > max(1, tolerance.unmatched * self.objects)
        if alone or self.beyond > tolerance.beyond * self.objects:
            raise InputError(
                f"{name} differs from the model by more than the tolerance, so it is not written; the worst is "
                f"{self.worst} ({self}): export in another format."
            )

    def __str__(self) -> str:
        return (
            f"{counted(self.objects, 'object')}, {self.unmatched} unmatched, {self.beyond} beyond the tolerance, boxes within {self.boxes:.2g} pixels, "
            f"scores within {self.scores:.2g}, masks of IoU {self.masks:.4f} or more"
        )


def matched(wanted: Instances, found: Instances) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of rows of one object, of the same label and the largest overlap of boxes, and the rows that have none."""
    overlaps = _box_iou(wanted.boxes, found.boxes) * (wanted.labels[:, None] == found.labels)
    pairs, alone = [], []
    for row in range(len(wanted)):  # the best score chooses first
        best = int(overlaps[row].argmax()) if len(found) else 0
        if len(found) and overlaps[row, best] >= _SAME_OBJECT:
            pairs.append((row, best))
            overlaps[:, best] = 0
        else:
            alone.append(row)
    return pairs, alone


def mask_iou(first: Instances, row: int, second: Instances, other: int) -> tuple[float, int]:
    """IoU of two masks of one image, 1 where both are empty, and the number of pixels that differ."""
    whole = (0, 0, first.size[1], first.size[0])
    bounds = [b for b in (rle.bounds(first.rle[row], first.size), rle.bounds(second.rle[other], second.size)) if b]
    if not bounds:
        return 1.0, 0
    edges = np.array(bounds)
    x1, y1 = edges[:, :2].min(axis=0).tolist()
    x2, y2 = edges[:, 2:].max(axis=0).tolist()
    window = (max(whole[0], x1), max(whole[1], y1), min(whole[2], x2), min(whole[3], y2))
    a, b = rle.window(first.rle[row], first.size, window), rle.window(second.rle[other], second.size, window)
    return float((a & b).sum() / (a | b).sum()), int((a != b).sum())


def _box_iou(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None] + (others[:, 2:] - others[:, :2]).prod(axis=1)
    return shared / np.maximum(areas - shared, 1e-9)
