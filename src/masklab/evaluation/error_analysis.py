"""Error analysis: whether boxes or masks limit AP, the stage at which boxes are lost, and error types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from masklab.datasets.ground_truth import Region
from masklab.datasets.split import Split
from masklab.evaluation.coco import coco_metrics, coco_metrics_of
from masklab.evaluation.errors import find_errors
from masklab.evaluation.inputs import EvaluationInputs
from masklab.evaluation.matching import Overlaps
from masklab.evaluation.oracle import with_annotated_masks
from masklab.evaluation.recall import STAGES, Boxes, neighbour_gaps, recall_table, stage_overlaps, xyxy
from masklab.inference.predictor import Predictor
from masklab.utils.progress import track
from masklab.utils.types import Doubles


def analyse_errors(
    predictor: Predictor,
    source: Split,
    inputs: EvaluationInputs,
    shared: Overlaps,
) -> dict[str, Any]:
    """Analyse the errors of a predictor whose results are in ``inputs``; ``shared`` are their overlaps.

    ===================  ==============================================================================
    key                  value
    ===================  ==============================================================================
    ``annotated_boxes``  the ``mask`` figures of `coco_metrics` with the annotated boxes and classes: what
                         the masks would reach if boxes, classes and scores were perfect
    ``annotated_masks``  the same with predicted boxes and scores and the annotated masks (see
                         `with_annotated_masks`): what would be reached if all masks were perfect
    ``recall``           the stage at which boxes are lost, by crowding (see `recall_table`)
    ``errors``           counts of each error type at the model's threshold (see `find_errors`)
    ===================  ==============================================================================

    Raises `InputError` for images that cannot be read.
    """
    by_image: defaultdict[int | str, list[Region]] = defaultdict(list)
    for region in inputs.detections:
        by_image[region.image_id].append(region)
    given: list[dict[str, Any]] = []
    overlaps: list[Doubles] = []
    rows = [row for row, image in enumerate(source.images) if image.image_id in inputs.images]
    for index in track(rows, "analysing errors"):
        image = source.images[index]
        values = source.read(index, predictor.config.model.backbone.channels)
        objects = source.objects(index)
        boxes = predictor.segment(values, objects.boxes, objects.labels)
        given += boxes.to_coco(image.image_id)
        found = _boxes_of(by_image[image.image_id])
        overlaps.append(stage_overlaps(objects, predictor.propose(values), found, predictor.threshold))
    gaps = np.concatenate([np.zeros(0), *(neighbour_gaps(source.objects(k).boxes) for k in rows)])
    return {
        "annotated_boxes": coco_metrics(source.truth, given, max(1, source.most_objects), inputs.images)["mask"],
        "annotated_masks": coco_metrics_of(with_annotated_masks(inputs), predictor.max_detections)["mask"],
        "recall": recall_table(gaps, np.concatenate([np.zeros((len(STAGES), 0)), *overlaps], axis=1)),
        "errors": find_errors(shared, predictor.threshold).counts(),
    }


def _boxes_of(detections: Sequence[Region]) -> Boxes:
    return Boxes(
        xyxy([region.box for region in detections], torch.float32),
        torch.tensor([region.label for region in detections], dtype=torch.long),
        torch.tensor([region.score for region in detections]),
    )
