"""What each kind of error costs: average precision with the errors of one kind mended, in the manner of TIDE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from masklab.datasets.ground_truth import Region
from masklab.evaluation.coco import coco_metrics_of
from masklab.evaluation.confusion import confusion
from masklab.evaluation.errors import Errors, find_errors
from masklab.evaluation.inputs import EvaluationInputs
from masklab.evaluation.matching import Overlaps
from masklab.utils.types import Bools, Integers

MENDED = {
    "class": "a detection of another class gets the class of its object",
    "localisation": "the detection gets the mask of its object",
    "merged": "each of the objects gets a detection of its own, with the score of the merged one",
    "split": "the best piece gets the mask of the object, the other pieces go",
    "duplicate": "the repeated detection goes",
    "background": "the detection goes",
    "missed": "the object goes",
}
"""What mending an error of each kind means."""


@dataclass(frozen=True)
class Gain:
    """Detections and objects with an error of one ``kind``, and the mask AP and AP50 that mending it would add."""

    kind: str
    detections: int
    objects: int
    ap: float | None
    ap50: float | None


def gains(inputs: EvaluationInputs, overlaps: Overlaps, max_detections: int) -> list[Gain]:
    """The gain of each kind of `MENDED`, mended alone; ``class`` only with several classes.

    All detections count, whatever their score, as in average precision itself; gains do not add up, as an object may
    be in the way of several errors.  Without objects there is no average precision and the gains are None.
    """
    errors = find_errors(overlaps, -np.inf)
    before = coco_metrics_of(inputs, max_detections)["mask"]
    mixed = confusion(inputs, overlaps, -np.inf)
    is_class = np.zeros(len(inputs.detections), bool)
    is_class[mixed.detections] = True
    found = []
    for kind in MENDED:
        if kind == "class":
            if len(inputs.class_names) < 2:
                continue
            detections, objects = len(mixed.detections), len(mixed.objects)
            better = _with_classes(inputs, mixed.detections, mixed.objects)
        else:
            of_kind = (errors.detections == kind) & ~is_class
            detections, objects = int(of_kind.sum()), int((errors.objects == kind).sum())
            better = _MEND[kind](inputs, overlaps, errors, of_kind)
        ap = coco_metrics_of(better, max_detections)["mask"] if detections or objects else before
        found.append(Gain(kind, detections, objects, _less(ap["AP"], before["AP"]), _less(ap["AP50"], before["AP50"])))
    return found


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _with_classes(inputs: EvaluationInputs, detections: Integers, objects: Integers) -> EvaluationInputs:
    changed = list(inputs.detections)
    for row, column in zip(detections.tolist(), objects.tolist(), strict=True):
        changed[row] = msgspec.structs.replace(changed[row], label=inputs.objects[column].label)
    return replace(inputs, detections=changed)


def _outlined(inputs: EvaluationInputs, overlaps: Overlaps, errors: Errors, of_kind: Bools) -> EvaluationInputs:
    changed = list(inputs.detections)
    for row, column in _best_objects(overlaps, errors, of_kind).items():
        changed[row] = _on(changed[row], inputs.objects[column])
    return replace(inputs, detections=changed)


def _separated(inputs: EvaluationInputs, overlaps: Overlaps, errors: Errors, of_kind: Bools) -> EvaluationInputs:
    """One detection for each object that a merged detection covers and no other detection has."""
    wanted = of_kind[overlaps.pair_detections] & (errors.objects[overlaps.pair_objects] == "merged")
    kept = [region for region, merged in zip(inputs.detections, of_kind.tolist(), strict=True) if not merged]
    best: dict[int, tuple[float, int]] = {}
    for place in np.flatnonzero(wanted).tolist():
        row, column = int(overlaps.pair_detections[place]), int(overlaps.pair_objects[place])
        best[column] = max(best.get(column, (-np.inf, -1)), (inputs.detections[row].score, row))
    kept += [_on(inputs.detections[row], inputs.objects[column]) for column, (_, row) in best.items()]
    return replace(inputs, detections=kept)


def _joined(inputs: EvaluationInputs, overlaps: Overlaps, errors: Errors, of_kind: Bools) -> EvaluationInputs:
    best: dict[int, int] = {}
    owner = _best_objects(overlaps, errors, of_kind)
    for row in sorted(owner, key=lambda row: -inputs.detections[row].score):
        best.setdefault(owner[row], row)
    changed, whole = [], {row: column for column, row in best.items()}
    for row, region in enumerate(inputs.detections):
        if row in whole:
            changed.append(_on(region, inputs.objects[whole[row]]))
        elif not of_kind[row]:
            changed.append(region)
    return replace(inputs, detections=changed)


def _removed(inputs: EvaluationInputs, _: Overlaps, __: Errors, of_kind: Bools) -> EvaluationInputs:
    kept = [region for region, wrong in zip(inputs.detections, of_kind.tolist(), strict=True) if not wrong]
    return replace(inputs, detections=kept)


def _without_missed(inputs: EvaluationInputs, _: Overlaps, errors: Errors, __: Bools) -> EvaluationInputs:
    kept = [r for r, kind in zip(inputs.objects, errors.objects.tolist(), strict=True) if kind != "missed"]
    return replace(inputs, objects=kept)


def _best_objects(overlaps: Overlaps, errors: Errors, of_kind: Bools) -> dict[int, int]:
    """The object of each detection: the one it is matched with, else the one with the largest IoU."""
    order = np.argsort(overlaps.pair_ious, kind="stable")
    order = order[of_kind[overlaps.pair_detections[order]]]
    pairs = zip(overlaps.pair_detections[order].tolist(), overlaps.pair_objects[order].tolist(), strict=True)
    matched = zip(errors.matched.tolist(), errors.owners.tolist(), strict=True)
    return dict(pairs) | {row: column for row, column in matched if of_kind[row]}


def _on(detection: Region, target: Region) -> Region:
    return msgspec.structs.replace(detection, mask=target.mask, box=target.box)


_MEND: dict[str, Callable[[EvaluationInputs, Overlaps, Errors, Bools], EvaluationInputs]] = {
    "localisation": _outlined,
    "merged": _separated,
    "split": _joined,
    "duplicate": _removed,
    "background": _removed,
    "missed": _without_missed,
}
