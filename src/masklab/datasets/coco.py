"""COCO data sets: finding, checking and reading one split, with its masks kept as run lengths."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from os.path import isfile
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from masklab.datasets.objects import Objects
from masklab.images.intensity import IntensityRange
from masklab.images.read import read_intensity_range, read_window
from masklab.masks import coco_segmentation, rle
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Box

FARTHEST = 2**31  # pixels: no box is as far out
VAL_NAMES = ("valid", "validation")  # as others call the split val


MALFORMED, MALFORMED_CROWD = "malformed segmentation", "malformed iscrowd"


@dataclass(frozen=True)
class ImageRecord:
    """One entry of a split: COCO's image id, the file, and ``(height, width)`` as the JSON gives it."""

    image_id: int | str
    path: Path
    size: tuple[int, int]


def find_split(folder: str | Path, split: str) -> tuple[Path, Path]:
    """Find a split's JSON file and image folder.

    Either ``FOLDER/SPLIT.json`` with ``FOLDER/SPLIT/``, or COCO's own
    ``FOLDER/annotations/instances_SPLIT2017.json`` with ``FOLDER/SPLIT2017/``, of any year or none.
    Raises `InputError` that says what was looked for.
    """
    folder = Path(folder)
    check_names(folder, split)
    pairs = split_files(folder).get(split, [])
    complete = [pair for pair in pairs if pair[1].is_dir()]
    if len(complete) > 1:
        names = ", ".join(str(pair[0].relative_to(folder)) for pair in complete)
        raise InputError(
            f"{folder} holds several splits called {split} ({names}); name one with its year, or move one."
        )
    if complete:
        return complete[0]
    if pairs:
        raise InputError(f"{pairs[0][0]} has no image folder: put its images into {pairs[0][1]}.")
    raise InputError(
        f"{folder} holds no split {split}: neither {split}.json with a folder {split} nor "
        f"annotations/instances_{split}2017.json with a folder {split}2017 was found; correct the path or the name."
    )


