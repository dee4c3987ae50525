"""Matching at every score threshold at once: which detections find an object, and the curves that follow.

Letters for shapes: D detections, T score thresholds, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklab.evaluation.inputs import EvaluationInputs
from masklab.evaluation.matching import Overlaps, largest_matching
from masklab.utils.types import Bools, Doubles, Integers

STEPS = 1000  # of the scores that `stored` keeps
_GRID = tuple(k / 100 for k in range(1, 100))


@dataclass(frozen=True)
class Sweep:
    """The detections of an evaluation with what each adds to the matching when the score threshold falls to its score.

    ============  ========  =======  ==================================================================
    name          shape     dtype    meaning
    ============  ========  =======  ==================================================================
    ``scores``    ``(D,)``  float64  score
    ``labels``    ``(D,)``  int64    class, ``0..K-1``
    ``found``     ``(D,)``  bool     with it, one more object is found
    ``wrong``     ``(D,)``  bool     with it, there is one more wrong detection
    ``objects``   ``(K,)``  int64    annotated objects of each class, crowds left out
    ============  ========  =======  ==================================================================

    A detection in a crowd is neither where no object needs it; one that takes the place of a detection in a crowd
    finds no further object and is not wrong.
    """

    scores: Doubles
    labels: Integers
    found: Bools
    wrong: Bools
    objects: Integers

    def counts(self, threshold: float) -> tuple[Integers, Integers, Integers]:
        """TP, FP and FN of each class, ``(K,)`` each, of the detections with at least a score: those of `matching_metrics`."""
        kept = self.scores >= threshold
        found, wrong = (
            np.bincount(self.labels[kept & flag], minlength=len(self.objects)) for flag in (self.found, self.wrong)
        )
        return found, wrong, self.objects - found

    def of_class(self, label: int) -> Sweep:
        """The detections of one class, which becomes class 0."""
        kept = self.labels == label
        return Sweep(
            self.scores[kept],
            np.zeros(int(kept.sum()), np.int64),
            self.found[kept],
            self.wrong[kept],
            self.objects[label : label + 1],
        )


def sweep(inputs: EvaluationInputs, overlaps: Overlaps, iou: float = 0.5) -> Sweep:
    """Match the detections of ``inputs``, whose overlaps are given, at a mask IoU and at every score threshold.

    The number of objects found at a threshold is that of `matching_metrics`: a largest one-to-one matching that takes
    detections by falling score holds a largest matching of each threshold.
    """
    close = overlaps.pair_ious >= iou
    outside = close & ~overlaps.in_crowd[overlaps.pair_detections]
    found, found_outside = (_gains(overlaps, pairs) for pairs in (close, outside))
    labels = np.array([region.label for region in inputs.detections], np.int64)
    owned = np.array([region.label for region in inputs.objects if not region.crowd], np.int64)
    return Sweep(
        overlaps.scores,
        labels,
        found,
        ~overlaps.in_crowd & ~found_outside,
        np.bincount(owned, minlength=len(inputs.class_names)),
    )


def _gains(overlaps: Overlaps, pairs: Bools) -> Bools:
    matched, _ = largest_matching(overlaps.pair_detections[pairs], overlaps.pair_objects[pairs], rank=-overlaps.scores)
    gains = np.zeros(len(overlaps.scores), bool)
    gains[matched] = True
    return gains


@dataclass(frozen=True)
class Curve:
    """Figures at each score that occurs, falling: ``scores``, ``precision``, ``recall`` and ``f1``, ``(T,)`` each.

    Recall and F1 are 0 without objects.
    """

    scores: Doubles
    precision: Doubles
    recall: Doubles
    f1: Doubles


def curve(swept: Sweep) -> Curve:
    """Precision, recall and F1 of all classes of a sweep together, at each score threshold that changes them."""
    order = np.argsort(-swept.scores, kind="stable")
    scores = swept.scores[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    found, wrong = np.cumsum(swept.found[order])[last], np.cumsum(swept.wrong[order])[last]
    objects = max(int(swept.objects.sum()), 1)
    precision = found / np.maximum(found + wrong, 1)
    return Curve(scores[last], precision, found / objects, 2 * found / np.maximum(found + wrong + objects, 1))


def stored(swept: Sweep) -> list[dict[str, Any]]:
    """The matches of each class for a page that counts them at a threshold: ``objects`` and ``steps``.

    Each of ``steps`` is ``[s, found, wrong]``, by falling s: the detections with a score of ``s / STEPS`` to below
    ``(s + 1) / STEPS``.  So the sums of those with ``s >= k`` are the counts at the threshold ``k / STEPS``, exactly.
    """
    borders = np.arange(STEPS + 1) / STEPS
    place = np.searchsorted(borders, swept.scores, side="right") - 1
    classes = []
    for label, objects in enumerate(swept.objects.tolist()):
        own = swept.labels == label
        found, wrong = (
            np.bincount(place[own & flag].clip(0), minlength=STEPS + 1) for flag in (swept.found, swept.wrong)
        )
        used = np.flatnonzero(found + wrong)[::-1].tolist()
        classes.append({"objects": objects, "steps": [[s, int(found[s]), int(wrong[s])] for s in used]})
    return classes


def calibration(swept: Sweep, bins: int = 10) -> tuple[list[tuple[int, float, float]], float | None]:
    """How often detections of a score are right: for each bin of scores its (detections, mean score, share found).

    Detections in crowds that no object needs are left out.  Second the expected calibration error, the mean distance
    of score and share, weighted by detections; None without detections.  Bins are of equal width; empty ones are 0.
    """
    counted = swept.found | swept.wrong
    scores, found = swept.scores[counted], swept.found[counted]
    place = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    rows = []
    for k in range(bins):
        inside = place == k
        total = int(inside.sum())
        rows.append((total, float(scores[inside].mean()), float(found[inside].mean())) if total else (0, 0.0, 0.0))
    if not len(scores):
        return rows, None
    return rows, sum(total * abs(score - share) for total, score, share in rows) / len(scores)


def best_threshold(curve_of: Curve, scores: Sequence[float] = _GRID) -> float | None:
    """The threshold of ``scores`` with the largest F1, the middle one of several; None without detections."""
    if not len(curve_of.scores):
        return None
    rows = np.searchsorted(-curve_of.scores, -np.asarray(scores), side="right") - 1
    f1 = np.where(rows >= 0, curve_of.f1[rows.clip(0)], 0.0)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(scores[int(best[(len(best) - 1) // 2])])
