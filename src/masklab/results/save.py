"""Writing of one image's results into a file of any format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklab.results.formats.base import Result, check_packages
from masklab.results.formats.registry import format_named, format_of
from masklab.results.pixels import ImageReader, PixelSize, as_pixel_size, as_reader
from masklab.utils.files import atomic_write, file_to_write
from masklab.utils.types import Size

if TYPE_CHECKING:
    from masklab.results.instances import Instances


def save(instances: Instances, path: str | Path, format: str | None, image: Any, pixel_size: PixelSize | None) -> Path:
    """`Instances.save`."""
    path = Path(path)
    chosen = format_of(path) if format is None else format_named(format)
    check_packages(chosen)
    path = file_to_write(path)
    name = Path(image).name if isinstance(image, (str, Path)) else path.stem
    with opened_image(image, instances.size) as (reader, known_size), atomic_write(path) as temporary:
        sides = as_pixel_size(pixel_size) or known_size
        chosen.write(temporary, Result(instances, name, reader, None, sides))
    return path


@contextmanager
def opened_image(image: Any, size: Size) -> Iterator[tuple[ImageReader | None, tuple[float, float] | None]]:
    """An image as it is given: a file, an array, a reader or None; and the size of its pixels, where it is known."""
    if isinstance(image, (str, Path)):
        from masklab.images.reader import open_reader

        with open_reader(image, None) as reader:
            yield as_reader(reader, size), as_pixel_size(reader.pixel_size)
    else:
        yield as_reader(image, size), as_pixel_size(getattr(image, "pixel_size", None))