def check_names(folder: Path, split: str) -> None:
    """Raise `InputError` unless ``folder`` is there and ``split`` is a plain name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such data set folder; correct the path.")
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", split) or ".." in split:
        raise InputError(f"{split!r} cannot be the name of a split; use a plain name such as train or val.")


def split_files(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """The JSON files in a folder that may be splits: name of the split to each file and where its images should be.

    ``annotations/instances_train2017.json`` is found as ``train`` and as ``train2017``; where there is no ``val``,
    ``valid`` and ``validation`` are found as that too.
    """
    found: defaultdict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        found[path.stem].append((path, folder / path.stem))
    for path in sorted(folder.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        for split in {name, re.sub(r"\d{4}$", "", name)}:
            found[split].append((path, folder / name))
    for other in VAL_NAMES:
        if other in found:
            found.setdefault("val", found[other])
    return found


def listed_images(json_path: str | Path, folder: str | Path) -> list[ImageRecord]:
    """The images that a COCO JSON names, with or without annotations, such as COCO's ``image_info_test-dev2017.json``.

    Raises `InputError` for a file that is not COCO and for an image that is not in ``folder``.
    """
    json_path = Path(json_path)
    return _read_images(read_json(json_path, ("images",))["images"], json_path, Path(folder))


class CocoSplit:
    """One split of a COCO data set, read and checked once.

    ``images`` are in the order of the JSON, those without objects included; ``categories`` is the
    class table; ``ground_truth`` is the JSON as it was read, or as given where ``json_path`` is no more than
    a name.  Masks become run lengths when an image's objects are first asked for, and stay so.  Annotations
    that cannot be trained on are left out and counted by reason in ``skipped``, as images are met;
    `summary` meets them all.  ``note`` says how the split was drawn, if it was.

    Raises `InputError` for a file that is not COCO, or that contradicts itself or the folder.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_folder: str | Path,
        categories: ClassTable | None = None,
        ground_truth: dict[str, Any] | None = None,
    ) -> None:
        self.json_path, self.folder = Path(json_path), Path(image_folder)
        self.ground_truth = read_json(self.json_path) if ground_truth is None else ground_truth
        own = ClassTable.from_categories(self.ground_truth["categories"], self.json_path)
        self.categories = categories or own
        self.categories.check_covers(own, self.json_path)
        self.images = _read_images(self.ground_truth["images"], self.json_path, self.folder)
        self.note = ""
        self.skipped: Counter[str] = Counter()
        self._unreadable: set[int] = set()
        self._annotations = self._by_image()
        self._objects: dict[int, Objects] = {}
        self._intensity_ranges: dict[tuple[int, int, tuple[float, float]], IntensityRange] = {}

    @classmethod
    def find(cls, folder: str | Path, split: str, categories: ClassTable | None = None) -> CocoSplit:
        """Find the split in a data set folder and read it; see `find_split`."""
        return cls(*find_split(folder, split), categories)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def most_objects(self) -> int:
        """The largest number of annotations of one image, crowds left out."""
        return max((sum(not is_crowd(a) for a in group) for group in self._annotations), default=0)

    def objects(self, index: int) -> Objects:
        """The objects of image ``index``."""
        if index not in self._objects:
            self._objects[index] = self._convert(index)
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
        """The numbers at two percentiles of each channel of image ``index``, measured once; see `read_intensity_range`."""
        key = index, channels, percentiles
        if key not in self._intensity_ranges:
            self._intensity_ranges[key] = read_intensity_range(self.images[index].path, channels, percentiles)
        return self._intensity_ranges[key]

    def summary(self) -> str:
        """One line on what the split holds and what was skipped; converts every mask on the way."""
        groups = [self.objects(index) for index in range(len(self))]
        objects, ignored = sum(map(len, groups)), sum(len(group.ignored) for group in groups)
        empty = sum(len(group) == 0 for group in groups)
        line = (
            f"{self.json_path}: {len(self)} images ({empty} without objects), {objects} objects, "
            f"{ignored} crowd regions, {len(self.categories)} classes"
        )
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            line += f"; skipped {self.skipped.total()} annotations ({reasons})"
        return f"{line}; {self.note}" if self.note else line

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The JSON to measure by: ``ground_truth`` without the annotations that have no readable mask or no category, with
        all of ``categories``, as a model may find a class that this split has no object of."""
        for index in range(len(self)):
            self.objects(index)
        kept = [a for a in self.ground_truth["annotations"] if id(a) not in self._unreadable]
        table = [{"id": i, "name": name} for i, name in zip(self.categories.ids, self.categories.names, strict=True)]
        return self.ground_truth | {"annotations": kept, "categories": table}

    def evenly_spaced(self, most: int) -> list[ImageRecord]:
        """At most so many images, evenly spread over the split."""
        count = min(most, len(self))
        return [self.images[i * len(self) // count] for i in range(count)]

    def _by_image(self) -> list[list[dict[str, Any]]]:
        place = {image.image_id: index for index, image in enumerate(self.images)}
        groups: list[list[dict[str, Any]]] = [[] for _ in self.images]
        for annotation in self.ground_truth["annotations"]:
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            if not is_id(image_id) or image_id not in place:
                number = annotation.get("id", "?") if isinstance(annotation, dict) else "?"
                raise InputError(
                    f"{self.json_path}: annotation {number} belongs to image id {image_id}, which is not "
                    "among the images; add the image or remove the annotation."
                )
            groups[place[image_id]].append(annotation)
        return groups

    def _convert(self, index: int) -> Objects:
        size = self.images[index].size
        masks: list[NDArray[np.int64]] = []
        labels: list[int] = []
        ignored: list[tuple[float, ...]] = []
        crowds: list[NDArray[np.int64] | None] = []
        for annotation in self._annotations[index]:
            category = annotation.get("category_id")
            label = self.categories.labels.get(category) if type(category) is int else None
            runs = rle_or_reason(annotation, size)
            if label is None or (isinstance(runs, str) and runs in (MALFORMED, MALFORMED_CROWD)):
                self._unreadable.add(id(annotation))
            if is_crowd(annotation):
                box = annotated_box(annotation, size) if isinstance(runs, str) else rle.bounds(runs, size)
                if box is not None:
                    ignored.append(box)
                    crowds.append(None if isinstance(runs, str) else runs)
                    continue
            if isinstance(runs, str):
                self.skipped[runs] += 1
            elif label is None:
                self.skipped["unknown category"] += 1
            else:
                masks.append(runs)
                labels.append(label)
        return Objects.build(size, masks, labels, ignored, crowds)


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Whether an annotation is a crowd region: neither an object nor background."""
    return annotation.get("iscrowd") in (1,)


