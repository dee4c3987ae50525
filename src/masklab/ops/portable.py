"""Crops in operators that other runtimes have: what `masklab.ops.crop` and `crop_channels` are while a network is exported.

R boxes, N images, C channels, H x W cells, P x Q samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masklab.ops.coordinates import sample_positions
from masklab.ops.rois import Rois


def aligned_crop(features: Tensor, rois: Rois, size: tuple[int, int]) -> Tensor:
    """`crop_and_resize` as RoIAlign with one sample a bin: ``(R, C, P, Q)``, float32.

    RoIAlign samples the middles of P bins, a crop has its first and last sample on the box's edges: the box is
    widened by half a bin on each side.  Samples up to one cell outside the map read its border where a crop reads
    it up to the margin, and gives 0 beyond: the two are equal for boxes that lie in their image.
    """
    from torchvision.ops import roi_align  # a prediction starts without torchvision

    height, width = features.shape[2:]
    edges = []
    for axis, (cells, samples) in enumerate(((width, size[1]), (height, size[0]))):
        start, stop = (rois.boxes[:, axis + 2 * end] * (cells - 1) for end in (0, 1))
        if samples == 1:
            start = stop = (start + stop) / 2
        half = (stop - start) / (2 * max(1, samples - 1))
        edges.append((start - half + 0.5, stop + half + 0.5))  # RoIAlign counts from the edge of the first cell
    (left, right), (top, bottom) = edges
    table = torch.stack([rois.batch_index.to(left.dtype), left, top, right, bottom], dim=1)
    return roi_align(features.float(), table, size, 1.0, 1, True)


def gathered_channels(features: Tensor, rois: Rois, size: tuple[int, int], channels: Tensor) -> Tensor:
    """`crop_channels` of all boxes at once, ``(R, P, Q)``, float32, for boxes that lie in their image."""
    count, height, width = features.shape[1:]
    flat = features.float().reshape(-1)
    channels = (
        channels[:, None, None]
        if channels.dim() == 1
        else channels.expand(1, -1, -1)
        if channels.dim() == 2
        else channels
    )
    first = (rois.batch_index[:, None, None] * count + channels) * (height * width)
    x = _cells(sample_positions(rois.boxes[:, 0], rois.boxes[:, 2], size[1]), width)
    y = _cells(sample_positions(rois.boxes[:, 1], rois.boxes[:, 3], size[0]), height)
    (left, right, across), (top, bottom, down) = (
        tuple(part[:, None, :] for part in x),
        tuple(part[:, :, None] for part in y),
    )
    above, below = first + top * width, first + bottom * width
    upper = flat[above + left] * (1 - across) + flat[above + right] * across
    lower = flat[below + left] * (1 - across) + flat[below + right] * across
    return upper * (1 - down) + lower * down


def _cells(positions: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells before and after each position on one axis, and the weight of the second."""
    place = (positions * (cells - 1)).clamp(min=0)
    place = torch.minimum(place, torch.ones_like(place) * (cells - 1))
    low = place.floor()
    before = low.long()
    return before, torch.minimum(before + 1, torch.ones_like(before) * (cells - 1)), place - low
