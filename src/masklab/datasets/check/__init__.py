"""Check of a data set: every problem, where training stops at the first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from masklab.datasets.check.annotations import check_annotations
from masklab.datasets.check.classes import check_classes
from masklab.datasets.check.images import Seen, check_images, compare_images
from masklab.datasets.check.report import Finding, Report, print_check, write_check
from masklab.datasets.check.split import LenientSplit
from masklab.datasets.layouts.coco import split_files
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import PROBLEMS, CollectingSink, Problem
from masklab.structures import ClassTable
from masklab.utils.errors import InputError

__all__ = ["Finding", "Report", "check", "print_check", "write_check"]


def check(folder: str | Path) -> Report:
    """Read every image and annotation of a data set and report all problems.

    Of a split whose images and annotations cannot be told apart, such as truncated JSON or images without masks, only
    that is reported.  Images are compared by their decoded pixels, masks as run lengths.  Raises `InputError` when
    the folder does not exist or holds no data set.
    """
    report = Report(Path(folder))
    names = split_names(folder)
    for name in {"train", "val"} - set(names):
        try:
            open_split(folder, name)
        except InputError as error:
            report.add(name, Problem("unusable split", str(error)))
    seen: Seen = defaultdict(list)
    train: ClassTable | None = None
    for split in _coco_splits(report) or _other_splits(report, names):
        images = split.entries()
        check_annotations(split, images)
        check_images(split, images, seen)
        train = check_classes(split, train)
    compare_images(seen)
    order = list(PROBLEMS)
    report.findings.sort(key=lambda finding: (finding.split, order.index(finding.problem)))
    return report


def _coco_splits(report: Report) -> list[LenientSplit]:
    """Every JSON file that has an image folder, ``train`` first; none where the folder has another layout."""
    found: dict[Path, tuple[str, Path]] = {}
    for name, pairs in sorted(split_files(report.folder).items()):
        for path, images in pairs:
            if images.is_dir():
                found.setdefault(path, (name, images))  # the shorter of the names train and train2017
    times = Counter(name for name, _ in found.values())
    splits = [
        LenientSplit(name if times[name] == 1 else path.relative_to(report.folder).as_posix(), path, images, report)
        for path, (name, images) in found.items()
    ]
    return sorted(splits, key=lambda split: not split.name.startswith("train"))


def _other_splits(report: Report, names: Sequence[str]) -> list[LenientSplit]:
    """The splits of another layout, with the problems of single files."""
    splits = []
    for name in sorted(names, key=lambda name: name != "train"):
        sink = CollectingSink()
        try:
            split = open_split(report.folder, name, sink=sink)
        except InputError as error:
            report.add(name, Problem("unusable split", str(error)))
        else:
            splits.append(LenientSplit(name, split.json_path, split.folder, report, split.coco))
        for problem in sink.problems:
            report.add(name, problem)
    return splits
