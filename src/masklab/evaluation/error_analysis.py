"""Error analysis: whether boxes or masks limit AP, the stage at which boxes are lost, and error types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklab.datasets.split import Split
from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.errors import find_errors
from masklab.evaluation.matching import Floats, Overlaps
from masklab.evaluation.oracle import with_annotated_masks
from masklab.evaluation.recall import STAGES, Boxes, neighbour_gaps, recall_table, stage_overlaps, xyxy
from masklab.inference.test_time_augmentation import PLAIN, Flips
from masklab.model.masklab import MaskLab
from masklab.utils.progress import track


def analyse_errors(
    model: MaskLab,
    source: Split,
    results: Sequence[dict[str, Any]],
    shared: Overlaps,
    flips: Flips = "none",
    scales: Sequence[float] = (1.0,),
) -> dict[str, Any]:
    """Analyse the errors of ``results``, predicted with ``flips`` and ``scales``; ``shared`` are their overlaps.

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
    by_image: defaultdict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for entry in results:
        by_image[entry["image_id"]].append(entry)
    given: list[dict[str, Any]] = []
    overlaps: list[Floats] = []
    for index, image in enumerate(track(source.images, "error_analysis")):
        values = source.read(index, model.config.model.backbone.channels)
        objects = source.objects(index)
        boxes = model.segment(values, objects.boxes, objects.labels, flips, scales)
        given += boxes.to_coco(image.image_id)
        found = _boxes_of(by_image[image.image_id], source)
        overlaps.append(stage_overlaps(objects, propose(model, values), found, model.threshold))
    as_found = with_annotated_masks(source.truth, results)
    gaps = np.concatenate([np.zeros(0), *(neighbour_gaps(source.objects(k).boxes) for k in range(len(source)))])
    return {
        "annotated_boxes": coco_metrics(source.truth, given, max(1, source.most_objects))["mask"],
        "annotated_masks": coco_metrics(source.truth, as_found, model.box_head.max_detections)["mask"],
        "recall": recall_table(gaps, np.concatenate([np.zeros((len(STAGES), 0)), *overlaps], axis=1)),
        "errors": find_errors(shared, model.threshold).counts(),
    }


def propose(model: MaskLab, image: NDArray[Any]) -> Tensor:
    """The proposals (R, 4) for an image (C, H, W), in its own pixels, best first; without augmentation."""
    with model.inference():
        inputs, size = model.network_input(torch.as_tensor(image))
        found = model.rpn.propose(model.rpn(model.backbone(inputs).conv4), size)
    seen = (int(size[0, 0]), int(size[0, 1]))
    boxes = PLAIN.to_image(found.boxes[0, : int(found.num_valid[0])], (image.shape[1], image.shape[2]), seen)
    return boxes.cpu()


def _boxes_of(entries: Sequence[dict[str, Any]], source: Split) -> Boxes:
    return Boxes(
        xyxy([entry["bbox"] for entry in entries], torch.float32),
        torch.tensor([source.categories.labels[entry["category_id"]] for entry in entries], dtype=torch.long),
        torch.tensor([entry["score"] for entry in entries]),
    )
