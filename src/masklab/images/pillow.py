"""Image files read with Pillow, with the full 16 bits of PNG files."""

from __future__ import annotations

import io
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from masklab.images.embedded import embedded_bytes, is_embedded
from masklab.images.opened import ORIENTATION, Opened, bands, channels_without_alpha, check_size, upright
from masklab.images.surplus import check_bmp_runs, check_file_size, check_head, check_jpeg

_log = logging.getLogger(__name__)

_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")  # some of the others run a program


def open_pillow(path: Path) -> ImageFile.ImageFile:
    """Open a file of a known format with Pillow, whatever its suffix; only the header is read.

    Of a JSON file it is the image that labelme embeds there.  Raises Pillow's errors, and `ValueError` for a file whose
    chunks or size are out of all proportion: Pillow reads some of them whole at once.
    """
    with io.BytesIO(embedded_bytes(path)) if is_embedded(path) else open(path, "rb") as file:
        check_head(file)
    return Image.open(io.BytesIO(embedded_bytes(path)) if is_embedded(path) else path, formats=_PILLOW_FORMATS)


def open_verified(path: Path) -> ImageFile.ImageFile:
    """`open_pillow` after a look for surplus data, and at the checksums of a PNG, which decoding skips.

    Raises Pillow's errors, and `ValueError` for a file that holds more than its pixels can need.
    """
    with open_pillow(path) as opened:
        file: Any = opened.fp
        if opened.format == "PNG":
            opened.verify()
        elif opened.format != "TIFF":  # its pages are looked at by `images.tiff`
            check_file_size(file.seek(0, os.SEEK_END), _decoded_bytes(opened), opened.format in ("GIF", "WEBP"))
        if opened.format in ("JPEG", "MPO"):
            check_jpeg(file)
        if opened.tile and opened.tile[0][0] == "bmp_rle":
            check_bmp_runs(file.seek(0, os.SEEK_END), opened.width * opened.height)
    return open_pillow(path)


def _decoded_bytes(opened: ImageFile.ImageFile) -> int:
    wide = opened.mode[0] in "IF" or opened.format == "JPEG2000"  # whose decoder has 32 bits a sample
    return opened.width * opened.height * len(opened.getbands()) * (4 if wide else 1)


def pillow_values(image: Image.Image, channels: int | None) -> NDArray[Any]:
    """A Pillow image of any mode as ``(H, W, C)``: grey or RGB by ``channels``, without alpha.

    Single channels of more than 8 bits (I;16, I, F) are kept; alpha and CMYK are kept if that gives ``channels``.
    """
    if image.mode[0] not in "IF" and not (image.mode in ("LA", "RGBA", "CMYK") and channels == len(image.getbands())):
        grey = channels == 1 or (channels != 3 and image.mode in ("1", "L", "LA", "La"))
        mode = "L" if grey else "RGB"
        image = image if image.mode == mode else image.convert(mode)
    values = as_array(image)
    return values[:, :, None] if values.ndim == 2 else values


def as_array(image: Image.Image) -> NDArray[Any]:
    """The values of a Pillow image ``(H, W)`` or ``(H, W, C)``; Pillow itself would copy them twice on the way."""
    image.load()
    pixel = np.asarray(image.crop((0, 0, 1, 1)))
    values = np.empty((image.height, image.width, *pixel.shape[2:]), pixel.dtype)
    for rows in bands(values.shape):
        values[rows] = np.asarray(image.crop((0, rows.start, image.width, min(rows.stop, image.height))))
    return values


def read_pillow(path: Path, channels: int | None) -> Opened:
    """Decode a whole image file, upright."""
    with open_verified(path) as opened:
        if getattr(opened, "is_animated", False) and opened.format in ("GIF", "PNG", "WEBP"):
            _warn_of_frames(path.parent)
        mode = opened.tile[0][3] if opened.format == "PNG" and opened.tile else None
        if mode == "LA;16B" or mode in _LOW_BYTES:
            return _read_deep_png(path, mode, channels)
        check_size(_decoded_bytes(opened))
        ImageOps.exif_transpose(opened, in_place=True)
        values = pillow_values(opened, None if opened.mode == "L" and channels == 3 else channels)
        if opened.mode == "I" and opened.format in ("PNG", "PPM"):  # 16 bits stored in 32
            values = values.astype(np.uint16)
    return Opened(values, values.shape[2])


@lru_cache
def _warn_of_frames(folder: Path) -> None:
    """Say, once for a folder, that animations are read as their first frame."""
    _log.warning(
        "images of %s are animations, of which the first frame is read; to use the others, save each as a file of its own.",
        folder,
    )


def _read_deep_png(path: Path, mode: str, channels: int | None) -> Opened:
    """A PNG of 16-bit grey with alpha, RGB or RGBA, of which Pillow by itself keeps only the high bytes."""
    with open_pillow(path) as opened:
        width, height, orientation = opened.width, opened.height, opened.getexif().get(ORIENTATION, 1)
    found = 2 if mode == "LA;16B" else len(mode.partition(";")[0])
    check_size(width, height, found, 2)
    values = np.empty((height, width, found), ">u2")
    pairs = values.view(np.uint8).reshape(height, width, found, 2)
    if mode == "LA;16B":
        _read_raw(path, "RGBA", pairs.reshape(height, width, 4))
    else:
        _read_raw(path, mode, pairs[..., 0])
        _read_raw(path, _LOW_BYTES[mode], pairs[..., 1])
    if not values.dtype.isnative:
        values = values.byteswap(inplace=True).view(np.uint16)
    return Opened(upright(values, orientation), channels_without_alpha(found, found % 2 == 0, channels))


def _read_raw(path: Path, mode: str, target: NDArray[np.uint8]) -> None:
    """Write the bytes of a PNG that Pillow's raw ``mode`` selects into ``target`` ``(H, W, C)``."""
    with open_pillow(path) as opened:
        tiles: Any = [(*tile[:3], mode) for tile in opened.tile]
        opened.tile = tiles
        opened.load()
        for rows in bands(target.shape):
            target[rows] = np.asarray(opened.crop((0, rows.start, opened.width, min(rows.stop, opened.height))))
