"""Size of an image's pixels, where its file says it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from masklab.images.opened import is_tiff

_log = logging.getLogger(__name__)

_MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "\\u00B5m", "\\u00b5m"), 1.0),
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}


def read_pixel_size(path: str | Path) -> tuple[float, float] | None:
    """The (height, width) of a pixel in micrometres, as OME-TIFF and ImageJ's TIFF have it; None where it is not known.

    Dots per inch are not taken: cameras and printers write them, of no specimen.  A file that cannot be read gives None.
    """
    try:
        if not is_tiff(Path(path)):
            return None
        with tifffile.TiffFile(path) as tiff:
            sides = _ome(tiff.ome_metadata) if tiff.is_ome else _imagej(tiff) if tiff.is_imagej else None
    except Exception as error:  # damaged metadata make parsers raise almost anything
        _log.debug("%s: no size of pixels (%s)", path, error)
        return None
    return sides if sides is not None and all(1e-6 < side < 1e9 for side in sides) else None


def _ome(text: str | None) -> tuple[float, float] | None:
    pixels: Any = None if text is None or "<!DOCTYPE" in text else ElementTree.fromstring(text).find(".//{*}Pixels")
    if pixels is None:
        return None
    sides = [
        float(pixels.attrib[f"PhysicalSize{axis}"]) * _MICROMETRES[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")]
        for axis in "YX"
    ]
    return sides[0], sides[1]


def _imagej(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    unit = str((tiff.imagej_metadata or {}).get("unit", ""))
    unit = re.sub(r"\\u00[bB]5", "µ", unit)
    if unit not in _MICROMETRES:
        return None
    tags: Any = tiff.pages.first.tags
    (y, per_y), (x, per_x) = (tags.valueof(code) for code in (283, 282))  # pixels per unit, as fractions
    return per_y / y * _MICROMETRES[unit], per_x / x * _MICROMETRES[unit]
