"""Problems of data sets, what training does about each, and the sinks that readers report them to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple, Protocol

from masklab.utils.errors import InputError

STOPS, SKIPPED, KEPT = "stops training", "skipped", "kept"

MALFORMED, MALFORMED_CROWD = "malformed segmentation", "malformed iscrowd"
EMPTY, OUTSIDE, UNKNOWN_CATEGORY = "empty mask", "outside the image", "unknown category"
NO_OBJECT, NO_OBJECT_HERE, SMALL_PIECE = "no usable object", "no object here", "pieces of a pixel or two"

PROBLEMS = {
    "unusable split": STOPS,
    "unusable image entry": STOPS,
    "duplicate image id": STOPS,
    "unusable categories": STOPS,
    "category not in train": STOPS,
    "annotation of no image": STOPS,
    "missing image": STOPS,
    "damaged image": STOPS,
    "unusable annotation file": STOPS,
    NO_OBJECT: STOPS,
    "other size than annotated": STOPS,
    "annotated as stored, before EXIF": STOPS,
    MALFORMED: SKIPPED,
    MALFORMED_CROWD: SKIPPED,
    EMPTY: SKIPPED,
    OUTSIDE: SKIPPED,
    UNKNOWN_CATEGORY: SKIPPED,
    SMALL_PIECE: SKIPPED,
    "malformed box": KEPT,
    "malformed area": KEPT,
    "box outside the image": KEPT,
    "box without area": KEPT,
    "duplicate annotation id": KEPT,
    "duplicate object": KEPT,
    "duplicate image": KEPT,
    "image in two splits": KEPT,
    "EXIF orientation": KEPT,
    NO_OBJECT_HERE: KEPT,
    "unused category": KEPT,
    "objects in many pieces": KEPT,
    "objects that cover the image": KEPT,
    "images of nearly one value": KEPT,
    "other images than train": KEPT,
}
"""The consequence of each problem: training stops, skips the annotation, or uses the data as they are."""


class Problem(NamedTuple):
    """One problem: ``name`` is a key of `PROBLEMS`; ids and file name are the data set's own, where it has any.

    ``detail`` is for a table that already names the place.  ``sentence`` stands alone, as an error message does; it
    may be empty where the problem has no consequence.
    """

    name: str
    detail: str = ""
    image_id: int | str | None = None
    annotation_id: int | str | None = None
    file_name: str | None = None
    sentence: str = ""


class Sink(Protocol):
    """Receives the problems that a reader meets; the reader goes on after `report` unless it raises."""

    def report(self, problem: Problem) -> None: ...


class TrainingSink:
    """Raises `InputError` for a problem that stops training; ``skipped`` counts skipped annotations by problem."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()

    def report(self, problem: Problem) -> None:
        consequence = PROBLEMS[problem.name]
        if consequence == STOPS:
            raise InputError(problem.sentence) from None
        if consequence == SKIPPED:
            self.skipped[problem.name] += 1


class CollectingSink:
    """Keeps every problem in ``problems``."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def report(self, problem: Problem) -> None:
        self.problems.append(problem)


def without_path(sentence: str, path: Path) -> str:
    """A sentence without the path that it begins with, for a table that names the path beside it."""
    return sentence.removeprefix(f"{path}: ").removeprefix(f"{path} ")
