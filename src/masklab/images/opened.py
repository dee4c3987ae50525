"""Opened image file, whatever its format, and the errors that all decoders share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os.path import isdir, isfile, islink
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from masklab.images.intensity import sampling_step
from masklab.utils.errors import InputError
from masklab.utils.failures import is_out_of_memory
from masklab.utils.types import Size

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of both byte orders; BigTIFF has a plus
ZARR_SUFFIX = ".zarr"
ORIENTATION = 274  # EXIF's tag and TIFF's
MOST_BYTES = 2**30
"""Of an image as it is decoded, and as it arrives: a few bytes of a compressed file may claim any size."""
_BAND = 2**22  # values of the rows that are converted at once
_MOST_STEPPED = 2**27  # pixels of an image that is passed through for a sample
_BLOCK = 32  # pixels of a side of what is sampled from a larger one
_TURNED, _FLIPPED_ACROSS, _FLIPPED_DOWN = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)  # of EXIF's orientations


class Pixels(Protocol):
    """Pixels ``(H, W, C)`` that are sliced by rows and columns: an array, or tiles that are decoded then."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]: ...


class Scale(NamedTuple):
    """How large pixels are, where a file knows it: micrometres (down, across), and the objective's magnification."""

    pixel_size: tuple[float, float] | None = None
    magnification: float | None = None

    def reduced(self, factors: tuple[float, float]) -> Scale:
        """The scale of pixels that are larger by factors (down, across)."""
        (down, across), size = factors, self.pixel_size
        return Scale(
            None if size is None else (size[0] * down, size[1] * across),
            None if self.magnification is None else self.magnification / math.sqrt(down * across),
        )


class Reduced(NamedTuple):
    """A level of a pyramid that is smaller than the image itself; its tiles are looked at when it is opened."""

    size: Size
    open: Callable[[], Pixels]


class Opened(NamedTuple):
    """An image ``(H, W, C)`` of which parts can be decoded; ``channels`` is C without alpha.

    A pyramid has its ``reduced`` levels too, from large to small, with the same channels.
    """

    values: Pixels
    channels: int
    scale: Scale = Scale()
    reduced: tuple[Reduced, ...] = ()

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values, of this machine's byte order."""
        return self.values.dtype.newbyteorder("=")

    def part(self, rows: slice, columns: slice) -> NDArray[Any]:
        """The pixels of these rows and columns, without alpha."""
        return self.values[rows, columns][:, :, : self.channels]

    def level(self, number: int) -> Opened:
        """The image at a level of its pyramid, with the levels below it; 0 is the image itself."""
        if number == 0:
            return self
        size, pixels = self.reduced[number - 1].size, self.reduced[number - 1].open()
        if (*size, self.values.shape[2]) != pixels.shape or pixels.dtype.newbyteorder("=") != self.dtype:
            raise ValueError(f"level {number} of its pyramid has other channels than level 0")
        scale = self.scale.reduced((self.size[0] / size[0], self.size[1] / size[1]))
        return Opened(pixels, self.channels, scale, self.reduced[number:])

    def sample(self, most_pixels: int | None = None) -> NDArray[Any]:
        """Evenly spaced pixels ``(h, w, channels)``, ``most_pixels`` (a million) at most.

        They are those of the smallest level that gives half as many at least.  Of more than 134 million pixels without
        such a level, evenly spaced blocks of 32 x 32 pixels are read side by side: not each tile need be decoded.
        """
        sizes = [self.size, *(level.size for level in self.reduced)]
        steps = [sampling_step(size, most_pixels) for size in sizes]
        counts = [math.ceil(h / step) * math.ceil(w / step) for (h, w), step in zip(sizes, steps, strict=True)]
        number = max(k for k, count in enumerate(counts) if 2 * count >= counts[0])
        level, step = self.level(number), steps[number]
        if level.size[0] * level.size[1] > _MOST_STEPPED and min(level.size) >= _BLOCK * step:
            return level.blocks(_BLOCK, _BLOCK * step)
        return level.part(slice(None, None, step), slice(None, None, step))

    def blocks(self, side: int, distance: int) -> NDArray[Any]:
        """Square blocks of pixels, one in the middle of each square of ``distance``, joined to one ``(h, w, channels)``."""
        tops, lefts = (range((distance - side) // 2, length - side, distance) for length in self.size)
        rows = [[self.part(slice(top, top + side), slice(left, left + side)) for left in lefts] for top in tops]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows])


class _Upright:
    """Pixels of one of EXIF's orientations, brought upright slice by slice."""

    def __init__(self, values: Pixels, orientation: int) -> None:
        self._values, self._orientation = values, orientation
        height, width, channels = values.shape
        self.shape = (width, height, channels) if orientation in _TURNED else (height, width, channels)
        self.dtype = values.dtype

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = (
            _mirrored(part, side) if self._orientation in flipped else part
            for part, side, flipped in zip(key, self.shape, (_FLIPPED_DOWN, _FLIPPED_ACROSS), strict=False)
        )
        stored = (columns, rows) if self._orientation in _TURNED else (rows, columns)
        return upright(self._values[stored], self._orientation)


def _mirrored(part: slice, side: int) -> slice:
    """The pixels of a slice counted from the other end, in ascending order."""
    wanted = range(*part.indices(side))
    return slice(side - 1 - wanted[-1], side - wanted[0], wanted.step) if wanted else slice(0, 0)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Context that turns all errors of decoders into an `InputError` that names the file and its fault."""
    if not isfile(path) and not is_zarr(path):
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


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder that is one image, by its name."""
    return path.suffix.lower() == ZARR_SUFFIX and isdir(path)


def stored_files(path: Path) -> list[Path]:
    """The files that an image is stored in, in order of name: itself, or those of a folder of OME-Zarr."""
    return sorted(part for part in path.rglob("*") if part.is_file()) if is_zarr(path) else [path]


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
    if orientation in _TURNED:
        values = values.transpose(1, 0, 2)
    if orientation in _FLIPPED_ACROSS:
        values = values[:, ::-1]
    if orientation in _FLIPPED_DOWN:
        values = values[::-1]
    return values


def upright_pixels(values: Pixels, orientation: int) -> Pixels:
    """`upright` for pixels that are decoded when they are sliced."""
    return values if orientation not in range(2, 9) else _Upright(values, orientation)
