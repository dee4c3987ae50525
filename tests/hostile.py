"""Reading hostile files in a child process: a crash, a hang or too much memory is seen, and belongs to one file."""

from __future__ import annotations

import faulthandler
import importlib
import logging
import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masklab.utils.errors import InputError
from masklab.utils.failures import is_out_of_memory

STATM = Path("/proc/self/statm")  # pages of memory that are mapped, and of those that are there


class Outcome(NamedTuple):
    """What became of a case: "read" with what was read, "refused" with the sentence, or what must not happen.

    That is "error" (any other exception) with its trace, "memory" with the trace of the allocation, whether or not the
    project made a sentence of it, "hang", and "crash" with the exit code (minus the signal).
    """

    kind: str
    value: Any


class Child:
    """A process that calls functions, each within ``seconds``, and all within ``gigabytes``; started anew when lost.

    The seconds are those that the process has on a core, so that other work on the machine does not count; one that
    sleeps is given ten times as many.
    """

    def __init__(self, modules: tuple[str, ...] = (), seconds: float = 10, gigabytes: float = 4) -> None:
        self.modules, self.seconds, self.gigabytes = modules, seconds, gigabytes
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        limits = (self.modules, self.seconds, self.gigabytes)
        self.process = context.Process(target=_work, args=(theirs, *limits), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"

    def call(self, function: Callable[..., Any], *arguments: Any) -> Outcome:
        """Call a function of a module's top level in the child."""
        self.connection.send((function, arguments))
        try:
            if self.connection.poll(10 * self.seconds):
                return Outcome(*self.connection.recv())
            outcome = Outcome("hang", f"asleep for {10 * self.seconds} s")
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            outcome = Outcome("hang", f"over {self.seconds} s") if code == -signal.SIGPROF else Outcome("crash", code)
        self.stop()
        self.start()
        return outcome

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Any, modules: tuple[str, ...], seconds: float, gigabytes: float) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable()
    faulthandler.register(signal.SIGPROF, chain=True)
    for module in modules:
        importlib.import_module(module)
    if STATM.exists():
        mapped, there = (int(number) * resource.getpagesize() for number in STATM.read_text().split()[:2])
        most = mapped - there + int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    connection.send("ready")
    while True:
        function, arguments = connection.recv()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            outcome = "read", function(*arguments)
        except InputError as error:
            outcome = ("memory", traceback.format_exc()) if lacked_memory(error) else ("refused", str(error))
        except MemoryError:
            outcome = "memory", traceback.format_exc()
        except BaseException:
            outcome = "error", traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(outcome)


def lacked_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from or in the place of, says that memory was refused."""
    earlier = error.__cause__ or error.__context__
    return is_out_of_memory(error) or (earlier is not None and lacked_memory(earlier))


# What is read: every reader of the project, to its end


def read_any_image(path: Path) -> dict[str, Any]:
    """All that can be asked of an image file; what is read in parts must be what is read whole."""
    from masklab.config.image import ImageConfig
    from masklab.images.read import (
        channels_and_dtype,
        image_size,
        read_image,
        read_intensity_range,
        read_sample,
        read_window,
    )

    whole = read_image(path, None)
    height, width = whole.shape[1:]
    box = (width // 3, height // 4, width // 3 + (width + 1) // 2, height // 4 + (height + 1) // 2)
    part, size = read_window(path, None, box)
    low, high = read_intensity_range(path, None, ImageConfig(percentiles=(1, 99)))
    return {
        "whole": whole,
        "parts agree": same(part, whole[:, box[1] : box[3], box[0] : box[2]])
        and size == image_size(path) == (height, width)
        and len(low) == len(high) == channels_and_dtype(path)[0] == len(read_sample(path, None)),
    }


def read_any_data(folder: Path) -> dict[str, Any]:
    """A data set as training and evaluation read it, and beside it what `data check` says."""
    from rich.console import Console

    from masklab.datasets.check import check, print_check

    found: dict[str, Any] = {"refused": None, "splits": {}, "skipped": 0}
    try:
        found["splits"], found["skipped"] = _read_splits(folder)
    except InputError as error:
        if lacked_memory(error):
            raise
        found["refused"] = str(error)
    try:
        report = check(folder)
        found["findings"] = [(f.split, f.problem, f.image_id, f.annotation_id) for f in report.findings]
        found["fault"] = report.fault
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            print_check(report, Console(file=nowhere, width=100))
    except InputError as error:
        found["findings"], found["fault"] = [("", "refused", None, None)], str(error)
    return found


def _read_splits(folder: Path) -> tuple[dict[str, Any], int]:
    from masklab.datasets.open import open_split, split_names
    from masklab.evaluation.inputs import read_inputs

    splits, skipped = {}, 0
    for name in sorted({"train", "val", *split_names(folder)}):
        split = open_split(folder, name)
        images = []
        for index, image in enumerate(split.images):
            objects = split.objects(index)
            values = split.read(index, None)
            masks = [objects.rle(row) for row in range(len(objects))]
            images.append((image.path.name, values, objects.boxes, objects.labels, masks, objects.ignored))
        measured = read_inputs(split.truth, [])
        places = measured.images
        regions = [(places[r.image_id], r.label, r.mask["counts"], r.box, r.area, r.crowd) for r in measured.objects]
        splits[name] = {"classes": split.categories, "images": images, "measured": regions, "line": split.summary()}
        skipped += split.skipped.total()
    return splits, skipped


def read_any_recipe(path: Path) -> dict[str, Any]:
    """A configuration, as the command line takes it."""
    from masklab.config.nested import flatten
    from masklab.config.recipe import load_recipe

    return flatten(load_recipe(path).model_dump(mode="json"))


def read_any_weights(path: Path) -> dict[str, Any]:
    """A weights file, and what is said of it."""
    from masklab.weights.checkpoint import load_model
    from masklab.weights.facts import read_notes

    model = load_model(path, "cpu")
    return {
        "tensors": {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        "config": model.config.model_dump(mode="json"),
        "classes": model.classes,
        "threshold": model.score_threshold,
        "notes": read_notes(path),
    }


def read_any_run(folder: Path, config: Any) -> dict[str, Any]:
    """What a run folder says of itself, as a run that is resumed asks."""
    import torch

    from masklab.training.log import LOG, read_log
    from masklab.training.record import read_record, refuse_other_settings
    from masklab.training.resume import CHECKPOINT, open_run

    refuse_other_settings(folder, config)
    with open_run(folder, resume=True) as start:
        step = start.step
    tensors = torch.load(folder / CHECKPOINT, weights_only=True)["network"]
    return {
        "record": read_record(folder),
        "step": step,
        "log": read_log(folder / LOG, step),
        "tensors": {name: tensor.numpy() for name, tensor in tensors.items()},
    }


def same(one: Any, two: Any) -> bool:
    """Equal down to shapes and number types; NaN is equal to NaN."""
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        alike = one.shape == two.shape and one.dtype == two.dtype
        return alike and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or (one != one and two != two))
