"""YOLO segmentation: images, and ``labels/*.txt`` with one polygon per line; ``data.yaml`` with classes and splits."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.notes import warn_once
from masklab.datasets.layouts.outlines import polygon_mask
from masklab.datasets.layouts.yolo_table import Table, find_table, listed_names, resolve
from masklab.datasets.problems import MALFORMED, Problem, Sink
from masklab.utils.errors import InputError
from masklab.utils.files import open_plain, read_text
from masklab.utils.types import Size

_IMAGE_FOLDERS = ("images", "image", "imgs", "img")
LABEL_FOLDERS = ("labels", "label", "annotations", "txt")
_NO_LABELS = {"classes", "obj", "train", "val", "valid", "test"}  # text files that may lie among the labels
_MAX_OUTSIDE = 1.0  # how far a polygon may leave its image, in widths or heights of the image
_LOOKED_AT = 5  # text files whose first line decides whether a folder holds YOLO's labels
_LONGEST = 40  # characters of the file that a message repeats

_Names = Callable[[], dict[int, str]]  # by number, computed when they are needed


def _find(folder: Path) -> dict[str, SplitSource]:
    """The splits that a table such as ``data.yaml`` lists, or else those of the folders.

    Raises `InputError` for a table that cannot be used, and for labels without images.
    """
    table = find_table(folder)
    if table and table.entries:
        pairs = _listed_splits(folder, table)
    else:
        places = _places(folder, told=table is not None and table.is_yolo)
        pairs = {split: partial(_pairs_in, folder, place) for split, place in places.items()}
    if not pairs and any(map(_is_yolo, _folders_of_labels(folder))):
        raise InputError(f"{folder} holds YOLO labels but no images for them: export the images too.")
    pairs = {split: cache(partial(_checked, folder, make)) for split, make in pairs.items()}
    given = (table and table.names) or listed_names(folder)
    names = cache(partial(_names, list(pairs.values()), given))
    return {
        split: SplitSource(make, partial(_polygon_objects, folder=folder, names=names), names)
        for split, make in pairs.items()
    }


def _places(folder: Path, told: bool) -> dict[str, Path]:
    """Image folders by split: ``images``, ``images/SPLIT``, ``SPLIT/images``, or the folder of the labels itself.

    Unless a table has ``told`` that this is YOLO, only those with YOLO's labels.
    """
    inside = {sub.name: place for sub in subfolders(folder) for place in _image_folders(sub)}
    inside |= {sub.name: sub for place in _image_folders(folder) for sub in subfolders(place)}
    for place in _image_folders(folder):
        inside[""] = place
    found = {split: place for split, place in inside.items() if images_in(place)}
    if not told:
        found = {split: place for split, place in found.items() if _is_yolo(_labels_of(folder, place))}
    beside = {"": folder} | {sub.name: sub for sub in subfolders(folder)}
    return found or {split: place for split, place in beside.items() if _is_yolo(place) and images_in(place)}


def _folders_of_labels(folder: Path) -> list[Path]:
    named = [sub for sub in subfolders(folder) if sub.name.lower() in LABEL_FOLDERS]
    return named + [sub for labels in named for sub in subfolders(labels)]


def _image_folders(folder: Path) -> list[Path]:
    return [sub for sub in subfolders(folder) if sub.name.lower() in _IMAGE_FOLDERS]


def _labels_of(folder: Path, place: Path) -> Path:
    """The folder of the labels of an image folder: the last folder ``images`` in its path becomes ``labels``.

    Where that holds no text file, it is the image folder itself if that does.
    """
    parts = place.relative_to(folder).parts
    last = max((k for k, part in enumerate(parts) if part.lower() in _IMAGE_FOLDERS), default=None)
    if last is None:
        return place
    parent = folder.joinpath(*parts[:last])
    siblings = {sub.name.lower(): sub for sub in subfolders(parent)}
    swapped = [siblings[word].joinpath(*parts[last + 1 :]) for word in LABEL_FOLDERS if word in siblings]
    usual = parent.joinpath("labels", *parts[last + 1 :])
    return next((labels for labels in (*swapped, place) if label_files(labels)), usual)


def label_files(folder: Path) -> dict[str, Path]:
    """The text files of a folder that may be labels, by stem; none where it does not exist."""
    if not folder.is_dir():
        return {}
    paths = [folder / name for name in os.listdir(folder) if name.lower().endswith(".txt") and name[0] != "."]
    return {_stem(path): path for path in paths if path.stem.lower() not in _NO_LABELS}


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)


def _is_yolo(labels: Path) -> bool:
    """Whether text files of a folder begin with a line of numbers, the first of them a class."""
    texts = sorted(label_files(labels).values())
    return any(map(_begins_with_numbers, texts[:_LOOKED_AT]))


def _begins_with_numbers(path: Path) -> bool:
    try:
        with open_plain(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as file:
            words = next((words for line in islice(file, 10) if (words := line.split())), [])
        return len(words) >= 5 and words[0].isdecimal() and bool([float(word) for word in words])
    except (OSError, ValueError):
        return False


def _listed_splits(folder: Path, table: Table) -> dict[str, Callable[[], list[Pair]]]:
    """The splits of a table.  One besides ``train`` of which nothing is here is left out with a warning."""
    splits: dict[str, Callable[[], list[Pair]]] = {}
    absent: list[str] = []
    for split, entries in table.entries.items():
        places = [place for entry in entries if (place := _resolved(folder, table, entry))]
        if split == "train" or any(place.is_file() or any(_images_below(place)) for place in places):
            splits[split] = partial(_listed_pairs, folder, table, split)
        else:
            absent.append(split)
    if not splits:
        return {absent[0]: partial(_listed_pairs, folder, table, absent[0])}
    for split in absent:
        warn_once(
            f"{table.path} lists {split} as {table.entries[split][0]}, of which {folder} holds no image: "
            "it is left out; restore it if you need it."
        )
    return splits


def _resolved(folder: Path, table: Table, entry: str, base: str = "") -> Path | None:
    return resolve(folder, [table.start, base, ""], entry)


def _listed_pairs(folder: Path, table: Table, split: str) -> list[Pair]:
    pairs: list[Pair] = []
    for entry in table.entries[split]:
        place = _required(folder, table, entry, f"{table.path}: {split}")
        if place.is_dir():
            below = list(_images_below(place))
            if not below:
                raise InputError(f"{place} holds no image: correct the paths in {table.path}.")
            pairs += [pair for sub in below for pair in _pairs_in(folder, sub)]
        else:
            base = place.parent.relative_to(folder).as_posix()
            lines = [line.strip() for line in read_text(place).splitlines()]
            images = [_required(folder, table, line, str(place), base) for line in lines if line]
            pairs += _pairs(folder, images)
    return pairs


def _required(folder: Path, table: Table, entry: str, source: str, base: str = "") -> Path:
    place = _resolved(folder, table, entry, base)
    if place is None:
        raise InputError(f"{source} names {entry}, which is not in {folder}: write a path relative to {folder}.")
    return place


def _images_below(place: Path) -> Iterable[Path]:
    """The folders that hold images: a folder and those below it, by name."""
    if images_in(place):
        yield place
    for sub in subfolders(place):
        if not sub.is_symlink():
            yield from _images_below(sub)


def _pairs_in(folder: Path, place: Path) -> list[Pair]:
    """The images of one folder with their labels; `InputError` for labels without image."""
    images = images_in(place)
    labels = _labels_of(folder, place)
    strange = label_files(labels).keys() - {_stem(image) for image in images}
    if strange and labels != place:
        raise InputError(f"{labels / min(strange)}.txt has no image in {place}: restore it or move the labels away.")
    return _pairs(folder, images)


def _pairs(folder: Path, images: list[Path]) -> list[Pair]:
    """Each image with its label file; an image without one has no objects."""
    texts = {place: label_files(_labels_of(folder, place)) for place in {image.parent for image in images}}
    labels = [texts[image.parent].get(_stem(image)) for image in images]
    return [Pair(image, (path,) if path else ()) for image, path in zip(images, labels, strict=True)]


def _checked(folder: Path, make: Callable[[], list[Pair]]) -> list[Pair]:
    """The pairs of a split; `InputError` where no image has labels, and where all labels are boxes."""
    pairs = make()
    if not any(pair.masks for pair in pairs):
        image = pairs[0].image if pairs else folder / "?"
        example = _labels_of(folder, image.parent) / f"{image.stem}.txt"
        raise InputError(f"none of the images in {image.parent} has a label file: add them, such as {example}.")
    boxes: Path | None = None
    for path in (path for pair in pairs for path in pair.masks):
        lengths = {len(line.split()) for line in _readable_lines(path)}
        if max(lengths, default=0) > 6:
            return pairs
        boxes = boxes or (path if lengths & {5, 6} else None)
    if boxes:
        raise InputError(
            f"{boxes} and all other labels here are boxes, not outlines: export them for segmentation (polygons)."
        )
    return pairs


def _readable_lines(path: Path) -> list[str]:
    """The lines of a label file that are not empty; none where it cannot be read, which `_polygon_objects` says."""
    try:
        return [line for line in read_text(path).splitlines() if line.strip()]
    except InputError:
        return []


def _names(splits: list[Callable[[], list[Pair]]], given: dict[int, str] | None) -> dict[int, str]:
    """The class names given by a file, or else the class numbers that occur in the labels of all splits."""
    if given:
        return given
    paths = (path for make in splits for pair in make() for path in pair.masks)
    words = {line.split()[0] for path in paths for line in _readable_lines(path)}
    return {number: str(number) for number in sorted(int(word) for word in words if _is_number(word))}


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 10


def _polygon_objects(pair: Pair, size: Size, sink: Sink, folder: Path, names: _Names) -> list[ObjectMask]:
    """The objects of an image: lines ``class x1 y1 x2 y2 ...`` with x and y from 0 to 1 over the image.

    A line that cannot be used is reported to the sink.
    """
    objects: list[ObjectMask] = []
    for path in pair.masks:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            try:
                objects.append(_read_line(line, size, names()))
            except ValueError as error:
                detail, name = f"line {number} {error}", pair.image.relative_to(folder).as_posix()
                sink.report(Problem(MALFORMED, detail, file_name=name, sentence=f"{path} {detail}"))
    return objects


def _read_line(line: str, size: Size, names: dict[int, str]) -> ObjectMask:
    """The object of one line; `ValueError` says what is wrong with it and what to do."""
    words = line.split()
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        raise ValueError("holds something that is not a number: correct the line.") from None
    category, places = values[0], values[1:]
    if category not in names:
        raise ValueError(f"has class {words[0][:_LONGEST]}, which is not among the class names: add it to them.")
    if places.size in (4, 5):
        raise ValueError("is a box, not an outline: export outlines (segmentation), not boxes.")
    if places.size % 2 or places.size < 6:
        raise ValueError(f"has {places.size} coordinates: write pairs of x and y, at least three.")
    if not (np.abs(places - 0.5) <= 0.5 + _MAX_OUTSIDE).all():
        raise ValueError("has a coordinate that is not from 0 to 1: divide x by the width, y by the height.")
    try:
        return ObjectMask(int(category), polygon_mask(places.reshape(-1, 2) * size[::-1], size))
    except ValueError as error:
        raise ValueError(f"makes no mask ({error}): correct the line.") from None


YOLO = Layout("yolo", "YOLO segmentation (data.yaml, images, labels/*.txt)", _find)
