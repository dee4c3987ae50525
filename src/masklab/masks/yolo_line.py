"""An object as a line of a YOLO label file."""

from __future__ import annotations

from masklab.masks.polygons import Polygon, joined
from masklab.utils.types import Size


def yolo_line(number: int, parts: list[Polygon], size: Size) -> str:
    """Class ``number``, then corners ``x y`` as shares of the width and height of an image of ``size``, without line break.

    All polygons and their holes become one outline (see `joined`); at least one polygon is given.
    """
    corners = joined(parts) / size[::-1]
    return f"{number} {' '.join(f'{value:.7g}' for value in corners.ravel().tolist())}"
