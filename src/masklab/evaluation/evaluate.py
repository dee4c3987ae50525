"""Evaluation of a model on a split of a data set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masklab.datasets.source import Data
from masklab.datasets.split import Split
from masklab.evaluation.classes import open_for_model
from masklab.evaluation.coco import coco_metrics_of
from masklab.evaluation.error_analysis import analyse_errors
from masklab.evaluation.inputs import EvaluationInputs, read_inputs
from masklab.evaluation.matching import Overlaps, matching_metrics, overlaps_of
from masklab.images.intensity import is_grey
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor, load
from masklab.utils.device import number_format
from masklab.utils.errors import InputError
from masklab.utils.leftout import LeftOut
from masklab.utils.progress import track
from masklab.utils.versions import versions
from masklab.weights.facts import find_weights


@dataclass(frozen=True)
class Evaluation:
    """The ``metrics`` of `evaluate` with what they were counted from: the split, checked inputs and their overlaps."""

    predictor: Predictor
    split: Split
    inputs: EvaluationInputs
    overlaps: Overlaps
    metrics: dict[str, Any]

    @property
    def threshold(self) -> float:
        """The score from which a detection counts as found."""
        return self.predictor.threshold

    @property
    def max_detections(self) -> int:
        """The most detections of an image and class that count in average precision."""
        most: int = self.metrics["measured"]["max_detections"]
        return most


def evaluate(
    model: Predictor | str | Path,
    data: Data,
    split: str = "val",
    options: PredictionOptions | None = None,
    ground_truth_boxes: bool = False,
    error_analysis: bool = False,
) -> dict[str, Any]:
    """Measure a model on a split of a data set folder, masks at the size of the original images.

    ``model`` is a `Predictor`, a run folder or a weights file; ``options`` replace a predictor's own.
    The result holds ``mask``, ``box`` and ``per_class`` (see `coco_metrics`), ``matching`` (see `matching_metrics`) at
    the score threshold stored with the weights (0.5 where none is), and ``measured``: data, options and versions.
    Where some images are grey (all three channels equal) and others are not, ``by_colour`` has for ``grey`` and for
    ``colour`` the number of ``images`` and ``objects``, ``mask`` and ``matching``.

    ``ground_truth_boxes`` gives the model the annotated boxes and classes, to measure its masks alone.
    ``error_analysis`` adds a section of this name (see `analyse_errors`) and takes three times as long in all.

    Classes are matched by name (see `match_classes`); what only the data or only the model has is left out, which the
    log and ``class_note`` in ``measured`` say.

    Images that cannot be read, or that take more memory than there is, are reported and left out of all figures;
    ``images_left_out`` in ``measured`` names them.

    Raises `InputError` for data or weights that cannot be used, where no class is matched, and where no image is left.
    """
    return evaluate_in_full(model, data, split, options, ground_truth_boxes, error_analysis).metrics


def evaluate_in_full(
    model: Predictor | str | Path,
    data: Data,
    split: str = "val",
    options: PredictionOptions | None = None,
    ground_truth_boxes: bool = False,
    error_analysis: bool = False,
    known_results: Mapping[int | str, Sequence[dict[str, Any]]] | None = None,
) -> Evaluation:
    """`evaluate`, whose arguments these are, with what its figures were counted from.

    ``known_results`` are results in COCO's form by image id that the same model gave before: these images are not
    predicted again.
    """
    if error_analysis and ground_truth_boxes:
        raise InputError("error_analysis includes the figures of ground_truth_boxes: leave ground_truth_boxes out.")
    name = "in memory" if isinstance(model, Predictor) else str(find_weights(model))
    predictor = model if isinstance(model, Predictor) else load(model)
    predictor = predictor if options is None else Predictor(predictor.model, options)
    source, known, class_note = open_for_model(predictor.classes, data, split)
    results: list[dict[str, Any]] = []
    began = time.perf_counter()
    at_max_detections = 0
    check = predictor.input_check()
    by_colour: dict[str, list[int | str]] = {"grey": [], "colour": []}
    max_detections = max(1, source.most_objects) if ground_truth_boxes else predictor.max_detections
    kept = {predictor.classes.ids[label] for label in known}
    left = LeftOut()
    for index, image in enumerate(track(source.images, "predicting")):
        with left.skipping(image.path):
            values = source.read(index, predictor.config.model.backbone.channels)
            if ground_truth_boxes:
                objects = source.objects(index)
                entries = predictor.segment(values, objects.boxes, objects.labels).to_coco(image.image_id)
            elif known_results is not None and image.image_id in known_results:
                entries = list(known_results[image.image_id])
                at_max_detections += len(entries) == max_detections
                entries = [entry for entry in entries if entry["category_id"] in kept]
            else:
                found = predictor.predict(values, check=check)
                at_max_detections += len(found) == max_detections
                entries = found.of_labels(known).to_coco(image.image_id)
            by_colour["grey" if is_grey(values) else "colour"].append(image.image_id)
            results += entries
    seconds = time.perf_counter() - began
    check.warn()
    used = {image_id for image_ids in by_colour.values() for image_id in image_ids}
    if left.paths and not used:
        left.refuse(len(source))
    inputs = read_inputs(source.truth, results, used if left.paths else None)
    metrics = coco_metrics_of(inputs, max_detections)
    shared = overlaps_of(inputs)
    metrics["matching"] = matching_metrics(shared, predictor.threshold)
    if all(by_colour.values()):
        metrics["by_colour"] = {
            colour: part_metrics(inputs.subset(image_ids), max_detections, predictor.threshold)
            for colour, image_ids in by_colour.items()
        }
    if error_analysis:
        metrics["error_analysis"] = analyse_errors(predictor, source, inputs, shared)
    metrics["measured"] = {
        "model": name,
        "data": str(source.json_path),
        "split": split,
        "held_out": source.note or None,
        "class_note": class_note or None,
        "ground_truth_boxes": ground_truth_boxes,
        "flips": predictor.options.flips,
        "scales": list(predictor.options.scales),
        "images": len(inputs.images),
        "images_left_out": [path.name for path in left.paths],
        "objects": sum(entry["objects"] for entry in metrics["per_class"].values()),
        "max_detections": metrics.pop("max_detections"),
        "images_at_max_detections": at_max_detections,
        "intensity": predictor.options.intensity,
        "precision": number_format(predictor.device, predictor.options.precision),
        "score_threshold_tuned": predictor.model.score_threshold is not None,
        "seconds_per_image": None if known_results else round(seconds / max(1, len(inputs.images)), 3),
        "versions": versions(),
    }
    return Evaluation(predictor, source, inputs, shared, metrics)


def part_metrics(inputs: EvaluationInputs, max_detections: int, threshold: float) -> dict[str, Any]:
    """The number of ``images`` and ``objects``, and the ``mask`` and ``matching`` figures, of some of the images."""
    metrics = coco_metrics_of(inputs, max_detections)
    return {
        "images": len(inputs.images),
        "objects": sum(entry["objects"] for entry in metrics["per_class"].values()),
        "mask": metrics["mask"],
        "matching": matching_metrics(overlaps_of(inputs), threshold),
    }
