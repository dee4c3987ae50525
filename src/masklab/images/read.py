"""Image files of all common formats, read as ``(C, H, W)`` at their own bit depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from masklab.config.image import ImageConfig
from masklab.images.intensity import IntensityRange, sampled_range
from masklab.images.ome_zarr import open_zarr
from masklab.images.opened import ORIENTATION, ZARR_SUFFIX, Opened, bands, check_size, decoding, is_tiff, is_zarr
from masklab.images.pillow import open_pillow, pillow_values, read_pillow
from masklab.images.structure import open_tiff_file
from masklab.images.tiff import image_axes, main_series, open_tiff
from masklab.images.tiles import TileCache
from masklab.utils.errors import InputError
from masklab.utils.types import Box, Size

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".ppm", ".pgm", ".pnm"}
    | {".svs", ".ndpi", ".scn", ".btf", ".tf8", ZARR_SUFFIX}
)
"""Of files that are images, TIFF under the names of scanners' makers among them, and of the folders of OME-Zarr."""
_LUMA = np.array([0.299, 0.587, 0.114])


@contextmanager
def open_image_file(path: Path, channels: int | None) -> Iterator[Opened]:
    """Open an image, upright, to decode parts of it; files other than TIFF and OME-Zarr are decoded whole at once.

    Alpha is kept only if that gives ``channels``.  Raises `InputError` naming the file, also for errors while parts
    are decoded.
    """
    with decoding(path), opened_image(path, channels) as opened:
        yield opened


@contextmanager
def opened_image(
    path: Path, channels: int | None, cache: TileCache | None = None, alone: bool = False
) -> Iterator[Opened]:
    """`open_image_file` with the errors of decoders as they are; ``cache`` keeps tiles for the next part.

    ``alone`` opens no other files that a TIFF may name.
    """
    if is_zarr(path):
        yield open_zarr(path, cache)
    elif not is_tiff(path):
        yield read_pillow(path, channels)
    else:
        with open_tiff_file(path, alone) as tiff:
            yield open_tiff(tiff, path, channels, cache)


def read_image(path: str | Path, channels: int | None) -> NDArray[Any]:
    """Read an image as ``(channels, H, W)`` at its own depth, upright.

    uint8 and uint16 are kept, 1-bit pixels become 0 and 255, all other dtypes become float32.  The EXIF
    orientation is applied.  Grey, palette and transparent images become RGB for 3 channels and grey for 1; any
    other number must be the file's own.  None takes the file's number of channels, without alpha.  Of 16-bit colour
    in JPEG 2000 and PPM, Pillow reads 8 bits.

    Raises `InputError` naming the file when it is missing, is damaged, is not an image, is a stack or has another
    number of channels.
    """
    return read_window(path, channels)[0]


def read_window(path: str | Path, channels: int | None, box: Box | None = None) -> tuple[NDArray[Any], Size]:
    """The part of an image inside ``box`` (xyxy, whole pixels), and ``(height, width)`` of the whole image.

    Otherwise as `read_image`.  Of TIFF and OME-Zarr only that part is read, or the tiles or strips that overlap it;
    other formats, and TIFF that is not stored upright or needs Pillow's decoder, are decoded whole.
    """
    x1, y1, x2, y2 = box or (None, None, None, None)
    with open_image_file(Path(path), channels) as opened:
        rows, columns = slice(y1, y2), slice(x1, x2)
        return arriving_part(opened, rows, columns, channels, path), opened.size


def read_sample(path: str | Path, channels: int | None) -> NDArray[Any]:
    """About a million evenly spaced pixels of an image at most, of a pyramid's smaller level; otherwise as `read_image`."""
    with open_image_file(Path(path), channels) as opened:
        return arriving_values(opened.sample(), channels, path)


def read_intensity_range(path: str | Path, channels: int | None, config: ImageConfig) -> IntensityRange:
    """The `intensity_range` of an image file, read in parts where the format allows it."""
    return sampled_range(read_sample(path, channels), config)


