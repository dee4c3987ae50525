"""CVAT for images 1.1: ``annotations.xml`` with polygons, masks, ellipses and boxes, and the images that it lists."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np

from masklab.datasets.layouts.base import Layout, SplitSource
from masklab.datasets.layouts.outlines import (
    bitmap_mask,
    ellipse_points,
    number,
    polygon_mask,
    rectangle_points,
    rotated_points,
)
from masklab.datasets.layouts.places import annotation_files
from masklab.datasets.layouts.shapes import Kind, Listed, ListedImages, Shape, annotated_size, class_table, no_mask
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.types import Size
from masklab.utils.xml import XmlTarget, read_xml

_KINDS = {"polygon": Kind.OUTLINE, "mask": Kind.OUTLINE, "ellipse": Kind.OUTLINE, "box": Kind.BOX}
_NO_MASKS = ("polyline", "points", "skeleton", "cuboid")

_Drawn = tuple[str, dict[str, str]]  # an element's name and attributes


def _find(folder: Path) -> dict[str, SplitSource]:
    """The images that all files of the tool in a folder list.

    Splits are subsets of a project, or else told by the names of files and folders.  Classes are those of the files, in
    their order, those without objects included.
    """
    found = annotation_files(folder, (".xml",), lambda head: "<annotations>" in head)
    readers = [_read(path) for files in found.values() for path, is_cvat in files if is_cvat]
    listed = [one for reader in readers for one in reader.listed]
    if not readers:
        return {}
    labels = [label for reader in readers for label in reader.labels]
    drawn = sorted({attributes.get("label", "").strip() for one in listed for _, attributes in one.shapes})
    return ListedImages(folder, "CVAT", listed, class_table([*labels, *drawn]) or None, _shape).splits()


class _Reader(XmlTarget):
    """Collects the classes of a file and the shapes of its images."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: list[str] = []
        self.listed: list[Listed] = []
        self.has_tracks = False
        self._inside: list[str] = []
        self._text: list[str] = []
        self._is_part = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        inside = self._inside[-1] if self._inside else ""
        if tag == "image" and inside == "annotations":
            if not attributes.get("name"):
                raise InputError(f"{self.path}: an image has no name: export the annotations again.")
            size = annotated_size(attributes.get("height"), attributes.get("width"))
            self.listed.append(Listed(self.path, attributes["name"], [], size, attributes.get("subset", "")))
        elif inside == "image" and (tag in _KINDS or tag in _NO_MASKS):
            self.listed[-1].shapes.append((tag, attributes))
        elif tag == "track":
            self.has_tracks = True
        elif tag == "label":
            self._is_part = False
        elif tag == "parent":
            self._is_part = True  # of a skeleton
        self._inside.append(tag)
        self._text.clear()

    def data(self, text: str) -> None:
        if self._inside[-2:] == ["label", "name"]:
            self._text.append(text)

    def end(self, tag: str) -> None:
        if self._inside[-2:] == ["label", "name"]:
            self.labels.append("".join(self._text).strip())
        if tag == "label" and self._is_part and self.labels:
            self.labels.pop()
        self._inside.pop()


def _read(path: Path) -> _Reader:
    reader = _Reader(path)
    read_xml(path, reader)
    if reader.has_tracks and not reader.listed:
        raise InputError(
            f"{path} is an export for video, which lists tracks and no images: export the task from CVAT again as "
            "'CVAT for images 1.1' with images."
        )
    if not reader.listed:
        raise InputError(f"{path} lists no images: export the task from CVAT again as 'CVAT for images 1.1'.")
    return reader


def _shape(drawn: _Drawn) -> Shape:
    kind, attributes = drawn
    label = attributes.get("label", "").strip()
    if kind not in _KINDS:
        return Shape(Kind.NONE, label, no_mask(f"a shape {kind!r}"))
    return Shape(_KINDS[kind], label, partial(_mask, kind, attributes))


def _mask(kind: str, attributes: dict[str, str], size: Size) -> RLE:
    if kind == "polygon":
        return polygon_mask([point.split(",") for point in _text(attributes, "points").split(";")], size)
    if kind == "mask":
        return _bitmap(attributes, size)
    if kind == "box":
        x1, y1, x2, y2 = (_number(attributes, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        points, center = rectangle_points((x1, y1), (x2, y2)), ((x1 + x2) / 2, (y1 + y2) / 2)
    else:
        center = _number(attributes, "cx"), _number(attributes, "cy")
        points = ellipse_points(center, (_number(attributes, "rx"), _number(attributes, "ry")))
    angle = math.radians(_number({"rotation": "0", **attributes}, "rotation"))
    return polygon_mask(rotated_points(points, center, angle), size)


def _bitmap(attributes: dict[str, str], size: Size) -> RLE:
    """The mask of run lengths, row by row in their own box, background first."""
    left, top, width, height = (int(_number(attributes, key)) for key in ("left", "top", "width", "height"))
    if not (0 < width <= size[1] and 0 < height <= size[0]):
        raise ValueError(f"its {width} x {height} pixels do not fit the image")
    try:
        runs = [int(run) for run in _text(attributes, "rle").split(",")]
    except ValueError:
        raise ValueError("its rle is no list of whole numbers") from None
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"its rle covers {sum(runs)} of {width} x {height} pixels")
    bits = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return bitmap_mask(bits, (left, top), size)


def _text(attributes: dict[str, str], key: str) -> str:
    if not attributes.get(key):
        raise ValueError(f"it has no {key}")
    return attributes[key]


def _number(attributes: dict[str, str], key: str) -> float:
    text = _text(attributes, key)
    try:
        value: float | str = float(text)
    except ValueError:
        value = text
    return number(value, key)


CVAT = Layout("cvat", "CVAT for images 1.1 (annotations.xml with images)", _find)
