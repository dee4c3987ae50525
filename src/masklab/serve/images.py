"""Images that were sent: looked at before they are decoded, and read as long as somebody waits for the answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from masklab.images.read import size_in_header
from masklab.images.reader import ImageReader, open_reader
from masklab.serve.refusals import Refusal
from masklab.serve.worker import Order
from masklab.utils.types import Box

_LONGEST_SIDE = 20  # times the side of a square of the most pixels


class SentImage:
    """An `ImageReader` without a path, which gives up when nobody waits for the image any more."""

    path: Path | None = None

    def __init__(self, image: ImageReader, order: Order) -> None:
        self._image, self._order = image, order
        self.size, self.channels, self.dtype = image.size, image.channels, image.dtype
        self.pixel_size, self.magnification = image.pixel_size, image.magnification

    def read(self, box: Box) -> NDArray[Any]:
        """The pixels inside a box; `Refusal` after the time limit."""
        self._order.check()
        return self._image.read(box)

    def overview(self, most_pixels: int = 2**20) -> NDArray[Any]:
        """Evenly spaced pixels; `Refusal` after the time limit."""
        self._order.check()
        return self._image.overview(most_pixels)


def check_pixels(path: Path, most: int) -> None:
    """Raise `Refusal` for an image whose header claims more than ``most`` pixels, `InputError` for what is no image.

    An image of a few rows takes as long as one whose tiles are full, so a side has a limit too.
    """
    height, width = size_in_header(path)
    if height * width > most:
        raise Refusal(
            413, f"the image has {height * width} pixels and this server takes {most}: cut it into tiles or shrink it."
        )
    longest = _LONGEST_SIDE * math.isqrt(most)
    if max(height, width) > longest:
        raise Refusal(
            413,
            f"the image is {width} x {height} pixels and this server takes sides of up to {longest}: cut it into tiles.",
        )


@contextmanager
def open_sent(path: Path, channels: int | None, order: Order) -> Iterator[SentImage]:
    """Open an image that was sent; other files that it names are not opened.  Errors as of `open_reader`."""
    with open_reader(path, channels, alone=True) as reader:
        yield SentImage(reader, order)
