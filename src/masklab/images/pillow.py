"""Image files read with Pillow, with the full 16 bits of PNG files."""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from masklab.images.embedded import embedded_bytes, is_embedded
from masklab.images.opened import ORIENTATION, Opened, channels_without_alpha, upright

_log = logging.getLogger(__name__)

_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")  # some of the others run a program


def open_pillow(path: Path) -> ImageFile.ImageFile:
    """Open a file of a known format with Pillow, whatever its suffix; only the header is read.

    Of a JSON file it is the image that labelme embeds there.
    """
    return Image.open(io.BytesIO(embedded_bytes(path)) if is_embedded(path) else path, formats=_PILLOW_FORMATS)


def open_verified(path: Path) -> ImageFile.ImageFile:
    """`open_pillow` after verifying the checksums of a PNG, which decoding skips; raises Pillow's errors."""
    with open_pillow(path) as opened:
        if opened.format == "PNG":
            opened.verify()
    return open_pillow(path)


def pillow_values(image: Image.Image, channels: int | None) -> NDArray[Any]:
    """A Pillow image of any mode as ``(H, W, C)``: grey or RGB by ``channels``, without alpha.

    Single channels of more than 8 bits (I;16, I, F) are kept; alpha and CMYK are kept if that gives ``channels``.
    """
    if image.mode[0] not in "IF" and not (image.mode in ("LA", "RGBA", "CMYK") and channels == len(image.getbands())):
        grey = channels == 1 or (channels != 3 and image.mode in ("1", "L", "LA", "La"))
        image = image.convert("L" if grey else "RGB")
    values = np.asarray(image)
    return values[:, :, None] if values.ndim == 2 else values


def read_pillow(path: Path, channels: int | None) -> Opened:
    """Decode a whole image file, upright."""
    with open_verified(path) as opened:
        if getattr(opened, "is_animated", False) and opened.format in ("GIF", "PNG", "WEBP"):
            _warn_of_frames(path.parent)
        mode = opened.tile[0][3] if opened.format == "PNG" and opened.tile else None
        if mode == "LA;16B" or mode in _LOW_BYTES:
            return _read_deep_png(path, mode, channels)
        values = pillow_values(ImageOps.exif_transpose(opened), channels)
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
    if mode == "LA;16B":
        pairs, orientation = _read_raw(path, "RGBA")
        high, low = pairs[:, :, ::2], pairs[:, :, 1::2]
    else:
        (high, orientation), (low, _) = _read_raw(path, mode), _read_raw(path, _LOW_BYTES[mode])
    values = upright(high * np.uint16(256) + low, orientation)
    return Opened(values, channels_without_alpha(values.shape[2], values.shape[2] % 2 == 0, channels))


def _read_raw(path: Path, mode: str) -> tuple[NDArray[np.uint16], int]:
    """The bytes of a PNG that Pillow's raw ``mode`` selects, and its orientation."""
    with open_pillow(path) as opened:
        tiles: Any = [(*tile[:3], mode) for tile in opened.tile]
        opened.tile = tiles
        return np.asarray(opened).astype(np.uint16), opened.getexif().get(ORIENTATION, 1)
