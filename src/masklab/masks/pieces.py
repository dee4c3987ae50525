"""Connected pieces of masks: pixels that touch, also at corners, belong to one piece."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from masklab.masks.encode import rle_from_spans
from masklab.masks.rle import RLE, spans
from masklab.utils.types import Size


def piece_areas(rle: RLE, size: Size) -> NDArray[np.int64]:
    """Pixels of each connected piece of a mask, by the first pixel of each down the columns."""
    column, top, bottom = spans(rle, size)
    return np.bincount(_owners(column, top, bottom, size[0]), bottom - top).astype(np.int64)


def pieces(rle: RLE, size: Size) -> list[RLE]:
    """The connected pieces of a mask as masks of their own, in the order of `piece_areas`."""
    column, top, bottom = spans(rle, size)
    owners = _owners(column, top, bottom, size[0])
    count, pixels = int(owners.max(initial=-1)) + 1, size[0] * size[1]
    order = np.argsort(owners, kind="stable")
    shift = (owners * (pixels + 1) + column * size[0])[order]
    flat, lengths = rle_from_spans(shift + top[order], shift + bottom[order], count, pixels)
    return np.split(flat, np.cumsum(lengths)[:-1]) if count else []


def _owners(column: RLE, top: RLE, bottom: RLE, height: int) -> NDArray[np.int64]:
    """The piece, from 0, that each span of a column belongs to."""
    touches = (column[1:] == column[:-1] + 1) & (top[1:] <= bottom[:-1]) & (top[:-1] <= bottom[1:])
    if touches.all():  # most objects: one span in each column
        return np.zeros(column.size, np.int64)
    pitch = height + 2  # so that no span of another column is within reach
    first = np.searchsorted(column * pitch + bottom, (column - 1) * pitch + top)
    last = np.searchsorted(column * pitch + top, (column - 1) * pitch + bottom, "right")
    number = (last - first).clip(0)  # of spans in the column before that touch
    right = np.repeat(np.arange(column.size), number)
    left = np.repeat(first - np.cumsum(number) + number, number) + np.arange(right.size)
    root = np.arange(column.size)
    while (apart := root[left] != root[right]).any():
        one, two = root[left[apart]], root[right[apart]]
        np.minimum.at(root, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(root, root[root]):
            root = root[root]
    return np.unique(root, return_inverse=True)[1]
