"""Deformable crop and resize: a crop whose sub-boxes have offsets of their own (paper, section 3, Fig. 5).

R boxes, N images, C channels, H x W cells, P samples a side, A = P / 2 sub-boxes a side of 2 x 2 samples each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masklab.ops.coordinates import sample_positions
from masklab.ops.crop import sample_map
from masklab.ops.rois import Rois
from masklab.utils.types import SubBoxes


def deformable_crop_and_resize(features: Tensor, rois: Rois, offsets: Tensor, sub_boxes: SubBoxes) -> Tensor:
    """Bilinear samples ``(R, C, P, P)`` of sub-boxes at their offsets (paper, section 3, "Deformable crop and resize", Fig. 5).

    ============  =================  =======  =====================================================
    name          shape              dtype    meaning
    ============  =================  =======  =====================================================
    ``features``  ``(N, C, H, W)``   float    feature map
    ``offsets``   ``(R, A, A, 2)``   float32  (y, x) of the sub-box in each row and column, in shares of
                                              the box's height and width, y down, x right
    ============  =================  =======  =====================================================

    At offsets of 0, ``grid`` gives the samples of `crop_and_resize`, bit for bit; each block of 2 x 2 samples is a
    sub-box.  ``cell`` cuts the box into A x A equal cells with a sample in each corner, so that neighbouring cells
    have samples in common.  A sample outside the map is 0 and has no gradient.  Differentiable in ``features`` and ``offsets``,
    never in ``rois.boxes``, as in the paper's detector.  Memory and dtype as of `crop_and_resize`.
    """
    x, y = _places(rois.boxes.detach(), offsets, sub_boxes)
    return sample_map(features, rois, x, y)


def offset_sub_boxes(boxes: Tensor, offsets: Tensor, sub_boxes: SubBoxes) -> Tensor:
    """Sub-boxes (R, A, A, 4) ``xyxy`` of ``boxes`` (R, 4) at their offsets, in the boxes' units, up to the outermost samples."""
    x, y = _places(boxes, offsets, sub_boxes)
    return torch.stack([x[:, ::2, ::2], y[:, ::2, ::2], x[:, 1::2, 1::2], y[:, 1::2, 1::2]], dim=-1)


def _places(boxes: Tensor, offsets: Tensor, sub_boxes: SubBoxes) -> tuple[Tensor, Tensor]:
    """Positions x and y (R, P, P) of all samples."""
    samples, sides = 2 * offsets.shape[1], boxes[:, 2:] - boxes[:, :2]
    shift = (offsets * sides.flip(1)[:, None, None]).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    x = _positions(boxes[:, 0], boxes[:, 2], samples, sub_boxes)[:, None, :] + shift[..., 1]
    y = _positions(boxes[:, 1], boxes[:, 3], samples, sub_boxes)[:, :, None] + shift[..., 0]
    return x, y


def _positions(start: Tensor, stop: Tensor, samples: int, sub_boxes: SubBoxes) -> Tensor:
    """Positions (R, P) of samples on one axis at offsets of 0."""
    if sub_boxes == "grid":
        return sample_positions(start, stop, samples)
    corners = sample_positions(start, stop, samples // 2 + 1)
    return torch.stack([corners[:, :-1], corners[:, 1:]], dim=-1).flatten(1)
