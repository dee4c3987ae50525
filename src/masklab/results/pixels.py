"""The image that results belong to: an array, or a reader of which windows are read, so that it may exceed memory."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from masklab.utils.errors import InputError
from masklab.utils.types import Box, Size

PixelSize = float | tuple[float, float]
"""Micrometres: a side of a square pixel, or a pixel's (height, width)."""


class ImageReader(Protocol):
    """An image of which any window can be read; ``size`` is its (height, width)."""

    @property
    def size(self) -> Size: ...

    def read(self, box: Box) -> NDArray[Any]:
        """The values ``(C, h, w)`` inside ``box``, xyxy in whole pixels."""
        ...


class ArrayImage:
    """An array ``(C, H, W)`` as an `ImageReader`; windows are views."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.values.shape[1], self.values.shape[2]

    def read(self, box: Box) -> NDArray[Any]:
        """The values ``(C, h, w)`` inside ``box``, xyxy in whole pixels."""
        x1, y1, x2, y2 = box
        return self.values[:, y1:y2, x1:x2]


def as_reader(image: Any, size: Size) -> ImageReader | None:
    """An array ``(C, H, W)`` or ``(H, W)``, a reader or None, for results on an image of ``size``.

    Raises `InputError` for anything else and for an image of another size.
    """
    if image is None:
        return None
    if callable(getattr(image, "read", None)) and hasattr(image, "size"):
        reader: ImageReader = image
    else:
        values = np.asarray(image)
        if values.ndim not in (2, 3) or values.dtype.kind not in "biuf":
            raise InputError(f"the image is {values.dtype} {values.shape}: give numbers (C, H, W) or (H, W).")
        reader = ArrayImage(values if values.ndim == 3 else values[None])
    if tuple(reader.size) != tuple(size):
        raise InputError(
            f"the image is {reader.size[0]} x {reader.size[1]} pixels but the objects were found in one of "
            f"{size[0]} x {size[1]} (height x width): give that image, as (C, H, W)."
        )
    return reader


def as_pixel_size(given: PixelSize | None) -> tuple[float, float] | None:
    """(height, width) of a pixel in micrometres; `InputError` for what is no length."""
    if given is None:
        return None
    try:
        height, width = (float(side) for side in (given if isinstance(given, (tuple, list)) else (given, given)))
    except (TypeError, ValueError):
        height = width = math.nan
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise InputError(f"pixel_size is {given!r}: give micrometres, one number or (height, width).")
    return height, width
