"""Grouping of annotations by image, in flat arrays that processes share."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.datasets.coco_document import Header, JsonArray
from masklab.datasets.image_table import ImageRecord, id_of, is_id
from masklab.datasets.problems import Problem, Sink


@dataclass(frozen=True)
class Grouping:
    """Which annotations belong to which image.

    ``rows`` ``(A,)`` are the places of the annotations in their list, image by image and in file order; those of image
    ``k`` end at ``ends[k]``.  ``objects`` ``(N,)`` counts those of each image that are no crowd regions; ``categories``
    are the category ids that occur.
    """

    rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    objects: NDArray[np.int64]
    categories: frozenset[int | str]

    def of(self, index: int) -> NDArray[np.int64]:
        """The rows of the annotations of image ``index``."""
        return self.rows[self.ends[index - 1] if index else 0 : self.ends[index]]

    def take(self, kept: Sequence[int]) -> Grouping:
        """The grouping of some of the images."""
        rows = [self.of(index) for index in kept]
        ends = np.cumsum([len(own) for own in rows], dtype=np.int64)
        flat = np.concatenate(rows) if rows else self.rows[:0]
        return Grouping(flat, ends, self.objects[np.asarray(kept, np.int64)], self.categories)


def group_by_image(
    annotations: Sequence[Any],
    images: Sequence[ImageRecord],
    source: str | Path,
    sink: Sink,
    unusable: Container[int | str] = (),
) -> Grouping:
    """Find the image of each annotation.

    Those of image ids in ``unusable``, whose entries were reported, are left out; others of no image are reported.
    """
    places = {image.image_id: index for index, image in enumerate(images)}
    owners = np.full(len(annotations), -1, np.int64)
    crowds = np.zeros(len(annotations), bool)
    categories = set[int | str]()
    for row, header in enumerate(_headers(annotations)):
        image_id = header.image_id
        if is_id(image_id) and image_id in places:
            owners[row] = places[image_id]
            crowds[row] = header.iscrowd in (1,)
            if is_id(header.category_id):
                categories.add(header.category_id)
        elif not is_id(image_id) or image_id not in unusable:
            annotation = annotations[row]
            number = annotation.get("id", "?") if isinstance(annotation, dict) else "?"
            sentence = (
                f"{source}: annotation {number} belongs to image id {image_id}, which is not among the images; "
                "add the image or remove the annotation."
            )
            detail = f"its image id is {image_id}"
            sink.report(Problem("annotation of no image", detail, None, id_of(annotation), sentence=sentence))
    rows = np.argsort(owners, kind="stable")[np.count_nonzero(owners < 0) :]
    counts = np.bincount(owners[rows], minlength=len(images))
    objects = np.bincount(owners[(owners >= 0) & ~crowds], minlength=len(images))
    return Grouping(rows, np.cumsum(counts), objects, frozenset(categories))


def _headers(annotations: Sequence[Any]) -> Iterable[Header]:
    if isinstance(annotations, JsonArray):
        return annotations.headers()
    known = (annotation if isinstance(annotation, dict) else {} for annotation in annotations)
    return (Header(values.get("image_id"), values.get("category_id"), values.get("iscrowd")) for values in known)
