"""Run lengths of bitmaps and label images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from masklab.masks.rle import RLE
from masklab.utils.types import Size


def encode_windows(bitmaps: Sequence[NDArray[Any]], boxes: ArrayLike, size: Size) -> list[RLE]:
    """Run lengths of masks that are known inside their boxes only.

    ``bitmaps`` are ``N`` arrays ``(h, w)`` of bool or uint8; ``boxes`` ``(N, 4)`` integers ``xyxy``, or
    ``(N, 2)`` with the left and top edge only, say where in the image each lies.  Equal to encoding
    the whole images.  Raises `ValueError` when a bitmap does not fit its box or the image.
    """
    corners = np.asarray(boxes, np.int64).reshape(len(bitmaps), -1) if len(bitmaps) else np.zeros((0, 4), np.int64)
    shapes = np.array([bitmap.shape[::-1] for bitmap in bitmaps], np.int64).reshape(-1, 2)
    places = np.concatenate((corners[:, :2], corners[:, :2] + shapes), axis=1)
    if corners.shape[1] == 4 and (corners != places).any():
        raise ValueError("a bitmap's shape differs from its box")
    bits = [np.asarray(bitmap, bool).ravel(order="F") for bitmap in bitmaps]
    runs, lengths = encode_flat(np.concatenate(bits) if bits else np.zeros(0, bool), places, size)
    return np.split(runs, np.cumsum(lengths)[:-1]) if bits else []


def encode_flat(bits: NDArray[np.bool_], boxes: NDArray[np.int64], size: Size) -> tuple[RLE, NDArray[np.int64]]:
    """Run lengths of ``N`` masks whose box-sized bitmaps lie end to end, all in a handful of numpy calls.

    ``bits`` is flat, each bitmap column by column; ``boxes`` ``(N, 4)`` int64 ``xyxy`` inside the image.
    Returns the masks' runs end to end and how many each has, ``(N,)``.  Raises `ValueError` when the
    boxes leave the image or do not add up to the bits.
    """
    height, width = size
    tall, wide = boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]
    outside = (boxes[:, :2] < 0) | (boxes[:, 2:] > (width, height))
    if outside.any() or (tall < 0).any() or (wide < 0).any():
        raise ValueError(f"a box leaves the image of {height} x {width} pixels")
    if int((tall * wide).sum()) != bits.size:
        raise ValueError(f"the boxes have {int((tall * wide).sum())} pixels but there are {bits.size} bits")
    starts, ends = _column_runs(bits, boxes, height, pitch=height * width + 1)
    return rle_from_spans(starts, ends, len(boxes), height * width)


def rle_from_spans(starts: RLE, ends: RLE, masks: int, pixels: int) -> tuple[RLE, NDArray[np.int64]]:
    """Run lengths of masks of ``pixels`` each from stretches of foreground, in order, which may touch.

    Positions of mask ``n`` begin at ``n * (pixels + 1)``; ``ends`` are one past the last.  Returns as `encode_flat`.
    """
    joined = np.flatnonzero(starts[1:] == ends[:-1])
    return _counts(np.delete(starts, joined + 1), np.delete(ends, joined), masks, pixels)


def encode_labels(labels: NDArray[Any]) -> tuple[NDArray[Any], list[RLE]]:
    """The objects of a label image ``(H, W)``, whole numbers, 0 for background: their values, rising, and run lengths.

    Works on the runs of the whole image, so that its memory and time do not grow with the number of objects.
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


def _column_runs(bits: NDArray[np.bool_], boxes: NDArray[np.int64], height: int, pitch: int) -> tuple[RLE, RLE]:
    """Foreground runs of every column of every box; mask ``n``'s positions begin at ``n * pitch``."""
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
