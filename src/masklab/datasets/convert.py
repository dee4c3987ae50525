"""Conversion of a data set of any layout to COCO's, to YOLO's or to label images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from masklab.config.fields import VAL_FRACTION
from masklab.datasets.open import open_split, split_names
from masklab.datasets.source import Data
from masklab.datasets.split import Split
from masklab.datasets.writers.base import Writer
from masklab.datasets.writers.coco import COCO
from masklab.datasets.writers.label_images import LABEL_IMAGES
from masklab.datasets.writers.yolo import YOLO
from masklab.utils.files import atomic_folder, atomic_write

Format = Literal["coco", "yolo", "label_images"]

WRITERS: dict[Format, Writer] = {"coco": COCO, "yolo": YOLO, "label_images": LABEL_IMAGES}


class Converted(NamedTuple):
    """A split as it was read, where it was written to, and what its new format cannot hold, counted."""

    split: Split
    place: Path
    lost: Counter[str]


def convert(
    source: Data, folder: str | Path, val_fraction: float = VAL_FRACTION, seed: int = 0, format: Format = "coco"
) -> dict[str, Converted]:
    """Write every split of a data set into a new ``folder``.

    ==================  ==============================================================================================
    ``coco``            ``SPLIT.json`` and ``SPLIT/``: masks exactly, as run lengths; annotations of COCO's layout
                        unchanged
    ``yolo``            ``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``: outlines along the pixels' edges; parts
                        and holes of an object are joined into one outline by lines without width
    ``label_images``    ``SPLIT/images`` and ``SPLIT/masks``: smaller objects over larger ones; classes in
                        ``classes.csv`` and ``SPLIT/object_classes.csv``
    ==================  ==============================================================================================

    Only ``coco`` holds crowd regions.  Images are copied unchanged.  ``split.json`` lists the images of each split.  Finds
    and raises what `open_split` does.
    """
    writer = WRITERS[format]
    with atomic_folder(folder) as temporary:
        splits = {name: open_split(source, name, None, val_fraction, seed) for name in split_names(source)}
        lost = writer.write(splits, temporary)
        write_lists(splits, temporary / "split.json")
    places = {name: Path(folder) / writer.place.format(split=name) for name in splits}
    return {name: Converted(split, places[name], +lost[name]) for name, split in splits.items()}


def write_lists(splits: Mapping[str, Split], path: Path) -> None:
    """Write a JSON list of the images of each split, and how it was held out if it was."""
    lists = {
        name: {
            "held_out": split.note or None,
            "images": split.images.names(),
        }
        for name, split in splits.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(lists, indent=1), encoding="utf-8")
