"""Matching metrics of dense scenes: AP(t) = TP / (TP + FP + FN) at mask IoU t, in the three forms in use.

Detections with at least a score threshold count, whatever their order.  Letters for shapes:
N images, D detections, G annotations, T IoU thresholds, P pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import mask

from masklab.datasets.ground_truth import GroundTruth, Region
from masklab.evaluation.inputs import EvaluationInputs, by_class, read_inputs
from masklab.ops.box_index import BoxIndex
from masklab.utils.errors import InputError
from masklab.utils.types import Bools, Doubles, Integers

_IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_SCORE_GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class Overlaps:
    """Mask overlaps, computed once for all matching metrics; detections and annotations are numbered over all images.

    =====================  ========  =======  ==========================================================
    name                   shape     dtype    meaning
    =====================  ========  =======  ==========================================================
    ``objects``            ``(N,)``  int64    annotated objects of each image, crowds left out
    ``scores``             ``(D,)``  float64  score of each detection
    ``images``             ``(D,)``  int64    image of each detection, ``0..N-1``
    ``areas``              ``(D,)``  int64    pixels of each detection
    ``in_crowd``           ``(D,)``  bool     more than half of the detection lies in one crowd
    ``object_areas``       ``(G,)``  int64    pixels of each annotation, crowds among them
    ``crowds``             ``(G,)``  bool     which annotations are crowds
    ``pair_detections``    ``(P,)``  int64    detection of each pair of the same class that overlaps
    ``pair_objects``       ``(P,)``  int64    annotation of the pair, never a crowd
    ``pair_ious``          ``(P,)``  float64  mask IoU of the pair, above 0
    =====================  ========  =======  ==========================================================
    """

    objects: Integers
    scores: Doubles
    images: Integers
    areas: Integers
    in_crowd: Bools
    object_areas: Integers
    crowds: Bools
    pair_detections: Integers
    pair_objects: Integers
    pair_ious: Doubles


def overlaps(
    ground_truth: GroundTruth | dict[str, Any],
    results: Sequence[dict[str, Any]],
    image_ids: Iterable[int | str] | None = None,
) -> Overlaps:
    """Mask overlaps of the results with the objects of their image and class.

    ``ground_truth`` may be a dictionary in COCO's form.  Only pairs whose boxes overlap are compared, so the cost
    grows with the number of objects, not with its square.
    Raises `InputError` as `read_inputs` does.
    """
    return overlaps_of(read_inputs(ground_truth, results, image_ids))


def overlaps_of(inputs: EvaluationInputs) -> Overlaps:
    """`overlaps` of inputs that are read already."""
    detections = inputs.detections
    rows, columns = by_class(detections), by_class(inputs.objects)
    in_crowd = np.zeros(len(detections), bool)
    pairs: list[tuple[int, int, float]] = []
    for key in rows.keys() & columns.keys():
        _compare(detections, rows[key], inputs.objects, columns[key], in_crowd, pairs)
    counted = [inputs.images[region.image_id] for region in inputs.objects if not region.crowd]
    return Overlaps(
        objects=np.bincount(counted, minlength=len(inputs.images)).astype(np.int64),
        scores=np.array([region.score for region in detections], np.float64),
        images=np.array([inputs.images[region.image_id] for region in detections], np.int64),
        areas=_areas(detections),
        in_crowd=in_crowd,
        object_areas=_areas(inputs.objects),
        crowds=np.array([region.crowd for region in inputs.objects], bool),
        pair_detections=np.array([row for row, _, _ in pairs], np.int64),
        pair_objects=np.array([column for _, column, _ in pairs], np.int64),
        pair_ious=np.array([iou for _, _, iou in pairs], np.float64),
    )


def _areas(regions: list[Region]) -> Integers:
    return np.asarray(mask.area([region.mask for region in regions]), np.int64)


def _compare(
    detections: list[Region],
    rows: list[int],
    objects: list[Region],
    columns: list[int],
    in_crowd: Bools,
    pairs: list[tuple[int, int, float]],
) -> None:
    """Add the overlaps of the detections ``rows`` with the objects ``columns`` of one image and class."""
    for place, near in _touching(_boxes(objects, columns), BoxIndex(_boxes(detections, rows))):
        column, other = columns[place], objects[columns[place]]
        near_rows = [rows[k] for k in near]
        shares = mask.iou([detections[row].mask for row in near_rows], [other.mask], [other.crowd])[:, 0]
        for row, share in zip(near_rows, shares.tolist(), strict=True):
            if other.crowd:
                in_crowd[row] |= share > 0.5
            elif share > 0:
                pairs.append((row, column, share))


def _boxes(regions: list[Region], rows: list[int]) -> Doubles:
    """The boxes (n, 4) xyxy around the masks of some regions."""
    boxes = np.asarray(mask.to_bbox([regions[row].mask for row in rows]), np.float64).reshape(-1, 4)
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _touching(boxes: Doubles, index: BoxIndex) -> Iterator[tuple[int, list[int]]]:
    """The row of each of ``boxes`` that shares pixels with boxes of the index, and the rows of these."""
    for part in index.pairs(boxes):
        order = np.lexsort((part.others, part.rows))
        rows, starts = np.unique(part.rows[order], return_index=True)
        near = np.split(part.others[order], starts[1:])
        yield from zip(rows.tolist(), (some.tolist() for some in near), strict=False)


def matching_metrics(overlaps: Overlaps, score_threshold: float) -> dict[str, Any]:
    """AP(t) = TP / (TP + FP + FN) for t in 0.50:0.05:0.95, in the three forms in use.

    ============  ==================================================================================
    ``kaggle``    Kaggle DSB2018: AP(t) of each image with IoU **above** t, mean over the images;
                  ``mean`` is the competition's score
    ``stardist``  StarDist: TP, FP and FN counted over all images together, IoU of t or more
    ``cellpose``  Cellpose: AP(t) of each image with IoU of t or more, mean over the images
    ============  ==================================================================================

    Each is a dictionary from ``"0.50"`` ... ``"0.95"`` and their ``"mean"`` to a float.  The mean over thresholds and
    the mean over images commute, so Kaggle and Cellpose differ only where an IoU equals a threshold; StarDist weighs
    images by their objects.  ``score_threshold`` is returned too.

    A detection counts if ``score >= score_threshold``.  At each threshold, detections are matched with objects of
    the same class by a largest one-to-one matching, as detections may overlap.  A detection of which more than half
    lies in a crowd of its class is a TP when an object needs it and never a FP; crowds are never FN.  An image without
    objects and without detections that count scores 1.  The values are ``None`` for Kaggle and Cellpose without
    images, and for StarDist when there is nothing to count.
    """
    counted = overlaps.scores >= score_threshold
    closed = image_counts(overlaps, counted, _IOU_THRESHOLDS)
    return {
        "kaggle": _by_threshold(_image_mean(image_counts(overlaps, counted, _ABOVE))),
        "stardist": _by_threshold([_ratio(row) for row in closed.sum(axis=1)]),
        "cellpose": _by_threshold(_image_mean(closed)),
        "score_threshold": float(score_threshold),
    }


def match(
    overlaps: Overlaps, score_threshold: float, iou: float = _IOU_THRESHOLDS[0]
) -> tuple[Integers, Integers, Doubles]:
    """The pairs behind `matching_metrics` at one threshold: detections, objects and their IoU, ``(m,)`` each.

    Numbers are those of `Overlaps`.
    """
    kept = (overlaps.scores >= score_threshold)[overlaps.pair_detections] & (overlaps.pair_ious >= iou)
    detections, objects = overlaps.pair_detections[kept], overlaps.pair_objects[kept]
    ious = overlaps.pair_ious[kept]
    matched, owners = largest_matching(detections, objects, overlaps.in_crowd)
    shares = dict(zip(zip(detections.tolist(), objects.tolist(), strict=True), ious.tolist(), strict=True))
    pairs = zip(matched.tolist(), owners.tolist(), strict=True)
    return matched, owners, np.array([shares[pair] for pair in pairs], np.float64)


def tune_score_threshold(overlaps: Overlaps, grid: Sequence[float] = _SCORE_GRID) -> float:
    """The score threshold of ``grid`` with the best Kaggle mean; of several best, the middle one.

    Tune on other images than those whose figures are reported.  Raises `InputError` for an empty grid.
    """
    if not grid:
        raise InputError("grid holds no score threshold: give at least one.")
    thresholds = sorted(grid)
    scores = [_kaggle_mean(overlaps, threshold) for threshold in thresholds]
    highest = max(scores)
    best = [t for t, score in zip(thresholds, scores, strict=True) if score >= highest - 1e-12]
    return float(best[(len(best) - 1) // 2])


# the smallest number above each threshold: "at least this" means "above the threshold"
_ABOVE = tuple(float(np.nextafter(t, 1.0)) for t in _IOU_THRESHOLDS)


def _kaggle_mean(overlaps: Overlaps, score_threshold: float) -> float:
    counts = image_counts(overlaps, overlaps.scores >= score_threshold, _ABOVE)
    return _by_threshold(_image_mean(counts))["mean"] or 0.0


def image_counts(overlaps: Overlaps, counted: Bools, thresholds: Sequence[float]) -> Integers:
    """TP, FP and FN of the detections ``counted`` ``(D,)``, at each IoU threshold and of each image: ``(T, N, 3)``."""
    images, in_crowd = overlaps.images, overlaps.in_crowd
    total = len(overlaps.objects)
    outside = np.bincount(images[counted & ~in_crowd], minlength=total)
    rows = []
    for threshold in thresholds:
        kept = counted[overlaps.pair_detections] & (overlaps.pair_ious >= threshold)
        matched, _ = largest_matching(overlaps.pair_detections[kept], overlaps.pair_objects[kept], in_crowd)
        found = np.bincount(images[matched], minlength=total)
        found_outside = np.bincount(images[matched[~in_crowd[matched]]], minlength=total)
        rows.append(np.stack([found, outside - found_outside, overlaps.objects - found], axis=-1))
    return np.stack(rows)


def largest_matching(
    detections: Integers, objects: Integers, rank: Bools | Integers | Doubles
) -> tuple[Integers, Integers]:
    """The pairs of a largest one-to-one matching among the pairs ``(P,)``, as detections and objects, ``(m,)`` each.

    ``rank`` ``(D,)`` is of all detections: those of a lower rank come first, and one that is matched stays so.  So the
    matched detections up to any rank are as many as a largest matching of these alone has.
    """
    if not len(detections):
        return detections, objects
    lone = (np.bincount(detections)[detections] == 1) & (np.bincount(objects)[objects] == 1)
    contested = _contested(detections[~lone].tolist(), objects[~lone].tolist(), rank)
    return (
        np.concatenate([detections[lone], np.array(list(contested), np.int64)]),
        np.concatenate([objects[lone], np.array(list(contested.values()), np.int64)]),
    )


def _contested(detections: list[int], objects: list[int], rank: Bools | Integers | Doubles) -> dict[int, int]:
    """The object of each matched detection, by augmenting paths; a detection once matched stays matched."""
    candidates: defaultdict[int, list[int]] = defaultdict(list)
    for detection, wanted in zip(detections, objects, strict=True):
        candidates[detection].append(wanted)
    owner: dict[int, int] = {}
    held: dict[int, int] = {}
    for start in sorted(candidates, key=lambda detection: float(rank[detection])):
        reached: dict[int, int] = {}
        free = _search(start, candidates, owner, reached)
        while free is not None:
            detection = reached[free]
            previous = held.get(detection)
            owner[free], held[detection] = detection, free
            free = previous
    return held


def _search(start: int, candidates: dict[int, list[int]], owner: dict[int, int], reached: dict[int, int]) -> int | None:
    """The end of a shortest augmenting path; ``reached`` gets the detection from which each object was reached."""
    queue = [start]
    for detection in queue:
        for wanted in candidates[detection]:
            if wanted in reached:
                continue
            reached[wanted] = detection
            if wanted not in owner:
                return wanted
            queue.append(owner[wanted])
    return None


def _ratio(counts: Integers) -> float | None:
    total = int(counts.sum())
    return int(counts[0]) / total if total else None


def _image_mean(counts: Integers) -> list[float | None]:
    """Mean over the images of TP / (TP + FP + FN), 1 where there is nothing, for each threshold."""
    if not counts.shape[1]:
        return [None] * len(counts)
    total = counts.sum(axis=-1)
    ratios = np.where(total == 0, 1.0, counts[..., 0] / np.maximum(total, 1))
    means: list[float | None] = ratios.mean(axis=1).tolist()
    return means


def _by_threshold(values: Sequence[float | None]) -> dict[str, float | None]:
    named = {f"{t:.2f}": value for t, value in zip(_IOU_THRESHOLDS, values, strict=True)}
    measured = [value for value in values if value is not None]
    return {**named, "mean": sum(measured) / len(measured) if measured else None}
