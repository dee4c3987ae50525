"""Boxes: deltas relative to anchors, clipping, overlaps.  Boxes are ``xyxy`` in pixels, float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CENTRE_SCALE, _SIZE_SCALE = 10.0, 5.0
_MAX_LOG_RATIO = math.log(1000 / 16)
_PAIRS = 1 << 23  # pairs of boxes that are compared at a time


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Faster R-CNN's box deltas (R, 4) of ``boxes`` (R, 4) relative to ``anchors`` (R, 4), both of positive area.

    ``(tx, ty, tw, th)``: ten times the shift of the centre in units of the anchor's sides, five times
    the logarithm of the ratio of the sides (the scales of the paper's reference [35]).
    """
    centre, side = _centre_and_side(boxes)
    anchor_centre, anchor_side = _centre_and_side(anchors)
    shift = _CENTRE_SCALE * (centre - anchor_centre) / anchor_side
    log_ratio = _SIZE_SCALE * (side / anchor_side).log()
    return torch.cat([shift, log_ratio], dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Inverse of `encode`; growth is limited to a factor of 62.5, so that no delta overflows.

    ``deltas`` is ``(..., 4)`` and ``anchors`` broadcasts against it.
    """
    anchor_centre, anchor_side = _centre_and_side(anchors)
    centre = anchor_centre + deltas[..., :2] / _CENTRE_SCALE * anchor_side
    side = anchor_side * (deltas[..., 2:] / _SIZE_SCALE).clamp(max=_MAX_LOG_RATIO).exp()
    return torch.cat([centre - side / 2, centre + side / 2], dim=-1)


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes ``(..., 4)`` to images of ``size`` ``(..., 2)`` (height, width), which broadcasts."""
    height, width = size[..., 0], size[..., 1]
    limit = torch.stack([width, height, width, height], dim=-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def inside(boxes: Tensor, size: Tensor) -> Tensor:
    """Whether boxes ``(..., 4)`` lie inside images of ``size`` ``(..., 2)`` (height, width), which broadcasts."""
    return (boxes == clip(boxes, size)).all(dim=-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (R, S) of ``boxes`` (R, 4) with ``others`` (S, 4); NaN where both are empty.

    The result is that of torchvision's `box_iou`.  It is computed coordinate by coordinate, which is faster on a
    CPU, above all when ``others`` has more rows than ``boxes``.
    """
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    other_left, other_top, other_right, other_bottom = others.t().contiguous().unbind()
    shared = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp_(min=0)
    shared *= (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp_(min=0)
    areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    return shared / (areas - shared)


def overlap_share(boxes: Tensor, regions: Tensor) -> Tensor:
    """Largest share of each box (R, 4) that lies in a single one of ``regions`` (I, 4): (R,), 0 without regions."""
    if regions.shape[0] == 0:
        return boxes.new_zeros(boxes.shape[0])
    own = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=-1).clamp(min=1e-6)
    largest = []
    for some, area in zip(at_once(boxes, regions.shape[0]), at_once(own, regions.shape[0]), strict=True):
        corner = torch.maximum(some[:, None, :2], regions[None, :, :2])
        opposite = torch.minimum(some[:, None, 2:], regions[None, :, 2:])
        shared = (opposite - corner).clamp(min=0).prod(dim=-1)
        largest.append((shared / area[:, None]).amax(dim=1))
    return torch.cat(largest)


def at_once(rows: Tensor, others: int) -> tuple[Tensor, ...]:
    """``rows`` (R, ...) in parts of which each may be compared with all of ``others``: that bounds the memory."""
    return rows.split(max(1, _PAIRS // max(1, others)))


def _centre_and_side(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
