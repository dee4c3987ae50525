"""Names of the class numbers in a file of boxes, as a caller gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from masklab.datasets.coco_document import CocoDocument
from masklab.datasets.layouts.yolo_table import read_names
from masklab.structures import ClassTable
from masklab.utils.errors import InputError


def given_names(values: Sequence[str]) -> dict[int, str]:
    """Names by number: of one file, or written out, in order from 0 or as ``NUMBER=NAME``.

    A file is ``data.yaml`` or the like, a text file with one name a line, from 0, or a COCO JSON with categories.
    Raises `InputError` for a file without names, for names and ``NUMBER=NAME`` together, and for a number twice.
    """
    if len(values) == 1 and Path(values[0]).is_file():
        path = Path(values[0])
        if path.suffix.lower() != ".json":
            return read_names(path)
        table = ClassTable.from_categories(CocoDocument.read(path, ()).categories, path)
        return dict(zip(table.ids, table.names, strict=True))
    pairs = [re.fullmatch(r"([0-9]{1,9})=(.+)", value) for value in values]
    if not any(pairs):
        if len(values) == 1 and re.search(r"[/\\]|\.(json|txt|names|ya?ml)$", values[0]):
            raise InputError(f"{values[0]}: there is no such file of class names; correct the path.")
        return dict(enumerate(values))
    names = {int(pair[1]): pair[2] for pair in pairs if pair}
    if len(names) < len(values):
        raise InputError(
            f"{' '.join(values)}: give each class as NUMBER=NAME, each number once, or names alone, in order."
        )
    return names
