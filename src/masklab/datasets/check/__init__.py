"""Check of a data set: every problem, where training stops at the first."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from masklab.datasets.check.annotations import check_annotations
from masklab.datasets.check.classes import check_classes
from masklab.datasets.check.images import Seen, check_images, compare_images
from masklab.datasets.check.report import Finding, Report, print_check, write_check
from masklab.datasets.check.split import LenientSplit
from masklab.datasets.layouts.coco import CocoFiles, CocoSource, Data, DataFiles, DataFolder
from masklab.datasets.open import open_split, recognise, split_names
from masklab.datasets.problems import PROBLEMS, CollectingSink, Problem
from masklab.structures import ClassTable
from masklab.utils.errors import InputError

__all__ = ["Finding", "Report", "check", "print_check", "write_check"]


def check(data: Data) -> Report:
    """Read every image and annotation of a data set and report all problems.

    Of a split whose images and annotations cannot be told apart, such as truncated JSON or images without masks, only
    that is reported.  Images are compared by their decoded pixels, masks as run lengths.  Raises `InputError` when
    the folder does not exist or holds no data set.
    """
    names = split_names(data)
    given = data.path if isinstance(data, DataFolder) else data
    report = Report(recognise(data)[0] if isinstance(given, DataFiles) else Path(given))
    for name in {"train", "val"} - set(names):
        try:
            open_split(data, name)
        except InputError as error:
            report.add(name, Problem("unusable split", str(error)))
    seen: Seen = defaultdict(list)
    train: ClassTable | None = None
    for split in _splits(report, data, names):
        images = split.entries()
        check_annotations(split, images)
        check_images(split, images, seen)
        train = check_classes(split, train)
    compare_images(seen)
    order = list(PROBLEMS)
    report.findings.sort(key=lambda finding: (finding.split, order.index(finding.problem)))
    return report


def _splits(report: Report, data: Data, names: Sequence[str]) -> list[LenientSplit]:
    """The splits that can be opened at all, ``train`` first, with the problems of single files."""
    folder, found = recognise(data)
    if isinstance(found, CocoFiles):
        return _coco_splits(report, found)
    splits = []
    for name in sorted(names, key=lambda name: name != "train"):
        sink = CollectingSink()
        try:
            split = open_split(data, name, sink=sink)
        except InputError as error:
            report.add(name, Problem("unusable split", str(error)))
        else:
            source = CocoSource(split.json_path, (folder,), folder)
            splits.append(LenientSplit(name, source, report, split.document))
        for problem in sink.problems:
            report.add(name, problem)
    return splits


def _coco_splits(report: Report, files: CocoFiles) -> list[LenientSplit]:
    """Every COCO file, ``train`` first."""
    found: dict[Path, tuple[str, CocoSource]] = {}
    for name in sorted(files.splits):
        for source in files.splits[name]:
            found.setdefault(source.json_path, (name, source))  # the shorter of the names train and train2017
    times = Counter(name for name, _ in found.values())
    splits = [
        LenientSplit(name if times[name] == 1 and name else os.path.relpath(path, files.folder), source, report)
        for path, (name, source) in found.items()
    ]
    return sorted(splits, key=lambda split: not split.name.startswith("train"))
