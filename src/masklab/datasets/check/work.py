"""Check of the images of a split, one by one, in several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import torch

from masklab.datasets.check.annotations import read_objects
from masklab.datasets.check.images import Digest, check_image
from masklab.datasets.coco_document import JsonArray
from masklab.datasets.grouping import Grouping
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.plausibility import Look, ObjectFacts, object_facts
from masklab.datasets.problems import CollectingSink, Problem
from masklab.utils.errors import InputError
from masklab.utils.signals import follow_parent

BLOCK = 16  # images that a process checks at a time
_FEW = 32  # images: fewer are not worth a process


class Inspected(NamedTuple):
    """What was found in one image; ``digest`` and ``look`` are None if it cannot be decoded."""

    problems: list[Problem]
    objects: ObjectFacts
    digest: Digest | None
    look: Look | None


@dataclass(frozen=True)
class Work:
    """What a process needs to know to check the images of a split."""

    images: Sequence[ImageRecord]
    annotations: JsonArray
    groups: Grouping
    labels: Mapping[Any, int]
    source: Path

    def inspect(self, index: int) -> Inspected:
        """Check image ``index`` and its annotations."""
        image, sink = self.images[index], CollectingSink()
        entries = self.annotations.take(self.groups.of(index))
        objects = object_facts(read_objects(entries, image, self.labels, self.source, sink), image.size)
        seen = check_image(image, sink)
        return Inspected(sink.problems, objects, *(seen or (None, None)))

    def block(self, first: int, is_stopped: Callable[[], bool] = bool) -> str:
        """`inspect` for some images in a row, as a line of JSON; for no more once the check ``is_stopped``."""
        indices = range(first, min(first + BLOCK, len(self.images)))
        return json.dumps([self.inspect(index) for index in indices if not is_stopped()])


def read_block(line: str) -> list[Inspected]:
    """What `Work.block` wrote; `ValueError` or `TypeError` for anything else."""
    return [
        Inspected(
            [Problem(*problem) for problem in problems],
            ObjectFacts(*objects),
            None if digest is None else Digest(*digest),
            None if look is None else Look(*look),
        )
        for problems, objects, digest, look in json.loads(line)
    ]


@contextmanager
def blocks(work: Work, done: int, workers: int | None) -> Iterator[Iterator[str]]:
    """The lines of the blocks of a split after the first ``done``, in order, checked by ``workers`` processes.

    By default there is one process for each core, and none for a few images.  Raises `InputError` where a process is
    killed.
    """
    firsts = range(done * BLOCK, len(work.images), BLOCK)
    count = min(len(firsts), workers or (os.cpu_count() or 1 if len(work.images) >= _FEW else 1))
    if count <= 1:
        yield map(work.block, firsts)
        return
    stop = multiprocessing.Event()
    pool = ProcessPoolExecutor(count, initializer=_prepare, initargs=(work, stop))
    try:
        yield pool.map(_block, firsts)
    except BrokenProcessPool:
        raise InputError(
            f"a process that checked {work.source} was killed, perhaps for its memory: run the command again with fewer "
            "--workers; with --output it goes on where it was."
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_prepared: tuple[Work, Callable[[], bool]]


def _prepare(work: Work, stop: Event) -> None:
    """Make a new process ready; the threads of PyTorch do not outlive a fork."""
    global _prepared
    follow_parent()
    torch.set_num_threads(1)
    _prepared = work, stop.is_set


def _block(first: int) -> str:
    work, is_stopped = _prepared
    return work.block(first, is_stopped)
