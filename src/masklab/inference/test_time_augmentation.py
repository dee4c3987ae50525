"""Test-time augmentation: what is found in the views of an image (`masklab.inference.views`), fused.

V views, R boxes of one view, H x W pixels.  The paper predicts from a single view.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from masklab.inference.options import PredictionOptions
from masklab.inference.views import View
from masklab.model.backbone import Features
from masklab.model.masklab import MaskLab
from masklab.ops.nms import nms_by_label
from masklab.ops.overlaps import best_overlaps
from masklab.utils.types import Size

SAME_OBJECT = 0.6  # boxes of two views with a larger IoU are of one object, even if `box.nms_iou` is larger

Detected = tuple[Tensor, Tensor, Tensor]
"""Boxes ``(R, 4)`` in the image's pixels, their scores ``(R,)`` and labels ``(R,)``."""


def fuse_boxes(views: Sequence[Detected], iou: float, score_threshold: float, max_detections: int) -> Detected:
    """Fuse the detections of V views into one list, best first.

    Non-maximum suppression at ``iou`` over all views keeps one box per object.  In each view, the box of the same class
    with the largest IoU to it, if above ``iou``, votes for it.  The fused box is the mean of the voters' boxes weighted
    by their scores, and its score is the sum of the voters' scores over V, so that a view without a vote counts as 0.
    At most ``max_detections`` with scores above ``score_threshold`` are returned.
    """
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*views, strict=True))
    kept = nms_by_label(boxes, scores, labels, iou)
    boxes, labels = boxes[kept], labels[kept]
    votes, sums = torch.zeros_like(scores[kept]), torch.zeros_like(boxes)
    for voters, weights, classes in views:
        if not len(voters):
            continue
        share, row = best_overlaps(boxes, labels, voters, classes)
        weight = torch.where(share > iou, weights[row], 0.0)
        votes += weight
        sums += weight[:, None] * voters[row]
    order = votes.argsort(descending=True, stable=True)
    order = order[votes[order] > score_threshold * len(views)][:max_detections]
    return sums[order] / votes[order, None], votes[order] / len(views), labels[order]


class ViewFeatures(NamedTuple):
    """The features of one view: its padded ``inputs`` (1, C, h, w) and their ``size`` before padding."""

    view: View
    inputs: Tensor
    size: Size
    features: Features


def detect_in_views(model: MaskLab, views: Sequence[ViewFeatures], size: Size, options: PredictionOptions) -> Detected:
    """The objects of an image of ``size`` (height, width), found in each of its views and fused.

    At most ``max_detections`` of the options are found, of a score of at least their ``min_score``.
    """
    found: list[Detected] = []
    for view, inputs, seen, features in views:
        sizes = torch.tensor([seen], device=inputs.device)
        boxes, scores, labels, num_valid = model.detect(features, inputs, sizes, options.max_detections)
        count = int(num_valid[0])
        found.append((view.to_image(boxes[0, :count], size, seen), scores[0, :count], labels[0, :count]))
    rules = model.config.model.box
    most = options.max_detections or model.box_head.max_detections
    boxes, scores, labels = fuse_boxes(found, min(rules.nms_iou, SAME_OBJECT), rules.score_threshold, most)
    wanted = scores >= options.min_score
    return boxes[wanted], scores[wanted], labels[wanted]


def mean_masks(model: MaskLab, views: Iterable[ViewFeatures], boxes: Tensor, labels: Tensor, size: Size) -> Tensor:
    """Masks (R, P, P) of boxes (R, 4) in the pixels of an image of ``size``: the mean over its views."""
    num_valid = torch.tensor([len(labels)], device=boxes.device)
    total, count = torch.zeros((), device=boxes.device), 0
    for view, inputs, seen, features in views:
        given = view.from_image(boxes, size, seen)
        masks = model.masks(model.mask_maps(features), given[None], labels[None], num_valid, inputs)[0]
        total = total + view.undo(masks)
        count += 1
    return total / count
