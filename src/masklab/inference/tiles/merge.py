"""Objects of overlapping tiles, made into the objects of their image.

An object that touches an edge of its tile inside the image is cut there, and left out where another tile sees all of it.
Of two objects from different tiles that share more than half of the smaller, the one that lies deeper in its tile is
kept: it is the one that was seen with more of its surroundings, while its score says little about its outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from masklab.masks import rle
from masklab.masks.packed import PackedRLEs
from masklab.ops.box_index import BoxIndex
from masklab.utils.types import Bools, Box, Floats, Integers, Size

_SHARED = 0.5  # of the smaller of two objects, above which they are the same
_FAR = 2**31  # depth of an object in a tile without edges inside the image


@dataclass(frozen=True)
class TileObjects:
    """The objects that were found in a tile, in pixels of the image.

    ==========  ==========  =======  =====================================================
    name        shape       dtype    meaning
    ==========  ==========  =======  =====================================================
    ``tile``    ``(4,)``    int      the tile, ``xyxy`` in whole pixels
    ``boxes``   ``(n, 4)``  float32  ``xyxy``
    ``scores``  ``(n,)``    float32  class probability
    ``labels``  ``(n,)``    int64    ``0..K-1``
    ``bounds``  ``(n, 4)``  int64    ``xyxy`` around the foreground; all 0 where there is none
    ``masks``   ``n``       RLE      run lengths in the image
    ==========  ==========  =======  =====================================================
    """

    tile: Box
    boxes: Floats
    scores: Floats
    labels: Integers
    bounds: Integers
    masks: PackedRLEs

    def __len__(self) -> int:
        return len(self.boxes)

    def rows(self, rows: Integers) -> TileObjects:
        """Some of the objects."""
        return TileObjects(
            self.tile,
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            self.bounds[rows],
            self.masks.take(rows.tolist()),
        )


def bounds_of(masks: Sequence[rle.RLE], size: Size) -> Integers:
    """The tight boxes ``(n, 4)`` around the foreground of masks, all 0 for one without."""
    found = (rle.bounds(mask, size) or (0, 0, 0, 0) for mask in masks)
    return np.array(list(found), np.int64).reshape(-1, 4)


class _Objects:
    """The objects of all tiles end to end."""

    def __init__(self, found: Sequence[TileObjects], size: Size) -> None:
        self.size = size
        self.tiles = np.array([each.tile for each in found], np.int64).reshape(-1, 4)
        self.tile = np.repeat(np.arange(len(found)), [len(each) for each in found])
        self.scores = np.concatenate([each.scores for each in found])
        self.labels = np.concatenate([each.labels for each in found])
        self.bounds = np.concatenate([each.bounds for each in found])
        self.masks = PackedRLEs.joined(each.masks for each in found)
        self.first = np.cumsum([0, *(len(each) for each in found)])

    def depth(self) -> Integers:
        """Pixels between each object and the nearest edge of its tile that lies inside the image; 0 for one that is cut."""
        inside = self.tiles[self.tile]
        return depth_in(inside, self.bounds, self.size)

    def only_cut(self, depth: Integers) -> Bools:
        """Whether an object is cut and no tile reaches beyond what is seen of it: it is larger than tiles overlap."""
        found = depth <= 0
        rows = np.flatnonzero(found)
        for part in BoxIndex(self.tiles).pairs(self.bounds[rows]):  # the tile that holds an object is among these
            seen = depth_in(self.tiles[part.others], self.bounds[rows[part.rows]], self.size) > 0
            found[rows[part.rows[seen]]] = False
        return found

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Objects of one class from different tiles whose bounds overlap."""
        for part in BoxIndex(self.bounds, self.labels).pairs(self.bounds, self.labels):
            later = self.tile[part.others] > self.tile[part.rows]
            yield from zip(part.rows[later].tolist(), part.others[later].tolist(), strict=True)


def depth_in(tiles: Integers, boxes: Integers, size: Size) -> Integers:
    """Pixels between the edges of tiles ``(..., 4)`` that lie inside an image of ``size`` and boxes ``(..., 4)``.

    The least of each; negative where a box leaves its tile.  Tiles and boxes broadcast.
    """
    ends = (size[1], size[0])
    before = np.where(tiles[..., :2] > 0, boxes[..., :2] - tiles[..., :2], _FAR)
    after = np.where(tiles[..., 2:] < ends, tiles[..., 2:] - boxes[..., 2:], _FAR)
    nearest: Integers = np.minimum(before, after).min(axis=-1)
    return nearest


def merge(found: Sequence[TileObjects], size: Size, threshold: float) -> list[list[Integers]]:
    """The rows of each tile's objects that are the objects of an image of ``size``, and of those that are cut: two lists.

    Objects of a score of at least ``threshold`` go before others, whatever their depth.  Cut are those that touch an
    edge of their tile inside the image while no other tile sees them whole.
    """
    if not any(map(len, found)):
        return [[np.zeros(0, np.int64) for _ in found] for _ in range(2)]
    objects = _Objects(found, size)
    depth = objects.depth()
    whole = depth > 0
    rivals = _rivals(objects)
    kept, cut = np.zeros(len(depth), bool), np.zeros(len(depth), bool)
    order = np.lexsort((-objects.scores, -depth, objects.scores < threshold, ~whole))
    for row in order[whole[order] | objects.only_cut(depth)[order]].tolist():
        if not any(kept[other] or cut[other] for other in rivals.get(row, ())):
            (kept if whole[row] else cut)[row] = True
    ends = objects.first[1:-1]
    return [[np.flatnonzero(part) for part in np.split(rows, ends)] for rows in (kept, cut)]


def _rivals(objects: _Objects) -> dict[int, list[int]]:
    """For each object those of other tiles that share more than half of the smaller of the two with it."""
    rivals: dict[int, list[int]] = {}
    decoded = _Decoded(objects.masks)
    for one, two in objects.pairs():
        low = np.maximum(objects.bounds[one, :2], objects.bounds[two, :2])
        high = np.minimum(objects.bounds[one, 2:], objects.bounds[two, 2:])
        least = _SHARED * min(decoded.area(one), decoded.area(two))
        if (high - low).prod() <= least:
            continue
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        windows = [rle.window(decoded[row], objects.size, box) for row in (one, two)]
        if np.count_nonzero(windows[0] & windows[1]) > least:
            rivals.setdefault(one, []).append(two)
            rivals.setdefault(two, []).append(one)
    return rivals


class _Decoded:
    """Run lengths of recent objects, each read from its string once while it is needed."""

    def __init__(self, masks: PackedRLEs, most: int = 1 << 14) -> None:
        self._masks, self._most = masks, most
        self._recent: dict[int, tuple[rle.RLE, int]] = {}

    def _entry(self, row: int) -> tuple[rle.RLE, int]:
        if row not in self._recent:
            if len(self._recent) >= self._most:
                self._recent.clear()
            mask = self._masks[row]
            self._recent[row] = mask, rle.area(mask)
        return self._recent[row]

    def __getitem__(self, row: int) -> rle.RLE:
        return self._entry(row)[0]

    def area(self, row: int) -> int:
        return self._entry(row)[1]
