"""Overlay: the image with its objects tinted and outlined, as PNG.

An image that is read window by window is drawn smaller if it is very large.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks import rle
from masklab.masks.encode import encode_windows
from masklab.results.formats.base import Format, Result
from masklab.results.pixels import ArrayImage, ImageReader
from masklab.utils.errors import InputError

if TYPE_CHECKING:
    from masklab.results.instances import Instances

_MOST_PIXELS = 2**26  # of an image that is drawn at its own size, unless it is an array
_LONGEST = 4096  # pixels, of a side of a larger one's overlay
_WINDOW = 4096  # pixels, about, of a side of the windows that are read


def _write(path: Path, result: Result) -> None:
    from masklab.results.overlay import overlay

    source = result.image if result.shown is None else result.shown
    if source is None:
        raise InputError("an overlay needs the image: give it as image=, (C, H, W).")
    height, width = result.instances.size
    step = -(-max(height, width) // _LONGEST) if height * width > _MOST_PIXELS else 1
    if isinstance(source, ArrayImage):
        values, instances = source.values, result.instances
    else:
        values = _every(source, step)
        instances = _smaller(result.instances, step) if step > 1 else result.instances
    overlay(values if result.shown is not None else _visible(values), instances, -np.inf).save(path, "PNG")


def _every(image: ImageReader, step: int) -> NDArray[Any]:
    """Every ``step``-th pixel of both sides, read window by window."""
    height, width = image.size
    side = step * max(1, _WINDOW // step)
    rows: list[NDArray[Any]] = []
    for top in range(0, height, side):
        bottom = min(top + side, height)
        parts = (image.read((left, top, min(left + side, width), bottom)) for left in range(0, width, side))
        rows.append(np.concatenate([part[:, ::step, ::step] for part in parts], axis=2))
    return np.concatenate(rows, axis=1)


def _smaller(found: Instances, step: int) -> Instances:
    """The objects at every ``step``-th pixel of both sides."""
    size = (-(-found.size[0] // step), -(-found.size[1] // step))
    windows, corners = [], []
    for mask in found.rle:
        x1, y1, x2, y2 = rle.bounds(mask, found.size) or (0, 0, 0, 0)
        left, top = x1 // step, y1 // step
        windows.append(rle.window(mask, found.size, (left * step, top * step, x2, y2))[::step, ::step])
        corners.append((left, top))
    masks = np.zeros((len(found), 0, 0), np.float32)
    return replace(
        found, size=size, boxes=found.boxes / np.float32(step), masks=masks, _rle=encode_windows(windows, corners, size)
    )


def _visible(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of any depth as uint8 ``(3, H, W)``; those that are not 8 bits are stretched between their percentiles."""

    from masklab.config.image import ImageConfig
    from masklab.images.exposure import stretched
    from masklab.images.intensity import displayed

    if values.dtype == bool:
        values = values * np.uint8(255)
    if values.dtype not in (np.uint8, np.uint16):
        values = values.astype(np.float32)
    values, config = np.ascontiguousarray(values), ImageConfig()
    return displayed(values, config if values.dtype == np.uint8 else stretched(values, config))


OVERLAY = Format(
    "overlay",
    ".png",
    "NAME.png: the image with the objects found drawn over it",
    _write,
    (".png",),
    media_type="image/png",
)
