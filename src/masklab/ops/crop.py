"""Crop and resize: bilinear samples of feature maps inside boxes.

`crop_and_resize` has the semantics of TensorFlow's operation of that name, which the paper is built
on: samples lie on the box's edges, a sample outside the map is 0.  `masklab.ops.crop_channels` is its twin
that reads one channel per sample.  `sample_map` samples at any positions.

R boxes, N images, C channels, H x W cells, P x Q samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from masklab.ops.coordinates import sample_positions
from masklab.ops.portable import aligned_crop
from masklab.ops.rois import Rois


class Taps(NamedTuple):
    """Where samples fall on one axis, each field in the positions' shape.

    ``low`` and ``high`` are the neighbouring cells, ``share`` the weight of ``high``, ``inside`` whether the sample
    lies on the map.
    """

    low: Tensor
    high: Tensor
    share: Tensor
    inside: Tensor


def taps_at(position: Tensor, cells: int, margin: float) -> Taps:
    """Where samples at ``position``, 0 on the map's first and 1 on its last cell, fall between ``cells`` cells.

    Samples up to ``margin`` outside the map count as inside and read its border.
    """
    inside = (position >= -margin) & (position <= 1 + margin)
    cell = (position * (cells - 1)).clamp(0, cells - 1)
    low = cell.detach().floor()
    return Taps(low.long(), (low + 1).clamp(max=cells - 1).long(), cell - low, inside)


def axis_weights(taps: Taps) -> tuple[Tensor, Tensor]:
    """Weights of the lower and the higher cell, both 0 for samples outside the map."""
    inside = taps.inside.to(taps.share.dtype)
    return (1 - taps.share) * inside, taps.share * inside


def crop_and_resize(features: Tensor, rois: Rois, size: tuple[int, int]) -> Tensor:
    """Bilinear samples ``(R, C, P, Q)`` on a ``size = (P, Q)`` grid spanning each box (paper, section 3, Fig. 5).

    ``features`` is ``(N, C, H, W)``.  The first and last samples lie on the box's edges; with one sample it
    is the middle.  A box with swapped corners gives a flipped crop.  A sample outside the map is 0 and has
    no gradient.  Differentiable in ``features`` and in ``rois.boxes``.

    The result is in channels-last memory.  While gradients are recorded it is float32, so that gradients
    are summed in float32.
    """
    if torch.compiler.is_exporting():
        return aligned_crop(features, rois, size)
    boxes = rois.boxes
    x = sample_positions(boxes[:, 0], boxes[:, 2], size[1])[:, None, :]
    y = sample_positions(boxes[:, 1], boxes[:, 3], size[0])[:, :, None]
    return sample_map(features, rois, x, y)


def sample_map(features: Tensor, rois: Rois, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples ``(R, C, P, Q)`` at positions ``x`` and ``y``, in the units of ``rois``.

    ``x`` is ``(R, 1, Q)`` or ``(R, P, Q)``, ``y`` ``(R, P, 1)`` or ``(R, P, Q)``; ``rois`` gives the image of
    each row and the margin around the map; its boxes are not read.  Differentiable in ``features``, ``x`` and ``y``; otherwise as `crop_and_resize`.
    """
    channels, height, width = features.shape[1:]
    across, down = taps_at(x, width, rois.margin[0]), taps_at(y, height, rois.margin[1])
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    if torch.is_grad_enabled() and rows.dtype in (torch.bfloat16, torch.float16):
        rows = rows.float()
    first = rois.batch_index[:, None, None] * height
    top, bottom = (first + down.low) * width, (first + down.high) * width
    left, right = across.low, across.high
    index = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=-1)
    (above, below), (before, after) = axis_weights(down), axis_weights(across)
    weight = torch.stack([above * before, above * after, below * before, below * after], dim=-1).to(rows.dtype)
    samples: Tensor = _WeightedRows.apply(rows, index.view(-1, 4), weight.view(-1, 4))
    return samples.view(*index.shape[:3], channels).permute(0, 3, 1, 2)


def max_pool_2x2(crops: Tensor) -> Tensor:
    """The maximum over each 2 x 2 cells of crops (R, C, 2 P, 2 Q): (R, C, P, Q); `F.max_pool2d`, faster without gradients."""
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return F.max_pool2d(crops, 2)
    rows = torch.maximum(crops[:, :, ::2], crops[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class _WeightedRows(torch.autograd.Function):
    """Weighted sums (S, C) of four rows each of a matrix (L, C), given their ``index`` and ``weight`` (S, 4).

    The forward pass is `embedding_bag`.  Its own backward pass sorts all indices; adding the four rows in turn is
    faster.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, index, weight)
        return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (gradient,), (rows, index, weight) = gradients, ctx.saved_tensors
        for_rows = for_weight = None
        if ctx.needs_input_grad[0]:
            for_rows, part = torch.zeros_like(rows), torch.empty_like(gradient)
            for cells, share in zip(index.unbind(dim=1), weight.unbind(dim=1), strict=True):
                for_rows.index_add_(0, cells, torch.mul(gradient, share[:, None], out=part))
        if ctx.needs_input_grad[2]:
            for_weight = torch.stack([(gradient * rows[cells]).sum(dim=1) for cells in index.unbind(dim=1)], dim=1)
        return for_rows, None, for_weight
