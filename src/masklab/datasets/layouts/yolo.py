"""YOLO segmentation: ``data.yaml`` with the classes, ``images/``, and ``labels/*.txt`` with one polygon per line."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in, subfolders
from masklab.datasets.problems import Sink
from masklab.masks import coco_segmentation
from masklab.utils.errors import InputError
from masklab.utils.files import read_text, read_yaml
from masklab.utils.types import Size

_TABLES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_SPLITS = ("train", "val", "test")
_MAX_OUTSIDE = 1.0  # how far a polygon may leave its image, in widths or heights of the image


def _find(folder: Path) -> dict[str, SplitSource]:
    """The splits that ``data.yaml`` or ``dataset.yaml`` lists, or else those of the folders.

    Raises `InputError` for labels without such a file, and for an invalid one.
    """
    tables = [folder / name for name in _TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise InputError(f"{folder} has both {tables[0].name} and {tables[1].name}: remove one.")
    places = _places(folder)
    if not tables:
        texts = [labels for place in places.values() if any((labels := _labels_of(folder, place)).glob("*.txt"))]
        if texts:
            raise InputError(
                f"{texts[0]} holds YOLO labels but {folder} has no data.yaml: write one with the class names, such as "
                "names: [leaf, fruit]."
            )
        return {}
    table = _read_table(tables[0])
    names = _names(table, tables[0])
    listed = {split: table[split] for split in _SPLITS if table.get(split)}
    pairs = {split: partial(_listed_pairs, folder, tables[0], table, split) for split in listed}
    pairs = pairs or {split: partial(_pairs_in, folder, place) for split, place in places.items()}
    return {
        split: SplitSource(make, partial(_polygon_objects, names=names), lambda: names) for split, make in pairs.items()
    }


def _places(folder: Path) -> dict[str, Path]:
    """Image folders by split: ``images``, ``images/SPLIT`` and ``SPLIT/images``."""
    places = {sub.name: sub / "images" for sub in subfolders(folder)} | {"": folder / "images"}
    places |= {sub.name: sub for sub in subfolders(folder / "images")}
    return {split: place for split, place in places.items() if images_in(place)}


def _labels_of(folder: Path, path: Path) -> Path:
    """The path of the labels of an image or an image folder: the last folder ``images`` in it becomes ``labels``."""
    parts = list(path.relative_to(folder).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return folder.joinpath(*parts)


def _read_table(path: Path) -> dict[str, Any]:
    table = read_yaml(path, path)
    if not isinstance(table, dict):
        raise InputError(f"{path} is not a YOLO data file: write names, and paths for train and val, into it.")
    return table


def _names(table: dict[str, Any], path: Path) -> dict[int, str]:
    names = table.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not names or not isinstance(names, dict) or not all(type(k) is int for k in names):
        raise InputError(f"{path}: names must list the classes, such as names: [leaf, fruit]; correct the file.")
    if any(isinstance(name, (list, dict)) for name in names.values()):
        raise InputError(f"{path}: a class has a list for its name; write one name per class.")
    return {number: str(name) for number, name in names.items()}


def _listed_pairs(folder: Path, path: Path, table: dict[str, Any], split: str) -> list[Pair]:
    entries = table[split] if isinstance(table[split], list) else [table[split]]
    pairs: list[Pair] = []
    for entry in entries:
        place = _inside(folder, table, entry, f"{path}: {split}")
        if place.is_dir():
            pairs += _pairs_in(folder, place)
        else:
            lines = [line.strip() for line in read_text(place).splitlines()]
            images = [_inside(folder, table, line, str(place)) for line in lines if line]
            pairs += _pairs(folder, images, place)
    return pairs


def _inside(folder: Path, table: dict[str, Any], entry: Any, source: str) -> Path:
    """The file or folder of an ``entry``, relative to ``path`` of the table or to ``folder``, with or without ``../``."""
    root, start = os.path.abspath(folder), table.get("path") or ""
    if not isinstance(entry, str) or not isinstance(start, str):
        raise InputError(f"{source}, and path if there is one, must be paths such as images/train: correct the file.")
    tried = [os.path.join(root, start, entry), os.path.join(root, entry), os.path.join(root, entry.removeprefix("../"))]
    for place in map(os.path.normpath, tried):
        if place.startswith(root + os.sep) and os.path.exists(place):
            return folder / os.path.relpath(place, root)
    raise InputError(f"{source} names {entry}, which is not in {folder}: write a path relative to {folder}.")


def _pairs_in(folder: Path, place: Path) -> list[Pair]:
    images = images_in(place)
    if not images:
        raise InputError(f"{place} holds no image: correct the paths in {folder}.")
    labels = _labels_of(folder, place)
    strange = {path.stem for path in labels.glob("*.txt")} - {image.stem for image in images} - {"classes"}
    if strange and labels != place:
        raise InputError(f"{labels / min(strange)}.txt has no image in {place}: restore it or move the labels away.")
    return _pairs(folder, images, place)


def _pairs(folder: Path, images: list[Path], source: Path) -> list[Pair]:
    """Each image with its labels; images without a label file have no objects, but not all may lack one."""
    labels = [_labels_of(folder, image).with_suffix(".txt") for image in images]
    there = [path.is_file() for path in labels]
    if not any(there):
        raise InputError(
            f"none of the images of {source} has a label file: add them, such as {labels[0] if labels else '?'}."
        )
    return [Pair(image, (path,) if seen else ()) for image, path, seen in zip(images, labels, there, strict=True)]


def _polygon_objects(pair: Pair, size: Size, sink: Sink, names: dict[int, str]) -> list[ObjectMask]:
    """The objects of an image: lines ``class x1 y1 x2 y2 ...`` with x and y from 0 to 1 over the image."""
    objects: list[ObjectMask] = []
    for path in pair.masks:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                objects.append(_read_line(line, f"{path} line {number}", size, names))
    return objects


def _read_line(line: str, where: str, size: Size, names: dict[int, str]) -> ObjectMask:
    try:
        values = np.array([float(word) for word in line.split()])
    except ValueError:
        raise InputError(f"{where} holds something that is not a number: correct the line.") from None
    category, places = values[0], values[1:]
    if category not in names:
        raise InputError(f"{where} has class {line.split()[0]}, which is not among the names of the yaml file: add it.")
    if places.size == 4:
        raise InputError(f"{where} is a box, not a polygon: export outlines (segmentation), not boxes.")
    if places.size % 2 or places.size < 6:
        raise InputError(f"{where} has {places.size} coordinates: write pairs of x and y, at least three.")
    if not (np.abs(places - 0.5) <= 0.5 + _MAX_OUTSIDE).all():
        raise InputError(f"{where} has a coordinate that is not from 0 to 1: divide x by the width, y by the height.")
    polygon = (places.reshape(-1, 2) * size[::-1]).ravel().tolist()
    try:
        return ObjectMask(int(category), coco_segmentation.rle_from_segmentation([polygon], size))
    except ValueError as error:
        raise InputError(f"{where} makes no mask ({error}): correct the line.") from None


YOLO = Layout("yolo", "YOLO segmentation (data.yaml, images, labels/*.txt)", _find)
