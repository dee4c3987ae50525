"""Encoding of bitmaps, label images and spans as run lengths.

A span is a piece of foreground from a start to an end (one past the last), counted in pixels down the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from masklab.masks.rle import RLE
from masklab.utils.types import Size


def encode_windows(bitmaps: Sequence[NDArray[Any]], boxes: ArrayLike, size: Size) -> list[RLE]:
    """Run lengths, in an image of ``size`` (height, width), of masks given as bitmaps of their boxes.

    ``bitmaps`` are ``N`` arrays ``(h, w)`` of bool or uint8; ``boxes`` are their places in the image: ``(N, 4)``
    integers ``xyxy``, or ``(N, 2)`` with the left and top edge only.  All masks are encoded together in a few numpy
    calls.  Raises `ValueError` when a bitmap does not fit its box or a box leaves the image.
    """
    corners = np.asarray(boxes, np.int64).reshape(len(bitmaps), -1) if len(bitmaps) else np.zeros((0, 4), np.int64)
    shapes = np.array([bitmap.shape[::-1] for bitmap in bitmaps], np.int64).reshape(-1, 2)
    places = np.concatenate((corners[:, :2], corners[:, :2] + shapes), axis=1)
    if corners.shape[1] == 4 and (corners != places).any():
        raise ValueError("a bitmap's shape differs from its box")
    height, width = size
    if ((places[:, :2] < 0) | (places[:, 2:] > (width, height))).any():
        raise ValueError(f"a box leaves the image of {height} x {width} pixels")
    if not len(bitmaps):
        return []
    bits = np.concatenate([np.asarray(bitmap, bool).ravel(order="F") for bitmap in bitmaps])
    starts, ends = _column_spans(bits, places, height, pitch=height * width + 1)
    rle, lengths = rle_from_spans(starts, ends, len(places), height * width)
    return np.split(rle, np.cumsum(lengths)[:-1])


def rle_from_spans(starts: RLE, ends: RLE, masks: int, pixels: int) -> tuple[RLE, NDArray[np.int64]]:
    """Run lengths of masks of ``pixels`` pixels each from the spans of their foreground, in order; they may touch.

    The pixels of mask ``n`` are counted from ``n * (pixels + 1)``.  Returns the run lengths of all masks end to end and
    the number of each mask's, ``(N,)``.
    """
    joined = np.flatnonzero(starts[1:] == ends[:-1])
    return _counts(np.delete(starts, joined + 1), np.delete(ends, joined), masks, pixels)


def encode_labels(labels: NDArray[Any]) -> tuple[NDArray[Any], list[RLE]]:
    """The objects of a label image ``(H, W)`` of integers, 0 for background: their values, ascending, and run lengths.

    Works on the runs of the whole image, so that memory and time do not grow with the number of objects.
    """
    flat = labels.ravel(order="F")
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    owners = flat[edges[:-1]]
    seen = np.flatnonzero(owners)
    values, numbers = np.unique(owners[seen], return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    shift = numbers[order] * (flat.size + 1)
    starts, ends = edges[seen[order]] + shift, edges[seen[order] + 1] + shift
    rle, lengths = _counts(starts, ends, values.size, flat.size)
    return values, np.split(rle, np.cumsum(lengths)[:-1]) if values.size else []


def _column_spans(bits: NDArray[np.bool_], boxes: NDArray[np.int64], height: int, pitch: int) -> tuple[RLE, RLE]:
    """Spans of every column of every box; the pixels of mask ``n`` are counted from ``n * pitch``.

    ``bits`` are the boxes' bitmaps end to end, each column by column.
    """
    tall, wide = boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]
    wide = np.where(tall > 0, wide, 0)
    owner = np.repeat(np.arange(len(boxes)), wide)
    nth = np.arange(owner.size) - np.repeat(np.cumsum(wide) - wide, wide)
    in_image = owner * pitch + (boxes[owner, 0] + nth) * height + boxes[owner, 1]
    in_bits = np.cumsum(tall[owner]) - tall[owner]
    begins, stops = bits.copy(), bits.copy()
    begins[1:] &= ~bits[:-1]
    stops[:-1] &= ~bits[1:]
    tops, bottoms = in_bits, in_bits + tall[owner] - 1
    begins[tops], stops[bottoms] = bits[tops], bits[bottoms]
    first, last = np.flatnonzero(begins), np.flatnonzero(stops)
    column = np.searchsorted(in_bits, first, "right") - 1
    shift = in_image[column] - in_bits[column]
    return first + shift, last + shift + 1


def _counts(starts: RLE, ends: RLE, masks: int, pixels: int) -> tuple[RLE, NDArray[np.int64]]:
    """`rle_from_spans` for spans that do not touch."""
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
