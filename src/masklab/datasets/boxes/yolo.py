"""Boxes in YOLO's text files, one an image, such as Ultralytics, Darknet and Roboflow write."""

from __future__ import annotations

from pathlib import Path

from masklab.datasets.boxes.box_list import BoxList, Collector, ImageKey, number
from masklab.datasets.layouts.base import subfolders
from masklab.datasets.layouts.yolo import LABEL_FOLDERS, label_files
from masklab.datasets.layouts.yolo_table import find_table, listed_names
from masklab.utils.errors import InputError
from masklab.utils.files import read_text

_LARGEST_NUMBER = 10**6  # of a class
_MAX_OUTSIDE = 1.0  # how far a box may leave its image, in widths or heights of the image


def read_folder(folder: Path) -> BoxList:
    """The boxes of ``x.txt`` for the image ``x``, in a folder, its folder ``labels``, or folders in them.

    Class names are those of ``data.yaml``, ``classes.txt`` or the like in the folder or beside ``labels``.  Raises
    `InputError` where there is no text file of labels.
    """
    files = _below(folder, "")
    if not files:
        raise InputError(f"{folder} holds no x.txt with boxes of an image x: name the folder or file of the boxes.")
    return _read(folder, files, folder)


def read_file(path: Path) -> BoxList:
    """The boxes of one ``x.txt``, those of the image ``x``."""
    return _read(path, {path.stem: path}, path.parent)


def is_yolo(text: str) -> bool:
    """Whether the first line of a text that is not empty holds five or more numbers, separated by spaces."""
    words = next((words for line in text.splitlines() if (words := line.split())), [])
    try:
        return len(words) >= 5 and bool([float(word) for word in words])
    except ValueError:
        return False


def _below(folder: Path, inside: str) -> dict[str, Path]:
    """The label files of a folder and those in it, by the path of their image without suffix; ``labels`` left out."""
    files = {inside + stem: path for stem, path in sorted(label_files(folder).items())}
    for sub in subfolders(folder):
        if not sub.is_symlink():
            files |= _below(sub, inside if sub.name.lower() in LABEL_FOLDERS else f"{inside}{sub.name}/")
    return files


def _read(path: Path, files: dict[str, Path], folder: Path) -> BoxList:
    names = _names(folder)
    collector = Collector(path, relative=True)
    for stem, file in files.items():
        image = ImageKey(stem)
        collector.image(image)
        for line, text in enumerate(read_text(file).splitlines(), 1):
            if words := text.split():
                _add(collector, image, words, names, f"{file} line {line}")
    return collector.finish()


def _add(collector: Collector, image: ImageKey, words: list[str], names: dict[int, str] | None, where: str) -> None:
    if len(words) not in (5, 6):
        raise InputError(
            f"{where} has {len(words)} values: write class, centre x, centre y, width and height, and a score if there is one."
        )
    category, x, y, width, height, *score = (number(word, where, "a value") for word in words)
    if not (0 <= category < _LARGEST_NUMBER and category.is_integer()):
        raise InputError(f"{where} has class {words[0]}: give a whole number from 0.")
    if names is not None and int(category) not in names:
        raise InputError(f"{where} has class {words[0]}, which is not among the class names: add it to them.")
    if any(abs(value - 0.5) > 0.5 + _MAX_OUTSIDE for value in (x, y, width, height)):
        raise InputError(
            f"{where} has a coordinate that is not from 0 to 1: divide x and width by the width of the image, y and "
            "height by its height."
        )
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    called = int(category) if names is None else names[int(category)]
    collector.add(where, image, corners, called, score[0] if score else None)


def _names(folder: Path) -> dict[int, str] | None:
    """The class names beside labels: of their folder, or of the one that their folder ``labels`` is in."""
    places = [folder]
    absolute = folder.absolute()
    above = [place.parent for place in (absolute, *absolute.parents) if place.name.lower() in LABEL_FOLDERS]
    for place in places + above[:1]:
        table = find_table(place)
        if names := (table and table.names) or listed_names(place):
            return names
    return None
