"""Reader of annotations in COCO's form, whatever layout they come from.

Every problem is reported to a sink (`masklab.datasets.problems`), which raises, counts or collects; data check,
training, evaluation and figures take what is read here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from masklab.datasets.coco_document import Header, JsonArray
from masklab.datasets.image_table import ImageRecord, id_of, is_id
from masklab.datasets.problems import EMPTY, MALFORMED, MALFORMED_CROWD, OUTSIDE, UNKNOWN_CATEGORY, Problem, Sink
from masklab.masks import coco_segmentation, rle
from masklab.masks.rle import RLE
from masklab.utils.types import Size

_FARTHEST = 2**31  # pixels: larger coordinates are malformed
_PLAIN = (int, float)
_MARGIN = 1.0  # pixels by which an annotated box may leave the image, to allow for rounding


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation of an image.

    ==================  ====================================================================================
    name                meaning
    ==================  ====================================================================================
    ``annotation_id``   the file's own, None where it has none
    ``label``           ``0..K-1``, None for an unknown category
    ``crowd``           a crowd region: neither an object nor background
    ``rle``             run lengths of the mask, perhaps of no pixel; None for a malformed mask
    ``box``             ``xyxy``, tight around the mask; without mask, ``bbox`` inside the image; or None
    ``bbox``            COCO's ``[x, y, width, height]`` as annotated; where malformed, that of the mask
    ``area``            pixels as annotated; where malformed, those of the mask
    ``problem``         why training skips it, "" where it does not
    ==================  ====================================================================================
    """

    annotation_id: int | str | None
    label: int | None
    crowd: bool
    rle: RLE | None
    box: tuple[float, ...] | None
    bbox: list[float]
    area: float
    problem: str


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
    fields = Header.__struct_fields__
    known = (annotation if isinstance(annotation, dict) else {} for annotation in annotations)
    return (Header(*(values.get(name) for name in fields)) for values in known)


def read_annotation(
    annotation: dict[str, Any], image: ImageRecord, labels: Mapping[Any, int], source: str | Path, sink: Sink
) -> Annotation:
    """Read one annotation of an image; ``labels`` maps category ids to labels."""
    category, given, area = (annotation.get(key) for key in ("category_id", "bbox", "area"))
    label = labels.get(category) if is_id(category) else None
    crowd = is_crowd(annotation)
    runs, problem, reason = _read_mask(annotation, image.size)
    tight = None if runs is None else rle.bounds(runs, image.size)
    x1, y1, x2, y2 = tight or (0, 0, 0, 0)
    box = tight or _inside(given, image.size)
    if crowd and box is not None:
        problem = ""  # the box alone suffices for a region that is ignored
    elif not problem and label is None:
        problem, reason = UNKNOWN_CATEGORY, f"there is no category {category!r}; add it or correct category_id"
    read = Annotation(
        annotation_id=id_of(annotation),
        label=label,
        crowd=crowd,
        rle=runs,
        box=box,
        bbox=[float(value) for value in (given if is_box(given) else (x1, y1, x2 - x1, y2 - y1))],
        area=float(area if _is_area(area) else 0 if runs is None else rle.area(runs)),
        problem=problem,
    )
    if problem:
        detail = "a crowd region" if crowd else f"its category id is {category}" if problem == UNKNOWN_CATEGORY else ""
        sentence = f"{source}: annotation {annotation.get('id', '(no id)')}: {reason}."
        sink.report(Problem(problem, detail, image.image_id, read.annotation_id, sentence=sentence))
    elif not crowd:
        for name, detail in _harmless_problems(given, area, image.size):
            sink.report(Problem(name, detail, image.image_id, read.annotation_id))
    return read


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Whether an annotation is a crowd region."""
    return annotation.get("iscrowd") in (1,)


def _read_mask(annotation: dict[str, Any], size: Size) -> tuple[RLE | None, str, str]:
    """Run lengths, and the problem with them and a clause on it where there is one."""
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):
        return None, MALFORMED_CROWD, f"iscrowd is {crowd!r} but must be 0 or 1; correct it"
    try:
        runs = coco_segmentation.rle_from_segmentation(annotation.get("segmentation"), size)
    except ValueError as error:
        return None, MALFORMED, f"segmentation is neither a list of polygons nor RLE ({error}); correct it"
    if rle.area(runs):
        return runs, "", ""
    box: Any = annotation.get("bbox")
    outside = is_box(box) and min(box[2:]) > 0 and _inside(box, size) is None
    return runs, OUTSIDE if outside else EMPTY, "its mask covers no pixel; correct or remove it"


def _harmless_problems(box: Any, area: Any, size: Size) -> Iterable[tuple[str, str]]:
    """Problems of ``bbox`` and ``area``, which training does not read: it takes the mask's own."""
    if area is not None and not _is_area(area):
        yield "malformed area", "evaluation takes the mask's own"
    if not is_box(box):
        if box is not None:
            yield "malformed box", "its bbox is not four numbers"
        return
    x, y, width, height = box
    if min(width, height) <= 0:
        yield "box without area", f"{width} wide, {height} high"
    elif max(-x, -y, x + width - size[1], y + height - size[0]) > _MARGIN:
        yield "box outside the image", f"{box}"


def _inside(box: Any, size: Size) -> tuple[float, ...] | None:
    """COCO's ``bbox`` (x, y, width, height) as ``xyxy`` cut at the image's borders; None if nothing is left."""
    if not is_box(box):
        return None
    x1, y1 = max(box[0], 0), max(box[1], 0)
    x2, y2 = min(box[0] + box[2], size[1]), min(box[1] + box[3], size[0])
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def is_box(box: Any) -> TypeGuard[Sequence[float]]:
    """Whether a ``bbox`` is four numbers that can be pixels."""
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return False
    plain = all(type(value) in _PLAIN for value in box)  # the common case, without the slow question after `Real`
    return (plain or all(map(_is_number, box))) and all(abs(value) < _FARTHEST for value in box)


def _is_area(area: Any) -> TypeGuard[float]:
    """Whether an ``area`` is a number of pixels that an image can have."""
    return _is_number(area) and 0 <= area < _FARTHEST**2


def _is_number(value: Any) -> bool:
    return type(value) in _PLAIN or (isinstance(value, Real) and not isinstance(value, bool))
