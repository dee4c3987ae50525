"""Reader of annotations in COCO's form, whatever layout they come from.

Every problem is reported to a sink (`masklab.datasets.problems`), which raises, counts or collects; data check,
training, evaluation and figures take what is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import msgspec

from masklab.datasets.image_table import ImageRecord, id_of, is_id
from masklab.datasets.problems import (
    BOOLEAN_CROWD,
    EMPTY,
    MALFORMED,
    MALFORMED_CROWD,
    MALFORMED_PART,
    OUTSIDE,
    UNKNOWN_CATEGORY,
    Problem,
    Sink,
    unknown_category,
)
from masklab.masks import coco_segmentation, rle
from masklab.masks.rle import RLE
from masklab.utils.types import Size
from masklab.utils.words import as_written, listed

_FARTHEST = 2**31  # pixels: larger coordinates are malformed
_PLAIN = (int, float)
_MARGIN = 1.0  # pixels by which an annotated box may leave the image, to allow for rounding


class Annotation(msgspec.Struct, frozen=True):
    """One annotation of an image.

    ==================  ====================================================================================
    name                meaning
    ==================  ====================================================================================
    ``annotation_id``   the file's own, None where it has none
    ``label``           ``0..K-1``, None for an unknown category
    ``crowd``           a crowd region: neither an object nor background
    ``rle``             run lengths of the mask, perhaps of no pixel; None for a malformed mask
    ``crowd_box``       ``xyxy`` of a crowd region, tight around the mask; without mask, ``bbox`` inside the image;
                        None where there is neither, and for objects
    ``bbox``            COCO's ``[x, y, width, height]`` as annotated; where malformed, that of the mask
    ``area``            pixels as annotated; where malformed, those of the mask
    ``problem``         why training skips it, "" where it does not
    ``counts``          the mask as COCO's compressed string, None where the file has no such string of it
    ==================  ====================================================================================
    """

    annotation_id: int | str | None
    label: int | None
    crowd: bool
    rle: RLE | None
    crowd_box: tuple[float, ...] | None
    bbox: list[float]
    area: float
    problem: str
    counts: str | None = None


def read_annotations(
    annotations: Sequence[dict[str, Any]],
    image: ImageRecord,
    labels: Mapping[Any, int],
    source: str | Path,
    sink: Sink,
) -> list[Annotation]:
    """`read_annotation` for the annotations of an image; those without any problem are read together, which is faster."""
    masks = coco_segmentation.read_strings([each.get("segmentation") for each in annotations], image.size)
    return [
        (None if mask is None else _read_plain(annotation, *mask, image.size, labels))
        or read_annotation(annotation, image, labels, source, sink)
        for annotation, mask in zip(annotations, masks, strict=True)
    ]


def _read_plain(
    annotation: dict[str, Any], runs: RLE, pixels: int, size: Size, labels: Mapping[Any, int]
) -> Annotation | None:
    """An object with a readable mask of some pixels; None where `read_annotation` has more to look at."""
    category, crowd = annotation.get("category_id"), annotation.get("iscrowd")
    label = labels.get(category) if is_id(category) else None
    if label is None or not (crowd is None or (type(crowd) is int and crowd == 0)):
        return None
    box, area = annotation.get("bbox"), annotation.get("area")
    if not (is_box(box) and _is_plausible(box, size) and _is_area(area)):
        return None
    counts = annotation["segmentation"]["counts"]
    return Annotation(
        annotation_id=id_of(annotation),
        label=label,
        crowd=False,
        rle=runs,
        crowd_box=None,
        bbox=[float(value) for value in box],
        area=float(area),
        problem="",
        counts=counts if type(counts) is str else None,
    )


def read_annotation(
    annotation: dict[str, Any], image: ImageRecord, labels: Mapping[Any, int], source: str | Path, sink: Sink
) -> Annotation:
    """Read one annotation of an image; ``labels`` maps category ids to labels."""
    category, given, area = (annotation.get(key) for key in ("category_id", "bbox", "area"))
    label = labels.get(category) if is_id(category) else None
    crowd = is_crowd(annotation)
    mask = _read_mask(annotation, image.size)
    runs, problem, detail = mask.rle, mask.problem, mask.detail
    has_box = is_box(given)
    tight = None if runs is None or (has_box and not crowd) else rle.bounds(runs, image.size)
    x1, y1, x2, y2 = tight or (0, 0, 0, 0)
    crowd_box = (tight or _inside(given, image.size)) if crowd else None
    if crowd_box is not None:
        problem = ""  # the box alone suffices for a region that is ignored
    elif not problem and label is None:
        problem, detail = UNKNOWN_CATEGORY, unknown_category(category, labels)
    read = Annotation(
        annotation_id=id_of(annotation),
        label=label,
        crowd=crowd,
        rle=runs,
        crowd_box=crowd_box,
        bbox=[float(value) for value in (given if has_box and given else (x1, y1, x2 - x1, y2 - y1))],
        area=float(area if _is_area(area) else 0 if runs is None else rle.area(runs)),
        problem=problem,
    )
    if problem or mask.part_detail:
        where = f"{source}: annotation {annotation.get('id', '(no id)')}"
    if problem:
        sentence = f"{where}: {problem}{f' ({detail})' if detail else ''}; correct or remove it."
        sink.report(Problem(problem, detail, image.image_id, read.annotation_id, sentence=sentence))
    elif not crowd:
        for name, detail in _harmless_problems(given, area, image.size):
            sink.report(Problem(name, detail, image.image_id, read.annotation_id))
    if isinstance(iscrowd := annotation.get("iscrowd"), bool):
        detail = f"iscrowd is {as_written(iscrowd)}, taken as {int(iscrowd)}"
        sink.report(Problem(BOOLEAN_CROWD, detail, image.image_id, read.annotation_id))
    if mask.part_detail and not problem:
        sentence = f"{where}: {mask.part_detail}; correct or remove it."
        sink.report(Problem(MALFORMED_PART, mask.part_detail, image.image_id, read.annotation_id, sentence=sentence))
    return read


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Whether an annotation is a crowd region."""
    return annotation.get("iscrowd") in (1,)


