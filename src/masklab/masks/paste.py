"""Soft masks brought from their boxes to the pixels of the image, box by box."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.utils import types
from masklab.utils.types import CoordMode

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

THRESHOLD = 0.5
SLACK = 1e-4  # pixels: a pixel on the box's edge is inside, whatever the rounding
STRIP = 1 << 16  # pixels interpolated at a time: what stays in cache


class Regions(NamedTuple):
    """Box-sized pieces of one image, one an object, laid end to end.

    ===========  ==============  ========  ==================================================
    name         shape           dtype     meaning
    ===========  ==============  ========  ==================================================
    ``boxes``    ``(N, 4)``      int64     ``xyxy``, inside the image; may be empty
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


def paste(masks: Floats, boxes: Floats, size: types.Size, coord_mode: CoordMode = "exact") -> Regions:
    """Bring soft masks back to the image: bilinear inside the box, 0 outside.

    ``masks`` ``(N, P, P)`` float32 lie over ``boxes`` ``(N, 4)`` float32, ``xyxy`` in pixels of an image
    of ``size`` (height, width).  Pixel ``Y`` reads the mask at ``(P - 1) * (Y + 0.5 - y1) / (y2 - y1)`` in
    ``exact`` mode, at ``(P - 1) * (Y / (H - 1) - y1 / H) / ((y2 - y1) / H)`` in ``tf`` mode; the same along
    ``X``.  A box without area, or with a coordinate that is not finite, gives an empty region.

    Source: the paper is silent; TensorFlow's object detection library pastes so.
    """
    placed = place_boxes(boxes, size, coord_mode, masks.shape[-1])
    wide, tall = (placed.boxes[:, 2:] - placed.boxes[:, :2]).T
    values = np.empty(int((wide * tall).sum()), np.float32)
    _interpolate(masks, placed.columns, placed.rows, wide, tall, values)
    return Regions(placed.boxes, values, np.concatenate(([0], np.cumsum(wide * tall))))


class PlacedBoxes(NamedTuple):
    """The pixels that boxes cover, (N, 4) int64, and where their columns and rows fall between the samples."""

    boxes: Integers
    columns: _Taps
    rows: _Taps


def place_boxes(boxes: Floats, size: types.Size, coord_mode: CoordMode, samples: int) -> PlacedBoxes:
    corners = np.asarray(boxes, np.float64)
    valid = np.isfinite(corners).all(axis=1) & (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    x1, y1, x2, y2 = np.where(valid[:, None], corners, 0).T
    left, wide = _covered(x1, x2, size[1], coord_mode)
    top, tall = _covered(y1, y2, size[0], coord_mode)
    empty = ~valid | (wide == 0) | (tall == 0)
    for edge in (left, wide, top, tall):
        edge[empty] = 0
    columns = _taps(x1, x2, left, wide, size[1], coord_mode, samples)
    rows = _taps(y1, y2, top, tall, size[0], coord_mode, samples)
    return PlacedBoxes(np.stack((left, top, left + wide, top + tall), axis=1), columns, rows)


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
    for a, b in cut_into_strips(ends, STRIP):
        middle = interpolate_columns(lines, columns, owner, slice(a, b), samples).ravel()
        heights = tall[owner[a:b]]
        pixel = int(ends[a] - heights[0])
        tap = np.arange(int(heights.sum())) + np.repeat(rows.begin[owner[a:b]] - np.cumsum(heights) + heights, heights)
        index = np.repeat(np.arange(b - a) * samples, heights) + rows.low[tap]
        upper = middle[index]
        out[pixel : pixel + tap.size] = upper + rows.share[tap] * (middle[index + step] - upper)


def interpolate_columns(lines: Floats, columns: _Taps, owner: Integers, some: slice, samples: int) -> Floats:
    """Some of the image's columns as lines of P samples: ``lines`` (N * P, P), masks column by column, along x."""
    line = owner[some] * samples + columns.low[some]
    left = lines.take(line, axis=0)
    middle = lines.take(line + min(samples - 1, 1), axis=0)
    middle -= left
    middle *= columns.share[some, None]
    middle += left
    return middle


def cut_into_strips(ends: Integers, most: int) -> Iterator[tuple[int, int]]:
    """Cut a list whose running total is ``ends`` into stretches of about ``most``, of one entry at least."""
    cuts = [0, *(np.flatnonzero(np.diff(ends // most)) + 1).tolist(), len(ends)]
    for a, b in pairwise(cuts):
        if b > a:
            yield a, b
