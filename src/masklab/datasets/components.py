"""Separation of masks into their connected pieces, for masks that hold one value for many objects."""

from __future__ import annotations

from typing import Any

from masklab.datasets.annotations import read_annotation
from masklab.datasets.problems import SMALL_PIECE, CollectingSink, Problem, Sink
from masklab.datasets.split import Split
from masklab.masks import rle
from masklab.masks.pieces import pieces

_SMALLEST = 3  # pixels: smaller pieces of a mask are noise


def separate(split: Split, sink: Sink | None = None) -> Split:
    """The split with each connected piece of a mask as an object; pieces of one or two pixels are left out.

    Masks of one piece, crowd regions and annotations that cannot be used stay as they are.  What is left out is
    counted in `Split.left_out`, or reported to ``sink``, once for each mask.
    """
    values, labels = split.coco, split.categories.labels
    images = {image.image_id: image for image in split.images}
    names = dict(zip(images, split.images.names(), strict=True))
    left_out = split.left_out.copy()
    number = max((a["id"] for a in values["annotations"] if type(a.get("id")) is int), default=0)
    annotations: list[dict[str, Any]] = []
    for entry in values["annotations"]:
        image = images[entry["image_id"]]
        read = read_annotation(entry, image, labels, split.json_path, CollectingSink())
        usable = read.rle is not None and not read.crowd and not read.problem
        parts = pieces(read.rle, image.size) if usable and read.rle is not None else []
        if len(parts) < 2:
            annotations.append(entry)
            continue
        kept = [part for part in parts if rle.area(part) >= _SMALLEST]
        if few := len(parts) - len(kept):
            left_out[SMALL_PIECE] += few
            if sink is not None:
                name = names[image.image_id]
                sink.report(Problem(SMALL_PIECE, f"{few} of them", image.image_id, read.annotation_id, name))
        for segmentation, part in zip(rle.rle_to_coco(kept, image.size), kept, strict=True):
            number += 1
            x1, y1, x2, y2 = rle.bounds(part, image.size) or (0, 0, 0, 0)
            own = {"id": number, "segmentation": segmentation, "area": rle.area(part)}
            annotations.append({**entry, **own, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    entries = [
        {"id": image.image_id, "file_name": names[image.image_id], "height": image.size[0], "width": image.size[1]}
        for image in images.values()
    ]
    values |= {"images": entries, "annotations": annotations}
    separated = Split(split.json_path, split.folder, split.categories, values)
    separated.note, separated.left_out = split.note, left_out
    return separated
