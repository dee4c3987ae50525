"""Strips and tiles of TIFF pages: whether they are all there, and the image that they make up."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from masklab.images.opened import check_size
from masklab.images.surplus import decode_segment, most_compressed, refuse_shared_bytes, segment_bytes
from masklab.images.tiles import Tile, TileCache, Tiles

_UNTILED = (6, 33007, 34892)  # TIFF compressions whose tiles need more from elsewhere in the file than tables
_NEEDED_TAGS = {*range(256, 260), 262, 273, *range(277, 280), 284, 317, *range(322, 326), 338, 339}
"""Tags of a TIFF page without which it is decoded wrongly."""


def page_tiles(pages: Sequence[Any], cache: TileCache | None) -> Tiles:
    """The tiles or strips of pages that `in_tiles`, after a look at where they are in the file."""
    check_pages(pages)
    key = pages[0].keyframe
    planes, _, height, width, samples = key.shaped
    _, _, (_, tile_height, tile_width, _) = key.decode(None, 0)
    down, across = math.ceil(height / tile_height), math.ceil(width / tile_width)
    for page in pages:
        page.parent.filehandle.set_lock(True)  # for threads

    def decode(place: Tile) -> NDArray[Any] | None:
        row, column, plane = place
        page, index = pages[plane // planes], (plane % planes * down + row) * across + column
        if not page.databytecounts[index]:
            return None
        file = page.parent.filehandle
        with file.lock:
            if file.closed:  # a further file of an OME-TIFF, which tifffile closes with the first
                file.open()
            file.seek(page.dataoffsets[index])
            data = file.read(page.databytecounts[index])
        try:
            return decode_segment(page, data, index)
        except tifffile.TiffFileError as error:  # which says of a file that it is no TIFF
            raise ValueError(f"a strip or tile is {error}") from error

    shape, tile = (height, width, len(pages) * planes * samples), (tile_height, tile_width, samples)
    return Tiles(shape, key.dtype, tile, key.nodata, decode, cache)


def check_pages(pages: Sequence[Any]) -> None:
    """Refuse pages whose strips or tiles are not all there, share bytes or are larger than their pixels."""
    for page in pages:
        check_segments(page, page.keyframe)
    check_size(*pages[0].keyframe.decode(None, 0)[2], pages[0].keyframe.dtype.itemsize)
    refuse_shared_bytes(pages)


def refuse_lost_tags(page: Any) -> None:
    """Refuse a page with a tag that is needed for decoding and unreadable, or too long; tifffile would ignore it."""
    listed, _ = _directory(page)
    lost = (listed & _NEEDED_TAGS) - {tag.code for tag in page.tags}
    if lost:
        raise ValueError(f"its tag {min(lost)} cannot be read")
    if page.photometric == tifffile.PHOTOMETRIC.RGB and page.samplesperpixel < 3:
        raise ValueError(f"it is RGB of {page.samplesperpixel} samples a pixel")
    segments = [page.tags[code].count for code in (273, 279, 324, 325) if code in page.tags]
    if any(count > math.prod(page.chunked) for count in segments):
        raise ValueError(f"it lists {max(segments)} strips or tiles but has {math.prod(page.chunked)}")


def refuse_lost_pages(tiff: tifffile.TiffFile) -> None:
    """Refuse a file that points to a page after its last; tifffile leaves out pages that it cannot find."""
    _, following = _directory(tiff.pages[len(tiff.pages) - 1])
    if following:
        raise ValueError(f"a page after its page {len(tiff.pages)} is missing")


def _directory(page: Any) -> tuple[set[int], int]:
    """The codes of a page's tags as they are in the file, and the offset of the next page, 0 for none."""
    form, file = page.parent.tiff, page.parent.filehandle
    file.seek(page.offset)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    entries = file.read(tags * form.tagsize)
    codes = {struct.unpack_from(form.byteorder + "H", entries, k * form.tagsize)[0] for k in range(tags)}
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    return codes, following


def check_segments(page: Any, key: Any) -> None:
    """Refuse a page with missing strips or tiles, or whose uncompressed strips differ in size from its pixels.

    tifffile would fill missing pixels and cut off surplus ones.  Segments with neither bytes nor offset are allowed:
    GDAL writes them for empty areas; Aperio's scanners write an offset too.
    """
    expected, found = math.prod(key.chunked), min(len(page.dataoffsets), len(page.databytecounts))
    if not len(page.dataoffsets) == len(page.databytecounts) == expected:
        raise ValueError(f"it has {found} of {expected} strips or tiles")
    offsets, lengths = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    if not key.is_svs and (offsets[lengths == 0] > 0).any():
        raise ValueError("a strip or tile has no bytes")
    planes, depth, height, width, samples = key.shaped
    needed = planes * depth * height * math.ceil(width * samples * key.bitspersample / 8)
    if lengths.max(initial=0) > most_compressed(segment_bytes(key)):
        raise ValueError(f"a strip or tile has {lengths.max()} bytes but its pixels need {segment_bytes(key)}")
    if key.compression == 1 and not key.is_tiled and lengths.all() and lengths.sum() != needed:
        raise ValueError(f"its strips hold {lengths.sum()} bytes but its pixels need {needed}")


def in_tiles(series: tifffile.TiffPageSeries) -> bool:
    """Whether `page_tiles` can read a series: each page a plane, or one page of several samples."""
    pages: Any = series.pages
    if any(page is None for page in pages):
        return False
    key = pages[0].keyframe
    planes, depth, height, width, samples = key.shaped
    channels = len(pages) * planes * samples
    return (
        key.compression not in _UNTILED
        and depth == 1
        and (len(pages) == 1 or planes * samples == 1)
        and series.size == channels * height * width
    )
