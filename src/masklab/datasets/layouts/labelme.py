"""labelme: a JSON file for each image with the shapes drawn in it, beside the image or in a folder of its own.

Shapes of one label and one group id are one object.  The labels ``__ignore__`` and ``_background_``, which labelme
reserves, are no objects.  labelme writes no file for an image before something is drawn or saved, so images without a
file are left out; a file without shapes is an image without objects.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource
from masklab.datasets.layouts.outlines import bitmap_mask, ellipse_points, number, polygon_mask, rectangle_points
from masklab.datasets.layouts.places import ImageIndex, annotation_files, public_splits, split_in
from masklab.datasets.layouts.shapes import (
    Kind,
    Shape,
    annotated_size,
    check_annotated_size,
    class_table,
    no_mask,
    read_shapes,
    require_outlines,
    warn_of_boxes,
)
from masklab.datasets.problems import Sink
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.files import read_json
from masklab.utils.types import Size

logger = logging.getLogger(__name__)

_KINDS = {"polygon": Kind.OUTLINE, "circle": Kind.OUTLINE, "mask": Kind.OUTLINE}
_KINDS |= {"rectangle": Kind.BOX, "oriented_rectangle": Kind.BOX, "rotation": Kind.BOX}
_RESERVED = ("__ignore__", "_background_")


def _find(folder: Path) -> dict[str, SplitSource]:
    """Folders of JSON files of labelme; the split of a file is told by the names of its folders."""
    found = annotation_files(folder, (".json",), _is_labelme)
    files = [path for group in found.values() for path, _ in group]
    if not files:
        return {}
    splits = {path: split_in(reversed(path.relative_to(folder).parts[:-1])) for path in files}
    public = public_splits(splits.values())
    data_set = _DataSet(folder, {path: public[split] for path, split in splits.items()})
    return {
        split: SplitSource(partial(data_set.pairs, split), data_set.objects, data_set.names)
        for split in sorted(set(public.values()))
    }


def _is_labelme(head: str) -> bool:
    return head.lstrip()[:1] == "{" and any(f'"{key}"' in head for key in ("shapes", "imageData", "imagePath"))


class _File(NamedTuple):
    """What is kept of a JSON file: its image, which may be embedded in it, and what its shapes are."""

    path: Path
    image: Path
    labels: set[str]
    kinds: list[Kind]


@dataclass(frozen=True)
class _DataSet:
    """The JSON files of a folder with their splits, those of other tools among them included."""

    folder: Path
    splits: dict[Path, str]

    def names(self) -> dict[int, str]:
        found = class_table(sorted(set[str]().union(*(file.labels for file in self._files))))
        if not found:
            raise InputError(f"the shapes in {self.folder} have no label: give each the label of its class in labelme.")
        return found

    def pairs(self, split: str) -> list[Pair]:
        """The images of a split that have a file; a warning says how many have none."""
        files = [file for file in self._files if self.splits[file.path] == split]
        warn_of_boxes((kind for file in files for kind in file.kinds), self.folder, split)
        places, used = {file.image.parent for file in files}, {file.image for file in self._files}
        rest = [image for image in self._index if image.parent in places and image not in used]
        if rest:
            logger.warning(
                "%s: %d images, such as %s, have no JSON file beside the %d that have one, and are left out; save a file "
                "without shapes in labelme for an image without objects",
                self.folder,
                len(rest),
                rest[0].name,
                len(files),
            )
        return [Pair(file.image, (file.path,)) for file in files]

    def objects(self, pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
        values = _read(pair.masks[0])
        if values is None:
            raise InputError(f"{pair.masks[0]} is no file of labelme: replace or remove it.")
        annotated = annotated_size(values.get("imageHeight"), values.get("imageWidth"))
        check_annotated_size(annotated, size, pair.masks[0], pair.image)
        shapes = [shape for shape in map(_shape, values["shapes"]) if shape.label not in _RESERVED]
        return read_shapes(shapes, pair, self.folder, size, self.names(), sink)

    @cached_property
    def _index(self) -> ImageIndex:
        return ImageIndex(self.folder)

    @cached_property
    def _files(self) -> list[_File]:
        """The files with their images; `InputError` for boxes only and for images that are missing or occur twice."""
        files = [file for path in self.splits if (file := _summary(path, self._index)) is not None]
        of_image: dict[Path, _File] = {}
        for file in files:
            other = of_image.setdefault(file.image, file)
            if other is not file:
                raise InputError(f"{other.path} and {file.path} both annotate {file.image}: keep one of them.")
        require_outlines((kind for file in files for kind in file.kinds), self.folder, "labelme")
        return files


def _summary(path: Path, index: ImageIndex) -> _File | None:
    """A file with its image; None for one of another tool, unless it is named after an image as a damaged one is."""
    values, damage = None, None
    try:
        values = _read(path)
    except InputError as error:
        damage = error
    if values is None:
        beside = index.find(path.stem, path, stem=True)
        if damage and beside is None:
            raise damage
        return None if beside is None else _File(path, beside, set(), [])
    name, data = values.get("imagePath"), values.get("imageData")
    name = name if isinstance(name, str) and name else path.stem
    image: Path | None
    if isinstance(data, str) and data:
        image = index.at(name, path.parent) or index.at(path.stem, path.parent, stem=True) or path
    else:
        image = index.find(name, path) or index.find(path.stem, path, stem=True)
    if image is None:
        raise InputError(
            f"{path} names the image {name}, which is not in {index.folder}, and has no imageData: add the image or "
            "remove the file."
        )
    shapes = [shape for shape in map(_shape, values["shapes"]) if shape.label not in _RESERVED]
    return _File(path, image, {str(shape.label) for shape in shapes}, [shape.kind for shape in shapes])


def _read(path: Path) -> dict[str, Any] | None:
    """The values of a file of labelme, None for a JSON file of another tool."""
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("shapes"), list):
        return None
    return values if "imagePath" in values or "imageData" in values else None


def _shape(drawn: Any) -> Shape:
    own = drawn if isinstance(drawn, dict) else {}
    label, group = own.get("label"), own.get("group_id")
    kind = str(own.get("shape_type") or "polygon")  # which the first versions do not write
    label = str(label).strip() if isinstance(label, (str, int, float)) else ""
    group = group if isinstance(group, (int, str)) and group != "" else None
    if kind not in _KINDS:
        return Shape(Kind.NONE, label, no_mask(f"a shape {kind!r}"), group)
    return Shape(_KINDS[kind], label, partial(_mask, kind, own), group)


def _mask(kind: str, drawn: dict[str, Any], size: Size) -> RLE:
    points = _points(drawn.get("points"))
    if kind == "mask":
        return _bitmap(drawn.get("mask"), points, size)
    if kind == "circle":
        center, rim = _two(points, kind)
        radius = math.dist(center, rim)
        return polygon_mask(ellipse_points(center, (radius, radius)), size)
    if kind == "rectangle" and len(points) != 4:
        return polygon_mask(rectangle_points(*_two(points, kind)), size)
    return polygon_mask(points, size)


def _points(points: Any) -> list[tuple[float, float]]:
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError("its points are no list of x, y")
    return [(number(x, "x"), number(y, "y")) for x, y in points]


def _two(points: list[tuple[float, float]], kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
    if len(points) != 2:
        raise ValueError(f"a {kind} has 2 points, not {len(points)}")
    return points[0], points[1]


def _bitmap(data: Any, points: list[tuple[float, float]], size: Size) -> RLE:
    """The mask of a PNG in base64 text, placed at the first of its two corners."""
    (x1, y1), (x2, y2) = _two(points, "mask")
    left, top = round(x1), round(y1)
    try:
        with Image.open(io.BytesIO(base64.b64decode(data)), formats=("PNG",)) as image:
            fits = image.width <= size[1] + 1 and image.height <= size[0] + 1
            bits = np.asarray(image) if fits else None
    except Exception as error:  # damaged files make decoders raise almost anything
        raise ValueError(f"its mask is no PNG as base64 text: {error}") from None
    if bits is None:
        raise ValueError("its mask is larger than the image")
    if bits.ndim != 2:
        raise ValueError("its mask has colours")
    if all(value.is_integer() for value in (x1, y1, x2, y2)):  # as labelme does: whole corners cut the bitmap
        bits = bits[: max(int(y2) - top + 1, 0), : max(int(x2) - left + 1, 0)]
    return bitmap_mask(bits, (left, top), size)


LABELME = Layout("labelme", "labelme (x.json with shapes for x.jpg)", _find)
