"""Label image: a TIFF in which each object has its own number, the better-scored one on top.

It is OME-TIFF, with the size of a pixel where that is known.  Large images are painted, compressed and written tile by
tile.  Files are called ``NAME_masks.tif``, as Cellpose names label images.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks.label_map import LabelPainter
from masklab.results.formats.base import Format, Result

_MOST_IN_16_BITS = 2**16 - 1
_TILE = 512  # pixels, a side
_UNTILED = 2**20  # pixels of an image that is written as a whole
_LARGEST_TIFF = 2**32 - 2**25  # bytes of pixels, beyond which a file is a BigTIFF


def _write(path: Path, result: Result) -> None:
    import tifffile

    found = result.instances
    height, width = found.size
    dtype = np.dtype(np.uint16 if len(found) <= _MOST_IN_16_BITS else np.uint32)
    painter = LabelPainter(found.rle, found.scores, found.size)
    tile = (_TILE, _TILE) if height * width > _UNTILED else None
    parts = _tiles(painter, dtype) if tile else _whole(painter, dtype)
    metadata: dict[str, Any] = {"axes": "YX", "UUID": str(_uuid(result))}
    if result.pixel_size is not None:
        for axis, side in zip("YX", result.pixel_size, strict=True):
            metadata |= {f"PhysicalSize{axis}": side, f"PhysicalSize{axis}Unit": "µm"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=height * width * dtype.itemsize > _LARGEST_TIFF) as file:
        file.write(
            parts,
            shape=found.size,
            dtype=dtype,
            tile=tile,
            compression="zlib",
            photometric="minisblack",
            metadata=metadata,
            maxworkers=1,
        )


def _uuid(result: Result) -> uuid.UUID:
    """OME's name of a file: the same for the same objects, so that they give the same bytes."""
    digest = hashlib.blake2b(result.file_name.encode(errors="surrogateescape"), digest_size=16)
    for values in (result.instances.boxes, result.instances.scores, *result.instances.rle):
        digest.update(np.ascontiguousarray(values).data)
    return uuid.UUID(bytes=digest.digest(), version=4)


def _whole(painter: LabelPainter, dtype: np.dtype[Any]) -> NDArray[Any]:
    part = np.zeros(painter.size, dtype)
    painter.paint(part, (0, 0))
    return part


def _tiles(painter: LabelPainter, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """The tiles, row by row; those at the right and bottom edges are whole too, as TIFF has them."""
    for top in range(0, painter.size[0], _TILE):
        for left in range(0, painter.size[1], _TILE):
            part = np.zeros((_TILE, _TILE), dtype)
            painter.paint(part, (left, top))
            yield part


LABELS = Format(
    "labels",
    "_masks.tif",
    "NAME_masks.tif: label image, each object its own number",
    _write,
    (".tif", ".tiff"),
    measures=True,
    media_type="image/tiff",
)
