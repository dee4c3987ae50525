"""Columns of a table of boxes, found by their usual names.

So are the fields of JSON objects that stand for the rows of a table, as supervision's JSON sink writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masklab.datasets.boxes.box_list import Collector, ImageKey, number
from masklab.utils.errors import InputError
from masklab.utils.words import listed

_LEFT, _TOP = ("x1", "xmin", "left", "minx", "xleft"), ("y1", "ymin", "top", "miny", "ytop")
_RIGHT, _BOTTOM = ("x2", "xmax", "right", "maxx", "xright"), ("y2", "ymax", "bottom", "maxy", "ybottom")
_WIDTH, _HEIGHT = ("w", "width"), ("h", "height")
_CENTRE_X = ("cx", "xc", "xcenter", "xcentre", "centerx", "centrex")
_CENTRE_Y = ("cy", "yc", "ycenter", "ycentre", "centery", "centrey")
_FORMS = {
    "from 0": (("x0",), ("y0",), ("x1",), ("y1",)),
    "corners": (_LEFT, _TOP, _RIGHT, _BOTTOM),
    "size": (_LEFT, _TOP, _WIDTH, _HEIGHT),
    "centre": (_CENTRE_X, _CENTRE_Y, _WIDTH, _HEIGHT),
}
_FILE = (
    *("filename", "file", "imagefilename", "imagefile", "imagename", "imagepath", "filepath", "path", "image"),
    *("img", "imgname", "imgpath", "imageid", "imgid"),
)
_CLASS = ("classname", "labelname", "categoryname", "class", "label", "category", "name")
_CLASS_NUMBER = ("classid", "categoryid", "labelid", "cls", "classindex", "classidx")
_SCORE = ("score", "scores", "confidence", "conf", "probability", "prob")
_PLAIN_ID = re.compile(r"0|[1-9][0-9]*")
WANTED = "x1, y1, x2, y2 (or xmin, x_min, ...; or left, top, width, height)"


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold something; ``form`` says how the four of ``box`` make a box."""

    form: str
    box: tuple[str, str, str, str]
    file: tuple[str, ...]
    category: tuple[str, ...]
    score: tuple[str, ...]

    def add(self, collector: Collector, row: Mapping[str, Any], where: str) -> None:
        """Add a row of the table; `InputError`, which begins with ``where``, for one that cannot be used."""
        a, b, c, d = (number(row.get(name), where, name) for name in self.box)
        if self.form == "size":
            c, d = a + c, b + d
        elif self.form == "centre":
            a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        score = next((row[name] for name in self.score if not _is_empty(row.get(name))), None)
        collector.add(
            where,
            self._image(row, where),
            (a, b, c, d),
            _class(next((row[name] for name in self.category if not _is_empty(row.get(name))), None), where),
            None if score is None else number(score, where, "the score"),
        )

    def _image(self, row: Mapping[str, Any], where: str) -> ImageKey:
        for name in self.file:
            value = row.get(name)
            if not _is_empty(value):
                return image_key(value) if _key(name) in ("imageid", "imgid") else ImageKey(str(value))
        if self.file:
            raise InputError(f"{where}: {self.file[0]} is empty: name the image.")
        return ImageKey(None)


def find_columns(names: Sequence[str], where: str | Path) -> Columns:
    """The columns of a table by their names, upper or lower case, with or without underscores.

    A prefix ``box``, ``bbox`` or ``bb`` is left out.  Raises `InputError`, which begins with ``where``, where there is
    no box among them, and for ``x, y, width, height``, which may begin at a corner or at the centre.
    """
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(_key(name), name)
    for form, places in _FORMS.items():
        box = [next((known[key] for key in keys if key in known), None) for keys in places]
        if None not in box:
            left, top, right, bottom = (str(name) for name in box)
            found = [
                tuple(known[key] for key in keys if key in known) for keys in (_FILE, _CLASS + _CLASS_NUMBER, _SCORE)
            ]
            return Columns(form, (left, top, right, bottom), *found)
    if {"x", "y"} <= known.keys() and ({"w", "h"} <= known.keys() or {"width", "height"} <= known.keys()):
        raise InputError(
            f"{where}: x and y beside a width and height may be a corner or the centre: call them left and top, or cx and cy."
        )
    raise InputError(f"{where}: there are no columns {WANTED} among {listed(names, 12) or 'none'}: name them so.")


def image_key(image_id: Any) -> ImageKey:
    """An image by an id: a whole number is one of a COCO JSON, other text the name of a file, perhaps without suffix."""
    if isinstance(image_id, int) or _PLAIN_ID.fullmatch(str(image_id)):
        return ImageKey(None, image_id)
    return ImageKey(str(image_id), image_id)


def _class(value: Any, where: str) -> str | int | None:
    if isinstance(value, float) and value.is_integer():  # of a table that has numbers of one kind only
        value = int(value)
    if isinstance(value, str):
        value = value.strip()
        return int(float(value)) if re.fullmatch(r"[0-9]{1,9}(\.0+)?", value) else value
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{where}: the class is a {type(value).__name__}: give a name or a whole number.")
    return value


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _key(name: str) -> str:
    letters = re.sub(r"[\W_]+", "", name.casefold())
    return re.sub(r"^(bbox|box|bb)(?=.)", "", letters)
