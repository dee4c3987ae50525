"""Opening of data sets, whose layout is recognised by their folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from masklab.config.fields import VAL_FRACTION
from masklab.datasets.components import separate
from masklab.datasets.image_table import relative_name
from masklab.datasets.layouts.base import ObjectMask, Pair, SplitSource
from masklab.datasets.layouts.coco import CocoFiles
from masklab.datasets.problems import Problem, Sink, TrainingSink, without_path
from masklab.datasets.recognise import recognise
from masklab.datasets.selection import choose, split_lists
from masklab.datasets.source import Data, as_source
from masklab.datasets.split import Split
from masklab.images.read import image_size
from masklab.masks import rle
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.progress import track
from masklab.utils.types import Size


def open_split(
    data: Data,
    split: str,
    categories: ClassTable | None = None,
    val_fraction: float = VAL_FRACTION,
    seed: int = 0,
    sink: Sink | None = None,
) -> Split:
    """Find a split in a data set folder of any layout of `LAYOUTS`, or COCO's, and read it.

    Every layout is converted to what COCO's JSON would hold, masks as run lengths.  A split is a folder, or what
    YOLO's ``data.yaml``, or ``train.txt`` and ``val.txt`` with one image per line, list; ``valid`` and ``validation``
    are taken as ``val`` where there is no other.  Where there is no ``val``, it is ``val_fraction`` of the images of
    ``train``, or of an undivided folder: the first by a hash of ``seed`` and file name.  ``train`` is the rest;
    ``all`` is the whole of an undivided folder.  A layout without classes has the one class of ``categories``, if it
    has only one, else "object".

    ``sink`` receives the problems of single images in layouts other than COCO's: an unreadable image is left out, one
    with unreadable annotations has no objects.  By default the first raises `InputError`.

    Raises `InputError` when no layout or several fit, for a split that does not exist, and for files that cannot be
    used.
    """
    source = as_source(data)
    if source.split_components:
        whole = replace(source, split_components=False)
        return separate(open_split(whole, split, categories, val_fraction, seed, sink), sink)
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}: give a share between 0 and 1, such as {VAL_FRACTION}.")
    folder, found = recognise(source, split)
    opened: dict[str, Split] = {}
    if isinstance(found, CocoFiles):

        def names_of(name: str) -> list[str]:
            opened[name] = Split.open(found.one(name), categories)
            return opened[name].images.names()

        pool, kept, note = choose(folder, found.splits, names_of, split, val_fraction, seed)
        return opened[pool].part(kept, note) if note or len(kept) < len(opened[pool]) else opened[pool]
    pairs = {name: source.pairs for name, source in found.items()}
    listed: dict[str, list[Pair]] = {}

    def listed_names(name: str) -> list[str]:
        listed[name] = pairs[name]()
        return [relative_name(pair.image, folder) for pair in listed[name]]

    pool, kept, note = choose(folder, found, listed_names, split, val_fraction, seed)
    sink = sink or TrainingSink()
    values = _as_coco(folder, [listed[pool][index] for index in kept], found[pool], categories, sink)
    part = Split(folder / split, folder, categories, values)
    part.note = note
    part.left_out = sink.skipped if isinstance(sink, TrainingSink) else Counter()
    return part


def split_names(data: Data) -> list[str]:
    """The splits that `open_split` finds, those that it would hold out included."""
    folder, found = recognise(data)
    names = found.names() if isinstance(found, CocoFiles) else set(found) - {""}
    names = names or {"train"} | set(split_lists(folder))
    return sorted(names | {"val"} if "train" in names else names)


def _as_coco(
    folder: Path, pairs: list[Pair], found: SplitSource, categories: ClassTable | None, sink: Sink
) -> dict[str, Any]:
    """Images and annotations in COCO's form, ``file_name`` relative to ``folder``."""
    only = (categories.ids[0], categories.names[0]) if categories and len(categories) == 1 else (1, "object")
    names = (found.names() if found.names else {}) or dict([only])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, pair in enumerate(track(pairs, "reading masks"), 1):
        size: Size | None = None
        objects: list[ObjectMask] = []
        try:
            size = image_size(pair.image)
            objects = found.objects(pair, size, sink)
        except InputError as error:
            problem, reason = "damaged image" if size is None else "unusable annotation file", str(error)
            name = relative_name(pair.image, folder)
            sink.report(Problem(problem, without_path(reason, folder / name), image_id, None, name, reason))
        if size is None:
            continue
        images.append(
            {"id": image_id, "file_name": relative_name(pair.image, folder), "height": size[0], "width": size[1]}
        )
        strings = rle.rle_to_strings([found.rle for found in objects])
        for (category, runs, crowd), counts in zip(objects, strings, strict=True):
            x1, y1, x2, y2 = rle.bounds(runs, size) or (0, 0, 0, 0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": only[0] if category is None else category,
                    "segmentation": {"size": list(size), "counts": counts},
                    "area": rle.area(runs),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": int(crowd),
                }
            )
    table = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": table}
