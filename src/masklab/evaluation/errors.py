"""Error types of detections and annotated objects, in the manner of TIDE (Bolya et al., ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masklab.evaluation.matching import Overlaps, match
from masklab.utils.types import Bools, Doubles, Integers

LOCALISATION_IOU = 0.75  # IoU below which a matched object counts as badly localised
_BACKGROUND_IOU = 0.1  # IoU from which an unmatched detection is an attempt at an unmatched object

ERROR_TYPES = {
    "right": f"matched, IoU {LOCALISATION_IOU} or more",
    "localisation": f"IoU {_BACKGROUND_IOU} to {LOCALISATION_IOU} with its object",
    "merged": "one detection over several objects",
    "split": "several detections in pieces of one object",
    "duplicate": "repeats an object that has a detection",
    "background": "no object of its class there",
    "missed": "nothing found",
}

_ErrorTypes = NDArray[np.str_]


@dataclass(frozen=True)
class Errors:
    """The error type of each detection ``(D,)`` and of each annotation ``(G,)``, numbered as in `Overlaps`.

    The type is "" for a crowd and for a detection that does not count, as its score is too low or it lies in a crowd.
    ``matched`` detections, their ``owners`` among the objects and ``ious`` are those of `match` at an IoU of 0.5.
    """

    detections: _ErrorTypes
    objects: _ErrorTypes
    matched: Integers
    owners: Integers
    ious: Doubles

    def counts(self) -> dict[str, dict[str, int]]:
        """For each of `ERROR_TYPES` the number of ``detections`` and ``objects``."""
        return {
            error_type: {
                "detections": int((self.detections == error_type).sum()),
                "objects": int((self.objects == error_type).sum()),
            }
            for error_type in ERROR_TYPES
        }


def find_errors(overlaps: Overlaps, score_threshold: float) -> Errors:
    """The first type that fits of each detection with at least ``score_threshold`` and of each object.

    Detections are matched with objects of their class one to one at a mask IoU of 0.5 as in `match`.  "Most of" is
    more than half of the pixels.

    ==================  ===============================================  ==================================
    type                detections                                       objects
    ==================  ===============================================  ==================================
    ``merged``          covers most of two or more objects, or of one    those of them that no other
                        besides its own; of these at least one is not    detection is matched with
                        matched
    ``right``           matched with an IoU of 0.75 or more              the matched one
    ``localisation``    matched with less; or the best attempt at an     the matched one, or the one
                        object without a match, with an IoU of 0.1 or    attempted
                        more
    ``split``           one of two or more attempts at an object         the object; this comes before
                        without a match that each lie mostly in it       ``localisation`` below 0.5
    ``duplicate``       an attempt at an object of a type above that     (none)
                        covers most of it or lies mostly in it
    ``background``      none of these                                    (none)
    ``missed``          (none)                                           none of these
    ==================  ===============================================  ==================================

    A detection without a match is an attempt at the object of its class with which its IoU is largest.
    """
    matched, owners, ious = match(overlaps, score_threshold)
    counted = (overlaps.scores >= score_threshold) & ~overlaps.in_crowd
    counted[matched] = True
    types = np.where(ious < LOCALISATION_IOU, "localisation", "right")
    detections = np.where(counted, "background", "").astype("U14")
    objects = np.where(overlaps.crowds, "", "missed").astype("U14")
    detections[matched], objects[owners] = types, types
    pairs = _pairs(overlaps, counted)
    _mark_merged(pairs, matched, owners, detections, objects)
    _mark_attempts(pairs, detections, objects)
    return Errors(detections, objects, matched, owners, ious)


@dataclass(frozen=True)
class _Pairs:
    """Overlapping detections and objects by rising IoU; whether most of the object is covered, of the detection inside."""

    detections: Integers
    objects: Integers
    ious: Doubles
    covers: Bools
    inside: Bools


def _pairs(overlaps: Overlaps, counted: Bools) -> _Pairs:
    kept = np.flatnonzero(counted[overlaps.pair_detections])
    kept = kept[np.argsort(overlaps.pair_ious[kept], kind="stable")]
    detections, objects, ious = overlaps.pair_detections[kept], overlaps.pair_objects[kept], overlaps.pair_ious[kept]
    own, other = overlaps.areas[detections], overlaps.object_areas[objects]
    shared = np.rint(ious * (own + other) / (1 + ious))
    return _Pairs(detections, objects, ious, 2 * shared > other, 2 * shared > own)


def _mark_merged(
    pairs: _Pairs, matched: Integers, owners: Integers, detections: _ErrorTypes, objects: _ErrorTypes
) -> None:
    holder = np.full(len(objects), -1)
    holder[owners] = matched
    own, free = holder[pairs.objects] == pairs.detections, holder[pairs.objects] == -1
    over = pairs.covers | own
    several = np.bincount(pairs.detections[over], minlength=len(detections)) > 1
    several &= np.bincount(pairs.detections[over & free], minlength=len(detections)) > 0
    detections[several] = "merged"
    objects[pairs.objects[over & (own | free) & several[pairs.detections]]] = "merged"


def _mark_attempts(pairs: _Pairs, detections: _ErrorTypes, objects: _ErrorTypes) -> None:
    """Mark split, localisation and duplicate among the detections that are neither matched nor merged."""
    best = np.full(len(detections), -1)
    best[pairs.detections] = np.arange(len(pairs.detections))  # the last, whose IoU is the largest
    tries = np.sort(best[(best >= 0) & (detections == "background")])
    detection, wanted = pairs.detections[tries], pairs.objects[tries]
    pieces = (objects[wanted] == "missed") & pairs.inside[tries]
    pieces &= np.bincount(wanted[pieces], minlength=len(objects))[wanted] > 1
    detections[detection[pieces]] = objects[wanted[pieces]] = "split"
    close = tries[(objects[wanted] == "missed") & (pairs.ious[tries] >= _BACKGROUND_IOU)]
    best = np.full(len(objects), -1)
    best[pairs.objects[close]] = close
    outlined = best[best >= 0]
    detections[pairs.detections[outlined]] = objects[pairs.objects[outlined]] = "localisation"
    again = (detections[detection] == "background") & (objects[wanted] != "missed")
    again &= pairs.covers[tries] | pairs.inside[tries]
    detections[detection[again]] = "duplicate"
