"""Judgement of whole splits: what is well-formed but can hardly be meant, such as one mask for all objects of an image."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.config.fields import DEEP_PERCENTILES
from masklab.config.image import ImageConfig
from masklab.datasets.annotations import Annotation
from masklab.datasets.problems import MALFORMED, NO_OBJECT, NO_OBJECT_HERE, Problem
from masklab.images.intensity import is_grey, rescale_intensity
from masklab.masks.pieces import piece_areas
from masklab.masks.rle import RLE, area, bounds
from masklab.utils.types import Size

# An object that something hides in part lies in two or three pieces; of COCO's, one in a thousand lies in four.
_MANY_PIECES = 4
_LEAST_PIECE = 3  # pixels
_LEAST_SHARE = 0.05  # of the largest piece of the mask: smaller pieces are not counted
_SCATTERED = 0.25  # share of a split's objects in many pieces from which they are more than occlusion

# A background that is annotated as an object reaches all borders; of COCO's images, one in thirty has such an object.
_REACH = 0.98  # of the image's width and height
_COVER = 0.5  # of its area
_COVERED = 0.3  # share of the images with objects from which these are not large objects

# The darkest fluorescence images of 8 bits span 25 levels, those of 12 bits in a file of 16 at most 16.
_LEAST_CONTRAST = 20  # levels of 255
_SPANNED = (0.1, 99.9)  # percentiles of an image between which its contrast is measured
_FLAT = 0.5  # share of the images

# Two sources differ where almost each image of one is larger, or brighter, than almost each of the other.
_FEWEST = 3  # images of a split, to compare it
_APART = 0.95  # share of all pairs
_LARGER = 1.5  # ratio of the medians of the sides
_BRIGHTER = 40  # levels of 255 between the medians
_COMMON, _RARE = 0.5, 0.05  # shares of the images of a kind in one split and in the other

_SAMPLED = 1 << 16  # pixels of an image that are looked at


class Look(NamedTuple):
    """How an image looks: ``contrast`` and ``brightness`` in levels of 0 to 255 that the network would be given."""

    pixels: int
    depth: str
    colours: str
    contrast: float
    brightness: float


class ObjectFacts(NamedTuple):
    """How many annotations of an image are usable objects, such in many pieces, such that cover the image, and neither.

    ``most_pieces`` is of the object with the most; ``boxes`` are annotations with a box but no usable mask.
    """

    usable: int
    scattered: int
    covering: int
    most_pieces: int
    crowds: int
    boxes: int


def look_at(values: NDArray[Any], size: Size, rule: ImageConfig | None = None, name: Any = "the image") -> Look:
    """The look of an image of ``size`` from its pixels ``(C, H, W)``, or some of them.

    Without ``rule``, intensities are rescaled as training does with a recipe that sets no range.
    """
    step = max(1, round((values[0].size / _SAMPLED) ** 0.5))
    sample = values[:, ::step, ::step]
    if rule is None:
        rule = ImageConfig() if values.dtype == np.uint8 else ImageConfig(percentiles=DEEP_PERCENTILES)
    shown = rescale_intensity(np.ascontiguousarray(sample), rule, name=name)
    low, high = np.percentile(shown, _SPANNED).tolist()
    colours = "grey" if is_grey(sample) else "colour" if len(values) == 3 else f"{len(values)} channels"
    return Look(size[0] * size[1], str(values.dtype), colours, high - low, float(shown.mean()))


def object_facts(annotations: Iterable[Annotation], size: Size) -> ObjectFacts:
    """The facts of the annotations of an image of ``size``."""
    masks: list[RLE] = []
    crowds = boxes = 0
    for annotation in annotations:
        crowds += annotation.crowd and not annotation.problem
        boxes += annotation.problem == MALFORMED and min(annotation.bbox[2:]) > 0
        if annotation.rle is not None and not annotation.problem and not annotation.crowd:
            masks.append(annotation.rle)
    pieces = [_count_pieces(mask, size) for mask in masks]
    scattered = sum(count >= _MANY_PIECES for count in pieces)
    covering = sum(_covers(mask, size) for mask in masks)
    return ObjectFacts(len(masks), scattered, covering, max(pieces, default=0), crowds, boxes)


def _count_pieces(mask: RLE, size: Size) -> int:
    areas = piece_areas(mask, size)
    return int(np.count_nonzero(areas >= max(_LEAST_PIECE, _LEAST_SHARE * areas.max())))


def _covers(mask: RLE, size: Size) -> bool:
    height, width = size
    x1, y1, x2, y2 = bounds(mask, size) or (0, 0, 0, 0)
    return x2 - x1 >= _REACH * width and y2 - y1 >= _REACH * height and area(mask) >= _COVER * height * width


class Tally:
    """What the images of a split, which is called ``name`` in messages, add up to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.images = self.annotated = 0  # images, and those with a usable object
        self.usable = self.scattered = self.covered = self.flat = self.crowds = self.boxes = 0
        self.depths, self.colours = Counter[str](), Counter[str]()
        self.sides, self.brightness = array("d"), array("d")
        self.examples: dict[str, str] = {}

    def add(self, name: str, objects: ObjectFacts, look: Look | None) -> None:
        """Take the facts of an image, which is called ``name`` in messages; ``look`` is None if it cannot be read."""
        self.images += 1
        self.annotated += objects.usable > 0
        self.usable += objects.usable
        self.crowds += objects.crowds
        self.boxes += objects.boxes
        self.scattered += objects.scattered
        self.covered += objects.covering > 0
        if objects.scattered:
            self.examples.setdefault("scattered", f"{name}: {objects.most_pieces}")
        if objects.covering:
            self.examples.setdefault("covered", name)
        if look is None:
            return
        self.depths[look.depth] += 1
        self.colours[look.colours] += 1
        self.sides.append(look.pixels**0.5)
        self.brightness.append(look.brightness)
        if look.contrast < _LEAST_CONTRAST:
            self.flat += 1
            self.examples.setdefault("flat", f"{name}: {look.contrast:.1f}")


