"""What keeps a model from a higher AP: its boxes or its masks, the stage at which boxes are lost, its kinds of errors.

R boxes, G annotated objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from masklab.datasets.coco import CocoSplit
from masklab.datasets.objects import Objects
from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.errors import find_errors
from masklab.evaluation.inputs import by_class, read_inputs
from masklab.evaluation.matching import Overlaps
from masklab.inference.predictor import Predictor
from masklab.ops.boxes import box_iou
from masklab.utils.progress import track

Floats = NDArray[np.float64]

SAME_OBJECT = 0.5  # box IoU from which a detection is given the annotated mask
RECALL_AT = (0.5, 0.75)
STAGES = ("proposals", "detections", "found")
NEAR_DISTANCE = 0.5  # of an object's side
ROWS_AT_ONCE = 1024


def analyse_errors(
    predictor: Predictor,
    source: CocoSplit,
    results: Sequence[dict[str, Any]],
    shared: Overlaps,
) -> dict[str, Any]:
    """Why ``results``, those of a predictor, are not better; ``shared`` are their overlaps.

    ===================  ==============================================================================
    key                  value
    ===================  ==============================================================================
    ``annotated_boxes``  the ``mask`` figures of `coco_metrics` for the annotated boxes and classes: what
                         the masks would reach if boxes, classes and scores were perfect
    ``annotated_masks``  the same for the boxes and scores as they are, with the annotated masks (see
                         `with_annotated_masks`): what is left to lose if all masks were perfect
    ``recall``           at which stage boxes are lost, by how crowded an object is (see `recall_table`)
    ``errors``           counts of each kind of error at the model's threshold (see `find_errors`)
    ===================  ==============================================================================

    Raises `InputError` for images that cannot be read.
    """
    by_image: defaultdict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for entry in results:
        by_image[entry["image_id"]].append(entry)
    given: list[dict[str, Any]] = []
    overlaps: list[Floats] = []
    for index, image in enumerate(track(source.images, "error_analysis")):
        values = source.read(index, predictor.config.model.backbone.channels)
        objects = source.objects(index)
        boxes = predictor.segment(values, objects.boxes, objects.labels)
        given += boxes.to_coco(image.image_id)
        found = _boxes_of(by_image[image.image_id], source)
        overlaps.append(stage_overlaps(objects, predictor.propose(values), found, predictor.threshold))
    as_found = with_annotated_masks(source.truth, results)
    gaps = np.concatenate([np.zeros(0), *(neighbour_gaps(source.objects(k).boxes) for k in range(len(source)))])
    return {
        "annotated_boxes": coco_metrics(source.truth, given, max(1, source.most_objects))["mask"],
        "annotated_masks": coco_metrics(source.truth, as_found, predictor.max_detections)["mask"],
        "recall": recall_table(gaps, np.concatenate([np.zeros((len(STAGES), 0)), *overlaps], axis=1)),
        "errors": find_errors(shared, predictor.threshold).counts(),
    }


def with_annotated_masks(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """COCO ``results`` with the masks of the objects that their boxes are about.

    A detection gets the mask of the object of its image and class that its box overlaps most, if that is by an IoU
    of 0.5 or more and no detection with a better score has it; all others keep their own.  Crowds are left out.
    """
    inputs = read_inputs(ground_truth, results)
    objects = [region for region in inputs.objects if not region.crowd]
    rows, columns = by_class(inputs.detections), by_class(objects)
    changed = [dict(entry) for entry in results]
    for key in rows.keys() & columns.keys():
        detections = sorted(rows[key], key=lambda row: -inputs.detections[row].score)
        shares = box_iou(
            _corners([inputs.detections[row].box for row in detections], torch.float64),
            _corners([objects[column].box for column in columns[key]], torch.float64),
        )
        taken: set[int] = set()
        for row, share, nearest in zip(detections, *(values.tolist() for values in shares.max(dim=1)), strict=True):
            if share >= SAME_OBJECT and nearest not in taken:
                taken.add(nearest)
                changed[row]["segmentation"] = objects[columns[key][nearest]].mask
    return changed


def _corners(boxes: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """COCO's boxes (x, y, width, height) as (R, 4) xyxy."""
    return box_convert(torch.tensor(boxes, dtype=dtype).view(-1, 4), "xywh", "xyxy")


