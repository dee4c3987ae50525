"""Classes of label images: two tables beside them, as `masklab data convert` writes them.

``classes.csv`` in the data set's folder has ``id,name``: the classes.  ``object_classes.csv`` beside each folder of masks
has ``mask,label,class_id,class``: the class of each label of each of its files.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from masklab.datasets.layouts.base import ObjectMask, Pair, SplitSource
from masklab.datasets.layouts.masks import check_size, read_labels
from masklab.datasets.problems import UNKNOWN_CATEGORY, Problem, Sink
from masklab.masks import encode
from masklab.utils.errors import InputError
from masklab.utils.files import read_text
from masklab.utils.types import Size

CLASSES, CLASS_FIELDS = "classes.csv", ("id", "name")
OBJECT_CLASSES, OBJECT_FIELDS = "object_classes.csv", ("mask", "label", "class_id", "class")


def has_classes(masks: Path) -> bool:
    """Whether a table of classes lies beside a folder of masks."""
    return (masks.parent / OBJECT_CLASSES).is_file()


def classified(pairs: Callable[[], list[Pair]], folder: Path) -> SplitSource:
    """A split of label images with tables of classes."""
    return SplitSource(pairs, partial(_objects, folder=folder), partial(_read_classes, folder))


def _read_classes(folder: Path) -> dict[int, str]:
    """The classes of a data set by category id."""
    path = folder / CLASSES
    names: dict[int, str] = {}
    for number, (category, name) in _rows(path, CLASS_FIELDS):
        if not _is_number(category) or int(category) in names:
            raise InputError(f"{path} line {number}: each class needs a whole number of its own; correct the line.")
        names[int(category)] = name
    if not names:
        raise InputError(
            f"{path} lists no class: restore it, or remove {OBJECT_CLASSES} to read objects without class."
        )
    return names


def _objects(pair: Pair, size: Size, sink: Sink, folder: Path) -> list[ObjectMask]:
    """The objects of a label image with the classes of its table; one without class is reported and left out."""
    mask = pair.masks[0]
    names, table = _read_classes(folder), _table_of(mask.parent.parent / OBJECT_CLASSES)
    values, runs = encode.encode_labels(check_size(read_labels(mask), pair, mask, size))
    objects: list[ObjectMask] = []
    for label, own in zip(values.tolist(), runs, strict=True):
        category, name = table.get((mask.name, label), (None, ""))
        if category in names and names[category] == name:
            objects.append(ObjectMask(category, own))
            continue
        why = "has no line" if category is None else f"is {name!r} ({category}), which {CLASSES} does not list,"
        detail = f"label {label} {why} in {OBJECT_CLASSES}"
        sink.report(Problem(UNKNOWN_CATEGORY, detail, None, None, pair.image.name, f"{mask}: {detail}; correct it."))
    return objects


def _table_of(path: Path) -> dict[tuple[str, int], tuple[int, str]]:
    try:
        return _object_classes(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): restore the table.") from None


@lru_cache(maxsize=8)
def _object_classes(path: Path, changed: int) -> dict[tuple[str, int], tuple[int, str]]:
    table: dict[tuple[str, int], tuple[int, str]] = {}
    for number, (mask, label, category, name) in _rows(path, OBJECT_FIELDS):
        if not _is_number(label) or not _is_number(category) or (mask, int(label)) in table:
            raise InputError(f"{path} line {number}: each label is a whole number of one class; correct the line.")
        table[mask, int(label)] = int(category), name
    return table


def _is_number(text: str) -> bool:
    return re.fullmatch("-?[0-9]{1,18}", text) is not None


def _rows(path: Path, fields: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """The rows of a table that must have these fields, with their numbers, without empty ones."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} cannot be read ({error}): correct the table.") from None
    wrong = next((number for number, row in rows if len(row) != len(fields)), None)
    if not rows or tuple(rows[0][1]) != fields or wrong is not None:
        where = f"{path} line {wrong or 1}"
        raise InputError(f"{where}: the table must have the columns {','.join(fields)}; correct or remove it.")
    return rows[1:]
