"""Opening of data sets, whose layout is recognised by their folder."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

from masklab.config.fields import VAL_FRACTION
from masklab.datasets.layouts import coco
from masklab.datasets.layouts.base import VAL_NAMES, ObjectMask, Pair, SplitSource, check_names
from masklab.datasets.layouts.cellpose import CELLPOSE
from masklab.datasets.layouts.geojson import GEOJSON
from masklab.datasets.layouts.imagej import IMAGEJ
from masklab.datasets.layouts.kaggle import KAGGLE
from masklab.datasets.layouts.label_images import LABEL_IMAGES
from masklab.datasets.layouts.supervisely import SUPERVISELY
from masklab.datasets.layouts.yolo import YOLO
from masklab.datasets.problems import Problem, Sink, TrainingSink, without_path
from masklab.datasets.selection import choose_pairs, hold_out, name_in, split_lists
from masklab.datasets.split import Split
from masklab.images.read import image_size
from masklab.masks import rle
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.progress import track
from masklab.utils.types import Size

LAYOUTS = (YOLO, LABEL_IMAGES, CELLPOSE, KAGGLE, SUPERVISELY, GEOJSON, IMAGEJ)  # besides COCO's


def open_split(
    folder: str | Path,
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
    folder = Path(folder)
    check_names(folder, split)
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}: give a share between 0 and 1, such as {VAL_FRACTION}.")
    found = _recognise(folder)
    if found is None:
        return _open_coco(folder, split, categories, val_fraction, seed)
    pool, chosen, note = choose_pairs(folder, found, split, val_fraction, seed)
    sink = sink or TrainingSink()
    values = _as_coco(folder, chosen, found[pool], categories, sink)
    opened = Split(folder / split, folder, categories, values)
    opened.left_out = sink.skipped if isinstance(sink, TrainingSink) else Counter()
    opened.note = note
    return opened


def split_names(folder: str | Path) -> list[str]:
    """The splits that `open_split` finds in a folder, those that it would hold out included."""
    folder = Path(folder)
    check_names(folder, "all")
    found = _recognise(folder)
    if found is None:
        complete = {
            split: [pair for pair in pairs if pair[1].is_dir()] for split, pairs in coco.split_files(folder).items()
        }
        files = {pairs[0][0]: split for split, pairs in sorted(complete.items(), reverse=True) if len(pairs) == 1}
        names = set(files.values())
    else:
        names = set(found) - {""} or ({"train"} | set(split_lists(folder)))
    return sorted(names | {"val"} if "train" in names else names)


def _recognise(folder: Path) -> dict[str, SplitSource] | None:
    """The splits of the one layout that fits a folder; None where that is COCO's."""
    fitting: dict[str, dict[str, SplitSource] | None] = {}
    if any(images.is_dir() for _, images in chain(*coco.split_files(folder).values())):
        fitting[coco.DESCRIPTION] = None
    errors: list[InputError] = []
    for layout in LAYOUTS:
        try:
            if splits := layout.find(folder):
                fitting[layout.description] = splits
        except InputError as error:
            errors.append(error)
    if not fitting and errors:
        raise errors[0]
    if len(fitting) > 1:
        raise InputError(
            f"{folder} fits more than one layout: {' and '.join(fitting)}: move what you do not mean away."
        )
    if fitting:
        return _with_val(next(iter(fitting.values())))
    if coco.split_files(folder):
        return None
    known = "; ".join([coco.DESCRIPTION, *(layout.description for layout in LAYOUTS)])
    raise InputError(f"{folder} holds no data set: none of {known} was found; correct the path.")


def _with_val(found: dict[str, SplitSource] | None) -> dict[str, SplitSource] | None:
    """The splits, with ``valid`` or ``validation`` as ``val`` where there is no other."""
    other = next((name for name in VAL_NAMES if found and name in found), None)
    if found is None or other is None or "val" in found:
        return found
    return {"val" if name == other else name: own for name, own in found.items()}


def _open_coco(folder: Path, split: str, categories: ClassTable | None, val_fraction: float, seed: int) -> Split:
    present = coco.split_files(folder)
    held_out = split in ("train", "val") and "train" in present and "val" not in present
    whole = Split(*coco.find_split(folder, "train" if held_out else split), categories)
    if not held_out:
        return whole
    images, annotations = (whole.coco[key] for key in ("images", "annotations"))
    kept, note = hold_out([image["file_name"] for image in images], split, folder, val_fraction, seed)
    images = [image for image in images if image["file_name"] in kept]
    ids = {image["id"] for image in images}
    values = whole.coco | {
        "images": images,
        "annotations": [annotation for annotation in annotations if annotation["image_id"] in ids],
    }
    part = Split(whole.json_path, whole.folder, categories, values)
    part.note = note
    return part


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
            name = name_in(pair, folder)
            sink.report(Problem(problem, without_path(reason, folder / name), image_id, None, name, reason))
        if size is None:
            continue
        images.append({"id": image_id, "file_name": name_in(pair, folder), "height": size[0], "width": size[1]})
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
