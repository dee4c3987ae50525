"""From soft masks in boxes to the picture: regions, run lengths, polygons, label maps.

N objects, P x P mask samples, H x W pixels.  Each object is handled inside its own box, so that
nothing as large as N x H x W is ever built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.ops import rle
from masklab.ops.crop import CoordMode

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Polygon = list[Integers]

THRESHOLD = 0.5
SLACK = 1e-4  # pixels: a pixel on the box's edge is inside, whatever the rounding
STRIP = 1 << 16  # pixels interpolated at a time: what stays in cache
BATCH = 1 << 22  # pixels of whole objects held at a time on the way to run lengths


class Regions(NamedTuple):
    """Box-sized pieces of one picture, one an object, laid end to end.

    ===========  ==============  ========  ==================================================
    name         shape           dtype     meaning
    ===========  ==============  ========  ==================================================
    ``boxes``    ``(N, 4)``      int64     ``xyxy``, inside the picture; may be empty
    ``values``   ``(sum,)``      float32   the pixels of each box, column by column
    ``offsets``  ``(N + 1,)``    int64     where each box's pixels begin in ``values``
    ===========  ==============  ========  ==================================================
    """

    boxes: Integers
    values: Floats
    offsets: Integers

    def region(self, n: int) -> Floats:
        """Object ``n``'s values, ``(y2 - y1, x2 - x1)``; a view."""
        x1, y1, x2, y2 = self.boxes[n].tolist()
        return self.values[self.offsets[n] : self.offsets[n + 1]].reshape(x2 - x1, y2 - y1).T


def paste(masks: Floats, boxes: Floats, size: rle.Size, coord_mode: CoordMode = "exact") -> Regions:
    """Bring soft masks back to the picture: bilinear inside the box, 0 outside.

    ``masks`` ``(N, P, P)`` float32 lie over ``boxes`` ``(N, 4)`` float32, ``xyxy`` in pixels of a picture
    of ``size`` (height, width).  Pixel ``Y`` reads the mask at ``(P - 1) * (Y + 0.5 - y1) / (y2 - y1)`` in
    ``exact`` mode, at ``(P - 1) * (Y / (H - 1) - y1 / H) / ((y2 - y1) / H)`` in ``tf`` mode; the same along
    ``X``.  A box without area, or with a coordinate that is not finite, gives an empty region.

    Source: the paper is silent; TensorFlow's object detection library pastes so.
    """
    placed = _place(boxes, size, coord_mode, masks.shape[-1])
    wide, tall = (placed.boxes[:, 2:] - placed.boxes[:, :2]).T
    values = np.empty(int((wide * tall).sum()), np.float32)
    _interpolate(masks, placed.columns, placed.rows, wide, tall, values)
    return Regions(placed.boxes, values, np.concatenate(([0], np.cumsum(wide * tall))))


class _Placed(NamedTuple):
    """The pixels that boxes cover, (N, 4) int64, and where their columns and rows fall between the samples."""

    boxes: Integers
    columns: _Taps
    rows: _Taps


