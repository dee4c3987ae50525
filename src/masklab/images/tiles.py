"""Images in tiles, of which a window decodes only those that it overlaps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.images.opened import check_size

_MOST_KEPT = 2**27
"""Bytes of decoded tiles that are kept: a row of tiles of 256 x 256 RGB pixels across an image 170,000 pixels wide."""

Tile = tuple[int, int, int]
"""(height, width, channels) of a tile, or (row, column, plane) of its place."""


class TileCache:
    """The tiles that were decoded last, bounded in bytes; may be used by several threads."""

    def __init__(self, most_bytes: int = _MOST_KEPT) -> None:
        self._most, self._held = most_bytes, 0
        self._tiles: OrderedDict[Hashable, NDArray[Any] | None] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], NDArray[Any] | None]) -> NDArray[Any] | None:
        """The tile of a key, decoded if it is not among those kept."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        tile = decode()
        with self._lock:
            if key not in self._tiles and tile is not None and tile.nbytes <= self._most:
                self._tiles[key] = tile
                self._held += tile.nbytes
                while self._held > self._most:
                    _, oldest = self._tiles.popitem(last=False)
                    self._held -= 0 if oldest is None else oldest.nbytes
        return tile


class Tiles:
    """The pixels ``(H, W, C)`` of an image in tiles of one size, from its upper left corner; a slice decodes few of them.

    ``decode`` gives the pixels of the tile at (row, column, plane), at least those inside the image, or None for an
    empty tile, whose pixels are ``fill``.  Planes are groups of as many channels as a tile has.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        tile: Tile,
        fill: Any,
        decode: Callable[[Tile], NDArray[Any] | None],
        cache: TileCache | None = None,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._tile, self._fill, self._decode, self._cache = tile, fill, decode, cache

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = (range(*part.indices(side)) for part, side in zip(key, self.shape[:2], strict=True))
        height, width, channels = self._tile
        check_size(len(rows), len(columns), self.shape[2], self.dtype.itemsize)
        values = np.full((len(rows), len(columns), self.shape[2]), self._fill, self.dtype)
        for row in _overlapped(rows, height):
            down = _overlap(rows, row * height, height)
            for column in _overlapped(columns, width):
                across = _overlap(columns, column * width, width)
                for plane in range(self.shape[2] // channels):
                    tile = self._get((row, column, plane))
                    if tile is not None:
                        first = plane * channels
                        values[down[0], across[0], first : first + channels] = tile[down[1], across[1]]
        return values

    def _get(self, place: Tile) -> NDArray[Any] | None:
        if self._cache is None:
            return self._decode(place)
        return self._cache.get((id(self), place), lambda: self._decode(place))


def _overlapped(wanted: range, length: int) -> Iterator[int]:
    """The numbers of the tiles, each of ``length`` pixels, that hold ``wanted`` pixels (an ascending range)."""
    if len(wanted) and wanted.step <= length:
        yield from range(wanted[0] // length, wanted[-1] // length + 1)
    else:
        yield from dict.fromkeys(pixel // length for pixel in wanted)


def _overlap(wanted: range, start: int, length: int) -> tuple[slice, slice]:
    """The overlap of the ``wanted`` pixels with a tile of ``length`` from ``start``: in ``wanted``, and in the tile."""
    first = max(0, -((wanted.start - start) // wanted.step))
    last = min(len(wanted), -((wanted.start - start - length) // wanted.step))
    place = wanted.start + first * wanted.step - start
    return slice(first, last), slice(place, place + (last - first - 1) * wanted.step + 1, wanted.step)
