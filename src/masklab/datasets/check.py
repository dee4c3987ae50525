"""What is wrong with a data set, all of it: where training stops at the first contradiction, this goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from masklab.datasets import coco
from masklab.datasets.coco import ImageRecord, is_id
from masklab.datasets.open import Fault, open_split, split_names
from masklab.images.opened import ORIENTATION
from masklab.images.pillow import open_pillow
from masklab.images.read import read_image
from masklab.masks import rle
from masklab.masks.rle import RLE
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write
from masklab.utils.progress import track
from masklab.utils.types import Size

STOPS, SKIPPED, KEPT = "stops training", "skipped", "kept"

# What can be wrong, and what training makes of it.
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
    "other size than annotated": STOPS,
    "annotated as stored, before EXIF": STOPS,
    "malformed segmentation": SKIPPED,
    "malformed iscrowd": SKIPPED,
    "empty mask": SKIPPED,
    "outside the image": SKIPPED,
    "unknown category": SKIPPED,
    "malformed box": KEPT,
    "malformed area": KEPT,
    "box outside the image": KEPT,
    "box without area": KEPT,
    "duplicate annotation id": KEPT,
    "duplicate object": KEPT,
    "duplicate image": KEPT,
    "image in two splits": KEPT,
    "EXIF orientation": KEPT,
    "unused category": KEPT,
}
SAME_OBJECT = 0.95  # IoU above which two objects of one category are one
MARGIN = 1.0  # pixels that an annotated box may lie outside the image, as rounding does
EXAMPLES = 4  # of each problem, in the table
NARROW = 22  # letters of the table's first column
WORKERS = 8  # images that are decoded at once, at most
BLOCK = 2**20  # bytes


class Finding(NamedTuple):
    """One thing that is wrong: ``problem`` is a key of `PROBLEMS`; ids are the data set's own, where it has any."""

    split: str
    problem: str
    image_id: int | str | None
    annotation_id: int | str | None
    detail: str
    file_name: str | None = None

    @property
    def consequence(self) -> str:
        return PROBLEMS[self.problem]


@dataclass
class Report:
    """What `check` found in ``folder``; ``splits`` has the numbers of images, annotations and categories of each."""

    folder: Path
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def count(self) -> Counter[str]:
        """How many findings there are of each consequence."""
        return Counter(finding.consequence for finding in self.findings)

    @property
    def fault(self) -> str | None:
        """A sentence on what training would stop at or skip, if there is such a thing."""
        stops, skipped = self.count[STOPS], self.count[SKIPPED]
        if not stops + skipped:
            return None
        parts = [f"stops at {stops} fault{'s' * (stops > 1)}"] * bool(stops)
        parts += [f"skips {skipped} annotation{'s' * (skipped > 1)}"] * bool(skipped)
        return f"{self.folder}: training {' and '.join(parts)}: correct them, the table says where."

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every finding, its consequence beside it."""
        findings = [finding._asdict() | {"consequence": finding.consequence} for finding in self.findings]
        counts = {consequence: self.count[consequence] for consequence in (STOPS, SKIPPED, KEPT)}
        return {"folder": str(self.folder), "splits": self.splits, "counts": counts, "findings": findings}


def check(folder: str | Path) -> Report:
    """Look at every image and annotation of a data set and report all that is wrong.

    Every split that is there is read leniently; only of a split whose images and annotations cannot be told, such as
    JSON that is cut off or images without masks, that is all that is reported.  Images are compared by their
    decoded pixels, masks as run lengths.  Raises `InputError` when the folder is not there or holds no data set.
    """
    report = Report(Path(folder))
    names = split_names(folder)
    for name in {"train", "val"} - set(names):
        try:
            open_split(folder, name)
        except InputError as error:
            report.findings.append(Finding(name, "unusable split", None, None, str(error)))
    seen: Seen = defaultdict(list)
    train: ClassTable | None = None
    for split in _coco_splits(report) or _other_splits(report, names):
        split.run(seen)
        train = split.check_classes(train)
    _compare_images(seen)
    order = list(PROBLEMS)
    report.findings.sort(key=lambda finding: (finding.split, order.index(finding.problem)))
    return report


def print_check(report: Report, console: Console | None = None) -> None:
    """Print one table: a line for each problem of each split, what training makes of it, and where it is."""
    console = console or Console()
    for name, counts in report.splits.items():
        console.print(f"{_shown(name)}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    if not report.findings:
        console.print("nothing is wrong")
        return
    title = f"what is wrong in {_shown(str(report.folder))}"
    table = Table("problem", "count", "training", "where", title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].max_width, table.columns[1].justify, table.columns[3].overflow = NARROW, "right", "fold"
    groups: defaultdict[str, defaultdict[str, list[Finding]]] = defaultdict(lambda: defaultdict(list))
    for finding in report.findings:
        groups[finding.split][finding.problem].append(finding)
    for name, problems in groups.items():
        table.add_section()
        table.add_row(f"[bold]{_shown(name)}[/bold]")
        for problem, group in problems.items():
            places = [_place(finding) for finding in group[:EXAMPLES]]
            if len(group) > EXAMPLES:
                places.append(f"... and {len(group) - EXAMPLES} more; --output FILE lists all")
            words = (problem, str(len(group)), PROBLEMS[problem].removesuffix(" training"), "\n".join(places))
            table.add_row(*map(_shown, words))
    console.print(table)
    ends = {STOPS: "stop training", SKIPPED: "are skipped in training", KEPT: "are kept in training"}
    console.print(", ".join(f"{report.count[key]} {words}" for key, words in ends.items()))


def _shown(text: str) -> str:
    """Text for the console, without markup and with halves of characters, as JSON may hold, spelt out."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def write_check(path: str | Path, report: Report) -> None:
    """Write every finding as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")


def _place(finding: Finding) -> str:
    image = "" if finding.image_id is None else f"image {finding.image_id}"
    image += f" ({Path(finding.file_name).name})" if finding.file_name else ""
    number = "" if finding.annotation_id is None else f"annotation {finding.annotation_id}"
    place = ", ".join(part for part in (image, number) if part)
    return f"{place}: {finding.detail}" if place and finding.detail else place or finding.detail


def _without_path(reason: str, path: Path) -> str:
    """A sentence that begins with a path, where that is named already."""
    return reason.removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _coco_splits(report: Report) -> list[_SplitCheck]:
    """Every JSON file that has an image folder, ``train`` first; none where the folder is not COCO's."""
    found: dict[Path, tuple[str, Path]] = {}
    for name, pairs in sorted(coco.split_files(report.folder).items()):
        for path, images in pairs:
            if images.is_dir():
                found.setdefault(path, (name, images))  # the shorter of the names train and train2017
    times = Counter(name for name, _ in found.values())
    splits = [
        _SplitCheck(name if times[name] == 1 else path.relative_to(report.folder).as_posix(), path, images, report)
        for path, (name, images) in found.items()
    ]
    return sorted(splits, key=lambda split: not split.name.startswith("train"))


