"""VGG Image Annotator, versions 1 and 2: a JSON or CSV file, or a saved project, that lists images and regions.

Its regions carry attributes that users name themselves; one of them is the class: the one called class, label,
category, name, type or object, else the only one.  Without attributes there are no classes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from masklab.datasets.layouts.base import Layout, SplitSource
from masklab.datasets.layouts.outlines import ellipse_points, number, polygon_mask, rectangle_points, rotated_points
from masklab.datasets.layouts.places import annotation_files
from masklab.datasets.layouts.shapes import Kind, Listed, ListedImages, Shape, class_table, no_mask
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.files import read_json, read_text
from masklab.utils.types import Size

_PROJECT = "_via_img_metadata"
_CSV_COLUMNS = ("region_shape_attributes", "region_attributes")
_CLASS_WORDS = ("class(es)?", "labels?", "categor(y|ies)", "names?", "types?", "objects?")
_KINDS = {"polygon": Kind.OUTLINE, "circle": Kind.OUTLINE, "ellipse": Kind.OUTLINE, "rect": Kind.BOX}


def _find(folder: Path) -> dict[str, SplitSource]:
    """The images that all files of the tool in a folder list; several files may list the same images alike."""
    found = annotation_files(folder, (".json", ".csv"), _is_via)
    listed = [one for files in found.values() for path, is_via in files if is_via for one in _read(path)]
    if not listed:
        return {}
    attribute = _class_attribute(listed, folder)

    def shape(region: dict[str, Any]) -> Shape:
        drawn = region["shape_attributes"]
        kind = str(drawn.get("name"))
        label = None if attribute is None else ", ".join(_values(region["region_attributes"].get(attribute)))
        if kind not in _KINDS:
            return Shape(Kind.NONE, label, no_mask(f"a shape {kind!r}"))
        return Shape(_KINDS[kind], label, lambda size: _mask(kind, drawn, size))

    return ListedImages(folder, "VGG Image Annotator", listed, _names(listed, attribute), shape).splits()


def _is_via(head: str) -> bool:
    text = head.lstrip()
    if not text.startswith("{"):
        return all(column in text.split("\n", 1)[0] for column in _CSV_COLUMNS)
    if re.match(r'\{\s*"_via_', text):
        return True
    return '"filename"' in text and any(f'"{key}"' in text for key in ("regions", "fileref", "shape_attributes"))


def _read(path: Path) -> list[Listed]:
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    table = read_json(path)
    if isinstance(table, dict) and any(key.startswith("_via_") for key in table):
        table = table.get(_PROJECT)
    if not isinstance(table, dict):
        raise InputError(f"{path} holds no images of VGG Image Annotator: export the annotations as JSON again.")
    return [_entry(entry, key, path) for key, entry in table.items()]


def _entry(entry: Any, key: str, path: Path) -> Listed:
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str) or not entry["filename"]:
        raise InputError(f"{path}: the entry {key!r} has no filename: export the annotations as JSON again.")
    regions = entry.get("regions") or []
    regions = list(regions.values()) if isinstance(regions, dict) else regions
    if not isinstance(regions, list):
        raise InputError(f"{path}: the regions of {entry['filename']} are no list: export them as JSON again.")
    return Listed(path, entry["filename"], [_region(region) for region in regions])


def _region(region: Any) -> dict[str, Any]:
    """A region with both its dictionaries, empty where they are missing."""
    own = region if isinstance(region, dict) else {}
    keys = ("shape_attributes", "region_attributes")
    return {key: own[key] if isinstance(own.get(key), dict) else {} for key in keys}


def _read_csv(path: Path) -> list[Listed]:
    """The images of a CSV, one line for each region; an image without regions has a line without shape."""
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(path), newline="")):
            name = row.get("filename") or row.get("#filename")
            if not name:
                raise ValueError("a line has no filename")
            shape, attributes = (json.loads(row.get(column) or "{}") for column in _CSV_COLUMNS)
            regions = found.setdefault(name, [])
            if shape or attributes:
                regions.append(_region({"shape_attributes": shape, "region_attributes": attributes}))
    except (csv.Error, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no CSV of VGG Image Annotator ({error}): export the annotations again.") from None
    return [Listed(path, name, regions) for name, regions in found.items()]


def _class_attribute(listed: Iterable[Listed], folder: Path) -> str | None:
    """The attribute that holds the class, None where no region has any; `InputError` where it cannot be told."""
    used = {
        str(name): None
        for one in listed
        for region in one.shapes
        for name, value in region["region_attributes"].items()
        if _values(value)
    }
    for word in _CLASS_WORDS:
        for name in used:
            if re.fullmatch(rf"{word}([ _-]?(id|name))?", name.lower().strip()):
                return name
    if len(used) > 1:
        raise InputError(
            f"the regions of {folder} have the attributes {', '.join(used)}, and none is called class: rename the one "
            "that is the class to class."
        )
    return next(iter(used), None)


def _names(listed: Iterable[Listed], attribute: str | None) -> dict[int, str] | None:
    """The classes in alphabetical order; None where no attribute holds them.  Boxes ticked together are no class."""
    if attribute is None:
        return None
    values = (_values(region["region_attributes"].get(attribute)) for one in listed for region in one.shapes)
    return class_table(sorted({found[0] for found in values if len(found) == 1})) or None


def _values(value: Any) -> list[str]:
    """The classes that an attribute's value tells: text, a number, or the ticked ones of several boxes."""
    if isinstance(value, dict):
        return [str(name).strip() for name, ticked in value.items() if ticked in (True, "true")]
    text = str(value).strip() if isinstance(value, (str, int, float)) else ""
    return [text] if text else []


def _mask(kind: str, drawn: dict[str, Any], size: Size) -> RLE:
    if kind == "polygon":
        xs, ys = drawn.get("all_points_x"), drawn.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise ValueError("all_points_x and all_points_y are not two lists of one length")
        return polygon_mask(list(zip(xs, ys, strict=True)), size)
    if kind == "rect":
        x, y, width, height = (number(drawn.get(key), key) for key in ("x", "y", "width", "height"))
        return polygon_mask(rectangle_points((x, y), (x + width, y + height)), size)
    center = number(drawn.get("cx"), "cx"), number(drawn.get("cy"), "cy")
    keys = ("r", "r") if kind == "circle" else ("rx", "ry")
    points = ellipse_points(center, [number(drawn.get(key), key) for key in keys])
    return polygon_mask(rotated_points(points, center, number(drawn.get("theta", 0), "theta")), size)


VIA = Layout("via", "VGG Image Annotator (JSON or CSV with regions)", _find)
