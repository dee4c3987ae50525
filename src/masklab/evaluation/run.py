"""Evaluating a model on a split: predict every picture, then measure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.progress import track

from masklab.data.formats import open_split
from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.matching import matching_metrics, overlaps
from masklab.hardware import versions
from masklab.model.masklab import MaskLab
from masklab.weights import find_weights, load_model


def evaluate(
    model: MaskLab | str | Path, data: str | Path, split: str = "val", ground_truth_boxes: bool = False
) -> dict[str, Any]:
    """Measure a model on a split of a data set folder, masks at the size of the original pictures.

    ``model`` is a `MaskLab`, a run folder or a weights file.  The result holds ``mask``, ``box`` and
    ``per_class`` (see `coco_metrics`), ``matching`` (see `matching_metrics`) at the score threshold stored
    with the weights (0.5 where none is), and ``measured``: what was measured, with which versions.

    ``ground_truth_boxes`` gives the model the annotated boxes and classes, to measure its masks alone.

    Raises `InputError` for data or weights that cannot be used.
    """
    name = "in memory" if isinstance(model, MaskLab) else str(find_weights(model))
    network = model if isinstance(model, MaskLab) else load_model(model)
    source = open_split(data, split, network.classes)
    results: list[dict[str, Any]] = []
    began = time.perf_counter()
    capped = 0
    cap = max(1, source.most_objects) if ground_truth_boxes else network.box_classifier.max_detections
    for index, picture in enumerate(track(source.pictures, description="predicting", transient=True)):
        values = source.read(index, network.config.model.backbone.channels)
        if ground_truth_boxes:
            objects = source.objects(index)
            found = network.segment(values, objects.boxes, objects.labels)
        else:
            found = network.predict(values)
            capped += len(found) == cap
        results += found.to_coco(picture.image_id)
    seconds = time.perf_counter() - began
    metrics = coco_metrics(source.truth, results, cap)
    metrics["matching"] = matching_metrics(overlaps(source.truth, results), network.threshold)
    metrics["measured"] = {
        "model": name,
        "data": str(source.json_path),
        "split": split,
        "drawn": source.note or None,
        "ground_truth_boxes": ground_truth_boxes,
        "pictures": len(source),
        "objects": sum(entry["objects"] for entry in metrics["per_class"].values()),
        "max_detections": metrics.pop("max_detections"),
        "pictures_at_the_cap": capped,
        "score_threshold_tuned": network.score_threshold is not None,
        "seconds_per_picture": round(seconds / max(1, len(source)), 3),
        "versions": versions(),
    }
    return metrics
