"""Classes of a Pascal VOC data set: their names, and the numbers and colours that stand for them in masks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from masklab.utils.errors import InputError
from masklab.utils.files import read_text

Colour = tuple[int, int, int]

_VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_BACKGROUND = ("background", "_background_", "__background__")
_IGNORED = "__ignore__"
VOID = 255  # the number of borders, which belong to no object


def voc_colour(number: int) -> Colour:
    """The colour of a number in VOC's colour map, in which its bits are dealt out to red, green and blue in turn."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


VOC_COLOURS = {voc_colour(number): number for number in range(256)}


class VocClasses(NamedTuple):
    """Names by number, without the background, and numbers by colour."""

    names: dict[int, str]
    numbers: dict[Colour, int]


def read_classes(folder: Path) -> VocClasses:
    """The classes of ``labelmap.txt``, as CVAT and datumaro write it, of labelme's ``class_names.txt``, or VOC's own.

    Raises `InputError` for a file that cannot be used.
    """
    if (folder / "labelmap.txt").is_file():
        return _read_label_map(folder / "labelmap.txt")
    if (folder / "class_names.txt").is_file():
        lines = read_text(folder / "class_names.txt").split("\n")
        rows = [line.strip() for line in lines if line.strip() and line.strip() != _IGNORED]
        return VocClasses({k: name for k, name in enumerate(rows) if name not in _BACKGROUND}, VOC_COLOURS)
    return VocClasses(dict(enumerate(_VOC_NAMES, 1)), VOC_COLOURS)


def _read_label_map(path: Path) -> VocClasses:
    """Lines ``label:r,g,b:parts:actions``; the number of a class is that of its line, and its colour may be missing."""
    names: dict[int, str] = {}
    numbers: dict[Colour, int] = {voc_colour(VOID): VOID}
    lines = [line.strip() for line in read_text(path).splitlines()]
    for number, line in enumerate(line for line in lines if line and line[0] != "#"):
        name, colour = (part.strip() for part in [*line.rsplit(":", 3), ""][:2])
        shown = _read_colour(colour, path, name) if colour else voc_colour(number)
        numbers.setdefault(shown, number)
        if name.lower() not in _BACKGROUND and shown != voc_colour(VOID):
            names[number] = name
    if not names:
        raise InputError(f"{path} names no class: write lines such as leaf:128,0,0:: into it.")
    return VocClasses(names, numbers)


def _read_colour(text: str, path: Path, name: str) -> Colour:
    parts = [int(part) for part in text.split(",") if part.strip().isdecimal() and part.strip().isascii()]
    if len(parts) != 3 or text.count(",") != 2 or max(parts) > 255:
        raise InputError(f"{path}: {name} has the colour {text[:40]}, not three numbers up to 255; correct the line.")
    return parts[0], parts[1], parts[2]
