"""Boxes of many images as a file gives them, in flat arrays, and their collection row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Integers
from masklab.utils.words import as_written, counted, listed

_LARGEST_FRACTION = 1.001  # rounding may put a box at the border of its image a little beyond it


class ImageKey(NamedTuple):
    """What a file calls an image: the name or path of its file, an id of a COCO JSON, or neither."""

    name: str | None
    image_id: int | str | None = None

    def __str__(self) -> str:
        return str(self.image_id if self.name is None else self.name)


@dataclass(frozen=True)
class BoxList:
    """The boxes of a file or folder ``path``, in its order.

    ================  ==========  ==============================================================================
    name              shape       meaning
    ================  ==========  ==============================================================================
    ``images``        ``(m,)``    what the file calls each image
    ``classes``       ``(k,)``    names of classes, or their numbers where it has no names; empty without classes
    ``boxes``         ``(n, 4)``  float64 ``xyxy``, in pixels, or in fractions of the image where ``relative``
    ``image``         ``(n,)``    position in ``images`` of each box
    ``category``      ``(n,)``    position in ``classes`` of each box; -1 without classes
    ``scores``        ``(n,)``    float32, from 0 to 1; 1 where the file gives none
    ================  ==========  ==============================================================================
    """

    path: Path
    images: tuple[ImageKey, ...]
    classes: tuple[str | int, ...]
    boxes: NDArray[np.float64]
    image: Integers
    category: Integers
    scores: NDArray[np.float32]
    relative: bool

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.boxes)

    @property
    def named(self) -> bool:
        """Whether there are classes and they have names."""
        return bool(self.classes) and isinstance(self.classes[0], str)

    def class_table(self, names: Mapping[int, str] | None = None) -> ClassTable:
        """The classes with their numbers as ids, or their positions where they have names.

        Numbers get ``names``, or are their own names.  Raises `InputError` for a number that ``names`` lacks.
        """
        table: dict[int, str] = {}
        for position, name in enumerate(self.classes):
            if isinstance(name, str):
                table[position] = name
            elif names is None or name in names:
                table[name] = str(name) if names is None else names[name]
            else:
                known = listed(f"{key} ({value})" for key, value in sorted(names.items()))
                raise InputError(f"{self.path} has boxes of class {name}, which has no name among {known}: add it.")
        return ClassTable(tuple(sorted(table)), tuple(table[key] for key in sorted(table)))


class Collector:
    """Collects the boxes of a file, each checked when it is added; ``relative`` boxes are fractions of the image."""

    def __init__(self, path: Path, relative: bool = False) -> None:
        self.path, self.relative = path, relative
        self._images: dict[ImageKey, int] = {}
        self._names: dict[str, int] = {}
        self._numbers: dict[int, int] = {}
        self._classless: str | None = None
        self._boxes: list[float] = []
        self._image: list[int] = []
        self._category: list[int] = []
        self._scores: list[float] = []

    def image(self, key: ImageKey) -> int:
        """The position of an image, which may stay without boxes."""
        return self._images.setdefault(key, len(self._images))

    def add(
        self, where: str, image: ImageKey, box: Sequence[float], category: str | int | None, score: float | None
    ) -> None:
        """Add a box ``xyxy``; ``where`` names its place in the file.

        Raises `InputError` for coordinates that are no finite numbers or are swapped, for a score that is not from 0 to
        1, and for a class by name among classes by number or none.
        """
        left, top, right, bottom = box
        if not all(map(math.isfinite, box)):
            raise InputError(f"{where}: the box {_shown(box)} has a coordinate that is no finite number: correct it.")
        if right < left or bottom < top:
            raise InputError(
                f"{where}: the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) ends before it begins: give the "
                "left and upper corner first, and no negative width or height."
            )
        if score is not None and not 0 <= score <= 1:
            raise InputError(
                f"{where}: the score is {score:g}: give a number from 0 to 1, or leave the scores of all boxes out."
            )
        self._boxes += box
        self._image.append(self.image(image))
        self._category.append(self._class(where, category))
        self._scores.append(1.0 if score is None else score)

    def _class(self, where: str, category: str | int | None) -> int:
        if category is None:
            self._classless = self._classless or where
            position = -1
        elif isinstance(category, str):
            position = self._names.setdefault(category, len(self._names))
        else:
            position = self._numbers.setdefault(category, len(self._numbers))
        if (self._classless is not None) + bool(self._names) + bool(self._numbers) > 1:
            what = "no class" if category is None else f"class {as_written(category)}"
            raise InputError(
                f"{where} has {what}, unlike boxes before it: give all boxes a class name, all a class number, or none a class."
            )
        return position

    def finish(self) -> BoxList:
        """The boxes; those of a file whose coordinates all are from 0 to 1 are taken as fractions of the image."""
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        fractions = bool(len(boxes)) and bool(boxes.min() >= 0) and bool(boxes.max() <= _LARGEST_FRACTION)
        return BoxList(
            path=self.path,
            images=tuple(self._images),
            classes=(*self._numbers, *self._names),
            boxes=boxes,
            image=np.array(self._image, np.int64),
            category=np.array(self._category, np.int64),
            scores=np.array(self._scores, np.float32),
            relative=self.relative or fractions,
        )


def number(value: object, where: str, what: str) -> float:
    """A number of a file, text or not; `InputError` says ``where`` it stands and ``what`` it is to be."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise InputError(f"{where}: {what} is {as_written(value)}, which is no number: correct it.")


def _shown(box: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in box)


def describe(given: BoxList) -> str:
    """What a file holds, in words."""
    fractions = ", in fractions of the image," if given.relative else ""
    return f"{counted(len(given), 'box', 'boxes')}{fractions} of {counted(len(given.images), 'image')}"
