"""Run lengths: how a binary mask is kept in memory, in COCO files and on the wire.

A mask is ``runs``, an ``(M,)`` int64 array, together with its picture's ``size = (height, width)``.
The runs go down the columns, left to right, and alternate: background, foreground, background...
The first is the background's and may be 0; no other is.  A whole ``H x W`` array is never needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hotcoco.mask
import numpy as np
from numpy.typing import ArrayLike, NDArray

Runs = NDArray[np.int64]
Size = tuple[int, int]

LONGEST_NUMBER = 7  # characters, 35 bits: no larger number can be a run of a picture
FARTHEST_POINT = 2**20  # pixels: a polygon is walked point by point, so its size has to be bounded


def runs_from_string(counts: str | bytes) -> Runs:
    """Read COCO's compressed string.

    Each number is written in groups of 5 bits, lowest first, one character (``48 + group``) each; bit 5
    says that another follows.  From the fourth number on, they are differences to the last but one.

    Returns ``(M,)`` int64.  Raises `ValueError` with the reason for a malformed string.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except UnicodeEncodeError:
        raise ValueError("the RLE string holds a character outside '0'..'o'") from None
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("the RLE string holds a character outside '0'..'o'")
    last = np.flatnonzero((codes & 32) == 0)
    if last.size == 0 or last[-1] != codes.size - 1:
        raise ValueError("the RLE string ends inside a number")
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() > LONGEST_NUMBER:
        raise ValueError("the RLE string holds a number too large for a run")
    shifts = 5 * (np.arange(codes.size) - np.repeat(first, lengths))
    values = np.add.reduceat((codes & 31) << shifts, first)
    values -= ((codes[last] & 16) != 0) * (np.int64(1) << (5 * lengths))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError("the RLE string holds a negative run")
    return values


def strings_from_runs(masks: Sequence[Runs]) -> list[str]:
    """Write each mask's runs as COCO's compressed string; all masks together, in a few numpy calls."""
    if not masks:
        return []
    return strings_from_flat(np.concatenate(masks), np.array([len(runs) for runs in masks], np.int64))


def strings_from_flat(runs: Runs, lengths: NDArray[np.int64]) -> list[str]:
    """`strings_from_runs` for masks laid end to end: ``runs`` ``(sum(lengths),)``, ``lengths`` ``(N,)``."""
    starts = np.cumsum(lengths) - lengths
    place = np.arange(runs.size) - np.repeat(starts, lengths)
    numbers = runs.copy()
    numbers[2:] -= np.where(place[2:] > 2, runs[:-2], 0)
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    groups = np.ones(runs.size, np.int64)
    while (more := magnitude >= np.int64(1) << (5 * groups - 1)).any():
        groups += more
    ends = np.cumsum(groups)
    text = np.empty(int(groups.sum()), np.uint8)
    for k in range(int(groups.max(initial=0))):
        rows = np.flatnonzero(groups > k)
        code = (numbers[rows] >> (5 * k)) & 31 | ((groups[rows] > k + 1) << 5)
        text[ends[rows] - groups[rows] + k] = code + 48
    written = text.tobytes().decode("ascii")
    cuts = np.concatenate(([0], ends))
    first, last = cuts[starts].tolist(), cuts[starts + lengths].tolist()
    return [written[a:b] for a, b in zip(first, last, strict=True)]


def runs_from_segmentation(segmentation: Any, size: Size) -> Runs:
    """Read the ``segmentation`` of a COCO annotation.

    ``segmentation`` is a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, whose union is the mask
    (rasterised as COCO's own tool does), or a dictionary ``{"size": [h, w], "counts": ...}`` whose
    counts are a compressed string or a list.  ``size`` is the picture's ``(height, width)``.

    Returns ``(M,)`` int64 that add up to ``height * width``.  Raises `ValueError` with the reason when
    the mask does not fit the picture or makes no sense.
    """
    if isinstance(segmentation, dict):
        return _from_dictionary(segmentation, size)
    if isinstance(segmentation, (list, tuple)):
        return _from_polygons(segmentation, size)
    raise ValueError(f"a segmentation is a list of polygons or an RLE dictionary, not {type(segmentation).__name__}")


