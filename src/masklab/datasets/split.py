"""One split of a data set: images, classes and annotated objects, masks kept as run lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from masklab.datasets.annotations import (
    Annotation,
    ImageRecord,
    group_by_image,
    is_crowd,
    read_annotation,
    read_images,
    require_files,
)
from masklab.datasets.ground_truth import GroundTruth
from masklab.datasets.layouts.coco import find_split, read_json
from masklab.datasets.objects import Objects
from masklab.datasets.problems import TrainingSink, skipped_words
from masklab.images.intensity import IntensityRange
from masklab.images.read import read_intensity_range, read_window
from masklab.masks import rle
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Box
from masklab.utils.words import counted


class Split:
    """One split of a data set of any layout, read and checked once.

    ``images`` are in the order of the JSON, those without objects included; ``categories`` is the class table;
    ``coco`` is the JSON as it was read, or as given where ``json_path`` is only a name.  Masks become run
    lengths when an image's objects are first asked for, and are kept.  Annotations that cannot be trained on are left
    out and counted by reason in ``skipped`` as images are read; `summary` reads them all.  ``note`` says how the split
    was held out, if it was.

    Raises `InputError` for a file that is not COCO, or that contradicts itself or the folder.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_folder: str | Path,
        categories: ClassTable | None = None,
        coco: dict[str, Any] | None = None,
    ) -> None:
        self.json_path, self.folder = Path(json_path), Path(image_folder)
        self.coco = read_json(self.json_path) if coco is None else coco
        own = ClassTable.from_categories(self.coco["categories"], self.json_path)
        self.categories = categories or own
        self.categories.check_covers(own, self.json_path)
        sink = TrainingSink()
        self.images = read_images(self.coco["images"], self.json_path, self.folder, sink)
        require_files(self.images, self.json_path, self.folder)
        self.note = ""
        self.left_out = Counter[str]()  # what the reader of the layout left out already, by problem
        self._groups = group_by_image(self.coco["annotations"], self.images, self.json_path, sink)
        self._labels = self.categories.labels
        self._skipped: dict[int, Counter[str]] = {}
        self._objects: dict[int, Objects] = {}
        self._intensity_ranges: dict[tuple[int, int, tuple[float, float]], IntensityRange] = {}

    @classmethod
    def find(cls, folder: str | Path, split: str, categories: ClassTable | None = None) -> Split:
        """Find the split in a data set folder of COCO's layout and read it; see `find_split`."""
        return cls(*find_split(folder, split), categories)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def used_categories(self) -> set[int]:
        """The category ids of the annotations."""
        given = (annotation.get("category_id") for group in self._groups for annotation in group)
        return {number for number in given if isinstance(number, int)}

    def relabel(self, categories: ClassTable, labels: dict[int, int]) -> None:
        """Read objects under the classes of a model: ``labels`` of ``categories`` by category id of this split.

        Annotations of other categories are skipped, as those of no category are.
        """
        self.categories, self._labels = categories, labels
        self._objects.clear()
        self._skipped.clear()

    @property
    def most_objects(self) -> int:
        """The largest number of annotations of one image, crowds left out."""
        return max((sum(not is_crowd(a) for a in group) for group in self._groups), default=0)

    @property
    def skipped(self) -> Counter[str]:
        """The annotations left out so far, by problem."""
        return sum(self._skipped.values(), self.left_out)

    def objects(self, index: int) -> Objects:
        """The objects of image ``index``."""
        if index not in self._objects:
            self._read(index)
        return self._objects[index]

    def read(self, index: int, channels: int | None, box: Box | None = None) -> NDArray[Any]:
        """Image ``index`` as ``(channels, H, W)``, or the part of it inside ``box`` (xyxy); see `read_window`.

        Raises `InputError` for an image that cannot be read, and if its size is not the JSON's.
        """
        image = self.images[index]
        values, found = read_window(image.path, channels, box)
        if found != image.size:
            raise InputError(
                f"{image.path} is {found[1]} wide and {found[0]} high (EXIF orientation applied) but {self.json_path} "
                f"says {image.size[1]} wide and {image.size[0]} high; correct the JSON or replace the image."
            )
        return values

    def intensity_range(self, index: int, channels: int, percentiles: tuple[float, float]) -> IntensityRange:
        """Two percentiles of each channel of image ``index``, measured once; see `read_intensity_range`."""
        key = index, channels, percentiles
        if key not in self._intensity_ranges:
            self._intensity_ranges[key] = read_intensity_range(self.images[index].path, channels, percentiles)
        return self._intensity_ranges[key]

    def summary(self) -> str:
        """One line on what the split holds and what was skipped; reads every mask."""
        groups = [self.objects(index) for index in range(len(self))]
        objects, ignored = sum(map(len, groups)), sum(len(group.ignored) for group in groups)
        empty = sum(len(group) == 0 for group in groups)
        line = (
            f"{self.json_path}: {counted(len(self), 'image')} ({empty} without objects), {counted(objects, 'object')}, "
            f"{counted(ignored, 'crowd region')}, {counted(len(self.categories), 'class', 'classes')}"
        )
        return "; ".join(part for part in (line, skipped_words(self.skipped), self.note) if part)

    @cached_property
    def truth(self) -> GroundTruth:
        """The objects of all images to measure results by."""
        return self.truth_of(self.images)

    def truth_of(self, images: Iterable[ImageRecord]) -> GroundTruth:
        """The objects of some images, with all of ``categories``, as a model may find classes without an object here."""
        places = {image.image_id: index for index, image in enumerate(self.images)}
        read = ((image, self._read(places[image.image_id])) for image in images)
        return GroundTruth.build(read, self.categories.ids, self.categories.names)

    def evenly_spaced(self, most: int) -> list[ImageRecord]:
        """At most ``most`` images, evenly spaced over the split."""
        count = min(most, len(self))
        return [self.images[i * len(self) // count] for i in range(count)]

    def _read(self, index: int) -> list[Annotation]:
        """Decode the annotations of an image; its objects are kept, as they take little memory."""
        image, sink = self.images[index], TrainingSink()
        annotations = [read_annotation(a, image, self._labels, self.json_path, sink) for a in self._groups[index]]
        if index not in self._objects:
            self._objects[index] = _as_objects(image, annotations)
            if sink.skipped:
                self._skipped[index] = sink.skipped
        return annotations


def _as_objects(image: ImageRecord, annotations: Iterable[Annotation]) -> Objects:
    masks: list[rle.RLE] = []
    labels: list[int] = []
    ignored: list[tuple[float, ...]] = []
    crowds: list[rle.RLE | None] = []
    for annotation in annotations:
        runs, label = annotation.rle, annotation.label
        if annotation.problem:
            continue
        if annotation.crowd and annotation.box is not None:
            ignored.append(annotation.box)
            crowds.append(runs if runs is not None and rle.area(runs) else None)
        elif runs is not None and label is not None:
            masks.append(runs)
            labels.append(label)
    return Objects.build(image.size, masks, labels, ignored, crowds)