def rle_or_reason(annotation: dict[str, Any], size: tuple[int, int]) -> NDArray[np.int64] | str:
    """The run lengths of an annotation, or why it has none."""
    if annotation.get("iscrowd") not in (None, 0, 1):
        return MALFORMED_CROWD
    try:
        runs = coco_segmentation.rle_from_segmentation(annotation.get("segmentation"), size)
    except ValueError:
        return MALFORMED
    if rle.area(runs):
        return runs
    box: Any = annotation.get("bbox")
    if is_box(box) and min(box[2:]) > 0 and annotated_box(annotation, size) is None:
        return "outside the image"
    return "empty mask"


def is_id(value: Any) -> TypeGuard[int | str]:
    """Whether a value can be the id of an image, annotation or category."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def is_box(box: Any) -> TypeGuard[Sequence[float]]:
    """Whether a ``bbox`` is four numbers that can be pixels."""
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(_is_number(v) and abs(v) < FARTHEST for v in box)


def is_area(area: Any) -> bool:
    """Whether an ``area`` is a number of pixels that an image can have."""
    return _is_number(area) and 0 <= area < FARTHEST**2


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def annotated_box(annotation: dict[str, Any], size: tuple[int, int]) -> tuple[float, ...] | None:
    """COCO's own ``bbox`` (x, y, width, height) as ``xyxy`` inside the image; ``None`` if nothing is left."""
    box = annotation.get("bbox")
    if not is_box(box):
        return None
    x1, y1 = max(box[0], 0), max(box[1], 0)
    x2, y2 = min(box[0] + box[2], size[1]), min(box[1] + box[3], size[0])
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def read_json(path: Path, lists: Iterable[str] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """Read a COCO file; `InputError` names it when it is not JSON or one of ``lists`` is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct the path.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); replace or repair the file.") from None
    for key in lists:
        if not isinstance(values, dict) or not isinstance(values.get(key), list):
            raise InputError(f"{path} is not a COCO file: it has no list {key!r}; name another file.")
    return values


def _read_images(entries: Iterable[Any], json_path: Path, folder: Path) -> list[ImageRecord]:
    images = [read_entry(entry, json_path, folder) for entry in entries]
    repeated = [image_id for image_id, n in Counter(p.image_id for p in images).items() if n > 1]
    if repeated:
        raise InputError(f"{json_path}: image id {repeated[0]} occurs twice; give each image its own id.")
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); correct the image folder.") from None
    flat = [(p.path, p.path.name in present if p.path.parent == folder else isfile(p.path)) for p in images]
    missing = [path for path, there in flat if not there]
    if missing:
        raise InputError(
            f"{missing[0]} is missing ({len(missing)} of the {len(images)} images of {json_path} are); "
            "restore the images or remove them from the JSON."
        )
    return images


def read_entry(entry: Any, json_path: Path, folder: Path) -> ImageRecord:
    """Check one entry of ``entries``; `InputError` for one without id, size or a file name inside ``folder``."""
    if not isinstance(entry, dict) or not is_id(entry.get("id")):
        raise InputError(f"{json_path}: an entry of images has no id; correct the file.")
    image_id, name = entry["id"], entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{json_path}: image {image_id} has no file_name; correct the file.")
    if min(name) < " ":
        raise InputError(
            f"{json_path}: image {image_id} has file_name {name!r}, which holds control characters; correct the file."
        )
    parts = re.split(r"[/\\]", name)
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise InputError(
            f"{json_path}: image {image_id} has file_name {name!r}, which leaves {folder}; correct the file."
        )
    size = (_side(entry, "height", json_path), _side(entry, "width", json_path))
    return ImageRecord(image_id, folder / name, size)


def _side(entry: dict[str, Any], key: str, json_path: Path) -> int:
    value: Any = entry.get(key)
    if not _is_number(value) or not 1 <= value < 2**31 or value != int(value):
        raise InputError(
            f"{json_path}: image {entry['id']} has {key} {value!r}, which must be a whole number of pixels; "
            "correct the file."
        )
    return int(value)
