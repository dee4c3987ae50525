"""Coordinates: where feature cells, mask samples and pixels lie."""

from __future__ import annotations

from typing import Literal

from masklab.utils.types import Size


def padded_size(size: Size, stride: int, coord_mode: Literal["exact", "tf"]) -> Size:
    """The smallest ``(height, width)`` that holds ``size`` and that the network takes.

    With ``coord_mode`` "exact" both are a multiple of ``stride`` plus 1, so that the outermost feature
    cells lie on the outermost pixels; with "tf" a multiple of ``stride``.
    """
    extra = 1 if coord_mode == "exact" else 0
    height, width = (max(1, -(-(side - extra) // stride)) * stride + extra for side in size)
    return height, width
