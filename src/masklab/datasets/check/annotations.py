"""Check of annotations: masks, boxes, ids, and objects that are annotated twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from masklab.datasets.annotations import Annotation, read_annotations
from masklab.datasets.check.split import LenientSplit
from masklab.datasets.grouping import Grouping, group_by_image
from masklab.datasets.image_table import ImageRecord, id_of, is_id
from masklab.datasets.problems import Problem, Sink
from masklab.masks import rle
from masklab.masks.rle import RLE
from masklab.utils.types import Size

_DUPLICATE_IOU = 0.95  # IoU above which two objects of one category are the same


class _Identified(msgspec.Struct):
    id: Any = None


_as_identified = msgspec.json.Decoder(_Identified).decode


def check_annotations(split: LenientSplit, images: Sequence[ImageRecord]) -> Grouping:
    """Find the image of each annotation of a split, and report what that meets and ids that occur twice."""
    listed = {number for entry in split.images if (number := id_of(entry)) is not None}
    groups = group_by_image(split.annotations, images, split.json_path, split, listed)
    split.use_categories(groups.categories)
    _check_ids(split)
    return groups


def _check_ids(split: LenientSplit) -> None:
    """Report the ids of several annotations; of large files, numbers are compared in an array."""
    annotations = split.annotations
    ids = [_id_in(text, annotations, row) for row, text in enumerate(annotations.texts())]
    if all(type(number) is int and abs(number) < 2**63 for number in ids):
        numbers, counts = np.unique(np.array(ids, np.int64), return_counts=True)
        twice = set(numbers[counts > 1].tolist())
    else:
        twice = {number for number, count in Counter(ids).items() if count > 1} - {None}
    for row in [row for row, number in enumerate(ids) if number in twice] if twice else []:
        split.add("duplicate annotation id", "", annotations[row].get("image_id"), ids[row])


def _id_in(text: bytes, annotations: Sequence[Any], row: int) -> int | str | None:
    """The id of an annotation from its text, without the rest of it where that is possible."""
    try:
        number = _as_identified(text).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return id_of(annotations[row])
    return number if is_id(number) else None


def read_objects(
    entries: Sequence[dict[str, Any]], image: ImageRecord, labels: Mapping[Any, int], source: Path, sink: Sink
) -> list[Annotation]:
    """Read the annotations of an image as training does, and report objects that are there twice."""
    annotations = read_annotations(entries, image, labels, source, sink)
    objects = [a for a in annotations if not a.crowd and not a.problem]
    masks = [a.rle for a in objects if a.rle is not None]
    known = [a.label for a in objects if a.label is not None]
    for later, first, iou in duplicates(masks, known, image.size):
        detail = f"IoU {iou:.2f} with annotation {objects[first].annotation_id}"
        sink.report(Problem("duplicate object", detail, image.image_id, objects[later].annotation_id))
    return annotations


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
