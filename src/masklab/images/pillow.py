"""Reading image files with Pillow, at 16 bits where Pillow itself keeps 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from masklab.images.opened import ORIENTATION, Opened, channels_without_alpha, upright

LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")  # of others one runs a program


def open_pillow(path: Path) -> ImageFile.ImageFile:
    """Open one of the known kinds with Pillow, whatever its name says; its size and tags are read, nothing is decoded."""
    return Image.open(path, formats=PILLOW_FORMATS)


def open_verified(path: Path) -> ImageFile.ImageFile:
    """`open_pillow`, with the checksums of a PNG verified, which decoding leaves out; raises as Pillow does."""
    with open_pillow(path) as opened:
        if opened.format == "PNG":
            opened.verify()
    return open_pillow(path)


def pillow_values(image: Image.Image, channels: int | None) -> NDArray[Any]:
    """A Pillow image of any mode as ``(H, W, C)``: grey or RGB as ``channels`` says, without alpha.

    Modes of one deep channel (I;16, I, F) stay one; alpha or CMYK is kept where it makes up the number of ``channels``.
    """
    if image.mode[0] not in "IF" and not (image.mode in ("LA", "RGBA", "CMYK") and channels == len(image.getbands())):
        grey = channels == 1 or (channels != 3 and image.mode in ("1", "L", "LA", "La"))
        image = image.convert("L" if grey else "RGB")
    values = np.asarray(image)
    return values[:, :, None] if values.ndim == 2 else values


def read_pillow(path: Path, channels: int | None) -> Opened:
    with open_verified(path) as opened:
        mode = opened.tile[0][3] if opened.format == "PNG" and opened.tile else None
        if mode == "LA;16B" or mode in LOW_BYTES:
            return _read_deep_png(path, mode, channels)
        values = pillow_values(ImageOps.exif_transpose(opened), channels)
        if opened.mode == "I" and opened.format in ("PNG", "PPM"):  # 16 bits in 32
            values = values.astype(np.uint16)
    return Opened(values, values.shape[2])


def _read_deep_png(path: Path, mode: str, channels: int | None) -> Opened:
    """A PNG of 16-bit grey with alpha, RGB or RGBA, of which Pillow keeps only the high bytes unless told otherwise."""
    if mode == "LA;16B":
        pairs, orientation = _read_raw(path, "RGBA")
        high, low = pairs[:, :, ::2], pairs[:, :, 1::2]
    else:
        (high, orientation), (low, _) = _read_raw(path, mode), _read_raw(path, LOW_BYTES[mode])
    values = upright(high * np.uint16(256) + low, orientation)
    return Opened(values, channels_without_alpha(values.shape[2], values.shape[2] % 2 == 0, channels))


def _read_raw(path: Path, mode: str) -> tuple[NDArray[np.uint16], int]:
    """The bytes that Pillow's raw ``mode`` takes from a PNG, and its orientation."""
    with open_pillow(path) as opened:
        tiles: Any = [(*tile[:3], mode) for tile in opened.tile]
        opened.tile = tiles
        return np.asarray(opened).astype(np.uint16), opened.getexif().get(ORIENTATION, 1)
