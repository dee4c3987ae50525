"""Polygons around binary masks, along the edges of their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks.rle import RLE, bounds, window
from masklab.utils.types import Size

_Ring = NDArray[np.int64]
Polygon = list[_Ring]

_MOST_CORNERS = 1000  # of a ring that are compared with another's


def rle_to_polygons(rle: RLE, size: Size) -> list[Polygon]:
    """`polygons` of a mask given by its run lengths."""
    box = bounds(rle, size)
    return polygons(window(rle, size, box), box[:2]) if box is not None else []


def polygons(region: NDArray[Any], origin: tuple[int, int] = (0, 0)) -> list[Polygon]:
    """Trace a binary ``(h, w)`` region along its pixels' edges.

    Each polygon is a list of rings, the outer one first, then its holes.  A ring is an ``(n, 2)`` int64
    array of corners ``(x, y)`` in pixels, ``origin`` (x, y) added, the first not repeated; outer rings
    run clockwise on the screen, holes counter-clockwise.  Pixels that touch at a corner only belong to different
    polygons; no ring touches itself.
    """
    rings = [simple for ring in _rings(np.asarray(region, bool)) for simple in _simple(ring)]
    areas = [_signed_area(ring) for ring in rings]
    outer = [k for k, area in enumerate(areas) if area > 0]
    found: dict[int, Polygon] = {k: [rings[k] + origin] for k in outer}
    for hole in (ring for ring, area in zip(rings, areas, strict=True) if area < 0):
        around = [k for k in outer if _surrounds(rings[k], hole)]
        found[min(around, key=lambda k: areas[k])].append(hole + origin)
    return list(found.values())


def joined(parts: list[Polygon]) -> _Ring:
    """One ring that fills the same pixels as all the polygons, where what it winds around twice is outside.

    Lines without width lead from ring to ring and back, between corners that are near each other: from each hole to
    its outer ring, and from each polygon to the one before.  Returns ``(n, 2)`` corners; at least one polygon is given.
    """
    rings: list[_Ring] = []
    parents: list[int] = []
    outer = 0
    for polygon in parts:
        parents += [outer] + [len(rings)] * (len(polygon) - 1)
        outer = len(rings)
        rings += polygon
    hanging: list[list[tuple[int, _Ring]]] = [[] for _ in rings]
    for k in range(len(rings) - 1, 0, -1):
        place, begin = _near_corners(rings[parents[k]], rings[k])
        hanging[parents[k]].append((place, _walk(rings[k], hanging.pop(), begin)))
    return _walk(rings[0], hanging[0], 0)[:-1]


def _walk(ring: _Ring, hanging: list[tuple[int, _Ring]], begin: int) -> _Ring:
    """The way around a ring from one of its corners and back, with the closed ways that hang on its corners."""
    pieces, last = [], 0
    turned = np.roll(ring, -begin, axis=0)
    for place, way in sorted((((place - begin) % len(ring), way) for place, way in hanging), key=lambda item: item[0]):
        pieces += [turned[last : place + 1], way]
        last = place
    return np.concatenate([*pieces, turned[last:], turned[:1]])


def _near_corners(one: _Ring, two: _Ring) -> tuple[int, int]:
    """Corners of two rings that are near each other: the nearest, unless the rings have very many corners."""
    steps = [-(-len(ring) // _MOST_CORNERS) for ring in (one, two)]
    away = one[:: steps[0], None] - two[None, :: steps[1]]
    place, other = divmod(int((away**2).sum(axis=2).argmin()), away.shape[1])
    return place * steps[0], other * steps[1]


def _corners(region: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Corners of the region's edge, row by row: x, y, and whether the corner's vertical edge goes up.

    Where two pixels touch at a corner only there are two corners at one place, first the one whose horizontal
    edge goes to the left.
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


def _rings(region: NDArray[np.bool_]) -> Iterator[_Ring]:
    """Closed paths along the region's edge, with the region at their right."""
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


def _simple(ring: _Ring) -> Iterator[_Ring]:
    """Split a ring that touches itself at a corner into rings that do not."""
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


def _signed_area(ring: _Ring) -> int:
    """Number of pixels inside a ring, negative when it runs counter-clockwise on the screen."""
    x, y = ring.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def _surrounds(ring: _Ring, hole: _Ring) -> bool:
    """Whether the ring encloses the hole: whether the pixel left of the hole's first pixel is inside."""
    x, y = hole[np.lexsort(hole.T)[0]]
    next_y = np.roll(ring[:, 1], -1)
    crossed = (ring[:, 0] < x) & (np.minimum(ring[:, 1], next_y) <= y) & (np.maximum(ring[:, 1], next_y) > y)
    return bool(crossed.sum() % 2)
