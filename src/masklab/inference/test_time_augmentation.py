"""Test-time augmentation: flipped, transposed and scaled views of an image, and box fusion.

V views, R boxes of one view, H x W pixels.  The paper predicts from a single view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from masklab.model.backbone import Features
from masklab.model.masklab import MaskLab
from masklab.ops.boxes import box_iou
from masklab.ops.suppression import batched_nms
from masklab.utils.errors import InputError
from masklab.utils.types import Size

Flips = Literal["none", "horizontal", "both", "turns"]
"""none: the image itself; horizontal: hflip too; both: also vflip, 4 views; turns: also each transposed, 8 views."""

_MIN_SCALE, _MAX_SCALE = 0.25, 4.0
_BOXES_AT_ONCE = 1024
SAME_OBJECT = 0.6  # boxes of two views with a larger IoU are of one object, even if `box.nms_iou` is larger


class View(NamedTuple):
    """A view of an image: scaled by ``scale`` times the model's own factor, then transposed, then flipped."""

    scale: float = 1.0
    transposed: bool = False
    hflip: bool = False
    vflip: bool = False

    def show(self, maps: Tensor) -> Tensor:
        """Transpose and flip an image or maps ``(..., H, W)``."""
        return self._flip(maps.transpose(-1, -2) if self.transposed else maps)

    def undo(self, maps: Tensor) -> Tensor:
        """Inverse of `show`."""
        flipped = self._flip(maps)
        return flipped.transpose(-1, -2) if self.transposed else flipped

    def from_image(self, boxes: Tensor, size_of_image: Size, seen: Size) -> Tensor:
        """Boxes ``(R, 4)`` in pixels of an image of ``size_of_image`` (height, width) in pixels of this view of size ``seen``."""
        height, width = seen[::-1] if self.transposed else seen
        boxes = boxes * boxes.new_tensor([width / size_of_image[1], height / size_of_image[0]] * 2)
        return self._mirror(boxes[:, [1, 0, 3, 2]] if self.transposed else boxes, seen)

    def to_image(self, boxes: Tensor, size_of_image: Size, seen: Size) -> Tensor:
        """Inverse of `from_image`."""
        height, width = seen[::-1] if self.transposed else seen
        boxes = self._mirror(boxes, seen)
        boxes = boxes[:, [1, 0, 3, 2]] if self.transposed else boxes
        return boxes * boxes.new_tensor([size_of_image[1] / width, size_of_image[0] / height] * 2)

    def _flip(self, maps: Tensor) -> Tensor:
        axes = [-1] * self.hflip + [-2] * self.vflip
        return maps.flip(axes) if axes else maps

    def _mirror(self, boxes: Tensor, size: Size) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        if self.hflip:
            x1, x2 = size[1] - x2, size[1] - x1
        if self.vflip:
            y1, y2 = size[0] - y2, size[0] - y1
        return torch.stack([x1, y1, x2, y2], dim=1)


PLAIN = View()


def all_views(flips: Flips = "none", scales: Sequence[float] = (1.0,)) -> list[View]:
    """The views of each of ``flips`` at each of ``scales``.

    Raises `InputError` for unknown flips, and for scales that are missing, repeated or not within 0.25 to 4.
    """
    if flips not in get_args(Flips):
        raise InputError(f"flips is {flips!r}: give one of {', '.join(get_args(Flips))}.")
    wrong = [scale for scale in scales if not (math.isfinite(scale) and _MIN_SCALE <= scale <= _MAX_SCALE)]
    if wrong:
        raise InputError(
            f"scales holds {wrong[0]:g}: give factors from {_MIN_SCALE} to {_MAX_SCALE:g}; 1 is the model's own scale."
        )
    if not scales or len(set(scales)) < len(scales):
        raise InputError(f"scales is {list(scales)}: give at least one, and each only once.")
    transposed, hflip, vflip = (
        (False, True) if flips in wanted else (False,)
        for wanted in (("turns",), ("horizontal", "both", "turns"), ("both", "turns"))
    )
    return [View(*ways) for ways in product(map(float, scales), transposed, hflip, vflip)]


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
    kept = batched_nms(boxes, scores, labels, iou)
    boxes, labels = boxes[kept], labels[kept]
    votes, sums = torch.zeros_like(scores[kept]), torch.zeros_like(boxes)
    for voters, weights, classes in views:
        if not len(voters):
            continue
        for some in torch.arange(len(boxes), device=boxes.device).split(_BOXES_AT_ONCE):
            shares = box_iou(boxes[some], voters) * (labels[some, None] == classes)
            share, row = shares.max(dim=1)
            weight = torch.where(share > iou, weights[row], 0.0)
            votes[some] += weight
            sums[some] += weight[:, None] * voters[row]
    order = votes.argsort(descending=True, stable=True)
    order = order[votes[order] > score_threshold * len(views)][:max_detections]
    return sums[order] / votes[order, None], votes[order] / len(views), labels[order]


class ViewFeatures(NamedTuple):
    """The features of one view: its padded ``inputs`` (1, C, h, w) and their ``size`` before padding."""

    view: View
    inputs: Tensor
    size: Size
    features: Features


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
