"""Masks of outlines that annotation tools draw: polygons with holes, rectangles and ellipses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from masklab.masks import coco_segmentation, encode, rle
from masklab.masks.rle import RLE
from masklab.utils.types import Size

_ELLIPSE_POINTS = 180
_FARTHEST = 2.0**31  # pixels


def number(value: Any, name: str) -> float:
    """A number of an annotation; raises `ValueError` for what is none or cannot be pixels."""
    if type(value) not in (int, float) or not -_FARTHEST < value < _FARTHEST:
        raise ValueError(f"its {name} is {str(value)[:20]!r}, not a number of pixels")
    return float(value)


def polygon_mask(points: ArrayLike, size: Size, holes: Sequence[ArrayLike] = ()) -> RLE:
    """Run lengths of a polygon ``(N, 2)`` of corners ``(x, y)`` in pixels, without the pixels of its ``holes``.

    Raises `ValueError` with the reason for fewer than three corners and for numbers that cannot be pixels.
    """
    return subtract(_filled(points, size), [_filled(hole, size) for hole in holes], size)


def union(masks: Sequence[RLE], size: Size) -> RLE:
    """Run lengths of the pixels that any of the masks covers; at least one is given."""
    return masks[0] if len(masks) == 1 else _combined(masks, [], size)


def subtract(mask: RLE, others: Sequence[RLE], size: Size) -> RLE:
    """Run lengths of a mask without the pixels of others."""
    return _combined([mask], others, size) if others else mask


def odd_mask(masks: Sequence[RLE], size: Size) -> RLE:
    """Run lengths of the pixels that an odd number of the masks covers: outlines, their holes, islands in these."""
    pixels = size[0] * size[1]
    edges, counts = np.unique(np.concatenate([[pixels], *(np.cumsum(mask)[:-1] for mask in masks)]), return_counts=True)
    inner = edges[(counts % 2 == 1) & (edges < pixels)]
    return np.diff(inner, prepend=0, append=pixels)


def rectangle_points(one: Sequence[float], two: Sequence[float]) -> list[tuple[float, float]]:
    """The corners of the rectangle between two opposite corners ``(x, y)``."""
    (x1, y1), (x2, y2) = one, two
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def ellipse_points(center: Sequence[float], radii: Sequence[float]) -> list[tuple[float, float]]:
    """Points on an ellipse with axes along x and y: ``center`` is ``(x, y)``, ``radii`` are those along x and y."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    xs, ys = center[0] + radii[0] * np.cos(angles), center[1] + radii[1] * np.sin(angles)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def rotated_points(
    points: Sequence[Sequence[float]], center: Sequence[float], angle: float
) -> list[tuple[float, float]]:
    """Points ``(x, y)`` turned around ``center`` by an angle in radians, clockwise as the image is seen."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = (np.asarray(points, np.float64) - center) @ turn + center
    return [(x, y) for x, y in turned.tolist()]


def bitmap_mask(bitmap: ArrayLike, origin: Sequence[int], size: Size) -> RLE:
    """Run lengths of a bitmap ``(h, w)`` whose top left pixel is at ``origin`` ``(x, y)``; what leaves the image is cut."""
    bits = np.asarray(bitmap, bool)
    x, y = (int(value) for value in origin)
    top, left = max(-y, 0), max(-x, 0)
    bits = bits[top : max(size[0] - y, 0), left : max(size[1] - x, 0)]
    if not bits.size:
        return np.array([size[0] * size[1]], np.int64)
    return encode.encode_windows([bits], [[x + left, y + top]], size)[0]


def _filled(points: ArrayLike, size: Size) -> RLE:
    try:
        corners = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon must be a list of points x, y") from None
    if corners.ndim != 2 or corners.shape[1] != 2:
        raise ValueError("a polygon must be a list of points x, y")
    return coco_segmentation.rle_from_segmentation([corners.ravel().tolist()], size)


def _combined(masks: Sequence[RLE], without: Sequence[RLE], size: Size) -> RLE:
    boxes = [box for mask in masks if (box := rle.bounds(mask, size)) is not None]
    if not boxes:
        return masks[0]
    x1, y1 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    box = x1, y1, max(box[2] for box in boxes), max(box[3] for box in boxes)
    bits = np.any([rle.window(mask, size, box) for mask in masks], axis=0)
    for other in without:
        bits &= rle.window(other, size, box) == 0
    return encode.encode_windows([bits], [[x1, y1]], size)[0]
