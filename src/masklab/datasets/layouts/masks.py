"""Reading of label images and of bitmaps of single objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ImageOps

from masklab.datasets.layouts.base import ObjectMask, Pair
from masklab.datasets.problems import Sink
from masklab.images.opened import TIFF_SUFFIXES, decoding
from masklab.images.pillow import as_array, open_pillow, open_verified
from masklab.images.read import open_image_file
from masklab.images.structure import open_tiff_file
from masklab.masks import encode
from masklab.utils.errors import InputError
from masklab.utils.types import Size

_LABEL_SUFFIXES = TIFF_SUFFIXES | {".png"}


def label_objects(pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
    """The objects of a label image: every value except 0."""
    labels = check_size(read_labels(pair.masks[0]), pair, pair.masks[0], size)
    return [ObjectMask(None, runs) for runs in encode.encode_labels(labels)[1]]


def check_size(values: NDArray[Any], pair: Pair, mask: Path, size: Size) -> NDArray[Any]:
    """The values of a mask ``(H, W)``; `InputError` if they do not have the image's size."""
    if values.shape != size:
        raise InputError(
            f"{mask} is {values.shape[1]} wide and {values.shape[0]} high but {pair.image} is {size[1]} wide and "
            f"{size[0]} high (EXIF orientation applied): make them the same size."
        )
    return values


def read_labels(path: str | Path) -> NDArray[Any]:
    """Read a label image, PNG or TIFF, as ``(H, W)`` non-negative integers; those of a palette are its indices.

    Raises `InputError` naming the file for anything else, such as colours, and for a file that cannot be read.
    """
    path = Path(path)
    values = read_numbers(path)
    if values.shape[2] != 1:
        raise InputError(
            f"{path} has {values.shape[2]} channels but a label image has one whole number per pixel: save it as a grey "
            "PNG or TIFF of 8, 16 or 32 bits."
        )
    values = values[:, :, 0]
    if values.dtype.kind == "f":
        whole = np.nan_to_num(values, nan=0.5, posinf=0.5, neginf=0.5)
        if (np.rint(whole) != whole).any():
            raise InputError(f"{path} holds fractions but a label image has whole numbers: save it as integers.")
        values = whole.astype(np.int64)
    if values.dtype.kind not in "uib" or values.min(initial=0) < 0:
        raise InputError(
            f"{path} holds numbers below 0 or of another type: save 0 for background and whole numbers for objects."
        )
    return values


def read_numbers(path: Path) -> NDArray[Any]:
    """The stored numbers of a mask ``(H, W, C)``, upright, without alpha; those of a palette are its indices."""
    if path.suffix.lower() not in _LABEL_SUFFIXES:
        raise InputError(f"{path} cannot hold exact masks: save it as PNG or TIFF.")
    with decoding(path):
        if has_palette(path):
            with open_verified(path) as opened:
                ImageOps.exif_transpose(opened, in_place=True)
                return as_array(opened)[:, :, None]
    with open_image_file(path, None) as image:
        values = image.part(slice(None), slice(None))
    inverted = values.dtype == np.uint8 and _photometric(path) == tifffile.PHOTOMETRIC.MINISWHITE
    return 255 - values if inverted else values  # Pillow inverts 8-bit images in which 0 is white


def has_palette(path: Path) -> bool:
    """Whether the numbers of a PNG or TIFF stand for colours of a palette."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        return _photometric(path) == tifffile.PHOTOMETRIC.PALETTE
    with open_pillow(path) as opened:
        return opened.mode == "P"


def _photometric(path: Path) -> int | None:
    """The photometric interpretation of a TIFF; None for other files."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    with open_tiff_file(path) as tiff:
        page: Any = tiff.pages.first
        return int(page.photometric)
