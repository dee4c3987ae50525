"""Judgement of the data before the first step of training."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from masklab.config.image import ImageConfig
from masklab.datasets.plausibility import ObjectFacts, Tally, compare, judge, look_at, object_facts
from masklab.datasets.problems import PROBLEMS, STOPS, Problem
from masklab.datasets.split import Split
from masklab.images.read import read_sample
from masklab.utils.errors import InputError
from masklab.utils.progress import track

_SAMPLED = 200  # images of a split, evenly spaced
_LARGE = 1 << 24  # pixels: of larger images only some are read
_NAMED = 5  # classes

_log = logging.getLogger(__name__)


def judge_data(train: Split, val: Split, rule: ImageConfig, first: bool = True) -> None:
    """Judge both splits as `data check` does, from at most 200 images of each, and log what is worth a look.

    ``rule`` is the resolved section ``image`` of the configuration.  Of several processes only the ``first`` logs.
    Raises `InputError` for a split without any usable object, with the reasons.
    """
    if not len(train) or not len(val):
        return  # refused by the loader and the loop
    tallies = []
    for name, split in (("train", train), ("val", val)):
        tally = _tally(name, split, rule)
        for problem in (*judge(tally, split.skipped), *_unused_classes(split)):
            if PROBLEMS[problem.name] == STOPS:
                raise InputError(f"{split.json_path} has no object that training can use: {problem.detail}.")
            _report(name, problem, first)
        tallies.append(tally)
    for problem in compare(*tallies):
        _report("val", problem, first)


def _unused_classes(split: Split) -> Iterator[Problem]:
    """The classes without an object; in a large split, those without an annotation."""
    ids, names = split.categories.ids, split.categories.names
    if len(split) <= _SAMPLED:
        used = {ids[label] for index in range(len(split)) for label in split.objects(index).labels.tolist()}
    else:
        used = split.annotated_categories
    unused = [name for number, name in zip(ids, names, strict=True) if number not in used]
    if unused:
        others = f" and {len(unused) - _NAMED} others" if len(unused) > _NAMED else ""
        yield Problem("unused category", f"no object of {', '.join(unused[:_NAMED])}{others}")


def _report(name: str, problem: Problem, first: bool) -> None:
    if first:
        _log.warning(f"{name}: {problem.name}: {problem.detail}")


def _tally(name: str, split: Split, rule: ImageConfig) -> Tally:
    """The facts of some images, and of the annotations of others until an object is found."""
    tally, count = Tally(name), min(_SAMPLED, len(split))
    sample = [k * len(split) // count for k in range(count)]
    for index in track(sample, f"judging {name}"):
        image = split.images[index]
        is_large = image.size[0] * image.size[1] > _LARGE
        values = read_sample(image.path, None) if is_large else split.read(index, None)
        tally.add(image.path.name, _facts(split, index), look_at(values, image.size, rule, image.path))
    for index in sorted(set(range(len(split))) - set(sample)):
        if tally.usable:
            break
        tally.add(split.images[index].path.name, _facts(split, index), None)
    return tally


def _facts(split: Split, index: int) -> ObjectFacts:
    return object_facts(split.annotations(index), split.images[index].size)
