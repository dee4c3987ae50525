"""Check of annotations: masks, boxes, ids, and objects that are annotated twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from masklab.datasets.annotations import Annotation, read_annotation
from masklab.datasets.check.split import LenientSplit
from masklab.datasets.grouping import group_by_image
from masklab.datasets.image_table import ImageRecord, id_of
from masklab.masks import rle
from masklab.masks.rle import RLE
from masklab.utils.progress import track
from masklab.utils.types import Size

_DUPLICATE_IOU = 0.95  # IoU above which two objects of one category are the same


def check_annotations(split: LenientSplit, images: Sequence[ImageRecord]) -> None:
    """Read every annotation of a split as training does and report its problems."""
    listed = [number for entry in split.images if (number := id_of(entry)) is not None]
    groups = group_by_image(split.annotations, images, split.json_path, split, set(listed))
    split.use_categories(groups.categories)
    _check_ids(split)
    labels = {number: label for label, number in enumerate(split.names)}
    for index, image in track(enumerate(images), f"{split.name}: annotations", len(images)):
        entries = split.annotations.take(groups.of(index))
        annotations = [read_annotation(entry, image, labels, split.json_path, split) for entry in entries]
        _check_duplicates(split, image, annotations)


def _check_ids(split: LenientSplit) -> None:
    ids = Counter(id_of(annotation) for annotation in split.annotations)
    for annotation in split.annotations:
        number = id_of(annotation)
        if number is not None and ids[number] > 1:
            split.add("duplicate annotation id", "", annotation.get("image_id"), number)


def _check_duplicates(split: LenientSplit, image: ImageRecord, annotations: Iterable[Annotation]) -> None:
    objects = [a for a in annotations if not a.crowd and not a.problem]
    masks = [a.rle for a in objects if a.rle is not None]
    labels = [a.label for a in objects if a.label is not None]
    for later, first, iou in duplicates(masks, labels, image.size):
        detail = f"IoU {iou:.2f} with annotation {objects[first].annotation_id}"
        split.add("duplicate object", detail, image.image_id, objects[later].annotation_id)


def duplicates(masks: Sequence[RLE], labels: Iterable[int], size: Size) -> list[tuple[int, int, float]]:
    """Objects that are annotated twice: (row, row of an earlier one, IoU) for each of IoU above 0.95 and one label.

    ``masks`` are run lengths, none of them empty, in an image of ``size``.  Only pairs whose boxes and areas allow it
    are compared, run by run.
    """
    boxes = np.array([rle.bounds(runs, size) for runs in masks], np.int64).reshape(-1, 4)
    areas = np.array([rle.area(runs) for runs in masks], np.int64)
    classes = np.fromiter(labels, np.int64, len(masks))
    found = []
    for row in range(1, len(masks)):
        sides = np.minimum(boxes[:row, 2:], boxes[row, 2:]) - np.maximum(boxes[:row, :2], boxes[row, :2])
        most = np.minimum(np.minimum(areas[:row], areas[row]), sides.clip(0).prod(axis=1))
        possible = (classes[:row] == classes[row]) & (most > _DUPLICATE_IOU * (areas[:row] + areas[row] - most))
        for other in np.flatnonzero(possible).tolist():
            shared = _shared(masks[other], masks[row])
            iou = float(shared / (areas[other] + areas[row] - shared))
            if iou > _DUPLICATE_IOU:
                found.append((row, other, iou))
                break
    return found


def _shared(one: RLE, two: RLE) -> float:
    """Pixels that two masks have in common: what ``two`` covers before each end of a run of ``one``, less its start."""
    edges, covered = np.cumsum(two), np.cumsum(two * (np.arange(two.size) % 2))
    marks = np.interp(np.cumsum(one)[: one.size // 2 * 2], edges, covered)
    return float((marks[1::2] - marks[0::2]).sum())
