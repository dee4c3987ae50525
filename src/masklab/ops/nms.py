"""Non-maximum suppression (NMS) and Soft-NMS."""

from __future__ import annotations

import torch
from torch import Tensor

from masklab.ops.boxes import box_iou
from masklab.ops.suppression import nms


def nms_top_k(boxes: Tensor, scores: Tensor, iou: float, count: int) -> Tensor:
    """Rows of the first ``count`` boxes that remain of ``boxes`` (R, 4) after non-maximum suppression at ``iou``.

    ``scores`` (R,) must be in descending order; so is the result.  Only boxes of a higher score suppress a box, so
    rows are processed in blocks of ``2 * count`` until enough remain.
    """
    kept, processed = torch.zeros(0, dtype=torch.long, device=boxes.device), 0
    while len(kept) < count and processed < len(boxes):
        block = torch.arange(processed, min(processed + 2 * count, len(boxes)), device=boxes.device)
        rows = torch.cat([kept, block])
        kept, processed = rows[nms(boxes[rows], scores[rows], iou)], processed + len(block)
    return kept[:count]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Scores (R,) after Soft-NMS (Bodla et al., ICCV 2017; not in the paper), in the order given.

    ``boxes`` (R, 4), ``scores`` (R,) and ``labels`` (R,) are in any order.  Boxes are taken from the best score down;
    each multiplies the scores of the remaining boxes of its label by ``exp(-IoU^2 / sigma)``.  Needs an R x R matrix
    and runs on the CPU.
    """
    factors = (-box_iou(boxes, boxes).square() / sigma).exp()
    factors = torch.where(labels[:, None] == labels, factors, 1.0).clamp(min=torch.finfo(factors.dtype).tiny).cpu()
    left, result = scores.cpu().clone(), torch.empty(len(scores), dtype=scores.dtype)
    for _ in range(len(scores)):
        best = left.argmax()
        result[best] = left[best]
        left *= factors[best]
        left[best] = -torch.inf
    return result.to(scores.device)
