"""TIFF files, read whole or in windows."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from masklab.images.opened import ORIENTATION, Opened, channels_without_alpha, check_size, upright
from masklab.images.pillow import read_pillow
from masklab.images.structure import MOST_PAGES
from masklab.images.surplus import decode_segment, most_compressed, refuse_shared_bytes, refuse_surplus, segment_bytes
from masklab.utils.errors import InputError

_log = logging.getLogger(__name__)

_CHANNEL_AXES = frozenset(
    "CSQI"
)  # channels, samples, and Q (unknown) and I (pages), as channels without a name are read
_UNNAMED = frozenset("QI")
_MOST_CHANNELS = 16  # a longer last side is a width, not channels
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
_JPEG = (6, 7, 33007, 34892)  # TIFF compressions whose tiles need tables from elsewhere in the file
_NEEDED_TAGS = {
    *range(256, 260),
    262,
    273,
    *range(277, 280),
    284,
    317,
    *range(322, 326),
    338,
    339,
}  # of a TIFF page, without which it is decoded wrongly


class _Segments:
    """The tiles or strips of a TIFF image as values ``(H, W, C)``; a slice decodes only those that it overlaps."""

    def __init__(self, pages: Sequence[Any]) -> None:
        self.pages, self.key = pages, pages[0].keyframe
        planes, _, height, width, samples = self.key.shaped
        self.shape = (height, width, len(pages) * planes * samples)
        self.dtype = self.key.dtype

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = (range(*part.indices(side)) for part, side in zip(key, self.shape[:2], strict=True))
        check_size(len(rows), len(columns), self.shape[2], self.dtype.itemsize)
        values = np.full((len(rows), len(columns), self.shape[2]), self.key.nodata, self.dtype)
        for channel, page in enumerate(self.pages):
            for index, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
                _, (plane, _, top, left, _), (_, height, width, samples) = self.key.decode(None, index)
                down, across = _overlap(rows, top, height), _overlap(columns, left, width)
                if length and down and across:
                    page.parent.filehandle.seek(offset)
                    segment = decode_segment(self.key, page.parent.filehandle.read(length), index)
                    first = channel + plane
                    values[down[0], across[0], first : first + samples] = segment[down[1], across[1]]
        return values


def open_tiff(tiff: tifffile.TiffFile, path: Path, channels: int | None) -> Opened:
    """Open a TIFF: memory-mapped if it is uncompressed, by tiles or strips, or else whole, by Pillow where it must."""
    page: Any = tiff.pages.first
    series = tiff.series[0]
    axes = image_axes(series)
    _refuse_stacks(series, axes, path)
    if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
        if len(series.pages) > 1:
            raise _stack(series, axes, path)
        refuse_shared_bytes([page])
        return _read_pillow(page, path, channels)
    _refuse_lost_tags(page)
    _refuse_lost_pages(tiff)
    orientation = int(page.tags.valueof(ORIENTATION, 1))
    pages: Sequence[Any] = [each for each in series.pages if each is not None]
    values: NDArray[Any] | _Segments
    if series.dataoffset is not None:
        _check_segments(page, page)
        mapped = tifffile.memmap(path, mode="r")
        values = upright(_channels_last(mapped, axes), orientation)
    elif _lacks_codec(page):
        if len(series.pages) > 1 or page.samplesperpixel > (4 if page.bitspersample == 8 else 1):
            raise _missing_codec(page, path)
        refuse_shared_bytes([page])
        return _read_pillow(page, path, channels)
    else:
        for each in pages:
            _check_segments(each, page.keyframe)
        refuse_shared_bytes(pages)
        if axes == series.axes and _in_segments(series):
            values = _Segments(pages)
            if orientation != 1:
                values = upright(values[:, :], orientation)
        else:
            check_size(series.nbytes)
            refuse_surplus(pages)
            values = upright(_channels_last(series.asarray(), axes), orientation)
    alpha = any(sample in _ALPHA for sample in page.extrasamples)
    return Opened(values, channels_without_alpha(values.shape[2], alpha, channels))


def image_axes(series: tifffile.TiffPageSeries) -> str:
    """tifffile's axes of a series; channels that were saved last are named as such.

    An array ``(256, 256, 2)`` is saved as 256 pages of 256 x 2 pixels by tools that expect the channels first.
    """
    axes, shape = series.axes, series.shape
    if axes[1:] == "YX" and axes[0] != "S" and shape[2] <= _MOST_CHANNELS < min(shape[:2]):
        return "YXC"
    return axes


def _refuse_stacks(series: tifffile.TiffPageSeries, axes: str, path: Path) -> None:
    if "Y" not in axes or "X" not in axes:
        raise ValueError(f"its axes {axes} {series.shape} are not those of an image")
    extra = {axis: side for axis, side in zip(axes, series.shape, strict=True) if axis not in "YX" and side > 1}
    if len(extra) > 1 or not _CHANNEL_AXES.issuperset(extra) or max(extra.values(), default=0) > MOST_PAGES:
        raise _stack(series, axes, path)
    if any(axis in _UNNAMED and side == 3 for axis, side in extra.items()):
        _warn_of_pages(path.parent)


@lru_cache
def _warn_of_pages(folder: Path) -> None:
    """Say, once for a folder, that three pages are read as channels."""
    _log.warning(
        "images of %s have three pages without names, which are read as red, green and blue; if they are planes or "
        "moments, save each as a file of its own; if they are channels, name them (axes CYX) or save RGB.",
        folder,
    )


def _stack(series: tifffile.TiffPageSeries, axes: str, path: Path) -> InputError:
    sides = " x ".join(map(str, series.shape))
    return InputError(
        f"{path} is a stack (axes {axes}, {sides}) but a flat image is needed: "
        "save its planes, or their projection, as files of their own."
    )


def _refuse_lost_tags(page: Any) -> None:
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


def _refuse_lost_pages(tiff: tifffile.TiffFile) -> None:
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


def _check_segments(page: Any, key: Any) -> None:
    """Refuse a page with missing strips or tiles, or whose uncompressed strips differ in size from its pixels.

    tifffile would fill missing pixels and cut off surplus ones.  Segments with neither bytes nor offset are allowed:
    GDAL writes them for empty areas.
    """
    expected, lengths = math.prod(key.chunked), page.databytecounts
    if not len(page.dataoffsets) == len(lengths) == expected:
        raise ValueError(f"it has {min(len(page.dataoffsets), len(lengths))} of {expected} strips or tiles")
    if any(offset and not length for offset, length in zip(page.dataoffsets, lengths, strict=True)):
        raise ValueError("a strip or tile has no bytes")
    planes, depth, height, width, samples = key.shaped
    needed = planes * depth * height * math.ceil(width * samples * key.bitspersample / 8)
    whole = key.decode(None, 0)[2]
    check_size(*whole, key.dtype.itemsize)
    if max(lengths, default=0) > most_compressed(segment_bytes(key)):
        raise ValueError(f"a strip or tile has {max(lengths)} bytes but its pixels need {segment_bytes(key)}")
    if key.compression == 1 and not key.is_tiled and all(lengths) and sum(lengths) != needed:
        raise ValueError(f"its strips hold {sum(lengths)} bytes but its pixels need {needed}")


def _lacks_codec(page: Any) -> bool:
    """Whether tifffile needs imagecodecs, which is not installed, for the page's compression."""
    try:
        page.decode(None, 0)
        if page.compression != tifffile.COMPRESSION.NONE:
            tifffile.TIFF.DECOMPRESSORS[page.compression](b"")
    except ImportError:  # tifffile takes what Python has in place of imagecodecs, such as ZSTD since 3.14
        return True
    except Exception as error:  # no bytes cannot be decoded
        return "imagecodecs" in str(error)
    return False


