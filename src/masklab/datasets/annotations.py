"""Reader of image entries and annotations in COCO's form, whatever layout they come from.

Every problem is reported to a sink (`masklab.datasets.problems`), which raises, counts or collects; data check,
training, evaluation and figures take what is read here.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from os.path import isfile
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

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
from masklab.utils.errors import InputError
from masklab.utils.files import leaves_folder
from masklab.utils.types import Size
from masklab.utils.words import as_written, listed

_FARTHEST = 2**31  # pixels: larger coordinates are malformed
_PLAIN = (int, float)
_MARGIN = 1.0  # pixels by which an annotated box may leave the image, to allow for rounding


@dataclass(frozen=True)
class ImageRecord:
    """The entry of one image: COCO's image id, the file, and ``(height, width)`` as the JSON gives it."""

    image_id: int | str
    path: Path
    size: Size


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


def read_images(entries: Iterable[Any], source: str | Path, folder: Path | None, sink: Sink) -> list[ImageRecord]:
    """The usable entries of COCO's ``images``, the first of each id; files are looked for by `require_files`.

    ``source`` is named in messages.  Without a ``folder``, entries need no file name.
    """
    found: dict[int | str, ImageRecord] = {}
    for entry in entries:
        try:
            image = _read_entry(entry, source, folder)
        except InputError as error:
            sink.report(Problem("unusable image entry", str(error), id_of(entry), sentence=str(error)))
            continue
        if image.image_id in found:
            sentence = f"{source}: image id {image.image_id} occurs twice; give each image its own id."
            detail, first = f"{image.path.name} has it too", found[image.image_id].path
            file_name = None if folder is None else first.relative_to(folder).as_posix()
            sink.report(Problem("duplicate image id", detail, image.image_id, None, file_name, sentence))
        else:
            found[image.image_id] = image
    return list(found.values())


def require_files(images: Sequence[ImageRecord], source: str | Path, folder: Path) -> None:
    """Raise `InputError` unless the file of every image exists."""
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); correct the image folder.") from None
    missing = [
        image.path
        for image in images
        if not (image.path.name in present if image.path.parent == folder else isfile(image.path))
    ]
    if missing:
        raise InputError(
            f"{missing[0]} is missing ({len(missing)} of the {len(images)} images of {source} are); "
            "restore the images or remove them from the JSON."
        )


def group_by_image(
    annotations: Iterable[Any],
    images: Sequence[ImageRecord],
    source: str | Path,
    sink: Sink,
    unusable: Container[int | str] = (),
) -> list[list[dict[str, Any]]]:
    """The annotations of each image, in file order.

    Those of image ids in ``unusable``, whose entries were reported, are left out; others of no image are reported.
    """
    groups: dict[int | str, list[dict[str, Any]]] = {image.image_id: [] for image in images}
    for annotation in annotations:
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if is_id(image_id) and image_id in groups:
            groups[image_id].append(annotation)
        elif not is_id(image_id) or image_id not in unusable:
            number = annotation.get("id", "?") if isinstance(annotation, dict) else "?"
            sentence = (
                f"{source}: annotation {number} belongs to image id {image_id}, which is not among the images; "
                "add the image or remove the annotation."
            )
            detail = f"its image id is {image_id}"
            sink.report(Problem("annotation of no image", detail, None, id_of(annotation), sentence=sentence))
    return list(groups.values())


def read_annotation(
    annotation: dict[str, Any], image: ImageRecord, labels: Mapping[Any, int], source: str | Path, sink: Sink
) -> Annotation:
    """Read one annotation of an image; ``labels`` maps category ids to labels."""
    category, given, area = (annotation.get(key) for key in ("category_id", "bbox", "area"))
    label = labels.get(category) if is_id(category) else None
    crowd = is_crowd(annotation)
    mask = _read_mask(annotation, image.size)
    runs, problem, detail = mask.rle, mask.problem, mask.detail
    tight = None if runs is None else rle.bounds(runs, image.size)
    x1, y1, x2, y2 = tight or (0, 0, 0, 0)
    box = tight or _inside(given, image.size)
    if crowd and box is not None:
        problem = ""  # the box alone suffices for a region that is ignored
    elif not problem and label is None:
        problem, detail = UNKNOWN_CATEGORY, unknown_category(category, labels)
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


def is_id(value: Any) -> TypeGuard[int | str]:
    """Whether a value can be the id of an image, annotation or category."""
    return isinstance(value, (Integral, str)) and not isinstance(value, bool)


def id_of(entry: Any) -> int | str | None:
    """The id of an entry or annotation, if it has one."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return number if is_id(number) else None


def _read_entry(entry: Any, source: str | Path, folder: Path | None) -> ImageRecord:
    """Check one entry of ``images``; `InputError` for one without id, size or a file name inside ``folder``."""
    image_id = id_of(entry)
    if image_id is None:
        raise InputError(f"{source}: an entry of images has no id; correct the file.")
    path = Path() if folder is None else folder / _file_name(entry, source, folder)
    return ImageRecord(image_id, path, (_side(entry, "height", source), _side(entry, "width", source)))


def _file_name(entry: dict[str, Any], source: str | Path, folder: Path) -> str:
    image_id, name = entry["id"], entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{source}: image {image_id} has no file_name; correct the file.")
    if min(name) < " ":
        raise InputError(
            f"{source}: image {image_id} has file_name {name!r}, which holds control characters; correct the file."
        )
    if leaves_folder(name):
        raise InputError(f"{source}: image {image_id} has file_name {name!r}, which leaves {folder}; correct the file.")
    return name


def _side(entry: dict[str, Any], key: str, source: str | Path) -> int:
    value: Any = entry.get(key)
    if not _is_number(value) or not 1 <= value < 2**31 or value != int(value):
        raise InputError(
            f"{source}: image {entry['id']} has {key} {value!r}, which must be a whole number of pixels; "
            "correct the file."
        )
    return int(value)


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
    if area is not None and not _is_area(area):
        yield "malformed area", f"its area is {as_written(area)}; evaluation takes the mask's own"
    if not is_box(box):
        if box is not None:
            yield "malformed box", f"its bbox is {as_written(box)} but must be four numbers"
        return
    x, y, width, height = box
    if min(width, height) <= 0:
        yield "box without area", f"{width} wide, {height} high"
    elif max(-x, -y, x + width - size[1], y + height - size[0]) > _MARGIN:
        yield "box outside the image", as_written(box)


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
