"""Check of a data set: every problem, where training stops at the first."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from masklab.datasets.check.annotations import check_annotations
from masklab.datasets.check.classes import check_classes
from masklab.datasets.check.images import Seen, compare_images
from masklab.datasets.check.progress import Progress
from masklab.datasets.check.report import Finding, Report, print_check, write_check
from masklab.datasets.check.split import LenientSplit
from masklab.datasets.check.work import Inspected, Work, blocks, read_block
from masklab.datasets.layouts.coco import CocoFiles, CocoSource
from masklab.datasets.open import open_split, split_names
from masklab.datasets.plausibility import Tally, compare, judge
from masklab.datasets.problems import KEPT, PROBLEMS, CollectingSink, Problem
from masklab.datasets.recognise import recognise
from masklab.datasets.source import Data, as_source
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.progress import track

__all__ = ["Finding", "Report", "check", "print_check", "write_check"]


def check(data: Data, workers: int | None = None, unfinished: Path | None = None) -> Report:
    """Read every image and annotation of a data set and report all problems.

    Of a split whose images and annotations cannot be told apart, such as truncated JSON or images without masks, only
    that is reported.  Images are compared by their decoded pixels, masks as run lengths, and each split is judged as a
    whole (see `masklab.datasets.plausibility`).

    ``workers`` processes share the work, by default one for each core.  A check that is stopped leaves what it has done
    in the file ``unfinished``, if one is named: with the same file it goes on, unless the data have changed.

    Raises `InputError` when the folder does not exist or holds no data set.
    """
    names = split_names(data)
    source = as_source(data)
    report = Report(recognise(source)[0] if source.path is None else source.path)
    for name in {"train", "val"} - set(names):
        try:
            open_split(data, name)
        except InputError as error:
            report.add(name, Problem("unusable split", str(error)))
    seen: Seen = defaultdict(list)
    classes: ClassTable | None = None
    train: Tally | None = None
    progress = Progress(unfinished)
    splits = _splits(report, data, names)
    try:
        for split in splits:
            tally = _check_split(split, seen, workers, progress)
            classes = check_classes(split, classes)
            faults = Counter(f.problem for f in report.findings if f.split == split.name and f.consequence != KEPT)
            if "unusable split" not in faults:
                needed = split.name in ("train", "val") or len(splits) == 1
                problems = (*judge(tally, faults, needed), *(compare(train, tally) if train else ()))
                for problem in problems:
                    split.report(problem)
                train = train or tally
    except BaseException:
        progress.write()
        raise
    progress.remove()
    compare_images(seen)
    order = list(PROBLEMS)
    report.findings.sort(key=lambda finding: (finding.split, order.index(finding.problem)))
    return report


def _check_split(split: LenientSplit, seen: Seen, workers: int | None, progress: Progress) -> Tally:
    """Check the images and annotations of a split; ``seen`` collects the images of all splits."""
    images = split.entries()
    groups = check_annotations(split, images)
    labels = {number: label for label, number in enumerate(split.names)}
    work, tally = Work(images, split.annotations, groups, labels, split.json_path), Tally(split.name)
    with closing(_inspect(split.name, work, workers, progress)) as inspected:
        for image, found in zip(images, track(inspected, split.name, len(images)), strict=True):
            for problem in found.problems:
                split.report(problem)
            tally.add(image.path.name, found.objects, found.look)
            if found.digest is not None:
                seen[found.digest.pixels].append((split, image, found.digest.file))
    return tally


def _inspect(name: str, work: Work, workers: int | None, progress: Progress) -> Generator[Inspected, None, None]:
    """What is found in each image of a split, those first that a stopped check has done."""
    done = progress.begin(name, work)
    for line in done:
        yield from read_block(line)
    with blocks(work, len(done), workers) as lines:
        for line in lines:
            progress.add(name, line)
            yield from read_block(line)


def _splits(report: Report, data: Data, names: Sequence[str]) -> list[LenientSplit]:
    """The splits that can be opened at all, ``train`` first, with the problems of single files."""
    found = recognise(data)[1]
    if isinstance(found, CocoFiles) and not as_source(data).split_components:
        return _coco_splits(report, found)
    splits = []
    for name in sorted(names, key=lambda name: name != "train"):
        sink = CollectingSink()
        try:
            split = open_split(data, name, sink=sink)
        except InputError as error:
            report.add(name, Problem("unusable split", str(error)))
        else:
            source = CocoSource(split.json_path, (split.folder,), split.folder)
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