def _place(boxes: Floats, size: rle.Size, coord_mode: CoordMode, samples: int) -> _Placed:
    corners = np.asarray(boxes, np.float64)
    real = np.isfinite(corners).all(axis=1) & (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    x1, y1, x2, y2 = np.where(real[:, None], corners, 0).T
    left, wide = _covered(x1, x2, size[1], coord_mode)
    top, tall = _covered(y1, y2, size[0], coord_mode)
    empty = ~real | (wide == 0) | (tall == 0)
    for edge in (left, wide, top, tall):
        edge[empty] = 0
    columns = _taps(x1, x2, left, wide, size[1], coord_mode, samples)
    rows = _taps(y1, y2, top, tall, size[0], coord_mode, samples)
    return _Placed(np.stack((left, top, left + wide, top + tall), axis=1), columns, rows)


def _scale(pixels: int, mode: CoordMode) -> tuple[float, float]:
    """Slope and offset from a pixel's index to its place in the units of the boxes."""
    return (1.0, 0.5) if mode == "exact" else (pixels / max(pixels - 1, 1), 0.0)


def _covered(
    start: NDArray[np.float64], stop: NDArray[np.float64], pixels: int, mode: CoordMode
) -> tuple[Integers, Integers]:
    """First pixel inside each box along one axis, and how many."""
    slope, offset = _scale(pixels, mode)
    first = np.ceil((start - offset) / slope - SLACK).clip(0, pixels)
    last = np.floor((stop - offset) / slope + SLACK).clip(-1, pixels - 1)
    return first.astype(np.int64), (last + 1 - first).clip(0).astype(np.int64)


class _Taps(NamedTuple):
    """Every pixel along one axis, boxes end to end: lower sample, share of the next; where each box begins."""

    low: NDArray[np.int32]
    share: Floats
    begin: Integers


def _taps(
    start: NDArray[np.float64],
    stop: NDArray[np.float64],
    first: Integers,
    count: Integers,
    pixels: int,
    mode: CoordMode,
    samples: int,
) -> _Taps:
    slope, offset = _scale(pixels, mode)
    begin = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(count)), count)
    index = np.arange(owner.size) + (first - begin)[owner]
    length = np.where(count > 0, stop - start, 1)
    place = (samples - 1) * (slope * index + offset - start[owner]) / length[owner]
    place = place.clip(0, samples - 1)
    low = np.minimum(place.astype(np.int32), max(samples - 2, 0))
    return _Taps(low, (place - low).astype(np.float32), begin)


def _interpolate(masks: Floats, columns: _Taps, rows: _Taps, wide: Integers, tall: Integers, out: Floats) -> None:
    """Fill ``out``: first along x, to one line of P samples a column, then along y, to the pixels."""
    samples = masks.shape[-1]
    step = min(samples - 1, 1)
    lines = np.ascontiguousarray(masks.transpose(0, 2, 1), np.float32).reshape(-1, samples)
    owner = np.repeat(np.arange(len(wide)), wide)
    ends = np.cumsum(tall[owner])
    for a, b in _strips(ends, STRIP):
        middle = _columns_of_samples(lines, columns, owner, slice(a, b), samples).ravel()
        heights = tall[owner[a:b]]
        pixel = int(ends[a] - heights[0])
        tap = np.arange(int(heights.sum())) + np.repeat(rows.begin[owner[a:b]] - np.cumsum(heights) + heights, heights)
        index = np.repeat(np.arange(b - a) * samples, heights) + rows.low[tap]
        upper = middle[index]
        out[pixel : pixel + tap.size] = upper + rows.share[tap] * (middle[index + step] - upper)


def _columns_of_samples(lines: Floats, columns: _Taps, owner: Integers, some: slice, samples: int) -> Floats:
    """Some of the picture's columns as lines of P samples: ``lines`` (N * P, P), masks column by column, along x."""
    line = owner[some] * samples + columns.low[some]
    left = lines.take(line, axis=0)
    middle = lines.take(line + min(samples - 1, 1), axis=0)
    middle -= left
    middle *= columns.share[some, None]
    middle += left
    return middle


