"""Crop and resize: the one home of the sampling convention.

`crop_and_resize` has the semantics of TensorFlow's operation of that name, which the paper is built
on: samples lie on the box's edges, a sample outside the map is 0.  `crop_channels` is its twin that
reads one channel a sample, so that nothing as large as boxes x channels x samples is ever built.
`sample_map` samples at any positions.  `Rois` says where boxes in pixels lie on any feature map of the picture.

R boxes, N pictures, C channels, H x W cells, P x Q samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CoordMode = Literal["exact", "tf"]
CHUNK = (1 << 15) - 1  # samples of `crop_channels` worked on at a time: they stay in cache and, on a CPU, in one thread


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


def _taps(position: Tensor, cells: int, slack: float) -> _Taps:
    inside = (position >= -slack) & (position <= 1 + slack)
    cell = (position * (cells - 1)).clamp(0, cells - 1)
    low = cell.detach().floor()
    return _Taps(low.long(), (low + 1).clamp(max=cells - 1).long(), cell - low, inside)


def _axis_weights(taps: _Taps) -> tuple[Tensor, Tensor]:
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

    ``x`` is ``(R, 1, Q)`` or ``(R, P, Q)``, ``y`` ``(R, P, 1)`` or ``(R, P, Q)``; ``rois`` says which picture and how
    much slack, its boxes are not read.  Differentiable in ``features``, ``x`` and ``y``; else as `crop_and_resize`.
    """
    channels, height, width = features.shape[1:]
    across, down = _taps(x, width, rois.slack[0]), _taps(y, height, rois.slack[1])
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    if torch.is_grad_enabled() and rows.dtype in (torch.bfloat16, torch.float16):
        rows = rows.float()
    first = rois.pictures[:, None, None] * height
    top, bottom = (first + down.low) * width, (first + down.high) * width
    left, right = across.low, across.high
    index = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=-1)
    (above, below), (before, after) = _axis_weights(down), _axis_weights(across)
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


def crop_channels(features: Tensor, rois: Rois, size: tuple[int, int], channels: Tensor) -> Tensor:
    """Bilinear samples ``(R, P, Q)`` of one channel each: what `crop_and_resize` gives, then selected.

    ``channels`` int64 names the channel of each sample: ``(P, Q)``, a table that all boxes share (direction
    pooling), ``(R,)``, one channel a box (the semantic logits of its class), or ``(R, P, Q)``.  Differentiable in
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
        for some, index, right, down, (above, below, before, after) in _pieces(ctx):
            top, bottom = (
                _read(flat, index, line).mul_(before).addcmul_(_read(flat, index, line + right), after)
                for line in (0, down)
            )
            torch.mul(top, above, out=out[some]).addcmul_(bottom, below)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        pictures, channels, height, width = ctx.shape
        flat = torch.zeros(ctx.shape.numel(), device=gradient.device)
        for some, index, right, down, (above, below, before, after) in _pieces(ctx):
            index = index.view(-1).long()
            for line, share in ((0, above), (down, below)):
                incoming = gradient[some] * share
                flat[line:].scatter_add_(0, index, (incoming * before).reshape(-1))
                flat[line + right :].scatter_add_(0, index, incoming.mul_(after).reshape(-1))
        if ctx.channels_last:
            return flat.view(pictures, height, width, channels).permute(0, 3, 1, 2).to(ctx.dtype), None, None, None
        return flat.view(ctx.shape).to(ctx.dtype), None, None, None


def _read(flat: Tensor, index: Tensor, start: int) -> Tensor:
    """Float32 values at ``start + index``, several times faster than ``flat[start + index]``."""
    return flat[start:].index_select(0, index.view(-1)).view(index.shape).float()


class _Piece(NamedTuple):
    """Some boxes' single-channel samples: the first of a sample's four ``cells`` (r, P, Q), by its flat index, how far
    from it the next are, ``right`` and ``down``, and the ``weights`` above, below (r, P, 1), before and after
    (r, 1, Q), 0 outside the map."""

    boxes: slice
    cells: Tensor
    right: int
    down: int
    weights: tuple[Tensor, ...]


def _pieces(ctx: Any) -> Iterator[_Piece]:
    """All boxes, a few at a time: positions of at most `CHUNK` values, and of them samples of at most as many."""
    _, count, height, width = ctx.shape
    (tall, wide), pictures, slack = ctx.size, ctx.rois.pictures, ctx.rois.slack
    cell, row, channel = (count, count * width, 1) if ctx.channels_last else (1, width, height * width)
    channels = ctx.channels[:, None, None] if ctx.channels.dim() == 1 else ctx.channels.view(-1, tall, wide)
    kind = torch.int32 if ctx.shape.numel() < 2**31 else torch.int64
    channels = (channels * channel).to(kind)
    right, down = cell if width > 1 else 0, row if height > 1 else 0
    for block in _slices(0, len(ctx.rois), CHUNK // max(tall, wide)):
        x1, y1, x2, y2 = ctx.rois.boxes[block].unbind(dim=1)
        x = _inner(_taps(even_positions(x1, x2, wide)[:, None, :], width, slack[0]), width)
        y = _inner(_taps(even_positions(y1, y2, tall)[:, :, None], height, slack[1]), height)
        across = (x.low * cell).to(kind)
        along = (y.low * row + pictures[block, None, None] * (count * height * width)).to(kind)
        weights = (*_axis_weights(y), *_axis_weights(x))
        for boxes in _slices(block.start, block.stop, CHUNK // (tall * wide)):
            own = slice(boxes.start - block.start, boxes.stop - block.start)
            cells = (along[own] + across[own]).add_(channels if channels.shape[0] == 1 else channels[boxes])
            yield _Piece(boxes, cells, right, down, tuple(weight[own] for weight in weights))


def _slices(start: int, stop: int, step: int) -> list[slice]:
    step = max(1, step)
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]


def _inner(taps: _Taps, cells: int) -> _Taps:
    """The same places, with a lower cell that is never the map's last, so that the upper one is always the next."""
    low = taps.low.clamp(max=max(cells - 2, 0))
    return taps._replace(low=low, share=taps.share + (taps.low - low))
