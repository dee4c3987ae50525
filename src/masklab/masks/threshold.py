"""Soft masks over boxes to run lengths: the pixels of the image where a mask is above one half.

N objects, P x P samples per mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.masks.encode import rle_from_spans
from masklab.masks.rle import RLE
from masklab.ops.coordinates import pixels_inside, sample_indices
from masklab.utils.types import Floats, Integers, Size

THRESHOLD = 0.5
_STRIP = 1 << 16  # values interpolated at a time: they stay in cache
_BATCH = 1 << 22  # pixels of whole boxes processed at a time


def encode_masks(masks: Floats, boxes: Floats, size: Size) -> list[RLE]:
    """Run lengths (see `masklab.masks.rle`) of the pixels where each mask, interpolated bilinearly, is above 0.5.

    ``masks`` ``(N, P, P)`` float32 lie over ``boxes`` ``(N, 4)`` float32, ``xyxy`` in pixels of an image of ``size``
    (height, width), by the convention of `masklab.ops.coordinates`; outside its box a mask is 0.  A box without area, or with a
    coordinate that is not finite, gives an empty mask.

    Source: the paper is silent; TensorFlow's object detection library does so.
    """
    height, width = size
    edges = np.nan_to_num(np.asarray(boxes, np.float64).reshape(-1, 4)).clip(0, (width, height, width, height))
    pixels = (edges[:, 2:] - edges[:, :2] + 1).clip(0).prod(axis=1).astype(np.int64)
    found: list[RLE] = []
    for a, b in _batches(np.cumsum(pixels), _BATCH):
        placed = _place_boxes(boxes[a:b], size, masks.shape[-1])
        rle, lengths = rle_from_spans(*_foreground_spans(masks[a:b], placed, size), b - a, height * width)
        found += np.split(rle, np.cumsum(lengths)[:-1])
    return found


class _Taps(NamedTuple):
    """The pixels of all boxes along one axis, end to end.

    ``low`` is the mask sample before each pixel, ``share`` the weight of the next; ``begin`` ``(N,)`` is where each
    box's pixels begin.
    """

    low: NDArray[np.int32]
    share: Floats
    begin: Integers


class _PlacedBoxes(NamedTuple):
    """The pixels that boxes cover, ``boxes`` (N, 4) int64 ``xyxy``, and where they fall between the mask's samples."""

    boxes: Integers
    columns: _Taps
    rows: _Taps


def _place_boxes(boxes: Floats, size: Size, samples: int) -> _PlacedBoxes:
    """The pixels of an image of ``size`` inside ``boxes`` ``(N, 4)``, for masks of ``samples`` x ``samples``."""
    corners = np.asarray(boxes, np.float64)
    valid = np.isfinite(corners).all(axis=1) & (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    x1, y1, x2, y2 = np.where(valid[:, None], corners, 0).T
    left, wide = pixels_inside(x1, x2, size[1])
    top, tall = pixels_inside(y1, y2, size[0])
    empty = ~valid | (wide == 0) | (tall == 0)
    for edge in (left, wide, top, tall):
        edge[empty] = 0
    columns, rows = _taps(x1, x2, left, wide, samples), _taps(y1, y2, top, tall, samples)
    return _PlacedBoxes(np.stack((left, top, left + wide, top + tall), axis=1), columns, rows)


def _taps(
    start: NDArray[np.float64], stop: NDArray[np.float64], first: Integers, count: Integers, samples: int
) -> _Taps:
    begin = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(count)), count)
    pixels = np.arange(owner.size) + (first - begin)[owner]
    length = np.where(count > 0, stop - start, 1)
    index = sample_indices(pixels, start[owner], length[owner], samples)
    low = np.minimum(index.astype(np.int32), max(samples - 2, 0))
    return _Taps(low, (index - low).astype(np.float32), begin)


def _interpolate_columns(lines: Floats, columns: _Taps, owner: Integers, some: slice, samples: int) -> Floats:
    """Interpolate masks along x at ``some`` of the boxes' pixel columns: ``(columns, P)``.

    ``lines`` (N * P, P) are the masks' sample columns end to end, ``owner`` the box of each pixel column.
    """
    line = owner[some] * samples + columns.low[some]
    left = lines.take(line, axis=0)
    between = lines.take(line + min(samples - 1, 1), axis=0)
    between -= left
    between *= columns.share[some, None]
    between += left
    return between


def _foreground_spans(masks: Floats, placed: _PlacedBoxes, size: Size) -> tuple[Integers, Integers]:
    """Starts and ends of the foreground in every column of every box, as `rle_from_spans` takes them.

    Between two samples a column is linear, so it crosses the threshold at most once there, and only if the two
    samples lie on different sides of it.  Only the pixels of these intervals are interpolated.
    """
    samples = masks.shape[-1]
    wide, tall = (placed.boxes[:, 2:] - placed.boxes[:, :2]).T
    lines = np.ascontiguousarray(masks.transpose(0, 2, 1), np.float32).reshape(-1, samples)
    owner = np.repeat(np.arange(len(wide)), wide)
    origin = placed.boxes[owner, 0] + np.arange(owner.size) - (np.cumsum(wide) - wide)[owner]
    origin = owner * (size[0] * size[1] + 1) + origin * size[0] + placed.boxes[owner, 1]
    before = _pixels_before(placed.rows.low, tall, samples)
    found = []
    step = max(1, _STRIP // samples)
    for a in range(0, owner.size, step):
        values = _interpolate_columns(lines, placed.columns, owner, slice(a, a + step), samples)
        inside = np.zeros((len(values), samples + 2), bool)
        np.greater(values, THRESHOLD, out=inside[:, 1:-1])
        column, interval = np.divmod(np.flatnonzero(inside[:, 1:] != inside[:, :-1]), samples + 1)
        box = owner[a + column]
        first = before[box, interval]
        pixels = before[box, interval + 1] - first
        crossing = np.repeat(np.arange(len(column)), pixels)
        row = np.arange(len(crossing)) + (placed.rows.begin[box] + first - np.cumsum(pixels) + pixels)[crossing]
        column_, interval_ = column[crossing], interval[crossing]
        upper = values[column_, np.maximum(interval_ - 1, 0)]
        lower = values[column_, np.minimum(interval_, samples - 1)]
        bits = upper + placed.rows.share[row] * (lower - upper) > THRESHOLD
        unchanged = np.bincount(crossing[bits == inside[column_, interval_]], minlength=len(column))
        found.append(origin[a + column] + first + unchanged)
    edges = np.concatenate(found) if found else np.zeros(0, np.int64)
    starts, ends = edges[0::2], edges[1::2]
    seen = ends > starts
    return starts[seen], ends[seen]


def _pixels_before(low: NDArray[np.int32], tall: Integers, samples: int) -> Integers:
    """How many of each box's rows lie before sample ``k``, for ``k`` from -1 to P: ``(N, P + 2)``."""
    owner = np.repeat(np.arange(len(tall)), tall)
    rows = np.bincount(owner * samples + low, minlength=len(tall) * samples).reshape(len(tall), samples)
    return np.pad(np.cumsum(rows, axis=1), ((0, 0), (2, 0)))


def _batches(ends: Integers, most: int) -> Iterator[tuple[int, int]]:
    """Split a list with running total ``ends`` into consecutive parts of a total of about ``most``, one entry at least."""
    cuts = [0, *(np.flatnonzero(np.diff(ends // most)) + 1).tolist(), len(ends)]
    for a, b in pairwise(cuts):
        if b > a:
            yield a, b