def _stretches(masks: Floats, placed: _Placed, size: rle.Size) -> tuple[Integers, Integers]:
    """Foreground of every column of every box, as `rle.runs_from_stretches` takes it, without all the pixels.

    Between two samples a column is straight, so it crosses the threshold at most once there, and only where the
    samples lie on different sides of it; only the pixels of these intervals are interpolated.
    """
    samples = masks.shape[-1]
    wide, tall = (placed.boxes[:, 2:] - placed.boxes[:, :2]).T
    lines = np.ascontiguousarray(masks.transpose(0, 2, 1), np.float32).reshape(-1, samples)
    owner = np.repeat(np.arange(len(wide)), wide)
    origin = placed.boxes[owner, 0] + np.arange(owner.size) - (np.cumsum(wide) - wide)[owner]
    origin = owner * (size[0] * size[1] + 1) + origin * size[0] + placed.boxes[owner, 1]
    before = _pixels_before(placed.rows.low, tall, samples)
    found = []
    step = max(1, STRIP // samples)
    for a in range(0, owner.size, step):
        middle = _columns_of_samples(lines, placed.columns, owner, slice(a, a + step), samples)
        inside = np.zeros((len(middle), samples + 2), bool)
        np.greater(middle, THRESHOLD, out=inside[:, 1:-1])
        column, interval = np.divmod(np.flatnonzero(inside[:, 1:] != inside[:, :-1]), samples + 1)
        box = owner[a + column]
        first = before[box, interval]
        pixels = before[box, interval + 1] - first
        crossing = np.repeat(np.arange(len(column)), pixels)
        row = np.arange(len(crossing)) + (placed.rows.begin[box] + first - np.cumsum(pixels) + pixels)[crossing]
        column_, interval_ = column[crossing], interval[crossing]
        upper = middle[column_, np.maximum(interval_ - 1, 0)]
        lower = middle[column_, np.minimum(interval_, samples - 1)]
        bits = upper + placed.rows.share[row] * (lower - upper) > THRESHOLD
        still = np.bincount(crossing[bits == inside[column_, interval_]], minlength=len(column))
        found.append(origin[a + column] + first + still)
    edges = np.concatenate(found) if found else np.zeros(0, np.int64)
    starts, ends = edges[0::2], edges[1::2]
    seen = ends > starts
    return starts[seen], ends[seen]


def _pixels_before(low: NDArray[np.int32], tall: Integers, samples: int) -> Integers:
    """How many of each box's rows come before sample ``k``, ``k`` from -1 to P: ``(N, P + 2)``."""
    owner = np.repeat(np.arange(len(tall)), tall)
    rows = np.bincount(owner * samples + low, minlength=len(tall) * samples).reshape(len(tall), samples)
    return np.pad(np.cumsum(rows, axis=1), ((0, 0), (2, 0)))


def _strips(ends: Integers, most: int) -> Iterator[tuple[int, int]]:
    """Cut a list whose running total is ``ends`` into stretches of about ``most``, of one entry at least."""
    cuts = [0, *(np.flatnonzero(np.diff(ends // most)) + 1).tolist(), len(ends)]
    for a, b in pairwise(cuts):
        if b > a:
            yield a, b


def masks_to_runs(masks: Floats, boxes: Floats, size: rle.Size, coord_mode: CoordMode = "exact") -> list[rle.Runs]:
    """`paste`, then keep what is above 0.5, as run lengths: ``N`` arrays (see `masklab.ops.rle`)."""
    height, width = size
    edges = np.nan_to_num(np.asarray(boxes, np.float64).reshape(-1, 4)).clip(0, (width, height, width, height))
    pixels = (edges[:, 2:] - edges[:, :2] + 1).clip(0).prod(axis=1).astype(np.int64)
    found: list[rle.Runs] = []
    for a, b in _strips(np.cumsum(pixels), BATCH):
        placed = _place(boxes[a:b], size, coord_mode, masks.shape[-1])
        runs, lengths = rle.runs_from_stretches(*_stretches(masks[a:b], placed, size), b - a, height * width)
        found += np.split(runs, np.cumsum(lengths)[:-1])
    return found


def masks_to_rle(masks: Floats, boxes: Floats, size: rle.Size, coord_mode: CoordMode = "exact") -> list[dict[str, Any]]:
    """`masks_to_runs` as COCO writes them: ``{"size": [height, width], "counts": str}``."""
    return runs_to_rle(masks_to_runs(masks, boxes, size, coord_mode), size)


def runs_to_rle(masks: Sequence[rle.Runs], size: rle.Size) -> list[dict[str, Any]]:
    """COCO's dictionaries ``{"size": [height, width], "counts": str}`` of masks of one picture."""
    return [{"size": [int(size[0]), int(size[1])], "counts": counts} for counts in rle.strings_from_runs(masks)]


def label_map(masks: Sequence[rle.Runs], scores: NDArray[Any], size: rle.Size) -> NDArray[np.int32]:
    """One ``(H, W)`` int32 picture of all objects: 0 is background, 1 the best-scored object, and so on.

    Where objects overlap, the better one is seen; of equals, the earlier.
    """
    labels = np.zeros(size, np.int32)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist()
    for rank in range(len(order), 0, -1):
        runs = masks[order[rank - 1]]
        box = rle.bounds(runs, size)
        if box is not None:
            x1, y1, x2, y2 = box
            labels[y1:y2, x1:x2][rle.window(runs, size, box).view(bool)] = rank
    return labels


def runs_to_polygons(runs: rle.Runs, size: rle.Size) -> list[Polygon]:
    """`polygons` of a mask given by its run lengths."""
    box = rle.bounds(runs, size)
    return polygons(rle.window(runs, size, box), box[:2]) if box is not None else []


def polygons(region: NDArray[Any], origin: tuple[int, int] = (0, 0)) -> list[Polygon]:
    """Trace a binary ``(h, w)`` region along its pixels' edges.

    Each polygon is a list of rings, the outer one first, then its holes.  A ring is an ``(n, 2)`` int64
    array of corners ``(x, y)`` in pixels, ``origin`` (x, y) added, the first not repeated; outer rings
    run clockwise on the screen, holes against it.  Pixels that touch at a corner only are apart; no ring
    meets itself.
    """
    rings = [simple for ring in _rings(np.asarray(region, bool)) for simple in _simple(ring)]
    areas = [_signed_area(ring) for ring in rings]
    outer = [k for k, area in enumerate(areas) if area > 0]
    found: dict[int, Polygon] = {k: [rings[k] + origin] for k in outer}
    for hole in (ring for ring, area in zip(rings, areas, strict=True) if area < 0):
        around = [k for k in outer if _surrounds(rings[k], hole)]
        found[min(around, key=lambda k: areas[k])].append(hole + origin)
    return list(found.values())


def _corners(region: NDArray[np.bool_]) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Where the edge turns, row by row: x, y, and which comes first down a column.

    Where two pixels touch at a corner only, there are two corners, one each: first the one with the edge
    to the left.  The third result is true for the one with the edge upwards.
    """
    padded = np.pad(region, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    turns = above_left ^ above_right ^ below_left ^ below_right
    double = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    y, x = np.nonzero(turns | double)
    twice = np.repeat(np.arange(len(y)), 1 + double[y, x])
    second = np.diff(twice, prepend=-1) == 0
    y, x = y[twice], x[twice]
    return x, y, above_left[y, x] ^ second


def _rings(region: NDArray[np.bool_]) -> Iterator[Integers]:
    """Closed paths along the region's edge, the region to the right of the way."""
    x, y, up = _corners(region)
    across, along = np.arange(len(x)) ^ 1, np.empty(len(x), np.int64)
    by_column = np.lexsort((~up, y, x))
    along[by_column] = by_column[np.arange(len(x)) ^ 1]
    inside = region[np.minimum(y, region.shape[0] - 1), np.minimum(x, region.shape[1] - 1)].tolist()
    points, across_list, along_list = np.stack((x, y), axis=1), across.tolist(), along.tolist()
    visited = bytearray(len(x))
    for start in range(len(x)):
        if visited[start]:
            continue
        path, corner = [], start
        while not visited[corner]:
            other = across_list[corner]
            visited[corner] = visited[other] = True
            path += [corner, other]
            corner = along_list[other]
        yield points[path if inside[start] else path[::-1]]


def _simple(ring: Integers) -> Iterator[Integers]:
    """Cut a ring that meets itself at a corner into rings that do not."""
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for x, y in ring.tolist():
        if (x, y) in place:
            begin = place[x, y]
            yield np.array(path[begin:], np.int64)
            for point in path[begin:]:
                del place[point]
            del path[begin:]
        place[x, y] = len(path)
        path.append((x, y))
    yield np.array(path, np.int64)


def _signed_area(ring: Integers) -> int:
    """Pixels inside a ring, negative when it runs anticlockwise on the screen."""
    x, y = ring.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def _surrounds(ring: Integers, hole: Integers) -> bool:
    """Whether the pixel to the left of a hole's first pixel lies inside the ring."""
    x, y = hole[np.lexsort(hole.T)[0]]
    next_y = np.roll(ring[:, 1], -1)
    crossed = (ring[:, 0] < x) & (np.minimum(ring[:, 1], next_y) <= y) & (np.maximum(ring[:, 1], next_y) > y)
    return bool(crossed.sum() % 2)
