"""Images of any size, read window by window in memory that does not grow with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from masklab.images.opened import Opened, Scale, decoding
from masklab.images.read import arriving, arriving_part, arriving_values, opened_image
from masklab.images.tiles import TileCache
from masklab.utils.errors import InputError
from masklab.utils.types import Box, Size

_COARSEST = 1.5  # times the pixels that are wanted


class ImageReader(Protocol):
    """An image, or a level of its pyramid, of which windows are read."""

    path: Path | None
    """The file; None for an array."""
    size: Size
    """(height, width) of the chosen level, upright."""
    channels: int
    dtype: np.dtype[Any]
    """uint8, uint16 or float32."""
    pixel_size: tuple[float, float] | None
    """Micrometres (down, across) of the chosen level's pixels, None where they are not known."""
    magnification: float | None
    """Of the objective, as if it had taken the chosen level; None where it is not known."""

    def read(self, box: Box) -> NDArray[Any]:
        """The pixels ``(channels, h, w)`` inside a box xyxy of whole pixels, as `read_image` gives them.

        Raises `ValueError` unless the box has pixels and lies inside the image, and `InputError` naming the file for
        damage.
        """

    def overview(self, most_pixels: int = 2**20) -> NDArray[Any]:
        """Evenly spaced pixels ``(channels, h, w)`` of the whole image, about ``most_pixels``; errors as of `read`.

        Of a pyramid they come from a smaller level; other images are passed through in parts.
        """


class _OpenedReader:
    """The `ImageReader` of an image that is open."""

    def __init__(self, opened: Opened, channels: int | None, path: Path | None) -> None:
        self._opened, self.path = opened, path
        self._name: str | Path = path or "the image"
        self.size = opened.size
        self.channels, self.dtype = arriving(channels, opened.channels, opened.values.dtype, self._name)
        self.pixel_size, self.magnification = opened.scale

    def read(self, box: Box) -> NDArray[Any]:
        _check_box(box, self.size)
        x1, y1, x2, y2 = box
        with self._decoding():
            return arriving_part(self._opened, slice(y1, y2), slice(x1, x2), self.channels, self._name)

    def overview(self, most_pixels: int = 2**20) -> NDArray[Any]:
        with self._decoding():
            return arriving_values(self._opened.sample(most_pixels), self.channels, self._name)

    def _decoding(self) -> AbstractContextManager[None]:
        return nullcontext() if self.path is None else decoding(self.path)


class ArrayReader(_OpenedReader):
    """The `ImageReader` of an array ``(C, H, W)`` in memory.

    ``pixel_size`` is in micrometres (down, across).  Raises `InputError` for an array that is no such image.
    """

    def __init__(
        self,
        image: NDArray[Any],
        pixel_size: tuple[float, float] | None = None,
        magnification: float | None = None,
    ) -> None:
        if image.ndim != 3 or not image.size:
            raise InputError(f"an image must be of shape (channels, height, width), not {image.shape}.")
        opened = Opened(image.transpose(1, 2, 0), len(image), Scale(pixel_size, magnification))
        super().__init__(opened, None, None)


class DecodedReader:
    """An image that is open, with all its pixels in memory; its overview stays that of the file."""

    def __init__(self, image: ImageReader) -> None:
        self._image, self.path, self.size = image, image.path, image.size
        self.channels, self.dtype = image.channels, image.dtype
        self.pixel_size, self.magnification = image.pixel_size, image.magnification
        self._values = image.read((0, 0, image.size[1], image.size[0]))

    def read(self, box: Box) -> NDArray[Any]:
        _check_box(box, self.size)
        x1, y1, x2, y2 = box
        return self._values[:, y1:y2, x1:x2]

    def overview(self, most_pixels: int = 2**20) -> NDArray[Any]:
        return self._image.overview(most_pixels)


def _check_box(box: Box, size: Size) -> None:
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]):
        raise ValueError(f"the box {box} is not inside {size[1]} x {size[0]} pixels")


@contextmanager
def open_reader(
    path: str | Path,
    channels: int | None,
    pixel_size: float | None = None,
    magnification: float | None = None,
    alone: bool = False,
) -> Iterator[ImageReader]:
    """Open an image file, or a folder of OME-Zarr, to read windows of it; ``channels`` as for `read_image`.

    TIFF and OME-Zarr are read in parts, in memory that does not depend on their size; files of other formats, and TIFF
    that only Pillow decodes, are decoded whole here.  Several threads may read windows at the same time.

    Of a pyramid the level is taken whose pixels are nearest to ``pixel_size`` (micrometres), or to those of an
    objective of ``magnification``, and at most 1.5 times as large; without either, level 0.  Levels are read as they
    are: nothing is resampled, so that of an image without a pyramid the pixels may be smaller than asked for.

    A TIFF may name other files as parts of it; with ``alone``, for files of strangers, they are not opened.

    Raises `InputError` naming the file where `read_image` does, and where the wanted pixels are smaller than those of
    the image or theirs are not known.
    """
    path = Path(path)
    check_level(pixel_size, magnification)
    with ExitStack() as stack:
        with decoding(path):
            opened = stack.enter_context(opened_image(path, channels, TileCache(), alone))
            number = _level(opened, pixel_size, magnification, path)
            reader = _OpenedReader(opened.level(number), channels, path)
        yield reader


def check_level(pixel_size: float | None, magnification: float | None) -> None:
    """Raise `InputError` if both are given, or one that is no positive number."""
    if pixel_size is not None and magnification is not None:
        raise InputError("a pixel size and a magnification are given: choose one of them.")
    wanted = pixel_size if pixel_size is not None else magnification
    if wanted is not None and not (math.isfinite(wanted) and wanted > 0):
        raise InputError(f"the pixel size or magnification is {wanted}: choose a positive number.")


def _level(opened: Opened, pixel_size: float | None, magnification: float | None, path: Path) -> int:
    """The number of the level that is nearest to what is wanted."""
    if pixel_size is None and magnification is None:
        return 0
    wanted = pixel_size or magnification or 0
    scales = [opened.scale.reduced(_factors(opened.size, size)) for size in (opened.size, *_sizes(opened))]
    large: Callable[[Scale], float | None] = _side if pixel_size is not None else _inverse_magnification
    found = [large(scale) for scale in scales]
    wanted = wanted if pixel_size is not None else 1 / wanted
    known = [side / wanted for side in found if side is not None]
    what = "pixel size" if pixel_size is not None else "magnification"
    if not known:
        raise InputError(f"{path} does not say its {what}: leave out the {what} that is asked for.")
    if known[0] > _COARSEST:
        raise InputError(
            f"{path} is {known[0]:.3g} times as coarse as the {what} that is asked for: ask for one that it has."
        )
    return min((k for k, ratio in enumerate(known) if ratio <= _COARSEST), key=lambda k: abs(math.log(known[k])))


def _sizes(opened: Opened) -> list[Size]:
    return [level.size for level in opened.reduced]


def _factors(size: Size, reduced: Size) -> tuple[float, float]:
    return size[0] / reduced[0], size[1] / reduced[1]


def _side(scale: Scale) -> float | None:
    return None if scale.pixel_size is None else math.sqrt(math.prod(scale.pixel_size))


def _inverse_magnification(scale: Scale) -> float | None:
    return None if scale.magnification is None else 1 / scale.magnification
