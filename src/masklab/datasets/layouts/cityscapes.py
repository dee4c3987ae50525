"""Cityscapes: ``leftImg8bit/SPLIT/CITY/x_leftImg8bit.png`` with ``gtFine/SPLIT/CITY/x_gtFine_instanceIds.png``.

A pixel of an object has ``1000 * class + number``.  A pixel of a group whose objects are not told apart has the class
alone.  Of the classes with objects, only those of the benchmark count: caravan and trailer are ignored there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.masks import check_size, read_labels
from masklab.datasets.layouts.notes import inform_once
from masklab.datasets.problems import Sink
from masklab.masks import encode
from masklab.utils.errors import InputError
from masklab.utils.types import Size

_NAMES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_IMAGES = "leftImg8bit"
_TRUTHS = ("gtFine", "gtCoarse")
_OBJECTS = 1000  # values from here on are objects
_FIRST_CLASS = 7  # road: lower values are borders and the car itself, all that a file without annotations has
_LOOKED_AT = 5


def _find(folder: Path) -> dict[str, SplitSource]:
    """The splits that have annotations; ``test``, whose files hold none, is left out.

    Raises `InputError` where there are annotations but no ``instanceIds``.
    """
    found: dict[str, SplitSource] = {}
    for images in subfolders(folder / _IMAGES):
        truth = next((name for name in _TRUTHS if (folder / name / images.name).is_dir()), None)
        if truth is None:
            continue
        labels = folder / truth / images.name
        files = [path for city in subfolders(labels) for path in images_in(city)]
        known = [path for path in files if path.stem.endswith("_instanceIds")]
        if files and not known:
            raise InputError(f"{labels} holds no file *_{truth}_instanceIds.png: make them from the polygons.")
        if images.name == "test" and not any(map(_is_annotated, known[:_LOOKED_AT])):
            inform_once(f"{labels} holds no annotations: test is left out.")
        elif known:
            found[images.name] = SplitSource(partial(_pairs, images, labels, truth), _objects, lambda: _NAMES)
    return found


def _is_annotated(path: Path) -> bool:
    """Whether a file holds any class; also true for a damaged one, which reading its objects reports."""
    try:
        return bool(read_labels(path).max(initial=0) >= _FIRST_CLASS)
    except InputError:
        return True


def _pairs(images: Path, labels: Path, truth: str) -> list[Pair]:
    """Each image of a split, city by city; `InputError` for one without annotations."""
    pairs = []
    for city in subfolders(images):
        for image in images_in(city):
            name = image.stem.removesuffix(f"_{_IMAGES}")
            mask = labels / city.name / f"{name}_{truth}_instanceIds.png"
            if not mask.is_file():
                raise InputError(f"{image} has no {mask}: restore it or move the image away.")
            pairs.append(Pair(image, (mask,)))
    return pairs


def _objects(pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
    labels = check_size(read_labels(pair.masks[0]), pair, pair.masks[0], size)
    objects = []
    for value, runs in zip(*encode.encode_labels(labels), strict=True):
        category = int(value) // _OBJECTS if value >= _OBJECTS else int(value)
        if category in _NAMES:
            objects.append(ObjectMask(category, np.asarray(runs), crowd=bool(value < _OBJECTS)))
    return objects


CITYSCAPES = Layout("cityscapes", "Cityscapes (leftImg8bit, gtFine)", _find)