def _missing_codec(page: Any, path: Path) -> InputError:
    compression = getattr(page.compression, "name", page.compression)
    return InputError(
        f"{path} is compressed with {compression}, which needs the package imagecodecs: pip install imagecodecs, "
        "or save the image uncompressed."
    )


def _read_pillow(page: Any, path: Path, channels: int | None) -> Opened:
    """`read_pillow`, whose decoders have no word for a compression that they do not know."""
    try:
        return read_pillow(path, channels)
    except OSError as error:
        if _lacks_codec(page):
            raise _missing_codec(page, path) from error
        raise


def _in_segments(series: tifffile.TiffPageSeries) -> bool:
    """Whether `_Segments` can read a series: each page a plane, or one page of several samples."""
    pages: Any = series.pages
    if any(page is None for page in pages):
        return False
    key = pages[0].keyframe
    planes, depth, height, width, samples = key.shaped
    channels = len(pages) * planes * samples
    return (
        key.compression not in _JPEG
        and depth == 1
        and (len(pages) == 1 or planes * samples == 1)
        and series.size == channels * height * width
    )


def _overlap(wanted: range, start: int, length: int) -> tuple[slice, slice] | None:
    """The overlap of the ``wanted`` pixels with a segment of ``length`` from ``start``: in ``wanted``, and in the segment."""
    first = max(0, -((wanted.start - start) // wanted.step))
    last = min(len(wanted), -((wanted.start - start - length) // wanted.step))
    if first >= last:
        return None
    place = wanted.start + first * wanted.step - start
    return slice(first, last), slice(place, place + (last - first - 1) * wanted.step + 1, wanted.step)


def _channels_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """Values of tifffile's ``axes`` as ``(H, W, C)``."""
    extra = [k for k, axis in enumerate(axes) if axis not in "YX" and values.shape[k] > 1]
    order = [axes.index("Y"), axes.index("X"), *extra]
    rest = [k for k in range(values.ndim) if k not in order]
    moved = values.transpose(*order, *rest)
    return moved.reshape(moved.shape[0], moved.shape[1], -1)
