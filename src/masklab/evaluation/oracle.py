"""Oracle results: detections with the annotated masks in place of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from masklab.datasets.ground_truth import GroundTruth
from masklab.evaluation.inputs import by_class, read_inputs
from masklab.evaluation.recall import xyxy
from masklab.ops.boxes import box_iou

_SAME_OBJECT = 0.5  # box IoU from which a detection is given the annotated mask


def with_annotated_masks(
    ground_truth: GroundTruth | dict[str, Any], results: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """COCO ``results`` with the annotated masks of the objects that they detect; the argument is not changed.

    A detection gets the mask of the object of its image and class with which its box has the largest IoU, if that is
    0.5 or more and no detection with a better score has that object; all others keep their own.  Crowds are left out.
    """
    inputs = read_inputs(ground_truth, results)
    objects = [region for region in inputs.objects if not region.crowd]
    rows, columns = by_class(inputs.detections), by_class(objects)
    changed = [dict(entry) for entry in results]
    for key in rows.keys() & columns.keys():
        detections = sorted(rows[key], key=lambda row: -inputs.detections[row].score)
        shares = box_iou(
            xyxy([inputs.detections[row].box for row in detections], torch.float64),
            xyxy([objects[column].box for column in columns[key]], torch.float64),
        )
        taken: set[int] = set()
        for row, share, closest in zip(detections, *(values.tolist() for values in shares.max(dim=1)), strict=True):
            if share >= _SAME_OBJECT and closest not in taken:
                taken.add(closest)
                changed[row]["segmentation"] = objects[columns[key][closest]].mask
    return changed
