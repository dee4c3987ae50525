"""Coordinates: where pixels, feature cells and mask samples lie.

All crops, anchors, mask targets and masks in the image follow this one convention.  A position is in pixels from
the image's left or top edge, so pixel ``i`` covers ``i`` to ``i + 1`` and its centre is at ``i + 0.5``.  Cell ``i`` of a
feature map of stride ``s`` lies on the centre of pixel ``s * i``, where a convolution with symmetric padding puts it.
Inputs are padded to ``8 k + 1`` pixels (16, 32) a side, so that the outermost cells of every map lie on the outermost
pixels.  The samples of a mask are evenly spread over its box, the first and the last on the box's edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from masklab.utils.types import Size

if TYPE_CHECKING:  # results are computed without torch too
    import torch
    from torch import Tensor

_Array = TypeVar("_Array", "Tensor", "NDArray[Any]")

PIXEL_CENTRE = 0.5
_MAP_MARGIN = 0.51  # pixels beyond the outermost centres: the image's edge, and a little for rounding
_EDGE_TOLERANCE = 1e-4  # pixels: a pixel centre on the edge of a box is inside, whatever the rounding


def padded_size(size: Size, stride: int) -> Size:
    """The smallest ``(height, width)`` of a network input that holds ``size``: multiples of ``stride``, plus 1."""
    height, width = (max(1, -(-(side - 1) // stride)) * stride + 1 for side in size)
    return height, width


def pixel_positions(indices: _Array) -> _Array:
    """Positions of the centres of pixels."""
    return indices + PIXEL_CENTRE


def pixel_indices(positions: _Array) -> _Array:
    """Inverse of `pixel_positions`: between two pixel centres the index is a fraction."""
    return positions - PIXEL_CENTRE


def cell_positions(cells: int, stride: int, device: torch.device) -> Tensor:
    """Positions ``(cells,)`` of the cells of a feature map on one axis."""
    import torch

    return pixel_positions(torch.arange(cells, device=device) * stride)


def boxes_on_maps(boxes: Tensor, size: Size) -> tuple[Tensor, tuple[float, float]]:
    """Boxes ``(R, 4)`` ``xyxy`` in units in which a feature map's first cell is 0 and its last is 1, on both axes.

    ``size`` is the (height, width) of the network input, padding included; the result holds for maps of all strides.
    The second result is how far (x, y) in these units the image reaches beyond its outermost cells.
    """
    import torch

    height, width = size
    # not `new_tensor`: the sides of a network that is exported are symbols
    last_x, last_y = boxes.new_full((), width - 1), boxes.new_full((), height - 1)
    last_pixel = torch.stack([last_x, last_y, last_x, last_y])
    return pixel_indices(boxes) / last_pixel, (_MAP_MARGIN / (width - 1), _MAP_MARGIN / (height - 1))


def sample_positions(start: Tensor, stop: Tensor, samples: int) -> Tensor:
    """Positions ``(R, samples)`` from ``start`` to ``stop`` ``(R,)``, both included; a single sample is in the middle."""
    import torch

    if samples == 1:
        return ((start + stop) / 2)[:, None]
    step = torch.arange(samples, device=start.device, dtype=start.dtype) / (samples - 1)
    return start[:, None] + (stop - start)[:, None] * step


def sample_indices(pixels: NDArray[Any], start: Any, length: Any, samples: int) -> NDArray[np.float64]:
    """Inverse of `sample_positions` for pixels: their indices, fractions, among the samples of a box.

    The box begins at ``start`` and is ``length`` long.  Pixels outside it take the nearest sample.
    """
    return ((samples - 1) * (pixel_positions(pixels) - start) / length).clip(0, samples - 1)


def pixels_inside(start: NDArray[Any], stop: NDArray[Any], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and number of pixels whose centres lie from ``start`` to ``stop``, of an image of ``side`` pixels."""
    first = np.ceil(pixel_indices(start) - _EDGE_TOLERANCE).clip(0, side)
    last = np.floor(pixel_indices(stop) + _EDGE_TOLERANCE).clip(-1, side - 1)
    return first.astype(np.int64), (last + 1 - first).clip(0).astype(np.int64)
