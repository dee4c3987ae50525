"""Label images: ``SPLIT/images``, and ``SPLIT/masks`` with one whole number per object.

Each is a PNG of 16 bits, or a TIFF of 32 where an image has more objects than 16 bits can tell apart.  Classes stand in
the tables of `masklab.datasets.layouts.label_classes`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from masklab.datasets.layouts.base import image_stem
from masklab.datasets.layouts.label_classes import CLASS_FIELDS, CLASSES, OBJECT_CLASSES, OBJECT_FIELDS
from masklab.datasets.objects import Objects
from masklab.datasets.split import Split
from masklab.datasets.writers.base import CROWDS, Writer, class_names, copy, flat_names
from masklab.masks.rle import window

_MOST_IN_16_BITS = 2**16 - 1
COVERED = "objects that smaller ones cover wholly, left out"
CUT = "objects that lost pixels to smaller ones over them"


def _write(splits: Mapping[str, Split], folder: Path) -> dict[str, Counter[str]]:
    """The tables of classes are left out where nothing but "object" is annotated."""
    names = class_names(splits)
    has_classes = list(names.values()) != ["object"]
    if has_classes:
        _write_table(folder / CLASSES, [CLASS_FIELDS, *names.items()])
    return {name: _write_split(split, folder / name, has_classes) for name, split in splits.items()}


def _write_split(split: Split, folder: Path, has_classes: bool) -> Counter[str]:
    lost: Counter[str] = Counter()
    rows: list[Iterable[Any]] = [OBJECT_FIELDS]
    classes = list(zip(split.categories.ids, split.categories.names, strict=True))
    (folder / "masks").mkdir(parents=True)
    for index, (image, own) in enumerate(zip(split.images, flat_names(split), strict=True)):
        written = copy(image.path, folder / "images" / own)
        objects = split.objects(index)
        labels, kept = _paint(objects, lost)
        mask = _write_labels(folder / "masks" / image_stem(written), labels, len(kept))
        rows += [(mask.name, label, *classes[objects.labels[row]]) for label, row in enumerate(kept, 1)]
        lost[CROWDS] += len(objects.ignored)
    if has_classes:
        _write_table(folder / OBJECT_CLASSES, rows)
    return lost


def _paint(objects: Objects, lost: Counter[str]) -> tuple[NDArray[np.uint32], list[int]]:
    """The label image ``(H, W)``, smaller objects over larger ones; and the object of each label from 1 on."""
    canvas = np.zeros(objects.size, np.uint32)
    order = np.argsort(-objects.areas, kind="stable").tolist()
    for row in order:
        x1, y1, x2, y2 = box = tuple(objects.boxes[row].astype(int).tolist())
        canvas[y1:y2, x1:x2][window(objects.rle(row), objects.size, box).view(bool)] = row + 1
    left = np.bincount(canvas.ravel(), minlength=len(objects) + 1)[1:]
    kept = np.flatnonzero(left)
    lost[COVERED] += len(objects) - len(kept)
    lost[CUT] += int((left[kept] < objects.areas[kept]).sum())
    renumbered = np.zeros(len(objects) + 1, np.uint32)
    renumbered[kept + 1] = np.arange(1, len(kept) + 1)
    return renumbered[canvas], kept.tolist()


def _write_labels(path: Path, labels: NDArray[np.uint32], count: int) -> Path:
    """Write a label image beside ``path``, which has no suffix; returns the file."""
    if count > _MOST_IN_16_BITS:
        path = path.with_name(f"{path.name}.tif")
        tifffile.imwrite(path, labels, compression="zlib", photometric="minisblack")
    else:
        path = path.with_name(f"{path.name}.png")
        Image.fromarray(labels.astype(np.uint16)).save(path)
    return path


def _write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


LABEL_IMAGES = Writer("{split}", _write)
