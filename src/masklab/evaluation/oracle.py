"""Oracle results: detections with the annotated masks in place of their own."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import torch

from masklab.evaluation.inputs import EvaluationInputs, by_class
from masklab.evaluation.recall import xyxy
from masklab.ops.overlaps import best_overlaps

_MASK_SWAP_IOU = 0.5  # box IoU from which a detection is given the annotated mask


def with_annotated_masks(inputs: EvaluationInputs) -> EvaluationInputs:
    """The inputs with the annotated masks of the objects that are detected; the argument is not changed.

    A detection gets the mask of the object of its image and class with which its box has the largest IoU, if that is
    0.5 or more and no detection with a better score has that object; all others keep their own.  Crowds are left out.
    """
    objects = [region for region in inputs.objects if not region.crowd]
    rows, columns = by_class(inputs.detections), by_class(objects)
    detected = list(inputs.detections)
    for key in rows.keys() & columns.keys():
        detections = sorted(rows[key], key=lambda row: -inputs.detections[row].score)
        best = best_overlaps(
            xyxy([inputs.detections[row].box for row in detections], torch.float64),
            None,
            xyxy([objects[column].box for column in columns[key]], torch.float64),
            None,
        )
        taken: set[int] = set()
        for row, share, closest in zip(detections, *(values.tolist() for values in best), strict=True):
            if share >= _MASK_SWAP_IOU and closest not in taken:
                taken.add(closest)
                detected[row] = msgspec.structs.replace(detected[row], mask=objects[columns[key][closest]].mask)
    return replace(inputs, detections=detected)
