"""Crop and resize of one channel per sample: direction pooling and class-wise semantic crops.

It selects channels before it samples, so that no tensor of boxes x channels x samples is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from masklab.ops.coordinates import sample_positions
from masklab.ops.crop import Taps, axis_weights, taps_at
from masklab.ops.portable import gathered_channels
from masklab.ops.rois import Rois

CHUNK = (1 << 15) - 1  # samples computed at a time: they stay in cache and, on a CPU, in one thread


def crop_channels(features: Tensor, rois: Rois, size: tuple[int, int], channels: Tensor) -> Tensor:
    """Bilinear samples ``(R, P, Q)`` of one channel each: `crop_and_resize`, then a selection of channels.

    ``channels`` int64 is the channel of each sample: ``(P, Q)``, one table for all boxes (direction
    pooling), ``(R,)``, one channel per box (the semantic logits of its class), or ``(R, P, Q)``.  Differentiable in
    ``features`` only; raises ``ValueError`` when the boxes require a gradient.  Samples are float32.
    """
    if rois.boxes.requires_grad:
        raise ValueError("crop_channels has no gradient for boxes: detach them, or use crop_and_resize")
    if torch.compiler.is_exporting():
        return gathered_channels(features, rois, size, channels)
    return _CropChannels.apply(features, rois, size, channels)


class _CropChannels(torch.autograd.Function):
    """Gathers cells by their flat index and, backward, scatters to them; saves the boxes, not the indices."""

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
        images, channels, height, width = ctx.shape
        flat = torch.zeros(ctx.shape.numel(), device=gradient.device)
        for some, index, right, down, (above, below, before, after) in _pieces(ctx):
            index = index.view(-1).long()
            for line, share in ((0, above), (down, below)):
                incoming = gradient[some] * share
                flat[line:].scatter_add_(0, index, (incoming * before).reshape(-1))
                flat[line + right :].scatter_add_(0, index, incoming.mul_(after).reshape(-1))
        if ctx.channels_last:
            return flat.view(images, height, width, channels).permute(0, 3, 1, 2).to(ctx.dtype), None, None, None
        return flat.view(ctx.shape).to(ctx.dtype), None, None, None


def _read(flat: Tensor, index: Tensor, start: int) -> Tensor:
    """Float32 values at ``start + index``, several times faster than ``flat[start + index]``."""
    return flat[start:].index_select(0, index.view(-1)).view(index.shape).float()


class _Piece(NamedTuple):
    """Single-channel samples of ``r`` boxes.

    ===========  ==========================  ==============================================================
    name         shape                       meaning
    ===========  ==========================  ==============================================================
    ``boxes``                                which of the boxes
    ``cells``    (r, P, Q)                   flat index of the upper left of each sample's four cells
    ``right``                                distance in flat indices to the cell at the right
    ``down``                                 distance in flat indices to the cell below
    ``weights``  (r, P, 1) and (r, 1, Q)     of the cells above, below, at the left and at the right, 0 outside
                                             the map
    ===========  ==========================  ==============================================================
    """

    boxes: slice
    cells: Tensor
    right: int
    down: int
    weights: tuple[Tensor, ...]


def _pieces(ctx: Any) -> Iterator[_Piece]:
    """All boxes in pieces of at most `CHUNK` samples; positions are computed for blocks of at most `CHUNK` values."""
    _, count, height, width = ctx.shape
    (tall, wide), images, margin = ctx.size, ctx.rois.batch_index, ctx.rois.margin
    cell, row, channel = (count, count * width, 1) if ctx.channels_last else (1, width, height * width)
    channels = ctx.channels[:, None, None] if ctx.channels.dim() == 1 else ctx.channels.view(-1, tall, wide)
    dtype = torch.int32 if ctx.shape.numel() < 2**31 else torch.int64
    channels = (channels * channel).to(dtype)
    right, down = cell if width > 1 else 0, row if height > 1 else 0
    for block in _slices(0, len(ctx.rois), CHUNK // max(tall, wide)):
        x1, y1, x2, y2 = ctx.rois.boxes[block].unbind(dim=1)
        x = _inner(taps_at(sample_positions(x1, x2, wide)[:, None, :], width, margin[0]), width)
        y = _inner(taps_at(sample_positions(y1, y2, tall)[:, :, None], height, margin[1]), height)
        across = (x.low * cell).to(dtype)
        along = (y.low * row + images[block, None, None] * (count * height * width)).to(dtype)
        weights = (*axis_weights(y), *axis_weights(x))
        for boxes in _slices(block.start, block.stop, CHUNK // (tall * wide)):
            own = slice(boxes.start - block.start, boxes.stop - block.start)
            cells = (along[own] + across[own]).add_(channels if channels.shape[0] == 1 else channels[boxes])
            yield _Piece(boxes, cells, right, down, tuple(weight[own] for weight in weights))


def _slices(start: int, stop: int, step: int) -> list[slice]:
    step = max(1, step)
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]


def _inner(taps: Taps, cells: int) -> Taps:
    """The same samples with a lower cell that is never the map's last, so that the higher cell is always the next."""
    low = taps.low.clamp(max=max(cells - 2, 0))
    return taps._replace(low=low, share=taps.share + (taps.low - low))
