"""How large the pixels of an image are, as the metadata of microscopes and scanners say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import tifffile

from masklab.images.opened import Scale

_MICROMETRES = {
    **dict.fromkeys(("pm", "picometer"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
    **dict.fromkeys(("in", "inch"), 25400.0),
}
_COARSEST_RESOLUTION = 10.0  # micrometres: 2540 dots an inch; what is coarser is meant for a printer or a screen
_RESOLUTION_UNITS = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}  # micrometres in TIFF's ResolutionUnit


def micrometres(unit: Any) -> float | None:
    """Micrometres in a unit of length by its name or symbol, None for others."""
    if not isinstance(unit, str):
        return None
    text = unit.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    return _MICROMETRES.get(text.lower()) if text != "Mm" else None


def checked(down: Any, across: Any, magnification: Any = None) -> Scale:
    """A scale of numbers as a file has them; what is no positive number is not known."""
    sides = [_positive(side) for side in (down, across)]
    size = (sides[0], sides[1]) if sides[0] is not None and sides[1] is not None else None
    return Scale(size, _positive(magnification))


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def tiff_scale(tiff: tifffile.TiffFile, page: Any, orientation: int) -> Scale:
    """The scale of the image of a TIFF whose first page is ``page``, upright, from what OME, ImageJ, Aperio or Hamamatsu write, or its resolution.

    A resolution of 2540 dots an inch or less is one of printing.  Metadata that cannot be read is none.
    """
    sources: list[tuple[Any, Callable[[tifffile.TiffFile, Any], Scale]]] = [
        (tiff.is_ome, _ome_scale),
        (tiff.is_imagej, _imagej_scale),
        (tiff.is_svs, _aperio_scale),
        (True, _resolution_scale),
    ]
    found = Scale()
    for applies, read in sources:
        if applies and found.pixel_size is None:
            try:
                scale = read(tiff, page)
            except (ValueError, TypeError, KeyError, ArithmeticError, ElementTree.ParseError):
                continue
            found = Scale(scale.pixel_size, found.magnification or scale.magnification)
    if orientation in range(5, 9) and found.pixel_size is not None:
        found = found._replace(pixel_size=(found.pixel_size[1], found.pixel_size[0]))
    return found


def _ome_scale(tiff: tifffile.TiffFile, page: Any) -> Scale:
    root = ElementTree.fromstring(tiff.ome_metadata or "")
    image = root.find("{*}Image")
    pixels = None if image is None else image.find("{*}Pixels")
    if image is None or pixels is None:
        return Scale()
    sides = []
    for axis in "YX":
        factor = micrometres(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = _positive(pixels.get(f"PhysicalSize{axis}"))
        sides.append(None if factor is None or size is None else size * factor)
    settings = image.find("{*}ObjectiveSettings")
    objectives = root.findall("{*}Instrument/{*}Objective")
    if settings is not None:
        objectives = [each for each in objectives if each.get("ID") == settings.get("ID")]
    magnification = objectives[0].get("NominalMagnification") if len(objectives) == 1 else None
    return checked(sides[0], sides[1], magnification)


def _imagej_scale(tiff: tifffile.TiffFile, page: Any) -> Scale:
    metadata = tiff.imagej_metadata or {}
    unit, vertical = metadata.get("unit"), metadata.get("yunit")
    across, down = micrometres(unit), micrometres(vertical or unit)
    if across is None or down is None or unit in ("in", "inch"):
        return Scale()
    return _from_tags(page, down, across)


def _aperio_scale(tiff: tifffile.TiffFile, page: Any) -> Scale:
    fields = dict(re.findall(r"\|\s*(MPP|AppMag)\s*=\s*([^|\s]+)", page.description))
    return checked(fields.get("MPP"), fields.get("MPP"), fields.get("AppMag"))


def _resolution_scale(tiff: tifffile.TiffFile, page: Any) -> Scale:
    magnification = page.tags.valueof(65421) if tiff.is_ndpi else None
    unit = _RESOLUTION_UNITS.get(int(page.tags.valueof(296, 2)))
    scale = _from_tags(page, unit, unit) if unit is not None and not tiff.is_imagej else Scale()
    plausible = scale.pixel_size is not None and max(scale.pixel_size) < _COARSEST_RESOLUTION
    return Scale(scale.pixel_size if plausible else None, _positive(magnification))


def _from_tags(page: Any, down: float, across: float) -> Scale:
    """The scale by the tags of the resolution, pixels in a unit of ``down`` and ``across`` micrometres."""
    sides = []
    for code, unit in ((283, down), (282, across)):
        pixels, units = page.tags.valueof(code) or (0, 1)
        sides.append(unit * units / pixels if pixels else None)
    return checked(sides[0], sides[1])