@dataclass(frozen=True)
class Boxes:
    """Detections of one image: ``boxes`` (R, 4) xyxy in its pixels, ``labels`` (R,) and ``scores`` (R,)."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def _boxes_of(entries: Sequence[dict[str, Any]], source: CocoSplit) -> Boxes:
    return Boxes(
        _corners([entry["bbox"] for entry in entries], torch.float32),
        torch.tensor([source.categories.labels[entry["category_id"]] for entry in entries], dtype=torch.long),
        torch.tensor([entry["score"] for entry in entries]),
    )


def stage_overlaps(objects: Objects, proposals: Tensor, found: Boxes, threshold: float) -> Floats:
    """The largest box IoU of each object at each stage, ``(3, G)``, 0 where there is no box.

    The stages are the ``proposals`` (R, 4); the detections of the object's class, that is what classification and
    suppression leave; and those of them with a score of at least ``threshold``.
    """
    boxes, labels = torch.from_numpy(objects.boxes), torch.from_numpy(objects.labels)
    proposed = box_iou(boxes, proposals)
    detected = box_iou(boxes, found.boxes) * (labels[:, None] == found.labels)
    counted = detected[:, found.scores >= threshold]
    # a column of 0, so that the largest of nothing is 0
    return np.stack([np.pad(shares.numpy(), ((0, 0), (0, 1))).max(axis=1) for shares in (proposed, detected, counted)])


def neighbour_gaps(boxes: NDArray[np.float32]) -> Floats:
    """How far the nearest other box is from each of (G, 4), in units of its own side, the root of its area: ``(G,)``.

    0 where they touch or overlap, infinite for a single box.
    """
    gaps = np.full(len(boxes), np.inf)
    for start in range(0, len(boxes), ROWS_AT_ONCE):
        some = boxes[start : start + ROWS_AT_ONCE, None].astype(np.float64)
        apart = np.maximum(some[..., :2] - boxes[:, 2:], boxes[:, :2] - some[..., 2:]).clip(0)
        distance = np.hypot(apart[..., 0], apart[..., 1])
        distance[np.arange(len(some)), start + np.arange(len(some))] = np.inf
        sides = np.sqrt((some[:, 0, 2:] - some[:, 0, :2]).prod(axis=1))
        gaps[start : start + len(some)] = distance.min(axis=1) / sides
    return gaps


def recall_table(gaps: Floats, overlaps: Floats) -> dict[str, dict[str, Any]]:
    """The share of the objects that have a box, by stage, IoU and how near the next object is.

    ``gaps`` ``(G,)`` are those of `neighbour_gaps`, ``overlaps`` ``(3, G)`` those of `stage_overlaps`.  The keys are
    ``all``, ``touching`` (the next object's box touches or overlaps its own), ``near`` (it is up to half a side of
    the object away) and ``apart``; each holds the number of ``objects`` and, for the stages ``proposals``,
    ``detections`` and ``found``, the share with a box of IoU ``"0.50"`` and ``"0.75"``, None without objects.
    """
    groups = {
        "all": np.ones(len(gaps), bool),
        "touching": gaps == 0,
        "near": (gaps > 0) & (gaps <= NEAR_DISTANCE),
        "apart": gaps > NEAR_DISTANCE,
    }
    return {
        name: {"objects": int(group.sum())}
        | {
            stage: {f"{least:.2f}": _share(row[group] >= least) for least in RECALL_AT}
            for stage, row in zip(STAGES, overlaps, strict=True)
        }
        for name, group in groups.items()
    }


def _share(held: NDArray[np.bool_]) -> float | None:
    return float(held.mean()) if held.size else None
