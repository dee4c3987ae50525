"""Ground truth and results of an evaluation, checked and brought into one form for all metrics."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hotcoco import mask

from masklab.datasets.annotations import is_box, is_id
from masklab.datasets.class_names import match_classes
from masklab.datasets.ground_truth import GroundTruth, Region, without_short_polygons
from masklab.masks import coco_segmentation, rle
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Size
from masklab.utils.words import as_written, listed

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationInputs:
    """The images under evaluation in the order of their ids: their position by id, sizes, objects and detections.

    Objects and detections of one image are in file order.
    """

    images: dict[int | str, int]
    sizes: list[Size]
    class_names: list[str]
    objects: list[Region]
    detections: list[Region]

    def subset(self, image_ids: Iterable[int | str]) -> EvaluationInputs:
        """The inputs of some of the images.  Raises `InputError` for an image that is not among them."""
        chosen = _choose(self.images, image_ids)
        images = {image_id: place for place, image_id in enumerate(chosen)}
        return EvaluationInputs(
            images=images,
            sizes=[self.sizes[self.images[image_id]] for image_id in chosen],
            class_names=self.class_names,
            objects=[region for region in self.objects if region.image_id in images],
            detections=[region for region in self.detections if region.image_id in images],
        )


def by_class(regions: Sequence[Region]) -> defaultdict[tuple[int | str, int], list[int]]:
    """The rows of ``regions`` by image and class."""
    rows: defaultdict[tuple[int | str, int], list[int]] = defaultdict(list)
    for row, region in enumerate(regions):
        rows[region.image_id, region.label].append(row)
    return rows


def read_inputs(
    ground_truth: GroundTruth | dict[str, Any],
    results: Sequence[dict[str, Any]],
    image_ids: Iterable[int | str] | None = None,
) -> EvaluationInputs:
    """Check results in COCO's form against the ground truth; neither is changed.

    A dictionary in COCO's form is converted by `GroundTruth.from_coco`.  ``image_ids`` limits the evaluation to some
    images.  Masks of results may be polygons or RLE, compressed or not; a missing or malformed box is taken from the
    mask.  Where every result has a ``category_name``, it counts in place of ``category_id`` (see `match_classes`), and
    results of other classes are left out, which is logged.  Raises `InputError` for missing fields, for results of unknown images or classes, for scores that are not
    finite and for RLE masks of another size than their image.
    """
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else GroundTruth.from_coco(ground_truth)
    chosen = _choose(truth.sizes, image_ids)
    return EvaluationInputs(
        images={image_id: place for place, image_id in enumerate(chosen)},
        sizes=[truth.sizes[image_id] for image_id in chosen],
        class_names=truth.class_names,
        objects=[region for image_id in chosen for region in truth.regions[image_id]],
        detections=_read_results(truth, results, set(chosen)),
    )


def _choose(images: Collection[int | str], wanted: Iterable[int | str] | None) -> list[int | str]:
    chosen = set(images if wanted is None else wanted)
    missing = chosen.difference(images)
    if missing:
        raise InputError(f"image_ids names {next(iter(missing))!r}, which the ground truth lacks: leave it out.")
    return sorted(chosen, key=lambda identifier: (isinstance(identifier, str), identifier))


def _read_results(truth: GroundTruth, results: Sequence[dict[str, Any]], chosen: set[int | str]) -> list[Region]:
    label_of = _named_labels(truth, results)
    regions = []
    for row, result in enumerate(results):
        where = f"result {row}"
        image_id = _get(result, "image_id", where)
        if not is_id(image_id) or image_id not in truth.sizes:
            raise InputError(
                f"{where}: the ground truth has no image {as_written(image_id)}: evaluate against its own file, or "
                "`masklab predict` with --annotations, which gives results the ids of a file."
            )
        if image_id in chosen:
            label = _label(truth, result, where) if label_of is None else label_of.get(result["category_name"])
            if label is not None:
                regions.append(_read_result(truth, result, label, where))
    return regions


def _named_labels(truth: GroundTruth, results: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Labels by the class names of results, matched as `match_classes` does; None where a result has no name."""
    names = sorted({name for result in results if isinstance(name := result.get("category_name"), str)})
    if not names or not all(isinstance(result.get("category_name"), str) for result in results):
        return None
    classes = ClassTable(tuple(range(len(truth.class_names))), tuple(truth.class_names))
    found = ClassTable(tuple(range(len(names))), tuple(names))
    match = match_classes(classes, found, "the results")
    if match.renamed:
        _log.info(f"classes of results are matched, {listed(f'{name} as {other}' for name, other in match.renamed)}.")
    if match.unknown:
        _log.info(f"results of classes that the ground truth lacks are left out, {listed(match.unknown)}.")
    return {names[number]: label for number, label in match.labels.items()}


def _label(truth: GroundTruth, result: dict[str, Any], where: str) -> int:
    category = _get(result, "category_id", where)
    if not is_id(category) or category not in truth.labels:
        raise InputError(
            f"{where}: the ground truth has no category {as_written(category)}: add it or correct category_id."
        )
    return truth.labels[category]


def _read_result(truth: GroundTruth, result: dict[str, Any], label: int, where: str) -> Region:
    compressed = _compressed(_get(result, "segmentation", where), truth.sizes[result["image_id"]], where)
    score = float(_get(result, "score", where))
    if not math.isfinite(score):
        raise InputError(f"{where}: score is {score}: give a finite number.")
    given = result.get("bbox")
    box = [float(value) for value in (given if is_box(given) else mask.to_bbox(compressed))]
    return Region(result["image_id"], label, compressed, box, score=score)


def _get(entry: dict[str, Any], field: str, where: str) -> Any:
    if field not in entry:
        raise InputError(f"{where} has no field {field}: add it.")
    return entry[field]


def _compressed(segmentation: Any, size: Size, where: str) -> dict[str, Any]:
    """The mask of a result as compressed RLE; one that is compressed already is not decoded."""
    if isinstance(segmentation, dict):
        if tuple(segmentation.get("size", ())) != size or "counts" not in segmentation:
            raise InputError(
                f"{where}: the RLE mask needs counts and size {list(size)}, that of its image, "
                f"but has size {segmentation.get('size')}: write masks in the pixels of the original image."
            )
        if isinstance(segmentation["counts"], (str, bytes)):
            return segmentation
    try:
        runs = coco_segmentation.rle_from_segmentation(without_short_polygons(segmentation, size), size)
    except ValueError as error:
        raise InputError(
            f"{where}: segmentation is neither a list of polygons nor RLE ({error}): correct it."
        ) from None
    return {"size": list(size), "counts": rle.rle_to_strings([runs])[0]}
