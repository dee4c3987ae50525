"""Reader of COCO's ``segmentation`` field: polygons or run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import hotcoco.mask
import numpy as np

from masklab.masks.rle import RLE, flat_from_strings, rle_from_string
from masklab.utils.types import Size
from masklab.utils.words import as_written, counted

_LARGEST_RUN = 2**63 - 1
_FLAT_LIST = "a flat list of numbers x1, y1, x2, y2, ..."
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
    runs, faults = read_segmentation(segmentation, size)
    if faults:
        raise ValueError(faults[0])
    return runs


def read_segmentation(segmentation: Any, size: Size) -> tuple[RLE, list[str]]:
    """`rle_from_segmentation` of the polygons that can be used, and what is wrong with each of the others.

    Raises `ValueError` where no polygon can be used.
    """
    if isinstance(segmentation, dict):
        return _from_dictionary(segmentation, size), []
    if isinstance(segmentation, (list, tuple)):
        return _from_polygons(segmentation, size)
    raise ValueError(f"a segmentation must be a list of polygons or an RLE dictionary, not {as_written(segmentation)}")


def read_strings(segmentations: Sequence[Any], size: Size) -> list[tuple[RLE, int] | None]:
    """Run lengths and pixels of those that need no judgement, decoded all at once; `read_segmentation` is for others.

    Those are RLE with a compressed string, without runs of nothing, that cover some pixels of an image of ``size``
    ``(height, width)``.  All others are None, and all are where one string is malformed.
    """
    expected, pixels = list(size), size[0] * size[1]
    found: list[tuple[RLE, int] | None] = [None] * len(segmentations)
    try:
        rows = [row for row, each in enumerate(segmentations) if _is_string(each) and each["size"] == expected]
        values, ends = flat_from_strings([segmentations[row]["counts"] for row in rows])
    except ValueError:
        return found
    if values.size * (pixels + 1) >= 2**63:  # the sums may overflow
        return found
    bounded = np.minimum(values, pixels + 1)  # a longer run makes a wrong sum as well
    lengths = np.diff(ends, prepend=0)
    starts = ends - lengths
    place = np.arange(values.size) - np.repeat(starts, lengths)
    covered, areas, zeros = (
        np.diff(np.concatenate(([0], np.cumsum(flat)))[np.concatenate(([0], ends))])
        for flat in (bounded, bounded * (place % 2), (values == 0) & (place > 0))
    )
    plain = (covered == pixels) & (areas > 0) & (zeros == 0)
    for row, start, end, area, kept in zip(
        rows, *(each.tolist() for each in (starts, ends, areas, plain)), strict=True
    ):
        if kept:
            found[row] = values[start:end], area
    return found


def _is_string(segmentation: Any) -> bool:
    """Whether a segmentation is RLE with a compressed string."""
    return (
        type(segmentation) is dict
        and isinstance(segmentation.get("counts"), (str, bytes))
        and type(segmentation.get("size")) is list
    )


def _from_dictionary(segmentation: dict[str, Any], size: Size) -> RLE:
    for key in ("size", "counts"):
        if key not in segmentation:
            raise ValueError(f"the RLE has no {key!r}")
    height, width = size
    given = segmentation["size"]
    if not isinstance(given, (list, tuple)) or list(given) != [height, width]:
        swapped = ", swapped" if isinstance(given, (list, tuple)) and list(given) == [width, height] else ""
        raise ValueError(f"the RLE's size is {as_written(given)}{swapped} but the image's [height, width] is {[*size]}")
    counts = segmentation["counts"]
    rle = rle_from_string(counts) if isinstance(counts, (str, bytes)) else _from_counts(counts)
    if rle.size and rle.max() > height * width:
        raise ValueError(f"the RLE holds a run of {rle.max()}, but the image has {height * width} pixels")
    fits = rle.size * height * width < 2**63  # else the sum may overflow
    total = int(rle.sum()) if fits else sum(rle.tolist())
    if total != height * width:
        raise ValueError(f"the RLE covers {total} pixels but the image has {height} x {width} = {height * width}")
    return _canonical(rle)


def _from_counts(counts: Any) -> RLE:
    try:
        values = np.asarray(counts)
    except ValueError:
        values = np.asarray(None)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        strange = counts if not isinstance(counts, list) else next((v for v in counts if type(v) is not int), counts)
        raise ValueError(f"the RLE's counts must be a string or a list of whole numbers, not {as_written(strange)}")
    if values.size and values.min() < 0:
        raise ValueError(f"the RLE holds a negative run, {values.min()}")
    if values.dtype == np.uint64 and values.size and values.max() > _LARGEST_RUN:
        raise ValueError(f"the RLE holds a run of {values.max()}")
    return values.astype(np.int64, copy=False)


def _from_polygons(polygons: Sequence[Any], size: Size) -> tuple[RLE, list[str]]:
    if len(polygons) == 0:
        raise ValueError("the segmentation has no polygons")
    height, width = size
    if height * width >= 2**32:
        raise ValueError(f"the image's {height} x {width} pixels are too many for polygons")
    parts, faults = [], []
    for number, polygon in enumerate(polygons, 1):
        try:
            parts.append(_checked_polygon(polygon))
        except ValueError as error:
            faults.append(f"polygon {number} of {len(polygons)} {error}" if len(polygons) > 1 else f"a polygon {error}")
    if not parts:
        raise ValueError(_misplaced_list(polygons) or faults[0])
    rasterized = hotcoco.mask.frPyObjects(parts, height, width)
    merged = hotcoco.mask.merge(rasterized) if len(rasterized) > 1 else rasterized[0]
    return _canonical(rle_from_string(merged["counts"])), faults


def _misplaced_list(polygons: Sequence[Any]) -> str | None:
    """What is wrong with a list of numbers or of points in place of a list of polygons; None for anything else."""
    if all(isinstance(value, Real) for value in polygons):
        return f"the segmentation is a flat list of numbers, not a list of polygons: {_FLAT_LIST} inside another list"
    if len(polygons) > 1 and all(isinstance(each, (list, tuple)) and len(each) == 2 for each in polygons):
        return f"the segmentation is a list of points [x, y], not of polygons, each {_FLAT_LIST}"
    return None


def _checked_polygon(polygon: Any) -> list[float]:
    """The numbers of a polygon; `ValueError` with what follows the word polygon in a sentence."""
    if not isinstance(polygon, (list, tuple, np.ndarray)):
        raise ValueError(f"is {as_written(polygon)} but must be {_FLAT_LIST}")
    try:
        values = np.asarray(polygon)
    except (TypeError, ValueError):
        values = np.asarray(None)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        strange = next((value for value in polygon if not isinstance(value, Real)), None)
        if isinstance(strange, (list, tuple)):
            raise ValueError(f"is written in points {as_written(strange)} but must be {_FLAT_LIST}")
        raise ValueError(f"holds {as_written(strange)} but must be {_FLAT_LIST}" if len(polygon) else "is empty")
    if values.size % 2:
        raise ValueError(f"has {values.size} numbers, which is odd: one x or y is missing")
    if values.size < 6:
        raise ValueError(f"has {counted(values.size // 2, 'point')} but needs 3")
    if not np.isfinite(values).all():
        strange = values[~np.isfinite(values)][0]
        raise ValueError(f"holds {as_written(float(strange))}, a number that is not finite")
    if np.abs(values).max() > _FARTHEST_POINT:
        raise ValueError(f"has a point over {_FARTHEST_POINT} pixels outside the image")
    return values.tolist()


def _canonical(rle: RLE) -> RLE:
    """Run lengths without zeros, except the first, their neighbours joined."""
    if rle.size <= 1 or rle[1:].all():
        return rle
    kept = np.flatnonzero(rle)
    starts = np.flatnonzero(np.diff(kept % 2, prepend=-1))
    joined = np.add.reduceat(rle[kept], starts) if kept.size else np.zeros(1, np.int64)
    return np.concatenate(([0], joined)) if kept.size and kept[0] % 2 else joined