def channels_and_dtype(path: str | Path) -> tuple[int, np.dtype[Any]]:
    """The number of channels of an image, without alpha, and the dtype of its values in the file."""
    with open_image_file(Path(path), None) as opened:
        return opened.channels, opened.dtype


def from_pillow(image: Image.Image, channels: int) -> NDArray[Any]:
    """A Pillow image of any mode as `read_image` returns a file, except that its EXIF orientation is not applied."""
    return arriving_values(pillow_values(image, channels), channels, "the image")


def arriving(channels: int | None, found: int, dtype: np.dtype[Any], name: str | Path) -> tuple[int, np.dtype[Any]]:
    """The number of channels and the dtype that values of the ``found`` channels and ``dtype`` arrive with."""
    if dtype.kind not in "biuf":
        raise InputError(f"{name} holds no numbers that make an image ({dtype}); convert it to 8 or 16 bits.")
    if channels not in (None, found) and (found, channels) not in ((1, 3), (3, 1)):
        raise InputError(
            f"{name} has {found} channels but {channels} are expected; "
            f"train with model.backbone.in_channels {found} or convert the image."
        )
    kept = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    return channels or found, kept if kept in (np.uint8, np.uint16) else np.dtype(np.float32)


def arriving_values(values: NDArray[Any], channels: int | None, name: str | Path) -> NDArray[Any]:
    """``(H, W, C)`` of any dtype to ``(channels, H, W)`` uint8, uint16 or float32, contiguous and writable.

    1-bit pixels become 0 and 255; grey is repeated, and RGB becomes its luminance.
    """
    wanted, dtype = arriving(channels, values.shape[2], values.dtype, name)
    if values.size == 0:
        raise InputError(f"{name} holds no pixels; replace the image.")
    result = np.empty((wanted, *values.shape[:2]), dtype)
    for rows in bands(values.shape):
        band = values[rows].astype(dtype, copy=False)
        if values.dtype == bool:
            band = band * np.uint8(255)
        if wanted == 1 and band.shape[2] == 3:
            grey = band @ _LUMA
            band = (grey if dtype.kind == "f" else np.rint(grey))[:, :, None]
        result[:, rows] = band.transpose(2, 0, 1)
    return result


def arriving_part(opened: Opened, rows: slice, columns: slice, channels: int | None, name: str | Path) -> NDArray[Any]:
    """`arriving_values` of a part of an image; one that takes too much memory is refused before it is decoded."""
    wanted, dtype = arriving(channels, opened.channels, opened.values.dtype, name)
    height, width = (len(range(*part.indices(side))) for part, side in zip((rows, columns), opened.size, strict=True))
    check_size(height, width, wanted, dtype.itemsize)
    return arriving_values(opened.part(rows, columns), channels, name)


def image_size(path: str | Path) -> Size:
    """``(height, width)`` of an image upright as `read_image` returns it, from the file's header.

    A PNG is decoded, since its orientation may be at the end of the file.
    Raises `InputError` naming the file when it is missing or its header cannot be read.
    """
    path = Path(path)
    with decoding(path):
        if is_zarr(path):
            return open_zarr(path).size
        if is_tiff(path):
            with open_tiff_file(path) as tiff:
                series = main_series(tiff)
                height, width = _sides(series)
                orientation = int(series.keyframe.tags.valueof(ORIENTATION, 1))
        else:
            with open_pillow(path) as image:
                width, height = image.size
                orientation = image.getexif().get(ORIENTATION, 1)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def size_in_header(path: Path) -> Size:
    """The (height, width) that an image file claims; nothing is decoded, and no other file that it names is opened.

    Raises `InputError` naming the file when its header cannot be read.
    """
    with decoding(path):
        if is_tiff(path):
            with open_tiff_file(path, alone=True) as tiff:
                return _sides(main_series(tiff))
        with open_pillow(path) as image:
            return image.height, image.width


def _sides(series: tifffile.TiffPageSeries) -> Size:
    sides = dict(zip(image_axes(series), series.shape, strict=True))
    return sides["Y"], sides["X"]