def judge(tally: Tally, skipped: Mapping[str, int], training: bool = True) -> Iterator[Problem]:
    """The problems of a split as a whole.

    ``skipped`` counts annotations that cannot be used by problem, for the reasons why there is no object;
    ``training`` says whether training needs the split.
    """
    if not tally.usable:
        yield Problem(NO_OBJECT if training else NO_OBJECT_HERE, _why_empty(tally, skipped))
    if tally.scattered and tally.scattered >= _SCATTERED * tally.usable:
        yield Problem(
            "objects in many pieces",
            f"{tally.scattered} of {tally.usable} masks lie in {_MANY_PIECES} or more separate pieces (such as "
            f"{tally.examples['scattered']}); if each piece is an object, read each as one (--split_components; in training, --split_components true)",
        )
    if tally.covered and tally.covered >= _COVERED * tally.annotated:
        yield Problem(
            "objects that cover the image",
            f"{tally.covered} of {tally.annotated} images have an object that reaches all borders and covers half of "
            f"the image or more (such as {tally.examples['covered']}); see that no background is annotated as object",
        )
    if tally.flat and tally.flat >= _FLAT * len(tally.sides):
        yield Problem(
            "images of nearly one value",
            f"{tally.flat} of {len(tally.sides)} images span less than {_LEAST_CONTRAST} of 255 levels at the intensity "
            f"range of training (such as {tally.examples['flat']}); set image.value_range or image.percentiles, or "
            "see how they were saved",
        )


def _why_empty(tally: Tally, skipped: Mapping[str, int]) -> str:
    """The reasons why no annotation of a split is a usable object, with their counts."""
    if not tally.images:
        return "it has no images; add some"
    counts = {
        "crowd region": tally.crowds,
        "box without a usable mask": tally.boxes,
        **{name: count - tally.boxes * (name == MALFORMED) for name, count in skipped.items()},
    }
    reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.items() if count > 0)
    return f"{tally.images} images hold {reasons or 'no annotation'}; annotate objects with masks"


def compare(train: Tally, other: Tally) -> Iterator[Problem]:
    """How the images of a split differ from those of ``train`` as only those of another source do."""
    if min(len(train.sides), len(other.sides)) < _FEWEST:
        return
    differences: list[str] = []
    for here, there in ((train.depths, other.depths), (train.colours, other.colours)):
        for kind in sorted(here | there):
            shares = here[kind] / here.total(), there[kind] / there.total()
            if max(shares) >= _COMMON and min(shares) <= _RARE:
                differences.append(f"{kind}: {shares[0]:.0%} of {train.name}, {shares[1]:.0%} of {other.name}")
    for what, ours, theirs, is_far in (
        ("side in pixels", train.sides, other.sides, lambda a, b: max(a, b) >= _LARGER * min(a, b)),
        ("brightness of 255", train.brightness, other.brightness, lambda a, b: abs(a - b) >= _BRIGHTER),
    ):
        medians = float(np.median(ours)), float(np.median(theirs))
        if is_far(*medians) and abs(_larger(ours, theirs) - 0.5) >= _APART - 0.5:
            differences.append(f"median {what}: {medians[0]:.0f} in {train.name}, {medians[1]:.0f} in {other.name}")
    if differences:
        yield Problem("other images than train", "; ".join(differences))


def _larger(ours: array[float], theirs: array[float]) -> float:
    """The share of all pairs in which theirs is larger, equal ones counted half."""
    ordered = np.sort(ours)
    below = np.searchsorted(ordered, theirs) + np.searchsorted(ordered, theirs, "right")
    return float(below.mean() / (2 * len(ours)))