def _other_splits(report: Report, names: Sequence[str]) -> list[_SplitCheck]:
    """The splits of another format, with what cannot be read of them."""
    splits = []
    for name in sorted(names, key=lambda name: name != "train"):
        faults: list[Fault] = []
        try:
            split = open_split(report.folder, name, faults=faults)
        except InputError as error:
            report.findings.append(Finding(name, "unusable split", None, None, str(error)))
        else:
            splits.append(_SplitCheck(name, split.json_path, split.folder, report, split.ground_truth))
        for image_id, file_name, of_image, reason in faults:
            problem = "damaged image" if of_image else "unusable annotation file"
            detail = _without_path(reason, report.folder / file_name)
            report.findings.append(Finding(name, problem, image_id, None, detail, file_name))
    return splits


class _SplitCheck:
    """One split, read leniently."""

    def __init__(
        self, name: str, json_path: Path, folder: Path, report: Report, values: dict[str, Any] | None = None
    ) -> None:
        self.name, self.json_path, self.folder, self.report = name, json_path, folder, report
        lists = self._read(values)
        self.images, self.annotations, self.categories = (
            lists.get(key, []) for key in ("images", "annotations", "categories")
        )
        self.has_categories = "categories" in lists
        self.names: dict[int, str] = {}  # of the categories that have an id and a name
        for entry in self.categories:
            if isinstance(entry, dict) and is_id(entry.get("id")) and isinstance(entry["id"], int):
                self.names.setdefault(entry["id"], str(entry.get("name")))
        self.files: dict[int | str, str] = {}  # by image id
        report.splits[name] = {
            "images": len(self.images),
            "annotations": len(self.annotations),
            "categories": len(self.categories),
        }

    def add(self, problem: str, detail: str = "", image_id: Any = None, annotation: Any = None) -> None:
        number = annotation.get("id") if isinstance(annotation, dict) else None
        number = number if is_id(number) else None
        file_name = self.files.get(image_id) if is_id(image_id) else None
        self.report.findings.append(Finding(self.name, problem, image_id, number, detail, file_name))

    def run(self, seen: Seen) -> None:
        """Check images, annotations and images; ``seen`` collects the images of all splits by their pixels."""
        images = self._entries()
        groups = self._by_image(images)
        self._check_ids()
        for image in track(images, f"{self.name}: annotations"):
            self._check_objects(image, groups[image.image_id])
        with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
            looked = pool.map(_look, [image.path for image in images])
            for image, look in track(zip(images, looked, strict=True), f"{self.name}: images", len(images)):
                self._check_image(image, look, seen)

    def check_classes(self, train: ClassTable | None) -> ClassTable | None:
        """Check the categories against their use and the first split's; returns the table to check others against."""
        used = {a.get("category_id") for a in self.annotations if isinstance(a, dict) and is_id(a.get("category_id"))}
        for number, name in self.names.items():
            if number not in used:
                self.add("unused category", f"{number} ({name})")
        if not self.has_categories:
            return train
        try:
            own = ClassTable.from_categories(self.categories, self.json_path)
        except InputError as error:
            self.add("unusable categories", str(error))
            return train
        if train is None:
            return own
        try:
            train.check_covers(own, self.json_path)
        except InputError as error:
            self.add("category not in train", str(error))
        return train

    def _read(self, values: Any) -> dict[str, list[Any]]:
        """The three lists of the JSON, those that are there."""
        try:
            values = coco.read_json(self.json_path, ()) if values is None else values
        except InputError as error:
            self.add("unusable split", str(error))
            return {}
        lists = {}
        for key in ("images", "annotations", "categories"):
            if isinstance(values, dict) and isinstance(values.get(key), list):
                lists[key] = values[key]
            else:
                self.add("unusable split", f"{self.json_path} has no list {key!r}.")
        return lists

    def _entries(self) -> list[ImageRecord]:
        """The images whose entries make sense, the first of each id."""
        found: dict[int | str, ImageRecord] = {}
        for entry in self.images:
            try:
                image = coco.read_entry(entry, self.json_path, self.folder)
            except InputError as error:
                number = entry.get("id") if isinstance(entry, dict) else None
                self.add("unusable image entry", str(error), number if is_id(number) else None)
                continue
            if image.image_id in found:
                self.add("duplicate image id", f"{image.path.name} has it too", image.image_id)
            else:
                found[image.image_id] = image
                self.files[image.image_id] = entry["file_name"]
        return list(found.values())

    def _by_image(self, images: Sequence[ImageRecord]) -> dict[int | str, list[dict[str, Any]]]:
        groups: dict[int | str, list[dict[str, Any]]] = {image.image_id: [] for image in images}
        listed = {entry.get("id") for entry in self.images if isinstance(entry, dict) and is_id(entry.get("id"))}
        for annotation in self.annotations:
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            if is_id(image_id) and image_id in groups:
                groups[image_id].append(annotation)
            elif not is_id(image_id) or image_id not in listed:
                self.add("annotation of no image", f"its image id is {image_id}", annotation=annotation)
        return groups

    def _check_ids(self) -> None:
        ids = Counter(a.get("id") for a in self.annotations if isinstance(a, dict) and is_id(a.get("id")))
        for annotation in self.annotations:
            if isinstance(annotation, dict) and is_id(annotation.get("id")) and ids[annotation["id"]] > 1:
                self.add("duplicate annotation id", "", annotation.get("image_id"), annotation)

    def _check_objects(self, image: ImageRecord, group: list[dict[str, Any]]) -> None:
        """The annotations of one image, as training would read them."""
        objects: list[dict[str, Any]] = []
        masks: list[RLE] = []
        for annotation in group:
            runs, category = coco.rle_or_reason(annotation, image.size), annotation.get("category_id")
            if coco.is_crowd(annotation):
                if isinstance(runs, str) and coco.annotated_box(annotation, image.size) is None:
                    self.add(runs, "a crowd region", image.image_id, annotation)
            elif isinstance(runs, str):
                self.add(runs, "", image.image_id, annotation)
            elif type(category) is not int or category not in self.names:
                self.add("unknown category", f"its category id is {category}", image.image_id, annotation)
            else:
                objects.append(annotation)
                masks.append(runs)
                self._check_box(image, annotation)
        labels = [annotation["category_id"] for annotation in objects]
        for later, first, iou in duplicates(masks, labels, image.size):
            detail = f"IoU {iou:.2f} with annotation {objects[first].get('id')}"
            self.add("duplicate object", detail, image.image_id, objects[later])

    def _check_box(self, image: ImageRecord, annotation: dict[str, Any]) -> None:
        """The annotated box, which training does not read: it takes the mask's own."""
        box, area = annotation.get("bbox"), annotation.get("area")
        if area is not None and not coco.is_area(area):
            self.add("malformed area", "evaluation takes the mask's own", image.image_id, annotation)
        if not coco.is_box(box):
            if box is not None:
                self.add("malformed box", "its bbox is not four numbers", image.image_id, annotation)
            return
        x, y, width, height = box
        if min(width, height) <= 0:
            self.add("box without area", f"{width} wide, {height} high", image.image_id, annotation)
        elif max(-x, -y, x + width - image.size[1], y + height - image.size[0]) > MARGIN:
            self.add("box outside the image", f"{box}", image.image_id, annotation)

    def _check_image(self, image: ImageRecord, look: _Look | str, seen: Seen) -> None:
        if isinstance(look, str):
            problem = "damaged image" if os.path.isfile(image.path) else "missing image"
            self.add(problem, _without_path(look, image.path), image.image_id)
            return
        (height, width), transposed = look.size, look.orientation
        if look.size != image.size:
            sizes = f"it is {width} x {height}, the JSON says {image.size[1]} x {image.size[0]}"
            if transposed >= 5 and image.size == (width, height):
                self.add("annotated as stored, before EXIF", f"{sizes}; EXIF turns it", image.image_id)
            else:
                self.add("other size than annotated", sizes, image.image_id)
        elif transposed in (2, 3, 4) or (transposed >= 5 and height == width):
            detail = f"EXIF turns it ({transposed}); make sure it was annotated upright"
            self.add("EXIF orientation", detail, image.image_id)
        seen[look.pixels].append((self, image, look.file))


