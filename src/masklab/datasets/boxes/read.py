"""The one entry to files of boxes: the kind of a file is recognised from what it holds."""

from __future__ import annotations

from pathlib import Path

from masklab.datasets.boxes import coco, table, yolo
from masklab.datasets.boxes.box_list import BoxList
from masklab.utils.errors import InputError
from masklab.utils.files import read_text


def read_boxes(path: str | Path) -> BoxList:
    """The boxes that a detector wrote into a file or folder.

    =====================  ==================================================================================
    what                   recognised by
    =====================  ==================================================================================
    YOLO                   a folder with ``x.txt``, or a text file whose first line is numbers
    COCO results           a JSON list of objects with ``bbox``
    COCO annotations       a JSON object with ``annotations``
    table as JSON          a JSON list of objects with ``x_min``, ... or the like, such as supervision's
    table                  any other text: a CSV file (see `masklab.datasets.boxes.table.read_table`)
    =====================  ==================================================================================

    Raises `InputError`, with the line or entry, for what cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        return yolo.read_folder(path)
    text = read_text(path)
    begin = text[:1000].lstrip()[:1]
    if begin == "[":
        return coco.read_list(path)
    if begin == "{":
        return coco.read_document(path)
    if yolo.is_yolo(text) or (not begin and path.suffix.lower() == ".txt"):
        return yolo.read_file(path)
    if not begin:
        raise InputError(f"{path} is empty: name the file that the detector wrote.")
    return table.read_table(path, text)
