"""Recall of boxes by stage of the model and by crowding of the objects.

Letters for shapes: R boxes, G annotated objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from masklab.datasets.objects import Objects
from masklab.ops.box_index import BoxIndex
from masklab.ops.overlaps import best_overlaps
from masklab.utils.types import Bools, Doubles

STAGES = ("proposals", "detections", "found")
RECALL_AT = (0.5, 0.75)  # box IoU
_NEAR_DISTANCE = 0.5  # of an object's side


def xyxy(boxes: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """COCO's boxes (x, y, width, height) as (R, 4) xyxy."""
    return box_convert(torch.tensor(boxes, dtype=dtype).view(-1, 4), "xywh", "xyxy")


@dataclass(frozen=True)
class Boxes:
    """Detections of one image: ``boxes`` (R, 4) xyxy in its pixels, ``labels`` (R,) and ``scores`` (R,)."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def stage_overlaps(objects: Objects, proposals: Tensor, found: Boxes, threshold: float) -> Doubles:
    """The largest box IoU of each object at each stage, ``(3, G)``, 0 where there is no box.

    The stages are the ``proposals`` (R, 4); the detections ``found`` of the object's class, which classification and
    suppression left; and those of them with a score of at least ``threshold``.
    """
    boxes, labels = torch.from_numpy(objects.boxes), torch.from_numpy(objects.labels)
    counted = found.scores >= threshold
    stages = (
        best_overlaps(boxes, None, proposals, None),
        best_overlaps(boxes, labels, found.boxes, found.labels),
        best_overlaps(boxes, labels, found.boxes[counted], found.labels[counted]),
    )
    return np.stack([share.numpy() for share, _ in stages])


def neighbour_gaps(boxes: NDArray[np.float32]) -> Doubles:
    """Distance ``(G,)`` of each of ``boxes`` (G, 4) to the nearest other, in units of its side, the root of its area.

    0 where they touch or overlap, infinite for a single box.
    """
    exact, nearest = boxes.astype(np.float64), np.full(len(boxes), np.inf)
    sides = np.sqrt((exact[:, 2:] - exact[:, :2]).prod(axis=1))
    index, waiting, reach = BoxIndex(exact), np.arange(len(boxes)), sides.copy()
    farthest = float(np.ptp(exact, axis=0).sum() + np.ptp(exact)) if len(boxes) > 1 else 0.0
    while len(waiting):
        some = reach[waiting, None] * (-1, -1, 1, 1) + exact[waiting]
        for part in index.pairs(some):
            one, two = waiting[part.rows], part.others
            apart = np.maximum(exact[one, :2] - exact[two, 2:], exact[two, :2] - exact[one, 2:]).clip(0)
            distance = np.where(one == two, np.inf, np.hypot(apart[:, 0], apart[:, 1]))
            np.minimum.at(nearest, one, distance)
        # a box that is nearer than the nearest found would have been within reach
        waiting = waiting[(nearest[waiting] > reach[waiting]) & (reach[waiting] <= farthest)]
        reach[waiting] *= 2
    return nearest / sides


def recall_table(gaps: Doubles, overlaps: Doubles) -> dict[str, dict[str, Any]]:
    """Share of the objects that have a box, by stage, IoU and distance of the nearest other object.

    ``gaps`` ``(G,)`` are those of `neighbour_gaps`, ``overlaps`` ``(3, G)`` those of `stage_overlaps`.  The keys are
    ``all``, ``touching`` (the nearest object's box touches or overlaps its own), ``near`` (it is at most half of the
    object's side away) and ``apart``; each holds the number of ``objects`` and, for the stages ``proposals``,
    ``detections`` and ``found``, the share with a box of IoU ``"0.50"`` and ``"0.75"``, None without objects.
    """
    groups = {
        "all": np.ones(len(gaps), bool),
        "touching": gaps == 0,
        "near": (gaps > 0) & (gaps <= _NEAR_DISTANCE),
        "apart": gaps > _NEAR_DISTANCE,
    }
    return {
        name: {"objects": int(group.sum())}
        | {
            stage: {f"{least:.2f}": _share(row[group] >= least) for least in RECALL_AT}
            for stage, row in zip(STAGES, overlaps, strict=True)
        }
        for name, group in groups.items()
    }


def _share(held: Bools) -> float | None:
    return float(held.mean()) if held.size else None
