"""Run lengths of soft masks above one half, without all their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks import encode, rle
from masklab.masks.paste import (
    STRIP,
    THRESHOLD,
    Floats,
    Integers,
    PlacedBoxes,
    cut_into_strips,
    interpolate_columns,
    place_boxes,
)
from masklab.utils import types
from masklab.utils.types import CoordMode

BATCH = 1 << 22  # pixels of whole objects held at a time on the way to run lengths


def _foreground_spans(masks: Floats, placed: PlacedBoxes, size: types.Size) -> tuple[Integers, Integers]:
    """Foreground of every column of every box, as `rle.rle_from_spans` takes it, without all the pixels.

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
        middle = interpolate_columns(lines, placed.columns, owner, slice(a, a + step), samples)
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


def encode_masks(masks: Floats, boxes: Floats, size: types.Size, coord_mode: CoordMode = "exact") -> list[rle.RLE]:
    """`paste`, then keep what is above 0.5, as run lengths: ``N`` arrays (see `masklab.masks.rle`)."""
    height, width = size
    edges = np.nan_to_num(np.asarray(boxes, np.float64).reshape(-1, 4)).clip(0, (width, height, width, height))
    pixels = (edges[:, 2:] - edges[:, :2] + 1).clip(0).prod(axis=1).astype(np.int64)
    found: list[rle.RLE] = []
    for a, b in cut_into_strips(np.cumsum(pixels), BATCH):
        placed = place_boxes(boxes[a:b], size, coord_mode, masks.shape[-1])
        runs, lengths = encode.rle_from_spans(*_foreground_spans(masks[a:b], placed, size), b - a, height * width)
        found += np.split(runs, np.cumsum(lengths)[:-1])
    return found


def masks_to_rle(
    masks: Floats, boxes: Floats, size: types.Size, coord_mode: CoordMode = "exact"
) -> list[dict[str, Any]]:
    """`encode_masks` as COCO writes them: ``{"size": [height, width], "counts": str}``."""
    return rle_to_coco(encode_masks(masks, boxes, size, coord_mode), size)


def rle_to_coco(masks: Sequence[rle.RLE], size: types.Size) -> list[dict[str, Any]]:
    """COCO's dictionaries ``{"size": [height, width], "counts": str}`` of masks of one image."""
    return [{"size": [int(size[0]), int(size[1])], "counts": counts} for counts in rle.rle_to_strings(masks)]
