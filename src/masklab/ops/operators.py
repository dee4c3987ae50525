"""Two operators whose number of results depends on the data: the suppression of boxes, hard and soft.

They are operators of PyTorch, ``masklab::hard_nms`` and ``masklab::soft_nms``, so that an exported graph holds each as
one node, which `masklab.export.onnx_operators` writes in ONNX's own operators.  Importing this module registers them;
a file of ``torch.export`` needs that before it is loaded.

G groups (an image, or a class of an image), B boxes of each group, S boxes that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from masklab.ops import nms as eager


@torch.library.custom_op("masklab::hard_nms", mutates_args=())
def hard_nms(boxes: Tensor, scores: Tensor, iou: float, threshold: float, count: int) -> Tensor:
    """Rows ``(S, 2)`` int64, group and box, of the boxes that remain of each group; group by group, best first.

    ``boxes`` is ``(G, B, 4)``, ``scores`` ``(G, B)``; boxes with a score of at most ``threshold`` are left out, and at
    most ``count`` of a group are kept.
    """
    found = []
    for group in range(len(boxes)):
        rows = (scores[group] > threshold).nonzero()[:, 0]
        kept = rows[nms(boxes[group, rows], scores[group, rows], iou)][:count]
        found.append(torch.stack([torch.full_like(kept, group), kept], dim=1))
    return torch.cat(found)


@hard_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float, count: int) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), 2, dtype=torch.long)


@torch.library.custom_op("masklab::soft_nms", mutates_args=())
def soft_nms(boxes: Tensor, scores: Tensor, groups: Tensor, sigma: float, threshold: float) -> Tensor:
    """Scores ``(S,)`` of boxes ``(S, 4)`` after Soft-NMS within each of ``groups`` ``(S,)``; see `masklab.ops.nms.soft_nms`.

    Scores that end at ``threshold`` or below it may be returned as 0.
    """
    return eager.soft_nms(boxes, scores, groups, sigma)


@soft_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, sigma: float, threshold: float) -> Tensor:
    return torch.empty_like(scores)
