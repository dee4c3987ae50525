"""Datumaro: ``annotations/SPLIT.json`` with polygons, masks and ellipses, and ``images/SPLIT`` or ``images``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from masklab.datasets.layouts.base import Layout, SplitSource
from masklab.datasets.layouts.outlines import ellipse_points, number, polygon_mask
from masklab.datasets.layouts.places import annotation_files
from masklab.datasets.layouts.shapes import Kind, Listed, ListedImages, Shape, annotated_size, class_table, no_mask
from masklab.masks import coco_segmentation
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.files import read_json
from masklab.utils.types import Size

_KINDS = {"polygon": Kind.OUTLINE, "mask": Kind.OUTLINE, "ellipse": Kind.OUTLINE, "bbox": Kind.BOX}
_OF_IMAGES = ("label", "caption", "hash_key", "feature_vector")  # annotations of the whole image: no objects


def _find(folder: Path) -> dict[str, SplitSource]:
    """The images that all files of the tool in a folder list: each file is the split that it is named after."""
    found = annotation_files(folder, (".json",), _is_datumaro)
    paths = [path for files in found.values() for path, is_datumaro in files if is_datumaro]
    if not paths:
        return {}
    listed: list[Listed] = []
    labels: list[str] = []
    for path in paths:
        own, items = _read(path)
        labels += own
        listed += [_entry(item, own, path) for item in items]
    return ListedImages(folder, "Datumaro", listed, class_table(labels) or None, _shape).splits()


def _is_datumaro(head: str) -> bool:
    return head.lstrip()[:1] == "{" and bool(re.search(r'"dm_format_version"|"categories"\s*:\s*\{', head))


def _read(path: Path) -> tuple[list[str], list[Any]]:
    """The classes of a file, by the number that annotations give, and its items."""
    table = read_json(path)
    categories = table.get("categories") if isinstance(table, dict) else None
    if not isinstance(categories, dict) or not isinstance(table.get("items"), list):
        raise InputError(f"{path} has no categories or no items: export the data set from Datumaro again.")
    labels = categories.get("label") or {}
    labels = labels.get("labels", []) if isinstance(labels, dict) else None
    if not isinstance(labels, list) or not all(isinstance(own, dict) for own in labels):
        raise InputError(f"{path}: categories.label.labels is no list of names: export the data set again.")
    return [str(own.get("name", "")).strip() for own in labels], table["items"]


def _entry(item: Any, labels: list[str], path: Path) -> Listed:
    """An item with its annotations, the class of each by name; boxes of objects that have a mask too are left out."""
    number = item.get("id") if isinstance(item, dict) else None
    if not isinstance(number, (str, int)):
        raise InputError(f"{path}: an item has no id: export the data set from Datumaro again.")
    image = item.get("image")
    if not isinstance(image, dict) and any(key in item for key in ("video", "video_frame", "point_cloud")):
        raise InputError(f"{path}: the item {number} is no image: export images from Datumaro.")
    image = image if isinstance(image, dict) else {}
    name, size = image.get("path"), image.get("size")
    size = annotated_size(*size) if isinstance(size, list) and len(size) == 2 else None
    annotations = item.get("annotations") or []
    if not isinstance(annotations, list) or not all(isinstance(own, dict) for own in annotations):
        raise InputError(f"{path}: the annotations of the item {number} are no list: export the data set again.")
    drawn = [own for own in annotations if own.get("type") not in _OF_IMAGES]
    outlined = {_group(own) for own in drawn if _KINDS.get(str(own.get("type"))) is Kind.OUTLINE} - {None}
    shapes = [
        {**own, "label": _label(own.get("label_id"), labels)}
        for own in drawn
        if own.get("type") != "bbox" or _group(own) not in outlined
    ]
    if isinstance(name, str) and name:
        return Listed(path, name, shapes, size, path.stem)
    return Listed(path, str(number), shapes, size, path.stem, stem=True)


def _group(annotation: dict[str, Any]) -> int | None:
    """The number of the object that an annotation is a part of; None for an object of its own."""
    group = annotation.get("group")
    return group if isinstance(group, int) and group else None


def _label(number: Any, labels: list[str]) -> str:
    return labels[number] if isinstance(number, int) and 0 <= number < len(labels) else ""


def _shape(drawn: dict[str, Any]) -> Shape:
    kind, attributes = str(drawn.get("type")), drawn.get("attributes")
    if kind not in _KINDS:
        return Shape(Kind.NONE, drawn["label"], no_mask(f"an annotation {kind!r}"))
    crowd = isinstance(attributes, dict) and attributes.get("is_crowd") in (True, 1)
    return Shape(_KINDS[kind], drawn["label"], lambda size: _mask(kind, drawn, size), _group(drawn), crowd)


def _mask(kind: str, drawn: dict[str, Any], size: Size) -> RLE:
    if kind == "mask":
        rle = drawn.get("rle")
        if not isinstance(rle, dict):
            raise ValueError("it has no rle")
        return coco_segmentation.rle_from_segmentation(rle, size)
    if kind == "polygon":
        return coco_segmentation.rle_from_segmentation([drawn.get("points")], size)
    key = "bbox" if kind == "bbox" else "points"
    corners = drawn.get(key)
    if not isinstance(corners, list) or len(corners) != 4:
        raise ValueError(f"its {key} are not four numbers")
    x1, y1, x2, y2 = (number(value, key) for value in corners)
    if kind == "bbox":
        return polygon_mask([(x1, y1), (x1 + x2, y1), (x1 + x2, y1 + y2), (x1, y1 + y2)], size)
    return polygon_mask(ellipse_points(((x1 + x2) / 2, (y1 + y2) / 2), ((x2 - x1) / 2, (y2 - y1) / 2)), size)


DATUMARO = Layout("datumaro", "Datumaro (annotations/SPLIT.json with items, images)", _find)
