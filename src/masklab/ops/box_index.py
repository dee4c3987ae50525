"""Which of many boxes overlap, found without comparing each with each.

n boxes of the index, R boxes that are asked for, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from masklab.utils.types import Doubles, Integers

_ROWS = 1 << 12  # boxes that are looked up at a time
_PAIRS = 1 << 17  # pairs that are compared at a time, to bound the memory
_CELLS = 8  # cells a side for the root of the number of boxes, at most


class Overlapping(NamedTuple):
    """Pairs of boxes that share an area.

    They are all those of the boxes asked for from row ``first`` to before row ``end``; ``rows`` ``(P,)``, ascending,
    are these boxes and ``others`` ``(P,)`` those of the index.
    """

    first: int
    end: int
    rows: Integers
    others: Integers


class _Level(NamedTuple):
    """A grid of square cells with the boxes of about one size, each in the cell of its first corner.

    ``keys`` are the cells of its boxes, ascending, and ``begin`` is where these lie in the index.  ``reach`` is the
    largest width and height of a box.
    """

    keys: Integers
    begin: int
    origin: Doubles
    side: float
    cells: tuple[int, int]
    reach: Doubles


class BoxIndex:
    """Boxes in grids, one for each power of two of their size.

    Time and memory of building it grow as n log n and n.  Finding all pairs takes time that grows with the number of boxes and
    of pairs, whatever the sizes of the boxes; memory is bounded by one box's pairs and a constant.
    """

    def __init__(self, boxes: ArrayLike, labels: ArrayLike | None = None) -> None:
        """Index ``boxes`` (n, 4) ``xyxy``, finite; with ``labels`` (n,), whole numbers from 0, pairs are of one label."""
        given = np.asarray(boxes, np.float64).reshape(-1, 4)
        classes = _labels(labels, len(given))
        sides = given[:, 2:] - given[:, :2]
        usable = np.flatnonzero((sides > 0).all(axis=1))  # others share no area
        sizes = np.frexp(sides[usable].max(axis=1, initial=0))[1]
        self._levels: list[_Level] = []
        members: list[Integers] = []
        begin = 0
        for size in np.unique(sizes):
            rows = usable[sizes == size]
            level, order = _level(given[rows], classes[rows], begin)
            self._levels.append(level)
            members.append(rows[order])
            begin += len(rows)
        self._members = np.concatenate([np.zeros(0, np.int64), *members])
        self._sorted = np.ascontiguousarray(given[self._members].T)

    def pairs(self, boxes: ArrayLike, labels: ArrayLike | None = None) -> Iterator[Overlapping]:
        """The boxes of the index that share an area with ``boxes`` (R, 4), of the same of ``labels`` (R,) if given.

        They come in parts, in the order of ``boxes``; every row is in one part, also where it has no pair.
        """
        given = np.asarray(boxes, np.float64).reshape(-1, 4)
        classes = _labels(labels, len(given))
        for begin in range(0, len(given), _ROWS):
            some = slice(begin, min(begin + _ROWS, len(given)))
            rows, starts, lengths = self._ranges(given[some], classes[some])
            ends = np.cumsum(np.bincount(rows, lengths, some.stop - begin).astype(np.int64))
            first = 0
            while first < len(ends):
                before = int(ends[first - 1]) if first else 0
                end = max(first + 1, int(np.searchsorted(ends, before + _PAIRS, "right")))
                part = slice(*np.searchsorted(rows, (first, end)).tolist())
                found = self._compared(given[some], rows[part], starts[part], lengths[part])
                yield Overlapping(begin + first, begin + end, begin + found[0], found[1])
                first = end

    def _ranges(self, boxes: Doubles, labels: Integers) -> tuple[Integers, Integers, Integers]:
        """Where boxes of the index lie that may overlap: row of the box, first place and number, by ascending rows."""
        parts = []
        for level in self._levels:
            low = np.floor((boxes[:, :2] - level.reach - level.origin) / level.side)
            high = np.floor((boxes[:, 2:] - level.origin) / level.side)
            low, high = (
                np.maximum(low, 0).astype(np.int64),
                np.minimum(high, np.array(level.cells) - 1).astype(np.int64),
            )
            lines = np.where(high[:, 0] >= low[:, 0], (high[:, 1] - low[:, 1] + 1).clip(0), 0)
            rows = np.repeat(np.arange(len(boxes)), lines)
            line = np.arange(len(rows)) - np.repeat(np.cumsum(lines) - lines, lines) + low[rows, 1]
            key = (labels[rows] * level.cells[1] + line) * level.cells[0]
            start = np.searchsorted(level.keys, key + low[rows, 0])
            length = np.searchsorted(level.keys, key + high[rows, 0], "right") - start
            seen = length > 0
            parts.append((rows[seen], start[seen] + level.begin, length[seen]))
        if not parts:
            return (np.zeros(0, np.int64),) * 3
        rows, starts, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable")
        return rows[order], starts[order], lengths[order]

    def _compared(
        self, boxes: Doubles, rows: Integers, starts: Integers, lengths: Integers
    ) -> tuple[Integers, Integers]:
        """The pairs among those of ranges that share an area."""
        owner = np.repeat(rows, lengths)
        place = np.arange(len(owner)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        shares = np.ones(len(owner), bool)
        columns = np.ascontiguousarray(boxes.T)
        for low, high in ((0, 2), (1, 3)):
            shares &= self._sorted[low].take(place) < columns[high].take(owner)
            shares &= self._sorted[high].take(place) > columns[low].take(owner)
        solid = (columns[0] < columns[2]) & (columns[1] < columns[3])
        shares &= solid.take(owner)
        return owner[shares], self._members[place[shares]]


def _labels(labels: ArrayLike | None, count: int) -> Integers:
    return np.zeros(count, np.int64) if labels is None else np.asarray(labels).astype(np.int64)


def _level(boxes: Doubles, labels: Integers, begin: int) -> tuple[_Level, Integers]:
    """The grid of boxes of about one size, and their order in it."""
    origin, reach = boxes[:, :2].min(axis=0), (boxes[:, 2:] - boxes[:, :2]).max(axis=0)
    extent = boxes[:, :2].max(axis=0) - origin
    side = float(max(reach.max(), extent.max() / (_CELLS * len(boxes) ** 0.5)))
    cell = np.floor((boxes[:, :2] - origin) / side).astype(np.int64)
    across, down = (cell.max(axis=0) + 1).tolist()
    keys = (labels * down + cell[:, 1]) * across + cell[:, 0]
    order = np.argsort(keys, kind="stable")
    return _Level(keys[order], begin, origin, side, (across, down), reach), order
