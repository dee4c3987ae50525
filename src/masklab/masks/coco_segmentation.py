"""Reader of COCO's ``segmentation`` field: polygons or run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hotcoco.mask
import numpy as np

from masklab.masks.rle import RLE, rle_from_string
from masklab.utils.types import Size

_FARTHEST_POINT = (
    2**20
)  # pixels: polygons are rasterised pixel by pixel along their edges, so their size must be bounded


def rle_from_segmentation(segmentation: Any, size: Size) -> RLE:
    """Read the ``segmentation`` of a COCO annotation.

    ``segmentation`` is a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, whose union is the mask
    (rasterised as COCO's own tool does), or a dictionary ``{"size": [h, w], "counts": ...}`` whose
    counts are a compressed string or a list.  ``size`` is the image's ``(height, width)``.

    Returns run lengths ``(M,)`` that add up to ``height * width``.  Raises `ValueError` with the reason when
    the mask does not fit the image or is malformed.
    """
    if isinstance(segmentation, dict):
        return _from_dictionary(segmentation, size)
    if isinstance(segmentation, (list, tuple)):
        return _from_polygons(segmentation, size)
    raise ValueError(f"a segmentation is a list of polygons or an RLE dictionary, not {type(segmentation).__name__}")


def _from_dictionary(segmentation: dict[str, Any], size: Size) -> RLE:
    for key in ("size", "counts"):
        if key not in segmentation:
            raise ValueError(f"the RLE has no {key!r}")
    height, width = size
    given = segmentation["size"]
    if not isinstance(given, (list, tuple)) or list(given) != [height, width]:
        raise ValueError(f"the RLE's size is {given} but the image's is {[height, width]} (height, width)")
    counts = segmentation["counts"]
    rle = rle_from_string(counts) if isinstance(counts, (str, bytes)) else _from_counts(counts, height * width)
    total = sum(rle.tolist())  # which does not overflow
    if total != height * width:
        raise ValueError(f"the RLE covers {total} pixels but the image has {height} x {width} = {height * width}")
    return _canonical(rle)


def _from_counts(counts: Any, pixels: int) -> RLE:
    try:
        values = np.asarray(counts)
    except ValueError:
        values = np.asarray(None)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError("the RLE's counts must be a string or a list of whole numbers")
    if (values < 0).any():
        raise ValueError("the RLE holds a negative run")
    if (values > pixels).any():
        raise ValueError(f"the RLE holds a run of {values.max()}, but the image has {pixels} pixels")
    return values.astype(np.int64)


def _from_polygons(polygons: Sequence[Any], size: Size) -> RLE:
    if len(polygons) == 0:
        raise ValueError("the segmentation has no polygons")
    height, width = size
    if height * width >= 2**32:
        raise ValueError(f"the image's {height} x {width} pixels are too many for polygons")
    parts = [_checked_polygon(polygon) for polygon in polygons]
    rasterized = hotcoco.mask.frPyObjects(parts, height, width)
    merged = hotcoco.mask.merge(rasterized) if len(rasterized) > 1 else rasterized[0]
    return _canonical(rle_from_string(merged["counts"]))


def _checked_polygon(polygon: Any) -> list[float]:
    if not isinstance(polygon, (list, tuple, np.ndarray)):
        raise ValueError("a polygon must be a flat list of numbers x1, y1, x2, y2, ...")
    try:
        values = np.asarray(polygon)
    except (TypeError, ValueError):
        values = np.asarray(None)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError("a polygon must be a flat list of numbers x1, y1, x2, y2, ...")
    if values.size % 2:
        raise ValueError(f"a polygon has {values.size} numbers, which is odd: one x or y is missing")
    if values.size < 6:
        raise ValueError(f"a polygon has {values.size // 2} points but needs 3")
    if not np.isfinite(values).all():
        raise ValueError("a polygon holds a number that is not finite")
    if np.abs(values).max() > _FARTHEST_POINT:
        raise ValueError(f"a polygon has a point over {_FARTHEST_POINT} pixels outside the image")
    return values.tolist()


def _canonical(rle: RLE) -> RLE:
    """Run lengths without zeros, except the first, their neighbours joined."""
    if rle.size <= 1 or rle[1:].all():
        return rle
    kept = np.flatnonzero(rle)
    starts = np.flatnonzero(np.diff(kept % 2, prepend=-1))
    joined = np.add.reduceat(rle[kept], starts) if kept.size else np.zeros(1, np.int64)
    return np.concatenate(([0], joined)) if kept.size and kept[0] % 2 else joined
