"""COCO average precision of masks and boxes, with any number of detections per image."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray

from masklab.datasets.ground_truth import GroundTruth, Region
from masklab.evaluation.inputs import EvaluationInputs, read_inputs
from masklab.utils.errors import InputError
from masklab.utils.types import Integers

_COCO_MAX_DETECTIONS = 100
# axes of the precision array: IoU threshold, recall, class, area range, max_detections
_PrecisionArray = NDArray[np.float64]


def coco_metrics(
    ground_truth: GroundTruth | dict[str, Any],
    results: Sequence[dict[str, Any]],
    max_detections: int,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, Any]:
    """COCO average precision of ``results``, a list in COCO's results format, against ``ground_truth``.

    ``ground_truth`` may be a dictionary in COCO's form.  The ``max_detections`` best detections of each image and
    class count; ``image_ids`` limits the evaluation to some images.  No argument is changed.  Returns

    ====================  ===========================================================================
    key                   value
    ====================  ===========================================================================
    ``mask``, ``box``     ``AP`` (mean over IoU 0.50:0.05:0.95), ``AP50``, ``AP75``; ``APs``, ``APm``
                          and ``APl`` for objects of up to 32 x 32, up to 96 x 96 and more pixels; all
                          at ``max_detections``; ``AP_max100`` is ``AP`` at COCO's own number, 100
    ``per_class``         for each class name ``mask_AP``, ``mask_AP50``, ``box_AP`` and ``objects``,
                          the number of annotated objects that are not crowds
    ``max_detections``    as given
    ====================  ===========================================================================

    A value is ``None`` where there is no object to measure.  Figures equal those of pycocotools with three intended
    differences: pycocotools prints -1 for other ``max_detections`` than 100; it takes the area of a detection from
    the box for mask and box figures when results have both, where this takes the mask's for mask figures; it never
    counts an annotation of id 0 as found.  Source: the COCO detection challenge; Lin et al., ECCV 2014.

    Raises `InputError` for ``max_detections`` below 1 and as `read_inputs` does.
    """
    with _without_collection():
        return coco_metrics_of(read_inputs(ground_truth, results, image_ids), max_detections)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Hold Python's search for cycles back: it would look through all objects again and again, and there are none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def coco_metrics_of(inputs: EvaluationInputs, max_detections: int) -> dict[str, Any]:
    """`coco_metrics` of inputs that are read already.  Raises `InputError` for ``max_detections`` below 1."""
    if max_detections < 1:
        raise InputError(f"max_detections is {max_detections}: give 1 or more.")
    all_max_detections = sorted({_COCO_MAX_DETECTIONS, max_detections})
    at, at_100 = all_max_detections.index(max_detections), all_max_detections.index(_COCO_MAX_DETECTIONS)
    truth = _hotcoco_ground_truth(inputs)
    masks = _precision(truth, inputs, "segm", all_max_detections)
    boxes = _precision(truth, inputs, "bbox", all_max_detections)
    return {
        "mask": _summary(masks, at, at_100),
        "box": _summary(boxes, at, at_100),
        "per_class": _per_class(inputs, masks[..., 0, at], boxes[..., 0, at]),
        "max_detections": max_detections,
    }


def ap_by_iou(inputs: EvaluationInputs, max_detections: int) -> dict[float, float | None]:
    """Mask AP at each IoU, 0.50:0.05:0.95, over all classes; their mean is the ``AP`` of `coco_metrics`."""
    precision = _precision(_hotcoco_ground_truth(inputs), inputs, "segm", [max_detections])
    return {round(0.5 + 0.05 * n, 2): _mean(precision[n, ..., 0, 0]) for n in range(len(precision))}


def ap_of_groups(
    inputs: EvaluationInputs, max_detections: int, objects: Integers, detections: Integers, count: int
) -> list[tuple[float | None, float | None]]:
    """Mask AP and AP50 of each of ``count`` groups of objects, counted as COCO counts objects of a range of areas.

    ``objects`` and ``detections`` are the groups, ``0..count-1``, of ``inputs.objects`` and ``inputs.detections``.
    Objects of other groups need not be found, a detection of one is not counted, and a wrong detection counts in its
    own group.  A value is None where a group has no object.
    """
    truth = _dataset(inputs, inputs.objects, (objects + 1).tolist())  # COCO's area is the number of the group
    evaluation = COCOeval(truth, _dataset(inputs, inputs.detections, (detections + 1).tolist()), "segm")
    evaluation.params.max_dets = [max_detections]
    evaluation.params.area_rng = [[0, count + 1], *([n + 0.5, n + 1.5] for n in range(count))]
    evaluation.params.area_rng_lbl = ["all", *map(str, range(count))]
    precision = _accumulated(evaluation)
    return [(_mean(precision[..., n, 0]), _mean(precision[0, ..., n, 0])) for n in range(1, count + 1)]


def _hotcoco_ground_truth(inputs: EvaluationInputs) -> COCO:
    return _dataset(inputs, inputs.objects, [region.area for region in inputs.objects])


def _dataset(inputs: EvaluationInputs, regions: Sequence[Region], areas: Sequence[float]) -> COCO:
    images = [
        {"id": n, "height": height, "width": width, "file_name": ""}
        for n, (height, width) in enumerate(inputs.sizes, 1)
    ]
    annotations = [
        {
            "id": n,
            "image_id": inputs.images[region.image_id] + 1,
            "category_id": region.label + 1,
            "bbox": region.box,
            "segmentation": region.mask,
            "area": area,
            "iscrowd": int(region.crowd),
            "score": region.score,
        }
        for n, (region, area) in enumerate(zip(regions, areas, strict=True), 1)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(inputs.class_names, 1)]
    return COCO({"images": images, "annotations": annotations, "categories": categories})


def _precision(
    truth: COCO, inputs: EvaluationInputs, iou_type: Literal["segm", "bbox"], all_max_detections: list[int]
) -> _PrecisionArray:
    of_masks = iou_type == "segm"
    results = [
        {
            "image_id": inputs.images[region.image_id] + 1,
            "category_id": region.label + 1,
            "score": region.score,
            "segmentation" if of_masks else "bbox": region.mask if of_masks else region.box,
        }
        for region in inputs.detections
    ]
    evaluation = COCOeval(truth, truth.load_res(results), iou_type)
    evaluation.params.max_dets = all_max_detections
    return _accumulated(evaluation)


def _accumulated(evaluation: COCOeval) -> _PrecisionArray:
    evaluation.evaluate()
    evaluation.accumulate()
    accumulated = evaluation.eval
    assert accumulated is not None
    precision: _PrecisionArray = accumulated["precision"]
    return precision


def _summary(precision: _PrecisionArray, at: int, at_100: int) -> dict[str, float | None]:
    return {
        "AP": _mean(precision[..., 0, at]),
        "AP50": _mean(precision[0, ..., 0, at]),
        "AP75": _mean(precision[5, ..., 0, at]),
        "APs": _mean(precision[..., 1, at]),
        "APm": _mean(precision[..., 2, at]),
        "APl": _mean(precision[..., 3, at]),
        "AP_max100": _mean(precision[..., 0, at_100]),
    }


def _per_class(inputs: EvaluationInputs, masks: _PrecisionArray, boxes: _PrecisionArray) -> dict[str, dict[str, Any]]:
    counts = [0] * len(inputs.class_names)
    for region in inputs.objects:
        counts[region.label] += not region.crowd
    return {
        name: {
            "mask_AP": _mean(masks[..., n]),
            "mask_AP50": _mean(masks[0, ..., n]),
            "box_AP": _mean(boxes[..., n]),
            "objects": counts[n],
        }
        for n, name in enumerate(inputs.class_names)
    }


def _mean(precision: _PrecisionArray) -> float | None:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else None