class _Mask(NamedTuple):
    """Run lengths, the problem with them and its detail, and what is wrong with parts that are left out."""

    rle: RLE | None
    problem: str = ""
    detail: str = ""
    part_detail: str = ""


def _read_mask(annotation: dict[str, Any], size: Size) -> _Mask:
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):
        return _Mask(None, MALFORMED_CROWD, f"iscrowd is {as_written(crowd)} but must be 0 or 1")
    try:
        runs, faults = coco_segmentation.read_segmentation(annotation.get("segmentation"), size)
    except ValueError as error:
        return _Mask(None, MALFORMED, f"{'a crowd region: ' if crowd else ''}{error}")
    part_detail = listed(faults, 1)
    if rle.area(runs):
        return _Mask(runs, part_detail=part_detail)
    box: Any = annotation.get("bbox")
    outside = is_box(box) and min(box[2:]) > 0 and _inside(box, size) is None
    return _Mask(runs, OUTSIDE if outside else EMPTY, part_detail or "its mask covers no pixel")


def _harmless_problems(box: Any, area: Any, size: Size) -> Iterable[tuple[str, str]]:
    """Problems of ``bbox`` and ``area``, which training does not read: it takes the mask's own."""
    if _is_area(area) and is_box(box) and _is_plausible(box, size):
        return
    if area is not None and not _is_area(area):
        yield "malformed area", f"its area is {as_written(area)}; evaluation takes the mask's own"
    if not is_box(box):
        if box is not None:
            yield "malformed box", f"its bbox is {as_written(box)} but must be four numbers"
        return
    if min(box[2:]) <= 0:
        yield "box without area", f"{box[2]} wide, {box[3]} high"
    elif not _is_plausible(box, size):
        yield "box outside the image", as_written(box)


def _is_plausible(box: Sequence[float], size: Size) -> bool:
    """Whether a ``bbox`` has an area and lies in the image, but for rounding."""
    x, y, width, height = box
    inside = -_MARGIN <= x <= size[1] + _MARGIN - width and -_MARGIN <= y <= size[0] + _MARGIN - height
    return inside and width > 0 and height > 0


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
    for value in box:
        if not (type(value) in _PLAIN or _is_number(value)) or not -_FARTHEST < value < _FARTHEST:
            return False
    return True


def _is_area(area: Any) -> TypeGuard[float]:
    """Whether an ``area`` is a number of pixels that an image can have."""
    return _is_number(area) and 0 <= area < _FARTHEST**2


def _is_number(value: Any) -> bool:
    return type(value) in _PLAIN or (isinstance(value, Real) and not isinstance(value, bool))
