"""Annotated objects that results are measured against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from masklab.datasets.annotations import Annotation, read_annotations
from masklab.datasets.grouping import group_by_image
from masklab.datasets.image_table import ImageRecord, read_images
from masklab.datasets.problems import EMPTY, OUTSIDE, PROBLEMS, SKIPPED, Problem
from masklab.masks import rle
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.types import Size

_SOURCE = "the ground truth"


class Region(msgspec.Struct, frozen=True):
    """One annotated object or one detection.

    ``mask`` is compressed RLE of the whole image, as COCO's dictionary, and ``box`` COCO's ``[x, y, width, height]``
    in pixels.  ``area``, in pixels, ``crowd`` and ``rle``, the run lengths, describe annotations, ``score`` detections.
    """

    image_id: int | str
    label: int
    mask: dict[str, Any]
    box: list[float]
    area: float = 0.0
    crowd: bool = False
    score: float = 1.0
    rle: RLE | None = None


@dataclass(frozen=True)
class GroundTruth:
    """The images, classes and annotated objects of an evaluation, each mask decoded once.

    ``sizes`` has ``(height, width)`` and ``regions`` the objects by image id, in file order; ``labels`` maps category
    ids to labels, the positions in ``class_names``.  Annotations without readable mask or without category are left
    out; masks of no pixel count as objects.
    """

    sizes: dict[int | str, Size]
    labels: dict[Any, int]
    class_names: list[str]
    regions: dict[int | str, list[Region]]

    @classmethod
    def build(
        cls, images: Iterable[tuple[ImageRecord, Sequence[Annotation]]], ids: Sequence[Any], names: Sequence[str]
    ) -> GroundTruth:
        """From the annotations of each image, the category ids and the class names; names that repeat get their id."""
        sizes: dict[int | str, Size] = {}
        regions: dict[int | str, list[Region]] = {}
        for image, read in images:
            sizes[image.image_id] = image.size
            regions[image.image_id] = _regions(image, read)
        unique = [f"{name} ({i})" if names.count(name) > 1 else name for i, name in zip(ids, names, strict=True)]
        return cls(sizes, {number: label for label, number in enumerate(ids)}, unique, regions)

    @classmethod
    def from_coco(cls, values: dict[str, Any]) -> GroundTruth:
        """From a dictionary in COCO's form, which is not changed.

        Ids may be any integers or strings.  Masks may be polygons or RLE, compressed or not; a polygon of fewer than
        three points covers nothing.  A missing or malformed box or area is taken from the mask.  Annotations of
        images that are not listed are left out, as pycocotools does.  Raises `InputError` for missing lists, image
        entries without id or size, malformed masks and unknown categories.
        """
        for field in ("images", "categories"):
            if field not in values:
                raise InputError(f"{_SOURCE} has no field {field}: give a whole COCO file.")
        for category in values["categories"]:
            if "id" not in category:
                raise InputError(f"a category of {_SOURCE} has no field id: add it.")
        ids = [category["id"] for category in values["categories"]]
        labels = {number: label for label, number in enumerate(ids)}
        sink = _EvaluationSink()
        images = read_images(values["images"], _SOURCE, None, sink)
        entries = values.get("annotations", [])
        groups = group_by_image(entries, images, _SOURCE, sink)
        annotations = [
            read_annotations(
                [_with_long_polygons(entries[row], image.size) for row in groups.of(index).tolist()],
                image,
                labels,
                _SOURCE,
                sink,
            )
            for index, image in enumerate(images)
        ]
        for annotation in chain(*annotations):
            if annotation.rle is None or annotation.label is None:
                number = annotation.annotation_id
                raise InputError(
                    f"{_SOURCE}: annotation {number} has no readable mask or no known category: correct it."
                )
        names = [str(category.get("name", category["id"])) for category in values["categories"]]
        return cls.build(zip(images, annotations, strict=True), ids, names)


def _with_long_polygons(entry: dict[str, Any], size: Size) -> dict[str, Any]:
    """An annotation without its polygons of fewer than three points."""
    segmentation = entry.get("segmentation")
    kept = without_short_polygons(segmentation, size)
    return entry if kept is segmentation else {**entry, "segmentation": kept}


class _EvaluationSink:
    """Raises `InputError` for what cannot be measured."""

    def report(self, problem: Problem) -> None:
        skipped = PROBLEMS[problem.name] == SKIPPED and problem.name not in (EMPTY, OUTSIDE)
        if skipped or problem.name == "unusable image entry":
            raise InputError(problem.sentence) from None


def without_short_polygons(segmentation: Any, size: Size) -> Any:
    """A COCO segmentation without its polygons of fewer than three points; RLE of no pixel where none is left."""
    if not isinstance(segmentation, (list, tuple)):
        return segmentation
    if not all(isinstance(polygon, (list, tuple, np.ndarray)) for polygon in segmentation):
        return segmentation
    kept = [polygon for polygon in segmentation if len(polygon) >= 6]
    return kept or {"size": list(size), "counts": [size[0] * size[1]]}


def _regions(image: ImageRecord, annotations: Iterable[Annotation]) -> list[Region]:
    measured = [(a, a.rle, a.label) for a in annotations if a.rle is not None and a.label is not None]
    written = iter(rle.rle_to_strings([runs for annotation, runs, _ in measured if annotation.counts is None]))
    return [
        Region(
            image_id=image.image_id,
            label=label,
            mask={
                "size": list(image.size),
                "counts": next(written) if annotation.counts is None else annotation.counts,
            },
            box=annotation.bbox,
            area=annotation.area,
            crowd=annotation.crowd,
            rle=runs,
        )
        for annotation, runs, label in measured
    ]
