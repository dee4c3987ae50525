"""Boxes of a file for the images and classes of a prediction: which belong to which, and how they lie in an image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from masklab.datasets.boxes.box_list import BoxList
from masklab.datasets.class_names import match_classes
from masklab.images.resize import network_size
from masklab.inference.listing import ListedImage, Listing, match_images
from masklab.inference.tiles.plan import plan_tiles
from masklab.model.masklab import MaskLab
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Bools, Doubles, Floats, Integers, Size
from masklab.utils.words import counted, listed, nearest

_log = logging.getLogger(__name__)

_MOVED = 0.01  # pixels: a border that is passed by less is a matter of rounding
SCALE_MARGIN = 2.0
"""Factor beyond the smallest and the largest object within which objects count as of a known size: the usual distance of
anchors from one another."""


def rows_of_images(given: BoxList, images: Sequence[Path], listing: Listing | None) -> dict[Path, Integers]:
    """The rows of the boxes of each image; none for an image that has no boxes.

    Images are found by what the file calls them: by their names (see `match_images`), or by the ids of a ``listing``.
    Boxes of images that are not given are counted in a warning.  Raises `InputError` where an image or its boxes cannot
    be told, and where there are boxes but none for the images.
    """
    places = _images_of_keys(given, images, listing)
    order = np.argsort(given.image, kind="stable")
    bounds = np.searchsorted(given.image[order], np.arange(len(given.images) + 1))
    rows = {image: np.zeros(0, np.int64) for image in images}
    for place, image in places.items():
        rows[image] = np.sort(np.concatenate((rows[image], order[bounds[place] : bounds[place + 1]])))
    absent = [place for place in range(len(given.images)) if place not in places and bounds[place] < bounds[place + 1]]
    if absent:
        names = listed(str(given.images[place]) for place in absent)
        if not any(map(len, rows.values())):
            raise InputError(
                f"{given.path} has no boxes of the images, such as {images[0]}, but of {names}: name the images that "
                "they belong to."
            )
        left = sum(int(bounds[place + 1] - bounds[place]) for place in absent)
        _log.warning(
            "%s of %s that are not among the images are left out: %s",
            counted(left, "box", "boxes"),
            counted(len(absent), "image"),
            names,
        )
    if without := [image.name for image, found in rows.items() if not len(found)]:
        _log.info(f"{len(without)} of {counted(len(images), 'image')} without boxes: {listed(without)}")
    return rows


def _images_of_keys(given: BoxList, images: Sequence[Path], listing: Listing | None) -> dict[int, Path]:
    """The image of each position in ``given.images`` that is among the images."""
    named = [
        ListedImage(place, key.name, None)
        for place, key in enumerate(given.images)
        if key.name is not None and key.name
    ]
    places: dict[int, Path] = {}
    for image, entry in match_images(images, named, given.path).items():
        other = places.setdefault(int(entry.image_id), image)
        if other is not image:
            raise InputError(
                f"{given.path}: {entry.file_name} may be {other} or {image}: write more of the path into it, or give one "
                "of the two images."
            )
    ids = {} if listing is None else {str(entry.image_id): image for image, entry in listing.images.items()}
    for place, (name, image_id) in enumerate(given.images):
        if place not in places and image_id is not None:
            if listing is None and name is None:
                raise InputError(
                    f"{given.path} calls images by id, such as {image_id}, not by file_name: name the COCO JSON that the "
                    "ids are from with --annotations."
                )
            if str(image_id) in ids:
                places[place] = ids[str(image_id)]
        elif name is None and image_id is None:
            if len(images) > 1:
                raise InputError(
                    f"{given.path} does not say which image a box belongs to: add a column or field file_name, or give "
                    "one image."
                )
            places[place] = images[0]
    return places


def labels_of_boxes(
    given: BoxList, classes: ClassTable, names: Mapping[int, str] | None = None, label: str | None = None
) -> Integers:
    """The model's label ``(n,)`` of each box, -1 for a box of a class that the model does not find.

    Classes are matched by name (see `match_classes`), numbers with the help of ``names``.  All boxes are of one class
    if the model has one, or where its class ``label`` is named.  What is done with classes is logged.  Raises
    `InputError` for boxes that cannot be given a class.
    """
    one = _the_class(classes, label)
    if one is not None:
        if given.named and list(given.classes) != [classes.names[one]]:
            _log.info(f"boxes of {listed(given.classes)} are segmented as {classes.names[one]}")
        return np.full(len(given), one, np.int64)
    if not len(given):
        return np.zeros(0, np.int64)
    if not given.classes or (not given.named and names is None):
        lack = f"has classes by number alone ({listed(sorted(given.classes))})" if given.classes else "has no classes"
        with_names = "--classes FILE or NAMES, or one class for all boxes with " if given.classes else ""
        raise InputError(
            f"{given.path} {lack} and the model finds {listed(classes.names)}: name {with_names}--label NAME."
        )
    table = given.class_table(names)
    match = match_classes(classes, table, given.path)
    if match.note:
        _log.info(f"{given.path}: {match.note}.")
    position = {name: place for place, name in enumerate(given.classes)}
    labels = np.full(len(given.classes) + 1, -1, np.int64)
    for number, matched in match.labels.items():
        labels[number if given.named else position[number]] = matched
    return labels[given.category]


def _the_class(classes: ClassTable, label: str | None) -> int | None:
    """The one class of all boxes; None where each has its own."""
    if label is None:
        return 0 if len(classes) == 1 else None
    if label in classes.names:
        return classes.names.index(label)
    match = nearest(label, classes.names)
    meant = f" (did you mean {match}?)" if match else ""
    raise InputError(
        f"--label is {label}{meant}, which is no class of the model: give one of {listed(classes.names, 20)}."
    )


class Fitted(NamedTuple):
    """Boxes (n, 4) float32 clipped to an image, and which of them ``(n,)`` have an area there."""

    boxes: Floats
    usable: Bools


class BoxCheck:
    """Fits boxes into images, and reports those that are clipped, outside, or of a size that the model does not know."""

    def __init__(self, model: MaskLab) -> None:
        self._model = model
        self._total = self._clipped = self._strange = 0
        self._unusable: list[str] = []
        self._example = ""

    def known_sides(self, size: Size) -> tuple[float, float]:
        """The range of sides, in pixels of an image of ``size``, that the model knows, with a margin of 2.

        They are those of the objects that it was trained on, or of its anchors where the weights do not say it.  The
        side of a box is the square root of its area.
        """
        known = self._model.training_data
        if known is None:
            anchors = self._model.rpn.anchor_sizes
            low, high = min(anchors), max(anchors)
        else:
            factor = self._factor(known.image_size)
            low, high = known.smallest_object * factor, known.largest_object * factor
        factor = self._factor(size)
        return low / SCALE_MARGIN / factor, high * SCALE_MARGIN / factor

    def _factor(self, size: Size) -> float:
        """From an image of ``size`` to the network's input."""
        rule, plan = self._model.config.image, plan_tiles(self._model, size)
        return plan.scale if plan is not None else network_size(size, rule)[0] / size[0]

    def fit(self, boxes: Doubles, size: Size, name: str) -> Fitted:
        """Clip boxes ``(n, 4)`` ``xyxy`` to an image of ``size``; ``name`` calls it in messages."""
        clipped = boxes.clip(0, np.array([size[1], size[0]] * 2))
        fitted = clipped.astype(np.float32)
        sides = (fitted[:, 2:] - fitted[:, :2]).astype(np.float64)
        usable = np.minimum(sides[:, 0], sides[:, 1]) > 0
        low, high = self.known_sides(size)
        side = np.sqrt(sides.prod(axis=1))
        strange = usable & ((side < low) | (side > high))
        self._total += len(boxes)
        self._clipped += int((usable & (np.abs(boxes - clipped) > _MOVED).any(axis=1)).sum())
        self._strange += int(strange.sum())
        self._unusable += [
            f"{_shown(boxes[k])} of {name}, {size[1]} x {size[0]} pixels" for k in np.flatnonzero(~usable)
        ]
        if strange.any() and not self._example:
            self._example = (
                f"one of {side[strange.argmax()]:.3g} pixels in {name}, where the range is {low:.3g} to {high:.3g}"
            )
        return Fitted(fitted, usable)

    def warn(self) -> None:
        """Log what was found, one message for each kind."""
        if self._clipped:
            _log.info(
                f"{self._clipped} of {counted(self._total, 'box', 'boxes')} reached out of the image and were clipped"
            )
        if self._unusable:
            _log.warning(
                "%d of %s without area in the image skipped, such as %s",
                len(self._unusable),
                counted(self._total, "box", "boxes"),
                self._unusable[0],
            )
        if self._strange:
            _log.warning(
                "%d of %s smaller or larger than what the model was made for, by the square root of the area, such as %s: "
                "their masks may be poor; a model of other anchor sizes or image scale suits them better",
                self._strange,
                counted(self._total, "box", "boxes"),
                self._example,
            )


def _shown(box: Doubles) -> str:
    return f"[{', '.join(f'{value:g}' for value in box.tolist())}]"
