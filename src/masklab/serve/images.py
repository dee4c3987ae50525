"""Images that were sent: looked at before they are decoded, and read as long as somebody waits for the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from masklab.images.read import pixels_in_header
from masklab.images.reader import ImageReader, open_reader
from masklab.serve.refusals import Refusal
from masklab.serve.worker import Order
from masklab.utils.types import Box


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
    """Raise `Refusal` for an image whose header claims more than ``most`` pixels, `InputError` for what is no image."""
    found = pixels_in_header(path)
    if found > most:
        raise Refusal(
            413, f"the image has {found} pixels and this server takes {most}: cut it into tiles or shrink it."
        )


@contextmanager
def open_sent(path: Path, channels: int | None, order: Order) -> Iterator[SentImage]:
    """Open an image that was sent; other files that it names are not opened.  Errors as of `open_reader`."""
    with open_reader(path, channels, alone=True) as reader:
        yield SentImage(reader, order)