Seen = dict[bytes, list[tuple[_SplitCheck, ImageRecord, bytes]]]
"""The images of all splits by the digest of their pixels, with the digest of their files."""


class _Look(NamedTuple):
    """What is kept of an image: digests of its file and its pixels, its size upright and EXIF's orientation."""

    file: bytes
    pixels: bytes
    size: Size
    orientation: int


def _look(path: Path) -> _Look | str:
    """Decode a whole image; a sentence if that cannot be done."""
    try:
        values = read_image(path, None)
        file = _file_digest(path)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})."
    size = (values.shape[1], values.shape[2])
    digest = hashlib.blake2b(f"{values.shape} {values.dtype}".encode(), digest_size=16)
    digest.update(values.data.cast("B"))
    return _Look(file, digest.digest(), size, _orientation(path))


def _file_digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()


def _orientation(path: Path) -> int:
    """EXIF's orientation, 1 (upright) to 8; 1 where there is none."""
    try:
        with open_pillow(path) as opened:
            value = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # the image was read; if Pillow cannot, there is no EXIF either
        return 1
    return value if value in range(1, 9) else 1


def _compare_images(seen: Seen) -> None:
    """Report images that are there twice, in one split or in two."""
    for group in seen.values():
        first: dict[str, tuple[ImageRecord, bytes]] = {}
        for split, image, file in group:
            if split.name in first:
                name, problem, place = split.name, "duplicate image", ""
            elif first:
                name = next(iter(first))
                problem, place = "image in two splits", f" in {name}"
            else:
                first[split.name] = (image, file)
                continue
            other, other_file = first[name]
            detail = f"{_sameness(image, other, file == other_file)}{place} (image {other.image_id})"
            split.add(problem, detail, image.image_id)
            first.setdefault(split.name, (image, file))


