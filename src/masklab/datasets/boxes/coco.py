"""Boxes in JSON files: COCO's results and annotations, and lists of objects with the fields of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from masklab.datasets.boxes.box_list import BoxList, Collector, ImageKey, number
from masklab.datasets.boxes.columns import find_columns, image_key
from masklab.datasets.coco_document import CocoDocument
from masklab.datasets.image_table import id_of, is_id
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.files import read_json
from masklab.utils.words import as_written

_KINDS = "COCO results, a COCO file with annotations, or a list of objects with x_min, y_min, x_max, y_max"


def read_list(path: Path) -> BoxList:
    """The boxes of a JSON list: COCO results, or objects such as supervision's JSON sink writes.

    Raises `InputError` with the position in the list, counted from 0, for an entry that cannot be used.
    """
    entries = read_json(path)
    if not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path} is a list of other things than objects: give {_KINDS}.")
    collector = Collector(path)
    if any("bbox" in entry for entry in entries):
        for row, entry in enumerate(entries):
            _add_coco(collector, entry, {}, f"{path} entry {row}")
        return collector.finish()
    flat = [entry | entry["box"] if isinstance(entry.get("box"), dict) else entry for entry in entries]
    columns = find_columns(list(dict.fromkeys(name for entry in flat for name in entry)), path) if flat else None
    for row, entry in enumerate(flat):
        if columns is not None:
            columns.add(collector, entry, f"{path} entry {row}")
    return collector.finish()


def read_document(path: Path) -> BoxList:
    """The boxes of a COCO file's annotations, under the file names that it gives to images.

    Crowd regions, which are no objects, are left out.  Raises `InputError` for an annotation without a usable box.
    """
    document = CocoDocument.read(path, ())
    if "annotations" in document.missing:
        raise InputError(f"{path} has no list of annotations: give {_KINDS}.")
    keys = {}
    for image in document.images:
        image_id = id_of(image)
        if image_id is None or not isinstance(image.get("file_name") or image.get("coco_url"), str):
            raise InputError(f"{path}: an entry of images needs an id and a file_name; correct the file.")
        keys[image_id] = ImageKey(image.get("file_name") or image["coco_url"], image_id)
    collector = Collector(path)
    for key in keys.values():
        collector.image(key)
    names: dict[int, str] = {}
    if document.categories:
        table = ClassTable.from_categories(document.categories, path)
        names = dict(zip(table.ids, table.names, strict=True))
    for row, annotation in enumerate(document.annotations):
        if not isinstance(annotation, dict):
            raise InputError(f"{path} annotation {row} is no object: correct it.")
        if annotation.get("iscrowd") == 1:
            continue
        known = keys.get(image_id) if is_id(image_id := annotation.get("image_id")) else None
        if keys and known is None:
            raise InputError(f"{path} annotation {row}: there is no image {as_written(image_id)}: correct image_id.")
        if names and annotation.get("category_id") not in names:
            raise InputError(
                f"{path} annotation {row}: there is no category {as_written(annotation.get('category_id'))}: correct it."
            )
        named = annotation if known is None else annotation | {"file_name": known.name}
        _add_coco(collector, named, names, f"{path} annotation {row}")
    return collector.finish()


def _add_coco(collector: Collector, entry: dict[str, Any], names: dict[int, str], where: str) -> None:
    """Add a result or annotation: ``bbox`` is left, top, width and height."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise InputError(f"{where}: bbox is {as_written(box)}: give left, top, width and height in pixels.")
    left, top, width, height = (number(value, where, "a value of bbox") for value in box)
    image_id, name, category = entry.get("image_id"), entry.get("file_name"), entry.get("category_id")
    if not isinstance(name, str) and not is_id(image_id):
        raise InputError(f"{where} has neither a file_name nor an image_id: add one.")
    if category is not None and (not isinstance(category, int) or isinstance(category, bool)):
        raise InputError(f"{where}: category_id is {as_written(category)}: give a whole number.")
    called = entry.get("category_name") or (None if category is None else names.get(category))
    score = entry.get("score")
    collector.add(
        where,
        ImageKey(name, image_id if is_id(image_id) else None) if isinstance(name, str) else image_key(image_id),
        (left, top, left + width, top + height),
        called if isinstance(called, str) else category,
        None if score is None else number(score, where, "the score"),
    )
