"""TIFF files, read whole or in windows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import tifffile
from numpy.typing import NDArray

from masklab.images.opened import (
    ORIENTATION,
    Opened,
    Pixels,
    Reduced,
    channels_without_alpha,
    check_size,
    upright_pixels,
)
from masklab.images.pillow import read_pillow
from masklab.images.scale import tiff_scale
from masklab.images.structure import MOST_PAGES
from masklab.images.surplus import JPEG, JPEG_2000, refuse_shared_bytes, refuse_surplus
from masklab.images.tiff_tiles import (
    check_pages,
    check_segments,
    in_tiles,
    page_tiles,
    refuse_lost_pages,
    refuse_lost_tags,
)
from masklab.images.tiles import TileCache
from masklab.utils.errors import InputError

_log = logging.getLogger(__name__)

_CHANNEL_AXES = frozenset(
    "CSQI"
)  # channels, samples, and Q (unknown) and I (pages), as channels without a name are read
_UNNAMED = frozenset("QI")
_MOST_CHANNELS = 16  # a longer last side is a width, not channels
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
_BY_TIFFFILE = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)  # unless a codec is missing


def open_tiff(tiff: tifffile.TiffFile, path: Path, channels: int | None, cache: TileCache | None = None) -> Opened:
    """Open a TIFF: memory-mapped if it is uncompressed, by tiles or strips, or else whole, by Pillow where it must.

    The smaller levels of a pyramid are opened by tiles or strips when they are asked for.
    """
    series = main_series(tiff)
    page: Any = series.keyframe
    axes = image_axes(series)
    _refuse_stacks(series, axes, path)
    if page.photometric not in _BY_TIFFFILE and not _is_colour_jpeg(page):
        if len(series.pages) > 1:
            raise _stack(series, axes, path)
        refuse_shared_bytes([page])
        return _read_pillow(page, path, channels)
    refuse_lost_tags(page)
    refuse_lost_pages(tiff)
    if series.dataoffset is None and _lacks_codec(page):
        if len(series.pages) > 1 or page.samplesperpixel > (4 if page.bitspersample == 8 else 1):
            raise _missing_codec(page, path)
        refuse_shared_bytes([page])
        return _read_pillow(page, path, channels)
    orientation = int(page.tags.valueof(ORIENTATION, 1))
    values = upright_pixels(_pixels(series, axes, path, cache), orientation)
    alpha = any(sample in _ALPHA for sample in page.extrasamples)
    reduced = tuple(
        _reduced(level, orientation, cache)
        for level in series.levels[1:]
        if image_axes(level) == axes == level.axes and in_tiles(level)
    )
    kept = channels_without_alpha(values.shape[2], alpha, channels)
    return Opened(values, kept, tiff_scale(tiff, page, orientation), reduced)


def _pixels(series: tifffile.TiffPageSeries, axes: str, path: Path, cache: TileCache | None) -> Pixels:
    pages: Sequence[Any] = [each for each in series.pages if each is not None]
    if series.dataoffset is not None:
        check_segments(pages[0], pages[0])
        return _channels_last(tifffile.memmap(path, mode="r"), axes)
    if axes == series.axes and in_tiles(series):
        return page_tiles(pages, cache)
    check_pages(pages)
    check_size(series.nbytes)
    refuse_surplus(pages)
    return _channels_last(series.asarray(), axes)


def _reduced(level: tifffile.TiffPageSeries, orientation: int, cache: TileCache | None) -> Reduced:
    sides = dict(zip(level.axes, level.shape, strict=True))
    size = (sides["X"], sides["Y"]) if orientation in range(5, 9) else (sides["Y"], sides["X"])
    pages: Sequence[Any] = list(level.pages)
    return Reduced(size, lambda: upright_pixels(page_tiles(pages, cache), orientation))


def _is_colour_jpeg(page: Any) -> bool:
    """Whether a page is luminance and colour differences in JPEG or JPEG 2000, which come out as RGB."""
    return page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in (JPEG, *JPEG_2000)


def main_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The image of a file: its first one, but the largest in those of Leica's scanners, which begin with an overview."""
    return max(tiff.series, key=lambda series: series.size) if tiff.is_scn else tiff.series[0]


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
        f"{path} is compressed with {compression}, which needs the package imagecodecs: "
        'pip install "masklab[slides]", or save the image uncompressed.'
    )


def _read_pillow(page: Any, path: Path, channels: int | None) -> Opened:
    """`read_pillow`, whose decoders have no word for a compression that they do not know."""
    try:
        return read_pillow(path, channels)
    except OSError as error:
        if _lacks_codec(page):
            raise _missing_codec(page, path) from error
        raise


def _channels_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """Values of tifffile's ``axes`` as ``(H, W, C)``."""
    extra = [k for k, axis in enumerate(axes) if axis not in "YX" and values.shape[k] > 1]
    order = [axes.index("Y"), axes.index("X"), *extra]
    rest = [k for k in range(values.ndim) if k not in order]
    moved = values.transpose(*order, *rest)
    return moved.reshape(moved.shape[0], moved.shape[1], -1)
