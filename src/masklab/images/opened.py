"""Opened image file, whatever its format, and the errors that all decoders share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os.path import isfile, islink
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from masklab.utils.errors import InputError
from masklab.utils.failures import is_out_of_memory
from masklab.utils.types import Size

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of both byte orders; BigTIFF has a plus
ORIENTATION = 274  # EXIF's tag and TIFF's
MOST_BYTES = 2**30
"""Of an image as it is decoded, and as it arrives: a few bytes of a compressed file may claim any size."""
_BAND = 2**22  # values of the rows that are converted at once


class _Pixels(Protocol):
    """Pixels ``(H, W, C)`` that are sliced by rows and columns: an array, or TIFF tiles that are decoded then."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]: ...


class Opened(NamedTuple):
    """An image ``(H, W, C)`` of which parts can be decoded; ``channels`` is C without alpha."""

    values: _Pixels
    channels: int

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.values.shape[0], self.values.shape[1]

    def part(self, rows: slice, columns: slice) -> NDArray[Any]:
        """The pixels of these rows and columns, without alpha."""
        return self.values[rows, columns][:, :, : self.channels]


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Context that turns all errors of decoders into an `InputError` that names the file and its fault."""
    if not isfile(path):
        fault = " is a link to a file that is missing" if islink(path) else ": there is no such image file"
        raise InputError(f"{path}{fault}; correct the path or restore the file.")
    try:
        yield
    except InputError:
        raise
    except (UnidentifiedImageError, tifffile.TiffFileError):
        raise InputError(f"{path} is not an image that can be read; convert it to PNG, JPEG or TIFF.") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{path} has too many pixels to be read at once, over {MOST_BYTES >> 30} GiB of numbers; cut it into tiles or shrink it."
        ) from None
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); change the rights of the file.") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise InputError(f"{path} needs more memory than there is; cut it into tiles, or free memory.") from error
        # damaged files make decoders raise almost anything, TypeError and ZeroDivisionError too
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{path} is damaged or cut off ({reason}); replace the file.") from error


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF files do, whatever its suffix."""
    with open(path, "rb") as file:
        return file.read(4) in _TIFF_BEGINNINGS


def channels_without_alpha(found: int, alpha: bool, channels: int | None) -> int:
    """The number of channels to keep of ``found``: alpha, the last, is dropped unless it makes up the wanted number."""
    return found - 1 if alpha and found != channels else found


def check_size(*factors: int) -> None:
    """Raise Pillow's error for images that are too large if the product, in bytes, is too much for one image."""
    if math.prod(map(int, factors)) > MOST_BYTES:
        raise Image.DecompressionBombError


def bands(shape: Sequence[int]) -> Iterator[slice]:
    """The rows of values ``(H, ...)`` in slices of a few megabytes, so that converting them takes no second copy."""
    step = max(1, _BAND // max(1, math.prod(shape[1:])))
    return (slice(top, top + step) for top in range(0, shape[0], step))


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Bring ``(H, W, C)`` of one of EXIF's eight orientations upright by transposing and flipping."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
