"""Problems of data sets, what training does about each, and the sinks that readers report them to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from masklab.utils.errors import InputError
from masklab.utils.words import as_written, counted

STOPS, SKIPPED, IN_PART, KEPT = "stops training", "skipped", "skipped in part", "kept"

MALFORMED, MALFORMED_CROWD = "malformed segmentation", "malformed iscrowd"
MALFORMED_PART, BOOLEAN_CROWD = "malformed part of a mask", "iscrowd not a number"
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
    MALFORMED_PART: IN_PART,
    SMALL_PIECE: SKIPPED,
    "malformed box": KEPT,
    "malformed area": KEPT,
    BOOLEAN_CROWD: KEPT,
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
"""The consequence of each problem: training stops, skips the annotation or a part of it, or uses the data as they are."""


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
    """Raises `InputError` for a problem that stops training; ``skipped`` counts annotations that lose all or a part."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()

    def report(self, problem: Problem) -> None:
        consequence = PROBLEMS[problem.name]
        if consequence == STOPS:
            raise InputError(problem.sentence) from None
        if consequence in (SKIPPED, IN_PART):
            self.skipped[problem.name] += 1


def skipped_words(skipped: Mapping[str, int]) -> str:
    """What training leaves out, from counts by problem, such as "skipped 2 annotations (2 empty mask)"; "" for nothing."""
    whole, parts = (
        {name: n for name, n in sorted(skipped.items()) if n and PROBLEMS[name] == consequence}
        for consequence in (SKIPPED, IN_PART)
    )
    reasons = ", ".join(f"{n} {name}" for name, n in whole.items())
    words = [f"{counted(sum(whole.values()), 'annotation')} ({reasons})"] * bool(whole)
    words += [f"a malformed part of {counted(n, 'mask')}" for n in parts.values()]
    return f"skipped {' and '.join(words)}" if words else ""


class CollectingSink:
    """Keeps every problem in ``problems``."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def report(self, problem: Problem) -> None:
        self.problems.append(problem)


def unknown_category(category: Any, known: Iterable[Any]) -> str:
    """What is wrong with a category id; one that only looks like an id of the table is told apart from it."""
    written = as_written(category)
    known = list(known)
    alike = next((number for number in known if category != "" and str(number) == str(category).strip()), None)
    if alike is None and isinstance(category, float):
        alike = next((number for number in known if number == category), None)
    if alike is None:
        return f"its category id is {written}"
    return f"its category id is {written} but the categories have {as_written(alike)}"


def without_path(sentence: str, path: Path) -> str:
    """A sentence without the path that it begins with, for a table that names the path beside it."""
    return sentence.removeprefix(f"{path}: ").removeprefix(f"{path} ")
