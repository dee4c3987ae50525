"""Suppression with results of fixed shapes, as one operation in a compiled graph.

How many boxes remain depends on their values, which breaks the graph of ``torch.compile``.  Here they are padded, and
while a graph is traced each function stands in it as one custom operation; otherwise it is called as it is.

N images, R boxes, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masklab.ops.nms import nms_by_label, nms_top_k, soft_nms


def first_boxes(boxes: Tensor, scores: Tensor, least: float, iou: float, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` of each image's ``boxes`` (N, R, 4) that remain after suppression: (N, count, 4), and how many.

    ``scores`` (N, R) are in descending order; only boxes of a score above ``least`` take part.
    """
    return (
        _first_boxes_op(boxes, scores, least, iou, count)
        if torch.compiler.is_compiling()
        else _first(boxes, scores, least, iou, count)
    )


def class_boxes(
    boxes: Tensor, scores: Tensor, wanted: Tensor, iou: float, sigma: float | None, least: float, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first ``count`` of each image's boxes after suppression within each class, hard and then soft, best first.

    ``boxes`` (N, R, K, 4), ``scores`` (N, R, K), and ``wanted`` (N, R, K): those that take part.  ``sigma`` is that of
    Soft-NMS, None for none; after it, scores above ``least`` are kept.  Returns boxes (N, count, 4), scores and labels
    (N, count) and the number of valid rows (N,).
    """
    run = _class_boxes_op if torch.compiler.is_compiling() else _class_boxes
    return run(boxes, scores, wanted, iou, sigma, least, count)


def _first(boxes: Tensor, scores: Tensor, least: float, iou: float, count: int) -> tuple[Tensor, Tensor]:
    found = []
    for box, score in zip(boxes, scores, strict=True):
        box, score = box[score > least], score[score > least]
        found.append(box[nms_top_k(box, score, iou, count)])
    return _padded(found, count), torch.tensor([len(box) for box in found], device=boxes.device)


def _class_boxes(
    boxes: Tensor, scores: Tensor, wanted: Tensor, iou: float, sigma: float | None, least: float, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = []
    for box, score, want in zip(boxes, scores, wanted, strict=True):
        row, label = want.nonzero(as_tuple=True)
        box, score = box[row, label], score[row, label]
        keep = nms_by_label(box, score, label, iou)
        if sigma is not None:
            score[keep] = soft_nms(box[keep], score[keep], label[keep], sigma)
            keep = keep[score[keep].argsort(descending=True, stable=True)]
            keep = keep[score[keep] > least]
        keep = keep[:count]
        found.append((box[keep], score[keep], label[keep]))
    parts = [list(part) for part in zip(*found, strict=True)]
    num_valid = torch.tensor([len(box) for box in parts[0]], device=boxes.device)
    return _padded(parts[0], count), _padded(parts[1], count), _padded(parts[2], count), num_valid


def _padded(rows: list[Tensor], count: int) -> Tensor:
    """Rows (r, ...) of each image as (N, count, ...), filled up with 0."""
    return torch.stack([F.pad(each, (0, 0) * (each.dim() - 1) + (0, count - len(each))) for each in rows])


_first_boxes_op = torch.library.custom_op(
    "masklab::first_boxes",
    _first,
    mutates_args=(),
    schema="(Tensor boxes, Tensor scores, float least, float iou, int count) -> (Tensor, Tensor)",
)
_class_boxes_op = torch.library.custom_op(
    "masklab::class_boxes",
    _class_boxes,
    mutates_args=(),
    schema="(Tensor boxes, Tensor scores, Tensor wanted, float iou, float? sigma, float least, int count) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_first_boxes_op.register_fake
def _(boxes: Tensor, scores: Tensor, least: float, iou: float, count: int) -> tuple[Tensor, Tensor]:
    return boxes.new_empty(boxes.shape[0], count, 4), boxes.new_empty(boxes.shape[0], dtype=torch.long)


@_class_boxes_op.register_fake
def _(
    boxes: Tensor, scores: Tensor, wanted: Tensor, iou: float, sigma: float | None, least: float, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = (boxes.shape[0], count)
    whole = boxes.new_empty(rows, dtype=torch.long), boxes.new_empty(boxes.shape[0], dtype=torch.long)
    return boxes.new_empty(*rows, 4), scores.new_empty(rows), *whole
