"""Writing of one image's results into a file of any format."""

from __future__ import annotations

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
    reader, found_size = opened_image(image, instances.size)
    name = Path(image).name if isinstance(image, (str, Path)) else path.stem
    sides = as_pixel_size(pixel_size) or found_size
    with atomic_write(path) as temporary:
        chosen.write(temporary, Result(instances, name, reader, None, sides))
    return path


def opened_image(image: Any, size: Size) -> tuple[ImageReader | None, tuple[float, float] | None]:
    """An image as it is given: a file, an array, a reader or None; and the size of its pixels, where it is known."""
    if isinstance(image, (str, Path)):
        from masklab.images.pixel_size import read_pixel_size
        from masklab.images.read import read_image

        return as_reader(read_image(image, None), size), read_pixel_size(image)
    return as_reader(image, size), as_pixel_size(getattr(image, "pixel_size", None))
