"""Run-length encoding (RLE) of binary masks, as in COCO's files.

An RLE is an ``(M,)`` int64 array of run lengths; the ``size = (height, width)`` of its image is passed beside it.
Runs go down the columns, from left to right, and alternate: background, foreground, background and so on.
The first run length may be 0, no other is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.utils.types import Box, Size

RLE = NDArray[np.int64]

_LONGEST_NUMBER = 7  # characters, 35 bits: no run of an image is longer
_RUNS_AT_ONCE = 1 << 20  # written as strings together, to bound the memory


def rle_from_string(counts: str | bytes) -> RLE:
    """Read COCO's compressed string.

    Each number is written in groups of 5 bits, lowest first, one character (``48 + group``) each; bit 5
    is set where another group follows.  From the fourth number on, the difference to the number two places before is
    written.

    Returns ``(M,)`` int64.  Raises `ValueError` with the reason for a malformed string.
    """
    codes = _codes([counts])[0]
    if codes.size == 0:
        return np.zeros(0, np.int64)
    values, _ = _numbers(codes)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return _not_negative(values)


def rles_from_strings(strings: Sequence[str | bytes]) -> list[RLE]:
    """`rle_from_string` for many masks, all together in a few NumPy calls.  Raises `ValueError` if one is malformed."""
    values, ends = flat_from_strings(strings)
    cuts = [0, *ends.tolist()]
    return [values[start:end] for start, end in pairwise(cuts)]


def flat_from_strings(strings: Sequence[str | bytes]) -> tuple[RLE, NDArray[np.int64]]:
    """The run lengths of many masks one after the other, int64, and where those of each end ``(N,)``, int64.

    Raises `ValueError` if a string is malformed.
    """
    codes, lengths = _codes(strings)
    if codes.size == 0:
        return np.zeros(0, np.int64), np.zeros(len(strings), np.int64)
    stops = np.cumsum(lengths)
    if (codes[stops[lengths > 0] - 1] & 32).any():
        raise ValueError("the RLE string ends inside a number")
    values, last = _numbers(codes)
    ended = np.searchsorted(last, stops)  # numbers that have ended where each string does
    counts = np.diff(ended, prepend=0)
    owner = np.repeat(np.arange(len(strings)), counts)
    place = np.arange(values.size) - np.repeat(ended - counts, counts)
    for some in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        values[some] = _cumulative(values[some], owner[some])
    return _not_negative(values), ended


def _codes(strings: Sequence[str | bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The 6-bit groups of compressed strings, one after the other, and how many each string has."""
    try:
        raw = [text.encode("ascii") if isinstance(text, str) else bytes(text) for text in strings]
    except UnicodeEncodeError:
        raise ValueError("the RLE string holds a character outside '0'..'o'") from None
    codes = np.frombuffer(b"".join(raw), np.uint8).astype(np.int64) - 48
    if codes.size and (codes.min() < 0 or codes.max() > 63):
        raise ValueError("the RLE string holds a character outside '0'..'o'")
    return codes, np.array([len(text) for text in raw], np.int64)


def _numbers(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers that groups of bits make, and the last group of each."""
    last = np.flatnonzero((codes & 32) == 0)
    if last.size == 0 or last[-1] != codes.size - 1:
        raise ValueError("the RLE string ends inside a number")
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() > _LONGEST_NUMBER:
        raise ValueError("the RLE string holds a number too large for a run")
    shifts = 5 * (np.arange(codes.size) - np.repeat(first, lengths))
    values = np.add.reduceat((codes & 31) << shifts, first)
    values -= ((codes[last] & 16) != 0) * (np.int64(1) << (5 * lengths))
    return values, last


def _not_negative(values: RLE) -> RLE:
    if values.min() < 0:
        raise ValueError("the RLE string holds a negative run")
    return values


def _cumulative(values: RLE, owners: RLE) -> RLE:
    """Cumulative sums that begin anew with each owner."""
    total, starts = np.cumsum(values), np.flatnonzero(np.diff(owners, prepend=-1))
    return total - np.repeat(total[starts] - values[starts], np.diff(starts, append=values.size))


def rle_to_strings(masks: Sequence[RLE]) -> list[str]:
    """COCO's compressed strings of masks, many together in a few numpy calls."""
    batches = np.cumsum([len(mask) for mask in masks], dtype=np.int64) // _RUNS_AT_ONCE
    cuts = [0, *(np.flatnonzero(np.diff(batches)) + 1).tolist(), len(masks)]
    return [text for a, b in pairwise(cuts) if b > a for text in _strings(masks[a:b])]


def _strings(masks: Sequence[RLE]) -> list[str]:
    rle, lengths = np.concatenate(masks), np.array([len(mask) for mask in masks], np.int64)
    starts = np.cumsum(lengths) - lengths
    index = np.arange(rle.size) - np.repeat(starts, lengths)
    numbers = rle.copy()
    numbers[2:] -= np.where(index[2:] > 2, rle[:-2], 0)
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    groups = np.ones(rle.size, np.int64)
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


def rle_to_coco(masks: Sequence[RLE], size: Size) -> list[dict[str, Any]]:
    """COCO's dictionaries ``{"size": [height, width], "counts": str}`` of masks of one image of ``size``."""
    return [{"size": [int(size[0]), int(size[1])], "counts": counts} for counts in rle_to_strings(masks)]


def area(rle: RLE) -> int:
    """Number of foreground pixels."""
    return int(rle[1::2].sum())


def bounds(rle: RLE, size: Size) -> Box | None:
    """The tight box ``(x1, y1, x2, y2)`` in pixels around the foreground; ``None`` if there is none."""
    height = size[0]
    starts, ends = _foreground(rle)
    if starts.size == 0:
        return None
    lasts = ends - 1
    left, right = int(starts[0]) // height, int(lasts[-1]) // height
    if (starts // height != lasts // height).any():
        return left, 0, right + 1, height
    return left, int((starts % height).min()), right + 1, int((lasts % height).max()) + 1


def window(rle: RLE, size: Size, box: Box) -> NDArray[np.uint8]:
    """The mask inside an integer ``box`` ``(x1, y1, x2, y2)``: uint8 0 and 1, ``(y2 - y1, x2 - x1)``.

    Pixels outside the image are 0.  Time and memory grow with the box, not with the image.
    """
    x1, y1, x2, y2 = (int(edge) for edge in box)
    height, tall, wide = size[0], max(y2 - y1, 0), max(x2 - x1, 0)
    starts, ends = _foreground(rle)
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


def spans(rle: RLE, size: Size) -> tuple[RLE, RLE, RLE]:
    """The foreground in each column: ``(N,)`` columns, first rows and end rows (one past the last), down the columns."""
    return _by_column(*_foreground(rle), size[0])


def _foreground(rle: RLE) -> tuple[RLE, RLE]:
    """Start and end (one past the last) of each foreground run, in pixels down the columns."""
    edges = np.cumsum(rle)[: rle.size // 2 * 2]
    return edges[0::2], edges[1::2]


def _by_column(starts: RLE, ends: RLE, height: int) -> tuple[RLE, RLE, RLE]:
    """Split runs at the columns' ends: column, first row and end row (one past the last) of each part."""
    if starts.size == 0:
        return starts, starts, starts
    first = starts // height
    pieces = (ends - 1) // height - first + 1
    nth = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    column = np.repeat(first, pieces) + nth
    top = np.maximum(np.repeat(starts, pieces) - column * height, 0)
    bottom = np.minimum(np.repeat(ends, pieces) - column * height, height)
    return column, top, bottom
