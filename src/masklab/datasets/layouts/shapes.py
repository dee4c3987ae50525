"""Shapes that annotation tools draw, as objects: parts joined, classes found, what is no mask reported."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from masklab.datasets.layouts.base import ObjectMask, Pair, SplitSource
from masklab.datasets.layouts.outlines import union
from masklab.datasets.layouts.places import ImageIndex, public_splits, split_in
from masklab.datasets.problems import MALFORMED, UNKNOWN_CATEGORY, Problem, Sink
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.types import Size

logger = logging.getLogger(__name__)


class Kind(Enum):
    """What a shape says about an object: its outline, a rectangle that may be only its box, or no area at all."""

    OUTLINE = "outline"
    BOX = "box"
    NONE = "none"


class Shape(NamedTuple):
    """One shape of an image.

    ``label`` is the class as text, "" where the tool has one but the user gave none, None where there are no classes.
    ``mask`` makes run lengths in an image of ``(height, width)`` and raises `ValueError` with the reason why it cannot.
    Shapes of one ``group`` (other than None) and one label are parts of one object.
    """

    kind: Kind
    label: str | None
    mask: Callable[[Size], RLE]
    group: Hashable = None
    crowd: bool = False


def no_mask(kind: str) -> Callable[[Size], RLE]:
    """A mask that fails: of a shape such as a line."""

    def fail(size: Size) -> RLE:
        raise ValueError(f"{kind} encloses no area")

    return fail


def read_shapes(
    shapes: Iterable[Shape], pair: Pair, folder: Path, size: Size, names: Mapping[int, str] | None, sink: Sink
) -> list[ObjectMask]:
    """The objects of an image; a shape without mask or without class is reported and left out.

    ``names`` are the classes by category id, None where there are none.
    """
    ids = {name: number for number, name in (names or {}).items()}
    parts: dict[Hashable, list[RLE]] = {}
    objects: dict[Hashable, tuple[int | None, bool]] = {}
    source = pair.masks[0]
    for number, shape in enumerate(shapes, 1):
        problem, detail, category = MALFORMED, "", ids.get(shape.label or "")
        if names is not None and category is None:
            problem, detail = UNKNOWN_CATEGORY, "has no class" if not shape.label else f"has the class {shape.label!r}"
        else:
            try:
                mask = shape.mask(size)
            except ValueError as error:
                detail = f"makes no mask ({error})"
        if detail:
            file_name = pair.image.relative_to(folder).as_posix()
            sentence = f"{source}: shape {number} of {pair.image.name} {detail}: correct or remove it."
            sink.report(Problem(problem, f"shape {number} {detail}", file_name=file_name, sentence=sentence))
            continue
        key = (number, None) if shape.group is None else (shape.label, shape.group)
        parts.setdefault(key, []).append(mask)
        objects[key] = category, shape.crowd
    return [ObjectMask(objects[key][0], union(masks, size), objects[key][1]) for key, masks in parts.items()]


def require_outlines(kinds: Iterable[Kind], folder: Path, tool: str) -> None:
    """`InputError` if none of all shapes of a data set is an outline."""
    found = Counter(kinds)
    if not found[Kind.OUTLINE]:
        what = (
            f"boxes only ({found[Kind.BOX]} rectangles" if found[Kind.BOX] else f"no outlines ({found.total()} shapes"
        )
        raise InputError(
            f"{folder} holds {what} of {tool}), but objects are learnt from their masks: draw polygons or masks."
        )


def warn_of_boxes(kinds: Iterable[Kind], folder: Path, split: str) -> None:
    """A warning if some shapes of a split are rectangles, which are taken as masks."""
    found = Counter(kinds)
    if boxes := found[Kind.BOX]:
        where = f"{folder}, {split}" if split else folder
        logger.warning("%s: %d of %d shapes are rectangles, which are taken as masks", where, boxes, found.total())


class Listed(NamedTuple):
    """An image that an annotation file lists.

    ``name`` is the file's for it, with or without suffix (``stem``).  ``split`` is what the file says, perhaps "", and
    may be the folder that the image lies in.
    ``size`` is the annotated ``(height, width)``, None where it is not said; ``shapes`` are the file's own values.
    """

    source: Path
    name: str
    shapes: list[Any]
    size: Size | None = None
    split: str = ""
    stem: bool = False


class _Placed(NamedTuple):
    """An entry with its image, None where that is missing, and its split."""

    entry: Listed
    image: Path | None
    split: str


@dataclass(frozen=True)
class ListedImages:
    """The images that annotation files of one tool list, with the classes and the reader of a shape."""

    folder: Path
    tool: str
    listed: list[Listed]
    names: dict[int, str] | None
    shape: Callable[[Any], Shape]

    def splits(self) -> dict[str, SplitSource]:
        """The splits of the images, by what their files say, or the names of files and folders tell."""
        require_outlines((self.shape(raw).kind for one in self.listed for raw in one.shapes), self.folder, self.tool)
        names = None if self.names is None else self._names
        return {
            split: SplitSource(partial(self._pairs, split), self._objects, names)
            for split in sorted({placed.split for placed in self._placed})
        }

    @cached_property
    def _placed(self) -> list[_Placed]:
        index = ImageIndex(self.folder)
        images = [index.find(f"{one.split}/{one.name}", one.source, one.stem) for one in self.listed]
        splits = [self._split(one, image) for one, image in zip(self.listed, images, strict=True)]
        public = public_splits(splits)
        return [
            _Placed(one, image, public[split]) for one, image, split in zip(self.listed, images, splits, strict=True)
        ]

    @cached_property
    def _entries(self) -> dict[Path, Listed]:
        """The entry of each image; `InputError` if two of an image differ."""
        entries: dict[Path, Listed] = {}
        for one, image, _ in self._placed:
            if image is None:
                continue
            other = entries.setdefault(image, one)
            if other.shapes != one.shapes:
                where = f"{other.source} and {one.source}" if other.source != one.source else f"{one.source}, twice,"
                raise InputError(f"{where} annotate {image} differently: keep one of the annotations.")
        return entries

    def _names(self) -> dict[int, str]:
        return self.names or {}

    def _split(self, one: Listed, image: Path | None) -> str:
        """A split as a plain name: ``train``, ``val``, ``test``, a name of the user's own, or ""."""
        if one.split and one.split.lower() != "default":
            return split_in([one.split]) or "".join(c if c.isalnum() or c in "_.-" else "_" for c in one.split)
        source, place = one.source.relative_to(self.folder), Path(one.name.replace("\\", "/"))
        folders = place.parts[:-1] if image is None else image.relative_to(self.folder).parts[:-1]
        return split_in((source.stem, *reversed(source.parts[:-1]), *reversed(folders)))

    def _pairs(self, split: str) -> list[Pair]:
        chosen = [(one, image) for one, image, own in self._placed if own == split]
        missing = [one for one, image in chosen if image is None]
        if missing:
            raise InputError(
                f"{missing[0].source} names the image {missing[0].name}, which is not in {self.folder} ({len(missing)} "
                f"of {len(chosen)} are not): add the images or remove them from the file."
            )
        warn_of_boxes((self.shape(raw).kind for one, _ in chosen for raw in one.shapes), self.folder, split)
        images = dict.fromkeys(image for _, image in chosen if image is not None)
        return [Pair(image, (self._entries[image].source,)) for image in images]

    def _objects(self, pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
        one = self._entries[pair.image]
        check_annotated_size(one.size, size, one.source, pair.image)
        return read_shapes(map(self.shape, one.shapes), pair, self.folder, size, self.names, sink)


def check_annotated_size(annotated: Size | None, size: Size, source: Path, image: Path) -> None:
    """`InputError` if a file gives another ``(height, width)`` than the image has; it may give none."""
    if annotated is not None and annotated != size:
        raise InputError(
            f"{source} was drawn on {image.name} at {annotated[1]} x {annotated[0]} pixels, but {image} has {size[1]} x "
            f"{size[0]} (EXIF orientation applied): put the image of the annotation back."
        )


def annotated_size(height: Any, width: Any) -> Size | None:
    """The size that a file gives, as text or number; None where it gives none or something else."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def class_table(labels: Iterable[str | None]) -> dict[int, str]:
    """Classes by category id, from 1, in the order in which they come; without empty names."""
    return dict(enumerate(dict.fromkeys(label for label in labels if label), 1))