def _from_dictionary(segmentation: dict[str, Any], size: Size) -> Runs:
    for key in ("size", "counts"):
        if key not in segmentation:
            raise ValueError(f"the RLE has no {key!r}")
    height, width = size
    given = segmentation["size"]
    if not isinstance(given, (list, tuple)) or list(given) != [height, width]:
        raise ValueError(f"the RLE's size is {given} but the picture's is {[height, width]} (height, width)")
    counts = segmentation["counts"]
    runs = runs_from_string(counts) if isinstance(counts, (str, bytes)) else _from_counts(counts, height * width)
    total = sum(runs.tolist())  # which does not overflow
    if total != height * width:
        raise ValueError(f"the RLE covers {total} pixels but the picture has {height} x {width} = {height * width}")
    return _canonical(runs)


def _from_counts(counts: Any, pixels: int) -> Runs:
    try:
        values = np.asarray(counts)
    except ValueError:
        values = np.asarray(None)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError("the RLE's counts must be a string or a list of whole numbers")
    if (values < 0).any():
        raise ValueError("the RLE holds a negative run")
    if (values > pixels).any():
        raise ValueError(f"the RLE holds a run of {values.max()}, but the picture has {pixels} pixels")
    return values.astype(np.int64)


def _from_polygons(polygons: Sequence[Any], size: Size) -> Runs:
    if len(polygons) == 0:
        raise ValueError("the segmentation has no polygons")
    height, width = size
    if height * width >= 2**32:
        raise ValueError(f"the picture's {height} x {width} pixels are too many for polygons")
    parts = [_checked_polygon(polygon) for polygon in polygons]
    rles = hotcoco.mask.frPyObjects(parts, height, width)
    merged = hotcoco.mask.merge(rles) if len(rles) > 1 else rles[0]
    return _canonical(runs_from_string(merged["counts"]))


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
    if np.abs(values).max() > FARTHEST_POINT:
        raise ValueError(f"a polygon has a point over {FARTHEST_POINT} pixels outside the picture")
    return values.tolist()


def _canonical(runs: Runs) -> Runs:
    """Drop runs of length 0 (save the first) and join their neighbours."""
    if runs.size <= 1 or runs[1:].all():
        return runs
    kept = np.flatnonzero(runs)
    starts = np.flatnonzero(np.diff(kept % 2, prepend=-1))
    joined = np.add.reduceat(runs[kept], starts) if kept.size else np.zeros(1, np.int64)
    return np.concatenate(([0], joined)) if kept.size and kept[0] % 2 else joined


def area(runs: Runs) -> int:
    """Number of foreground pixels."""
    return int(runs[1::2].sum())


