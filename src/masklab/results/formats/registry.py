"""List of the formats that results are written in."""

from __future__ import annotations

from pathlib import Path

from masklab.results.formats.base import Format
from masklab.results.formats.coco import COCO
from masklab.results.formats.csv import CSV
from masklab.results.formats.geojson import GEOJSON
from masklab.results.formats.labels import LABELS
from masklab.results.formats.overlay import OVERLAY
from masklab.results.formats.parquet import PARQUET
from masklab.results.formats.rois import ROIS
from masklab.results.formats.yolo import YOLO
from masklab.utils.errors import InputError
from masklab.utils.words import nearest

FORMATS: dict[str, Format] = {
    format.name: format for format in (COCO, OVERLAY, LABELS, GEOJSON, ROIS, CSV, YOLO, PARQUET)
}
"""All formats by name."""

DEFAULT = ("coco", "overlay")
"""What `masklab predict` writes unless it is told otherwise."""


def format_named(name: str) -> Format:
    """The format of a name; `InputError` lists them all where there is none."""
    if name not in FORMATS:
        meant = nearest(name, FORMATS)
        raise InputError(
            f"there is no format {name!r}{f' (did you mean {meant}?)' if meant else ''}: name {', '.join(FORMATS)}."
        )
    return FORMATS[name]


def format_of(path: Path) -> Format:
    """The format that a file's suffix stands for; `InputError` lists them all where there is none."""
    suffix = path.suffix.lower()
    found = next((format for format in FORMATS.values() if suffix in format.suffixes), None)
    if found is None:
        known = ", ".join(f"{format.suffixes[0]} ({format.name})" for format in FORMATS.values())
        raise InputError(
            f"{path} does not say by its suffix which format is meant: end it in {known}, or give format=."
        )
    return found
