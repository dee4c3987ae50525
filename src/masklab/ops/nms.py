"""Non-maximum suppression: hard, of sorted boxes, and soft."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from masklab.ops.boxes import box_iou


def nms_top_k(boxes: Tensor, scores: Tensor, iou: float, count: int) -> Tensor:
    """The first ``count`` rows that non-maximum suppression at ``iou`` leaves of boxes (R, 4), the best of them first.

    ``scores`` (R,) must fall.  A box is only ever suppressed by better ones, so the rows beyond the last one wanted need
    no look: it takes as many as may do, and more until they have.
    """
    kept, looked_at = torch.zeros(0, dtype=torch.long, device=boxes.device), 0
    while len(kept) < count and looked_at < len(boxes):
        more = torch.arange(looked_at, min(looked_at + 2 * count, len(boxes)), device=boxes.device)
        rows = torch.cat([kept, more])
        kept, looked_at = rows[nms(boxes[rows], scores[rows], iou)], looked_at + len(more)
    return kept[:count]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Scores (R,) after Soft-NMS (Bodla et al., ICCV 2017; not in the paper), in the order given.

    From the best box on, each multiplies the scores of the boxes of its label that are left by ``exp(-IoU^2 / sigma)``:
    ``boxes`` (R, 4), ``scores`` (R,), ``labels`` (R,).  It holds a matrix of R x R and works on the CPU.
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
