"""YOLO segmentation: ``images/SPLIT``, ``labels/SPLIT`` with one outline per line, and ``data.yaml`` with the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from masklab.datasets.split import Split
from masklab.datasets.writers.base import CROWDS, Writer, class_names, copy, flat_names
from masklab.masks.polygons import rle_to_polygons
from masklab.masks.yolo_line import yolo_line


def _write(splits: Mapping[str, Split], folder: Path) -> dict[str, Counter[str]]:
    """Classes are numbered from 0, in the order of their category ids."""
    names = class_names(splits)
    numbers = {category: number for number, category in enumerate(names)}
    lost = {name: _write_split(split, folder, name, numbers) for name, split in splits.items()}
    # without ``path``, Ultralytics takes the others as relative to the file's own folder
    table = {name: f"images/{name}" for name in splits} | {"names": dict(enumerate(names.values()))}
    text = yaml.safe_dump(table, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return lost


def _write_split(split: Split, folder: Path, name: str, numbers: Mapping[int, int]) -> Counter[str]:
    lost: Counter[str] = Counter()
    labels = folder / "labels" / name
    labels.mkdir(parents=True)
    of_label = [numbers[category] for category in split.categories.ids]
    for index, (image, own) in enumerate(zip(split.images, flat_names(split), strict=True)):
        written = copy(image.path, folder / "images" / name / own)
        objects = split.objects(index)
        rows = range(len(objects))
        lines = [
            yolo_line(of_label[objects.labels[row]], rle_to_polygons(objects.rle(row), image.size), image.size) + "\n"
            for row in rows
        ]
        (labels / f"{written.stem}.txt").write_text("".join(lines), encoding="ascii")
        lost[CROWDS] += len(objects.ignored)
    return lost


YOLO = Writer("images/{split}", _write)
