"""Evaluating a model on a split: predict every picture, then measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masklab.config import Precision
from masklab.data.formats import open_split
from masklab.errors import InputError
from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.limits import measure_limits
from masklab.evaluation.matching import matching_metrics, overlaps
from masklab.hardware import number_format
from masklab.model.masklab import MaskLab
from masklab.model.views import Flips
from masklab.pictures import is_grey
from masklab.progress import track
from masklab.versions import versions
from masklab.weights import find_weights, load_model


def evaluate(
    model: MaskLab | str | Path,
    data: str | Path,
    split: str = "val",
    ground_truth_boxes: bool = False,
    flips: Flips = "none",
    scales: Sequence[float] = (1.0,),
    limits: bool = False,
    max_detections: int | None = None,
    precision: Precision | None = None,
) -> dict[str, Any]:
    """Measure a model on a split of a data set folder, masks at the size of the original pictures.

    ``model`` is a `MaskLab`, a run folder or a weights file, which is loaded with ``max_detections`` and ``precision``.
    The result holds ``mask``, ``box`` and ``per_class`` (see `coco_metrics`), ``matching`` (see `matching_metrics`) at the
    score threshold stored with the weights (0.5 where none is), and ``measured``: what was measured, with which versions.
    Where some pictures are grey, all three channels equal, and others are not, ``by_kind`` has for ``grey`` and for ``colour``
    the number of ``pictures`` and ``objects``, ``mask`` and ``matching``.

    ``ground_truth_boxes`` gives the model the annotated boxes and classes, to measure its masks alone.  ``flips`` and
    ``scales`` are those of `MaskLab.predict`.  ``limits`` adds ``limits``: what keeps the figures from being better
    (see `measure_limits`), in about twice the time more.

    Raises `InputError` for data or weights that cannot be used.
    """
    if limits and ground_truth_boxes:
        raise InputError("limits has the figures of ground_truth_boxes among others: leave ground_truth_boxes out.")
    name = "in memory" if isinstance(model, MaskLab) else str(find_weights(model))
    network = (
        model if isinstance(model, MaskLab) else load_model(model, max_detections=max_detections, precision=precision)
    )
    source = open_split(data, split, network.classes)
    results: list[dict[str, Any]] = []
    began = time.perf_counter()
    capped = 0
    kinds: dict[str, list[int | str]] = {"grey": [], "colour": []}
    cap = max(1, source.most_objects) if ground_truth_boxes else network.box_classifier.max_detections
    for index, picture in enumerate(track(source.pictures, "predicting")):
        values = source.read(index, network.config.model.backbone.channels)
        if ground_truth_boxes:
            objects = source.objects(index)
            found = network.segment(values, objects.boxes, objects.labels, flips, scales)
        else:
            found = network.predict(values, flips, scales)
            capped += len(found) == cap
        kinds["grey" if is_grey(values) else "colour"].append(picture.image_id)
        results += found.to_coco(picture.image_id)
    seconds = time.perf_counter() - began
    metrics = coco_metrics(source.truth, results, cap)
    shared = overlaps(source.truth, results)
    metrics["matching"] = matching_metrics(shared, network.threshold)
    if all(kinds.values()):
        metrics["by_kind"] = {
            kind: _part(source.truth, results, cap, image_ids, network.threshold) for kind, image_ids in kinds.items()
        }
    if limits:
        metrics["limits"] = measure_limits(network, source, results, shared, flips, scales)
    metrics["measured"] = {
        "model": name,
        "data": str(source.json_path),
        "split": split,
        "drawn": source.note or None,
        "ground_truth_boxes": ground_truth_boxes,
        "flips": flips,
        "scales": list(scales),
        "pictures": len(source),
        "objects": sum(entry["objects"] for entry in metrics["per_class"].values()),
        "max_detections": metrics.pop("max_detections"),
        "pictures_at_the_cap": capped,
        "precision": number_format(next(network.parameters()).device, network.config.train.precision),
        "score_threshold_tuned": network.score_threshold is not None,
        "seconds_per_picture": round(seconds / max(1, len(source)), 3),
        "versions": versions(),
    }
    return metrics


def _part(
    truth: dict[str, Any], results: list[dict[str, Any]], cap: int, image_ids: list[int | str], threshold: float
) -> dict[str, Any]:
    """The figures of some of the pictures."""
    metrics = coco_metrics(truth, results, cap, image_ids)
    return {
        "pictures": len(image_ids),
        "objects": sum(entry["objects"] for entry in metrics["per_class"].values()),
        "mask": metrics["mask"],
        "matching": matching_metrics(overlaps(truth, results, image_ids), threshold),
    }
