"""Crop and resize: the one home of the sampling convention.

`crop_and_resize` has the semantics of TensorFlow's operation of that name, which the paper is built
on: samples lie on the box's edges, a sample outside the map is 0.  `crop_channels` is its twin that
reads one channel a sample, so that nothing as large as boxes x channels x samples is ever built.
`Rois` says where boxes in pixels lie on any feature map of the picture.

R boxes, N pictures, C channels, H x W cells, P x Q samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CoordMode = Literal["exact", "tf"]
CHUNK = 1 << 16  # samples of `crop_channels` worked on at a time: its memory, and what stays in cache


@dataclass(frozen=True)
class Rois:
    """Boxes on the feature maps of a batch.

    ``boxes`` is ``(R, 4)`` ``xyxy`` in units in which 0 and 1 are the centres of a map's first and last
    cell; ``pictures`` ``(R,)`` int64 says which picture each lies in; ``slack`` (x, y), in the same
    units, is how far beyond the map a sample still reads its border.
    """

    boxes: Tensor
    pictures: Tensor
    slack: tuple[float, float] = (1e-6, 1e-6)

    @classmethod
    def from_pixels(cls, boxes: Tensor, pictures: Tensor, size: tuple[int, int], mode: CoordMode = "exact") -> Rois:
        """Boxes ``(R, 4)`` in pixels of a network input of ``size`` (height, width), padding included.

        ``exact``: cell ``i`` of a map of stride ``s`` lies on pixel ``s * i``, which holds for every
        level when height and width are ``8 k + 1`` (or 16, 32).  A box on the picture's border is half
        a pixel beyond the centre of the border's pixels: the slack covers it.  ``tf``: boxes are divided
        by height and width, as TensorFlow's library does, which drifts by up to a cell.
        """
        height, width = size
        scale = boxes.new_tensor([width, height, width, height])
        if mode == "tf":
            return cls(boxes / scale, pictures)
        return cls((boxes - 0.5) / (scale - 1), pictures, (0.51 / (width - 1), 0.51 / (height - 1)))

    def __len__(self) -> int:
        """Number of boxes."""
        return self.boxes.shape[0]


class _Taps(NamedTuple):
    """Where the samples of one axis fall: two neighbouring cells and the share of the second, (R, P) each."""

    low: Tensor
    high: Tensor
    share: Tensor
    inside: Tensor


def _taps(start: Tensor, stop: Tensor, samples: int, cells: int, slack: float) -> _Taps:
    if samples == 1:
        position = ((start + stop) / 2)[:, None]
    else:
        step = torch.arange(samples, device=start.device, dtype=start.dtype) / (samples - 1)
        position = start[:, None] + (stop - start)[:, None] * step
    inside = (position >= -slack) & (position <= 1 + slack)
    cell = (position * (cells - 1)).clamp(0, cells - 1)
    low = cell.detach().floor()
    return _Taps(low.long(), (low + 1).clamp(max=cells - 1).long(), cell - low, inside)


def _axis_weights(taps: _Taps) -> tuple[Tensor, Tensor]:
    inside = taps.inside.to(taps.share.dtype)
    return (1 - taps.share) * inside, taps.share * inside


def crop_and_resize(features: Tensor, rois: Rois, size: tuple[int, int]) -> Tensor:
    """Bilinear samples ``(R, C, P, Q)`` on a ``size = (P, Q)`` grid spanning each box (SPEC of TensorFlow's op).

    ``features`` is ``(N, C, H, W)``.  The first and last samples lie on the box's edges; with one sample it
    is the middle.  A box with swapped corners gives a flipped crop.  A sample outside the map is 0 and has
    no gradient.  Differentiable in ``features`` and in ``rois.boxes``.

    The result is in channels-last memory; while gradients are recorded it is float32, so that they
    are summed in float32.
    """
    channels, height, width = features.shape[1:]
    boxes = rois.boxes
    x = _taps(boxes[:, 0], boxes[:, 2], size[1], width, rois.slack[0])
    y = _taps(boxes[:, 1], boxes[:, 3], size[0], height, rois.slack[1])
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    if torch.is_grad_enabled() and rows.dtype in (torch.bfloat16, torch.float16):
        rows = rows.float()
    top = (rois.pictures[:, None] * height + y.low)[:, :, None] * width
    bottom = (rois.pictures[:, None] * height + y.high)[:, :, None] * width
    left, right = x.low[:, None, :], x.high[:, None, :]
    index = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=-1)
    (up, down), (before, after) = _axis_weights(y), _axis_weights(x)
    up, down, before, after = up[:, :, None], down[:, :, None], before[:, None, :], after[:, None, :]
    weight = torch.stack([up * before, up * after, down * before, down * after], dim=-1).to(rows.dtype)
    samples = F.embedding_bag(index.view(-1, 4), rows, mode="sum", per_sample_weights=weight.view(-1, 4))
    return samples.view(len(rois), size[0], size[1], channels).permute(0, 3, 1, 2)


def crop_channels(features: Tensor, rois: Rois, size: tuple[int, int], channels: Tensor) -> Tensor:
    """Bilinear samples ``(R, P, Q)`` of one channel each: what `crop_and_resize` gives, then selected.

    ``channels`` int64 names the channel of each sample: ``(P, Q)``, a table that all boxes share (direction
    pooling), or ``(R,)``, one channel a box (the semantic logits of its class).  Differentiable in
    ``features`` only; raises ``ValueError`` when the boxes ask for a gradient.  Samples are float32.
    """
    if rois.boxes.requires_grad:
        raise ValueError("crop_channels has no gradient for boxes: detach them, or use crop_and_resize")
    return _CropChannels.apply(features, rois, size, channels)


class _CropChannels(torch.autograd.Function):
    """Reads and, backward, adds to single cells by their index; keeps the boxes, not the indices."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rois: Rois, size: tuple[int, int], channels: Tensor) -> Tensor:
        ctx.rois, ctx.size, ctx.channels = rois, size, channels
        ctx.shape, ctx.dtype = features.shape, features.dtype
        ctx.channels_last = features.is_contiguous(memory_format=torch.channels_last)
        flat = (features.permute(0, 2, 3, 1) if ctx.channels_last else features).reshape(-1)
        out = torch.empty(len(rois), *size, device=features.device)
        for chunk in _chunks(rois, size):
            parts = [flat[index].float().mul_(weight) for index, weight in _single_taps(ctx, chunk)]
            out[chunk] = (parts[0] + parts[1]) + (parts[2] + parts[3])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        pictures, channels, height, width = ctx.shape
        flat = torch.zeros(ctx.shape.numel(), device=gradient.device)
        for chunk in _chunks(ctx.rois, ctx.size):
            incoming = gradient[chunk]
            for index, weight in _single_taps(ctx, chunk):
                flat.scatter_add_(0, index.reshape(-1), (incoming * weight).reshape(-1))
        if ctx.channels_last:
            return flat.view(pictures, height, width, channels).permute(0, 3, 1, 2).to(ctx.dtype), None, None, None
        return flat.view(ctx.shape).to(ctx.dtype), None, None, None


def _chunks(rois: Rois, size: tuple[int, int]) -> list[slice]:
    step = max(1, CHUNK // (size[0] * size[1]))
    return [slice(start, start + step) for start in range(0, len(rois), step)]


def _single_taps(ctx: Any, chunk: slice) -> list[tuple[Tensor, Tensor]]:
    """The four cells of each sample as (flat index, weight), both (r, P, Q)."""
    _, count, height, width = ctx.shape
    boxes, pictures = ctx.rois.boxes[chunk], ctx.rois.pictures[chunk]
    x = _taps(boxes[:, 0], boxes[:, 2], ctx.size[1], width, ctx.rois.slack[0])
    y = _taps(boxes[:, 1], boxes[:, 3], ctx.size[0], height, ctx.rois.slack[1])
    channels = ctx.channels[None] if ctx.channels.dim() == 2 else ctx.channels[chunk][:, None, None]
    if ctx.channels_last:
        cell, row = count, count * width
        base = pictures[:, None, None] * (height * row) + channels
    else:
        cell, row = 1, width
        base = (pictures[:, None, None] * count + channels) * (height * width)
    (up, down), (before, after) = _axis_weights(y), _axis_weights(x)
    taps = []
    for line, vertical in ((y.low, up), (y.high, down)):
        start = base + line[:, :, None] * row
        for column, horizontal in ((x.low, before), (x.high, after)):
            taps.append((start + column[:, None, :] * cell, vertical[:, :, None] * horizontal[:, None, :]))
    return taps