def _sameness(image: ImageRecord, other: ImageRecord, same_bytes: bool) -> str:
    if image.path == other.path:
        return "the same file"
    return f"the same {'bytes' if same_bytes else 'pixels'} as {other.path.name}"


def duplicates(masks: Sequence[RLE], labels: Iterable[int], size: Size) -> list[tuple[int, int, float]]:
    """Objects that are there twice: (row, row of an earlier one, IoU) for each of IoU above 0.95 and one label.

    ``masks`` are run lengths, none of them empty, in an image of ``size``.  Only pairs whose boxes and areas allow it
    are compared, run by run.
    """
    boxes = np.array([rle.bounds(runs, size) for runs in masks], np.int64).reshape(-1, 4)
    areas = np.array([rle.area(runs) for runs in masks], np.int64)
    classes = np.fromiter(labels, np.int64, len(masks))
    found = []
    for row in range(1, len(masks)):
        sides = np.minimum(boxes[:row, 2:], boxes[row, 2:]) - np.maximum(boxes[:row, :2], boxes[row, :2])
        most = np.minimum(np.minimum(areas[:row], areas[row]), sides.clip(0).prod(axis=1))
        possible = (classes[:row] == classes[row]) & (most > SAME_OBJECT * (areas[:row] + areas[row] - most))
        for other in np.flatnonzero(possible).tolist():
            shared = _shared(masks[other], masks[row])
            iou = float(shared / (areas[other] + areas[row] - shared))
            if iou > SAME_OBJECT:
                found.append((row, other, iou))
                break
    return found


def _shared(one: RLE, two: RLE) -> float:
    """Pixels that two masks have in common: what ``two`` covers before each end of a run of ``one``, less its start."""
    edges, covered = np.cumsum(two), np.cumsum(two * (np.arange(two.size) % 2))
    marks = np.interp(np.cumsum(one)[: one.size // 2 * 2], edges, covered)
    return float((marks[1::2] - marks[0::2]).sum())