def bounds(runs: Runs, size: Size) -> tuple[int, int, int, int] | None:
    """The tight box ``(x1, y1, x2, y2)`` in pixels around the foreground; ``None`` if there is none."""
    height = size[0]
    starts, ends = _foreground(runs)
    if starts.size == 0:
        return None
    lasts = ends - 1
    left, right = int(starts[0]) // height, int(lasts[-1]) // height
    if (starts // height != lasts // height).any():
        return left, 0, right + 1, height
    return left, int((starts % height).min()), right + 1, int((lasts % height).max()) + 1


def window(runs: Runs, size: Size, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The mask inside an integer ``box`` ``(x1, y1, x2, y2)``: uint8 0 and 1, ``(y2 - y1, x2 - x1)``.

    What lies outside the picture is 0.  Time and memory grow with the box, not with the picture.
    """
    x1, y1, x2, y2 = (int(edge) for edge in box)
    height, tall, wide = size[0], max(y2 - y1, 0), max(x2 - x1, 0)
    starts, ends = _foreground(runs)
    first = int(np.searchsorted(ends, x1 * height, "right"))
    last = int(np.searchsorted(starts, x2 * height, "left"))
    starts, ends = np.maximum(starts[first:last], x1 * height), np.minimum(ends[first:last], x2 * height)
    column, top, bottom = _by_column(starts, ends, height)
    top, bottom = np.maximum(top, y1), np.minimum(bottom, y2)
    seen = bottom > top
    column = (column[seen] - x1) * tall - y1
    edges = np.empty(2 * column.size + 2, np.int64)
    edges[0], edges[-1] = 0, tall * wide
    edges[1:-1:2], edges[2:-1:2] = column + top[seen], column + bottom[seen]
    bits = np.repeat(np.arange(edges.size - 1, dtype=np.uint8) & 1, np.diff(edges))
    return np.ascontiguousarray(bits.reshape(wide, tall).T)


def _foreground(runs: Runs) -> tuple[Runs, Runs]:
    """First and one past the last position of each foreground run."""
    edges = np.cumsum(runs)[: runs.size // 2 * 2]
    return edges[0::2], edges[1::2]


def _by_column(starts: Runs, ends: Runs, height: int) -> tuple[Runs, Runs, Runs]:
    """Cut runs at the columns' ends: column, first row and one past the last row of each piece."""
    if starts.size == 0:
        return starts, starts, starts
    first = starts // height
    pieces = (ends - 1) // height - first + 1
    nth = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    column = np.repeat(first, pieces) + nth
    top = np.maximum(np.repeat(starts, pieces) - column * height, 0)
    bottom = np.minimum(np.repeat(ends, pieces) - column * height, height)
    return column, top, bottom


def encode_windows(bitmaps: Sequence[NDArray[Any]], boxes: ArrayLike, size: Size) -> list[Runs]:
    """Run lengths of masks that are known inside their boxes only.

    ``bitmaps`` are ``N`` arrays ``(h, w)`` of bool or uint8; ``boxes`` ``(N, 4)`` integers ``xyxy``, or
    ``(N, 2)`` with the left and top edge only, say where in the picture each lies.  Equal to encoding
    the whole pictures.  Raises `ValueError` when a bitmap does not fit its box or the picture.
    """
    corners = np.asarray(boxes, np.int64).reshape(len(bitmaps), -1) if len(bitmaps) else np.zeros((0, 4), np.int64)
    shapes = np.array([bitmap.shape[::-1] for bitmap in bitmaps], np.int64).reshape(-1, 2)
    places = np.concatenate((corners[:, :2], corners[:, :2] + shapes), axis=1)
    if corners.shape[1] == 4 and (corners != places).any():
        raise ValueError("a bitmap's shape differs from its box")
    bits = [np.asarray(bitmap, bool).ravel(order="F") for bitmap in bitmaps]
    runs, lengths = encode_flat(np.concatenate(bits) if bits else np.zeros(0, bool), places, size)
    return np.split(runs, np.cumsum(lengths)[:-1]) if bits else []


def encode_flat(bits: NDArray[np.bool_], boxes: NDArray[np.int64], size: Size) -> tuple[Runs, NDArray[np.int64]]:
    """Run lengths of ``N`` masks whose box-sized bitmaps lie end to end, all in a handful of numpy calls.

    ``bits`` is flat, each bitmap column by column; ``boxes`` ``(N, 4)`` int64 ``xyxy`` inside the picture.
    Returns the masks' runs end to end and how many each has, ``(N,)``.  Raises `ValueError` when the
    boxes leave the picture or do not add up to the bits.
    """
    height, width = size
    tall, wide = boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]
    outside = (boxes[:, :2] < 0) | (boxes[:, 2:] > (width, height))
    if outside.any() or (tall < 0).any() or (wide < 0).any():
        raise ValueError(f"a box leaves the picture of {height} x {width} pixels")
    if int((tall * wide).sum()) != bits.size:
        raise ValueError(f"the boxes have {int((tall * wide).sum())} pixels but there are {bits.size} bits")
    starts, ends = _column_runs(bits, boxes, height, pitch=height * width + 1)
    return runs_from_stretches(starts, ends, len(boxes), height * width)


def runs_from_stretches(starts: Runs, ends: Runs, masks: int, pixels: int) -> tuple[Runs, NDArray[np.int64]]:
    """Run lengths of masks of ``pixels`` each from stretches of foreground, in order, which may touch.

    Positions of mask ``n`` begin at ``n * (pixels + 1)``; ``ends`` are one past the last.  Returns as `encode_flat`.
    """
    joined = np.flatnonzero(starts[1:] == ends[:-1])
    return _counts(np.delete(starts, joined + 1), np.delete(ends, joined), masks, pixels)


def encode_labels(labels: NDArray[Any]) -> tuple[NDArray[Any], list[Runs]]:
    """The objects of a label image ``(H, W)``, whole numbers, 0 for background: their values, rising, and run lengths.

    Works on the runs of the whole picture, so that its memory and time do not grow with the number of objects.
    """
    flat = labels.ravel(order="F")
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    owners = flat[edges[:-1]]
    seen = np.flatnonzero(owners)
    values, numbers = np.unique(owners[seen], return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    shift = numbers[order] * (flat.size + 1)
    starts, ends = edges[seen[order]] + shift, edges[seen[order] + 1] + shift
    runs, lengths = _counts(starts, ends, values.size, flat.size)
    return values, np.split(runs, np.cumsum(lengths)[:-1]) if values.size else []


def _column_runs(bits: NDArray[np.bool_], boxes: NDArray[np.int64], height: int, pitch: int) -> tuple[Runs, Runs]:
    """Foreground runs of every column of every box; mask ``n``'s positions begin at ``n * pitch``."""
    tall, wide = boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]
    wide = np.where(tall > 0, wide, 0)
    owner = np.repeat(np.arange(len(boxes)), wide)
    nth = np.arange(owner.size) - np.repeat(np.cumsum(wide) - wide, wide)
    in_picture = owner * pitch + (boxes[owner, 0] + nth) * height + boxes[owner, 1]
    in_bits = np.cumsum(tall[owner]) - tall[owner]
    begins, stops = bits.copy(), bits.copy()
    begins[1:] &= ~bits[:-1]
    stops[:-1] &= ~bits[1:]
    tops, bottoms = in_bits, in_bits + tall[owner] - 1
    begins[tops], stops[bottoms] = bits[tops], bits[bottoms]
    first, last = np.flatnonzero(begins), np.flatnonzero(stops)
    column = np.searchsorted(in_bits, first, "right") - 1
    shift = in_picture[column] - in_bits[column]
    return first + shift, last + shift + 1


def _counts(starts: Runs, ends: Runs, masks: int, pixels: int) -> tuple[Runs, NDArray[np.int64]]:
    """Runs of all masks from the foreground's starts and ends; mask ``n`` begins at ``n * (pixels + 1)``."""
    origin = np.arange(masks) * (pixels + 1)
    number = np.diff(np.searchsorted(starts, np.append(origin, masks * (pixels + 1))))
    edges = np.empty(2 * (starts.size + masks), np.int64)
    last = np.cumsum(2 * number + 2) - 1
    first = last - 2 * number - 1
    inner = np.ones(edges.size, bool)
    inner[first] = inner[last] = False
    edges[first], edges[last] = origin, origin + pixels
    edges[inner] = np.stack((starts, ends), axis=1).ravel()
    counts = np.diff(edges, append=0)
    kept = np.ones(edges.size, bool)
    kept[last] = False
    tail = last[number > 0] - 1
    kept[tail] = counts[tail] > 0
    return counts[kept], np.add.reduceat(kept, first, dtype=np.int64) if masks else np.zeros(0, np.int64)
