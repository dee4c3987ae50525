"""One split of a data set: images, classes and annotated objects, masks kept as run lengths."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.datasets.annotations import Annotation, read_annotations
from masklab.datasets.coco_document import CocoDocument
from masklab.datasets.ground_truth import GroundTruth
from masklab.datasets.grouping import group_by_image
from masklab.datasets.image_table import ImageRecord, ImageTable, find_files, is_id, read_images
from masklab.datasets.layouts.coco import CocoSource, find_split
from masklab.datasets.objects import Objects
from masklab.datasets.problems import TrainingSink, skipped_words
from masklab.images.intensity import IntensityRange
from masklab.images.read import read_intensity_range, read_window
from masklab.masks import rle
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Box
from masklab.utils.words import counted

_KEPT_BYTES = 2**27  # of objects that a split keeps
_MOST_SUMMED = 200_000  # annotations whose masks are read for a summary


class Split:
    """One split of a data set of any layout, read and checked once.

    ``images`` are in the order of the JSON, those without objects included; ``categories`` is the class table;
    ``document`` is the JSON, as it was read or as given where ``json_path`` is only a name.  Masks become run lengths
    when an image's objects are asked for; those used last are kept.  Annotations that cannot be trained on are left
    out and counted by reason in ``skipped`` as images are read; `summary` reads them all.  ``note`` says how the split
    was held out, if it was.

    Images are looked for in ``image_folder``, then in ``places``, then anywhere in ``root``.  Raises `InputError` for a
    file that is not COCO, or that contradicts itself or the folder.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_folder: str | Path,
        categories: ClassTable | None = None,
        coco: dict[str, Any] | None = None,
        places: Sequence[Path] = (),
        root: Path | None = None,
    ) -> None:
        self.json_path, folder = Path(json_path), Path(image_folder)
        self.document = (
            CocoDocument.read(self.json_path) if coco is None else CocoDocument.from_values(coco, self.json_path)
        )
        sink = TrainingSink()
        images = read_images(self.document.images, self.json_path, folder, sink)
        self._groups = group_by_image(self.document.annotations, images, self.json_path, sink)
        own = ClassTable.from_categories(self.document.classes(self._groups.categories), self.json_path)
        self.categories = categories or own
        self.categories.check_covers(own, self.json_path)
        self.images = ImageTable(*find_files(images, self.json_path, folder, places, root))
        self.note = ""
        self.left_out = Counter[str]()  # what the reader of the layout left out already, by problem
        self._labels = self.categories.labels
        self._skipped: dict[int, Counter[str]] = {}
        self._objects: OrderedDict[int, Objects] = OrderedDict()
        self._kept_bytes = 0
        self._intensity_ranges: dict[tuple[Any, ...], IntensityRange] = {}

    @classmethod
    def find(cls, folder: str | Path, split: str, categories: ClassTable | None = None) -> Split:
        """Find the split in a data set folder of COCO's layout and read it; see `find_split`."""
        return cls.open(find_split(folder, split), categories)

    @classmethod
    def open(cls, source: CocoSource, categories: ClassTable | None = None) -> Split:
        """Read a COCO file."""
        first, *others = [place for place in source.places if place.is_dir()] or [source.root]
        return cls(source.json_path, first, categories, None, others, source.root)

    def part(self, kept: Sequence[int], note: str) -> Split:
        """A split of some of the images; ``note`` says which."""
        part = copy(self)
        part.images, part._groups, part.note = self.images.take(kept), self._groups.take(kept), note
        part._skipped, part._objects, part._kept_bytes, part._intensity_ranges = {}, OrderedDict(), 0, {}
        return part

    @property
    def folder(self) -> Path:
        """The folder that the images' names begin in."""
        return self.images.folder

    @property
    def coco(self) -> dict[str, Any]:
        """The whole split as COCO's dictionary, with the entries of its images as they are in the file."""
        document = self.document
        values = {
            "images": document.images.take(self.images.rows),
            "annotations": document.annotations.take(np.sort(self._groups.rows)),
            "categories": document.classes(self._groups.categories),
        }
        return document.others | values

    def __len__(self) -> int:
        return len(self.images)

    @property
    def used_categories(self) -> set[int]:
        """The category ids of the annotations."""
        return {number for number in self._groups.categories if isinstance(number, int)}

    def relabel(self, categories: ClassTable, labels: dict[int, int]) -> None:
        """Read objects under the classes of a model: ``labels`` of ``categories`` by category id of this split.

        Annotations of other categories are skipped, as those of no category are.
        """
        self.categories, self._labels = categories, labels
        self._objects.clear()
        self._kept_bytes = 0
        self._skipped.clear()

    @property
    def most_objects(self) -> int:
        """The largest number of annotations of one image, crowds left out."""
        return int(self._groups.objects.max(initial=0))

    @property
    def skipped(self) -> Counter[str]:
        """The annotations left out so far, by problem."""
        return sum(self._skipped.values(), self.left_out)

    def objects(self, index: int) -> Objects:
        """The objects of image ``index``."""
        if index in self._objects:
            self._objects.move_to_end(index)
            return self._objects[index]
        annotations = self._read(index)
        kept = self._objects.get(index)  # unless they are more than is kept
        return _as_objects(self.images[index], annotations) if kept is None else kept

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

    def intensity_range(self, index: int, channels: int, config: ImageConfig) -> IntensityRange:
        """The range of each channel of image ``index`` by its percentiles, measured once; see `read_intensity_range`."""
        key = index, channels, config.percentiles, config.robust_range
        if key not in self._intensity_ranges:
            self._intensity_ranges[key] = read_intensity_range(self.images[index].path, channels, config)
        return self._intensity_ranges[key]

    def summary(self) -> str:
        """One line on what the split holds and what was skipped; reads every mask, unless they are very many."""
        if len(self._groups.rows) > _MOST_SUMMED:
            held = f"{counted(len(self), 'image')}, {counted(len(self._groups.rows), 'annotation')}"
            line = f"{self.json_path}: {held}, {counted(len(self.categories), 'class', 'classes')}, masks not read yet"
            return "; ".join(part for part in (line, self.note) if part)
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
        read = ((image, self._read(self._places[image.image_id])) for image in images)
        return GroundTruth.build(read, self.categories.ids, self.categories.names)

    def annotations(self, index: int) -> list[Annotation]:
        """The annotations of image ``index`` as they are read, crowd regions and those that are skipped included."""
        return self._read(index)

    @property
    def annotated_categories(self) -> set[Any]:
        """The category ids that occur in the annotations of the split, whether training can use these or not."""
        annotations, rows = self.document.annotations, self._groups.rows
        headers = replace(annotations, starts=annotations.starts[rows], stops=annotations.stops[rows]).headers()
        return {header.category_id for header in headers if is_id(header.category_id)}

    @cached_property
    def _places(self) -> dict[int | str, int]:
        return {image.image_id: index for index, image in enumerate(self.images)}

    def evenly_spaced(self, most: int) -> list[ImageRecord]:
        """At most ``most`` images, evenly spaced over the split."""
        return [self.images[index] for index in self.evenly_spaced_indices(most)]

    def evenly_spaced_indices(self, most: int) -> list[int]:
        """The numbers of the images of `evenly_spaced`."""
        count = min(most, len(self))
        return [i * len(self) // count for i in range(count)]

    def _read(self, index: int) -> list[Annotation]:
        """Decode the annotations of an image, and keep its objects."""
        image, sink = self.images[index], TrainingSink()
        entries = self.document.annotations.take(self._groups.of(index))
        annotations = read_annotations(entries, image, self._labels, self.json_path, sink)
        if index not in self._objects:
            self._keep(index, _as_objects(image, annotations))
        if sink.skipped:
            self._skipped[index] = sink.skipped
        return annotations

    def _keep(self, index: int, objects: Objects) -> None:
        self._objects[index] = objects
        self._kept_bytes += objects.bytes
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= self._objects.popitem(last=False)[1].bytes


def _as_objects(image: ImageRecord, annotations: Iterable[Annotation]) -> Objects:
    masks: list[rle.RLE] = []
    labels: list[int] = []
    ignored: list[tuple[float, ...]] = []
    crowds: list[rle.RLE | None] = []
    for annotation in annotations:
        runs, label = annotation.rle, annotation.label
        if annotation.problem:
            continue
        if annotation.crowd_box is not None:
            ignored.append(annotation.crowd_box)
            crowds.append(runs if runs is not None and rle.area(runs) else None)
        elif runs is not None and label is not None:
            masks.append(runs)
            labels.append(label)
    return Objects.build(image.size, masks, labels, ignored, crowds)
