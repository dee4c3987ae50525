"""COCO dictionaries, checked and brought into one form for both families of metrics.

Boxes here are COCO's ``[x, y, width, height]`` in pixels; masks are compressed RLE of the whole image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hotcoco import mask

from masklab.datasets.coco import is_area, is_box
from masklab.utils.errors import InputError

RLE = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated object or one detection.

    ``image`` and ``label`` are positions in `EvaluationInputs.image_ids` and ``class_names``.  ``area``,
    in pixels, and ``crowd`` describe annotations, ``score`` detections.
    """

    image: int
    label: int
    mask: RLE
    box: list[float]
    area: float = 0.0
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class EvaluationInputs:
    """The images under evaluation, in the order of their ids, with their objects and detections in file order."""

    image_ids: list[int | str]
    sizes: list[tuple[int, int]]
    class_names: list[str]
    objects: list[Region]
    detections: list[Region]


def by_class(regions: Sequence[Region]) -> defaultdict[tuple[int, int], list[int]]:
    """The rows of ``regions`` by image and class."""
    rows: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, region in enumerate(regions):
        rows[region.image, region.label].append(row)
    return rows


def read_inputs(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], image_ids: Iterable[int | str] | None = None
) -> EvaluationInputs:
    """Check COCO ground truth and results and bring them into one form; neither is changed.

    ``image_ids`` limits the evaluation to some images.  Ids may be any integers or strings.  Masks may be
    polygons (one of fewer than three points covers nothing) or RLE, compressed or not.  A missing or
    malformed box or area is taken from the mask.  Annotations of images that the file does not list are left out, as
    pycocotools does.  Raises `InputError` for missing fields, for results of unknown images or classes,
    for scores that are not finite and for RLE masks of another size than their image.
    """
    for field in ("images", "categories"):
        if field not in ground_truth:
            raise InputError(f"the ground truth has no field {field}: give a whole COCO file.")
    images = {_get(image, "id", "an image of the ground truth"): image for image in ground_truth["images"]}
    chosen = _choose(list(images), image_ids)
    sizes = [_size(images[identifier]) for identifier in chosen]
    labels = {_get(c, "id", "a category of the ground truth"): n for n, c in enumerate(ground_truth["categories"])}
    reader = _Reader({identifier: n for n, identifier in enumerate(chosen)}, set(images), labels, sizes)
    objects, detections = [], []
    for annotation in ground_truth.get("annotations", []):
        where = f"annotation {annotation.get('id', '(no id)')} of the ground truth"
        region = reader.read(annotation, where, is_result=False)
        if region is not None:
            objects.append(region)
    for row, result in enumerate(results):
        region = reader.read(result, f"result {row}", is_result=True)
        if region is not None:
            detections.append(region)
    return EvaluationInputs(chosen, sizes, _class_names(ground_truth["categories"]), objects, detections)


@dataclass(frozen=True)
class _Reader:
    images: dict[int | str, int]
    known: set[int | str]
    labels: dict[int | str, int]
    sizes: list[tuple[int, int]]

    def read(self, entry: dict[str, Any], where: str, is_result: bool) -> Region | None:
        identifier = _get(entry, "image_id", where)
        image = self.images.get(identifier)
        if image is None:
            if is_result and identifier not in self.known:
                raise InputError(
                    f"{where}: the ground truth has no image {identifier!r}: evaluate against its own file."
                )
            return None
        category = _get(entry, "category_id", where)
        if category not in self.labels:
            raise InputError(f"{where}: the ground truth has no category {category!r}: add it or correct category_id.")
        rle = _to_rle(_get(entry, "segmentation", where), self.sizes[image], where)
        given = entry.get("bbox")
        box = [float(value) for value in (given if is_box(given) else mask.to_bbox(rle))]
        label = self.labels[category]
        if is_result:
            return Region(image, label, rle, box, score=_score(entry, where))
        area: Any = entry.get("area")
        area = float(area if is_area(area) else mask.area(rle))
        return Region(image, label, rle, box, area, crowd=bool(entry.get("iscrowd", 0)))


def _get(entry: dict[str, Any], field: str, where: str) -> Any:
    if field not in entry:
        raise InputError(f"{where} has no field {field}: add it.")
    return entry[field]


def _score(entry: dict[str, Any], where: str) -> float:
    score = float(_get(entry, "score", where))
    if not math.isfinite(score):
        raise InputError(f"{where}: score is {score}: give a finite number.")
    return score


def _size(image: dict[str, Any]) -> tuple[int, int]:
    where = f"image {image['id']} of the ground truth"
    return int(_get(image, "height", where)), int(_get(image, "width", where))


def _choose(known: list[int | str], wanted: Iterable[int | str] | None) -> list[int | str]:
    chosen = set(known if wanted is None else wanted)
    missing = chosen.difference(known)
    if missing:
        raise InputError(f"image_ids names {next(iter(missing))!r}, which the ground truth lacks: leave it out.")
    return sorted(chosen, key=lambda identifier: (isinstance(identifier, str), identifier))


def _class_names(categories: list[dict[str, Any]]) -> list[str]:
    names = [str(category.get("name", category["id"])) for category in categories]
    return [f"{n} ({c['id']})" if names.count(n) > 1 else n for n, c in zip(names, categories, strict=True)]


def _to_rle(segmentation: Any, size: tuple[int, int], where: str) -> RLE:
    if not isinstance(segmentation, dict):
        return _polygons_to_rle(segmentation, size, where)
    if tuple(segmentation.get("size", ())) != size or "counts" not in segmentation:
        raise InputError(
            f"{where}: the RLE mask needs counts and size {list(size)}, that of its image, "
            f"but has size {segmentation.get('size')}: write masks in the pixels of the original image."
        )
    if isinstance(segmentation["counts"], (str, bytes)):
        return segmentation
    return mask.frPyObjects(segmentation, *size)


def _polygons_to_rle(segmentation: Any, size: tuple[int, int], where: str) -> RLE:
    try:
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return mask.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)
        return mask.merge(mask.frPyObjects(polygons, *size))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: segmentation is neither a list of polygons nor RLE ({error}): correct it."
        ) from None
