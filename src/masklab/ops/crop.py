"""Crop and resize: the one home of the sampling convention.

`crop_and_resize` has the semantics of TensorFlow's operation of that name, which the paper is built
on: samples lie on the box's edges, a sample outside the map is 0.  `crop_channels` is its twin that
reads one channel a sample, so that nothing as large as boxes x channels x samples is ever built.
`sample_map` samples at any positions.  `Rois` says where boxes in pixels lie on any feature map of the image.

R boxes, N images, C channels, H x W cells, P x Q samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from masklab.ops.rois import Rois


class Taps(NamedTuple):
    """Where samples fall on one axis: two neighbouring cells and the share of the second, in the positions' shape."""

    low: Tensor
    high: Tensor
    share: Tensor
    inside: Tensor


def even_positions(start: Tensor, stop: Tensor, samples: int) -> Tensor:
    """Positions ``(R, samples)`` from ``start`` to ``stop`` ``(R,)``, both included; a single one is the middle."""
    if samples == 1:
        return ((start + stop) / 2)[:, None]
    step = torch.arange(samples, device=start.device, dtype=start.dtype) / (samples - 1)
    return start[:, None] + (stop - start)[:, None] * step


def taps_at(position: Tensor, cells: int, slack: float) -> Taps:
    inside = (position >= -slack) & (position <= 1 + slack)
    cell = (position * (cells - 1)).clamp(0, cells - 1)
    low = cell.detach().floor()
    return Taps(low.long(), (low + 1).clamp(max=cells - 1).long(), cell - low, inside)


def axis_weights(taps: Taps) -> tuple[Tensor, Tensor]:
    inside = taps.inside.to(taps.share.dtype)
    return (1 - taps.share) * inside, taps.share * inside


def crop_and_resize(features: Tensor, rois: Rois, size: tuple[int, int]) -> Tensor:
    """Bilinear samples ``(R, C, P, Q)`` on a ``size = (P, Q)`` grid spanning each box (paper, section 3, Fig. 5).

    ``features`` is ``(N, C, H, W)``.  The first and last samples lie on the box's edges; with one sample it
    is the middle.  A box with swapped corners gives a flipped crop.  A sample outside the map is 0 and has
    no gradient.  Differentiable in ``features`` and in ``rois.boxes``.

    The result is in channels-last memory; while gradients are recorded it is float32, so that they
    are summed in float32.
    """
    boxes = rois.boxes
    x = even_positions(boxes[:, 0], boxes[:, 2], size[1])[:, None, :]
    y = even_positions(boxes[:, 1], boxes[:, 3], size[0])[:, :, None]
    return sample_map(features, rois, x, y)


def sample_map(features: Tensor, rois: Rois, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples ``(R, C, P, Q)`` at positions ``x`` and ``y``, in the units of ``rois``.

    ``x`` is ``(R, 1, Q)`` or ``(R, P, Q)``, ``y`` ``(R, P, 1)`` or ``(R, P, Q)``; ``rois`` says which image and how
    much slack, its boxes are not read.  Differentiable in ``features``, ``x`` and ``y``; else as `crop_and_resize`.
    """
    channels, height, width = features.shape[1:]
    across, down = taps_at(x, width, rois.slack[0]), taps_at(y, height, rois.slack[1])
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


class _WeightedRows(torch.autograd.Function):
    """Sums (S, C) of four rows each, of (L, C), by their ``index`` and ``weight`` (S, 4).

    `embedding_bag`, but for its backward pass, which sorts all indices; adding the four in turn is faster.
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
