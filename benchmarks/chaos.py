"""Verbs that are killed at random moments, run out of disk, or are joined by a second process in the same folder.

    uv run python benchmarks/chaos.py [--cases 112] [--seed 0] [--kinds training tuning ...]

Each case runs a verb on drawn images.  It is killed up to three times (SIGKILL or SIGTERM, to the process alone or with
the processes that it started), its disk fills at a random byte, or the same command starts a second time beside it.
Then the same command is started again (training and prediction with
``--resume``).  What it wrote must be what an undisturbed run
wrote: weights tensor by tensor, logs row by row, all other files byte by byte; or it must end in a sentence.  A stack
trace, a file half written, a process left behind and any other exit code count as lost.

The disk is a file system in memory where this process may mount one, else a limit of the size of files.  The seed decides
all but how fast the machine is.  Bar: 0 lost.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import safe_open
from side_by_side import show

from masklab.cli.app import main as masklab
from masklab.datasets.synthetic.shapes import draw_shapes
from masklab.results.formats.registry import FORMATS

RECIPE = {
    "model": {
        "backbone": {"name": "resnet18", "pretrained": False, "norm": "group", "width": 0.25},
        "rpn": {"anchor_sizes": [12, 24, 48], "channels": 32, "proposals_train": 50, "proposals_test": 40},
        "box": {"roi_size": 6, "samples": 16, "append_ground_truth": True, "max_detections": 20},
        "mask": {"mask_size": 15, "train_masks": 8, "train_refined": 4, "refine_channels": 8},
    },
    "image": {"scale": 1.0},
    "train": {"steps": 6, "batch_size": 1, "learning_rate": 1e-3, "validate_every": 3, "checkpoint_every": 2},
}
PRELOADED = [
    *(
        f"masklab.{name}"
        for name in ("cli.app", "training.train", "training.log", "inference.folder", "datasets.check")
    ),
    *("side_by_side", "jsonargparse.typing", "torch.utils.tensorboard", "tensorboard.summary", "numpy.ctypeslib"),
]
FIXED = [f"--train.{field}" for field in ("log_every=1", "precision=float32", "ema=0.9", "validate_images=4")]
FASTER = {"masklab.datasets.check.progress._SECONDS": 0.0, "masklab.training.train._TUNING_IMAGES": 6}


class Job(NamedTuple):
    """A command, with DATA, OUT and so on for paths, and the words that it gets when it is started again."""

    words: list[str]
    again: list[str]


class Kind(NamedTuple):
    """The jobs that are disturbed; what is killed is the call of ``function``, or what else is ``done``."""

    jobs: list[str]
    function: str = ""
    done: str = "kill"


JOBS = {
    "train": Job(["train", "RECIPE", "--data", "DATA", "--output", "OUT", *FIXED], ["--resume"]),
    "convert": Job(["data", "convert", "DATA", "OUT"], []),
    "check": Job(["data", "check", "DATA", "--output", "OUT/report.json", "--workers", "2"], []),
    "predict": Job(["predict", "MODEL", "DATA/val", "--output", "OUT", "--save", *FORMATS], ["--resume"]),
}
KINDS = {
    "training": Kind(["train"]),
    "validation": Kind(["train"], "masklab.training.loop._validate"),
    "tuning": Kind(["train"], "masklab.training.train._tune"),
    "conversion": Kind(["convert"]),
    "check": Kind(["check"]),
    "prediction": Kind(["predict"]),
    "full-disk": Kind(list(JOBS), done="disk"),
    "second-process": Kind(list(JOBS), done="second"),
}
UNCOMPARED = ("events.out", "run.json", "config.yaml", "resume.ckpt", "report.json.unfinished")  # times and paths
STOPPED = {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}


class Lost(Exception):
    """A case that ended as none may."""


class Run:
    """A command in a process of its own, forked from one that has done the imports."""

    def __init__(self, words: list[str], log: Path, function: str = "", largest: int | None = None) -> None:
        self.words, self.log = words, log
        self.calls, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_work, args=(words, log, theirs, function, largest))
        self.process.start()
        theirs.close()

    def wait_for_call(self, number: int) -> bool:
        """Wait until the watched function begins for the Nth time; False if the process ends before."""
        try:
            while number:
                number -= self.calls.recv() == "begins"
        except EOFError:
            return False
        return True

    def durations(self) -> list[float]:
        """Seconds of each call of the watched function; waits for the end of the process."""
        seconds = []
        while self.wait_for_call(1):
            began = time.monotonic()
            with suppress(EOFError):
                self.calls.recv()
            seconds.append(time.monotonic() - began)
        return seconds

    def stop(self, number: int, is_group: bool) -> None:
        with suppress(ProcessLookupError):  # it has ended
            (os.killpg if is_group else os.kill)(self.process.pid or 0, number)

    def end(self) -> int:
        """The exit code, once the process and all that it started have ended without a stack trace."""
        self.process.join(120)
        code, last = self.process.exitcode, time.monotonic() + 20
        if code is None:
            self.stop(signal.SIGKILL, True)
            raise Lost("hangs")
        while alive := _session(self.process.pid or 0):
            if time.monotonic() > last:
                self.stop(signal.SIGKILL, True)
                raise Lost(f"exit code {code}, and leaves {len(alive)} processes behind")
            time.sleep(0.05)
        said = self.log.read_text() if self.log.exists() else ""
        if "Traceback" in said or "Exception ignored" in said:
            raise Lost(f"exit code {code} with a stack trace")
        if code in (1, 2) and not said.rpartition("\n")[0].rpartition("\n")[2].startswith("masklab: "):
            raise Lost(f"exit code {code} without a sentence")
        if code not in {0, 1, 2, *STOPPED}:
            raise Lost(f"exit code {code}")
        return code


def _work(words: list[str], log: Path, calls: Connection, function: str, largest: int | None) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # by default, a child of a fork server starts its own server

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*values: Any, **named: Any) -> Any:
            calls.send("begins")
            result = call(*values, **named)
            calls.send("ends")
            return result

        return wrapped

    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    for path, value in FASTER.items():
        setattr(*_attribute(path), value)
    if function:
        module, name = _attribute(function)
        setattr(module, name, watched(getattr(module, name)))
    sys.exit(masklab(words) if function else watched(masklab)(words))


def _attribute(path: str) -> tuple[ModuleType, str]:
    module, _, name = path.rpartition(".")
    return importlib.import_module(module), name


def _session(leader: int) -> list[int]:
    """The living processes of a session; none where the system does not list them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == leader and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def content(folder: Path) -> dict[str, Any]:
    """What a folder holds, by path, without hidden files; raises for a file that is half written."""
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith(".") or "/." in name:
            continue
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        if path.name.startswith(UNCOMPARED):
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                files[name] = {key: _digest(weights.get_tensor(key).numpy().tobytes()) for key in weights.keys()}  # noqa: SIM118
        elif path.name == "metrics.csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
            files[name] = [{key: value for key, value in row.items() if key != "GiB"} for row in rows]
        else:
            files[name] = _digest(path.read_bytes())
    return files


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


class Chaos:
    """The data, the undisturbed runs that cases are compared with, and the cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draw_shapes(folder / "data", {"train": 48, "val": 16}, seed=1, size=(64, 72))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        self.paths = {"RECIPE": folder / "recipe.yaml", "DATA": folder / "data", "MODEL": folder / "train" / "out"}
        self.wanted: dict[str, dict[str, Any]] = {}
        self.stopped = Counter[str]()
        self.seconds: dict[tuple[str, str], list[float]] = {}
        for job in JOBS:
            (folder / job).mkdir()
            run = Run(self.words(job, folder / job / "out"), folder / job / "log")
            self.seconds[job, ""] = run.durations()
            if code := run.end():
                raise SystemExit(f"the undisturbed run of {job} ended with {code}: {run.log}")
            self.wanted[job] = content(folder / job / "out")
        for name, kind in KINDS.items():
            if kind.function:
                run = Run(self.words("train", folder / name / "out"), folder / f"{name}.log", kind.function)
                self.seconds["train", kind.function] = run.durations()

    def words(self, job: str, out: Path, is_again: bool = False) -> list[str]:
        words = list(JOBS[job].words)
        for key, path in {**self.paths, "OUT": out}.items():
            words = [str(path) + word.removeprefix(key) if word.split("/")[0] == key else word for word in words]
        return words + (JOBS[job].again if is_again else [])

    def case(self, name: str, number: int, seed: int) -> str:
        """How a case ends: "same bytes" or "sentence"; raises `Lost`."""
        kind, place = KINDS[name], self.folder / f"{name}-{number}"
        chance = random.Random(f"{seed} {name} {number}")
        job = kind.jobs[number % len(kind.jobs)]
        out, log = place / "out", place / "log"
        place.mkdir()
        if kind.done == "disk":
            return self._full_disk(job, place, chance)
        if kind.done == "second":
            first = Run(self.words(job, out), log)
            first.wait_for_call(1)
            time.sleep(chance.uniform(0, self.seconds[job, ""][0]))
            second = Run(self.words(job, out, is_again=True), place / "second.log")
            codes = first.end(), second.end()
            if 0 not in codes:
                raise Lost(f"exit codes {codes}")
            self._compare(job, out)
            return "same bytes" if codes == (0, 0) else "sentence"
        for start in range(chance.randint(1, 3)):
            seconds = self.seconds[job, kind.function]
            call = chance.randrange(len(seconds))
            run = Run([*self.words(job, out, start > 0)], log, kind.function)
            if run.wait_for_call(call + 1):
                time.sleep(chance.uniform(0, seconds[call]))
            run.stop(chance.choice((signal.SIGKILL, signal.SIGTERM)), chance.random() < 0.5)
            self.stopped[name] += run.end() in STOPPED
            self._check_parts(job, out)
        return self._start_again(job, out, log)

    def _full_disk(self, job: str, place: Path, chance: random.Random) -> str:
        """The disk fills at a random byte of what the undisturbed run wrote; then there is room."""
        disk, log = place / "disk", place / "log"
        disk.mkdir()
        sizes = [path.stat().st_size for path in (self.folder / job / "out").rglob("*") if path.is_file()]
        is_mounted, largest = _mount(disk, size := int(chance.uniform(1, 1.2 * sum(sizes)))), None
        if not is_mounted:
            largest = int(chance.uniform(1, 1.2 * max(sizes)))
        try:
            code = Run(self.words(job, disk / "out"), log, largest=largest).end()
            if code not in (0, 1, 2):
                raise Lost(f"exit code {code} with {size:,} bytes")
            self._check_parts(job, disk / "out")
            if is_mounted:
                _mount(disk, 1 << 30, "remount,")
            return self._start_again(job, disk / "out", log)
        finally:
            if is_mounted:
                subprocess.run(["umount", str(disk)], check=True)

    def _start_again(self, job: str, out: Path, log: Path) -> str:
        code = Run(self.words(job, out, is_again=True), log).end()
        if code in STOPPED:
            raise Lost(f"exit code {code} although nothing stopped it")
        if code and content(out) != self.wanted[job]:
            return "sentence"
        self._compare(job, out)
        return "same bytes"

    def _check_parts(self, job: str, out: Path) -> None:
        """Raise `Lost` for a file that is not whole; of a run, files that are not compared have a step's own content."""
        try:
            parts = content(out)
        except Exception as error:
            raise Lost(f"half written: {error}") from None
        if job != "train":
            wrong = [name for name, value in parts.items() if self.wanted[job].get(name) != value]
            if wrong or (job == "convert" and parts and parts != self.wanted[job]):
                raise Lost(f"half written: {', '.join(wrong) or out}")

    def _compare(self, job: str, out: Path) -> None:
        found, wanted = content(out), self.wanted[job]
        if wrong := [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]:
            raise Lost(f"other content: {', '.join(sorted(wrong))}")


def _mount(disk: Path, size: int, how: str = "") -> bool:
    """Make ``disk`` a file system of ``size`` bytes; returns whether the system allows it."""
    command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(disk)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=112, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    began = time.monotonic()
    folder, ends, losses = Path(tempfile.mkdtemp(prefix="chaos-")), Counter[tuple[str, str]](), []
    chaos = Chaos(folder)
    for k in range(options.cases):
        name, number = options.kinds[k % len(options.kinds)], k // len(options.kinds)
        place = folder / f"{name}-{number}"
        try:
            end = chaos.case(name, number, options.seed)
        except Lost as lost:
            end = "lost"
            losses.append(f"{place}: {lost}")
            print(losses[-1], flush=True)
        else:
            ends[name, "hidden"] += any(path.name.startswith(".") for path in place.rglob("*"))
            shutil.rmtree(place)
        ends[name, end] += 1
    columns = ["same bytes", "sentence", "lost"]
    rows: list[list[Any]] = []
    for name in options.kinds:
        counts = [ends[name, end] for end in columns]
        rows.append([name, sum(counts), chaos.stopped[name], *counts, ends[name, "hidden"]])
    rows.append(["all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    show(
        f"Disturbed runs, {time.monotonic() - began:.0f} s",
        ["kind", "cases", "stops", *columns, "hidden files left"],
        rows,
    )
    if losses:
        raise SystemExit(f"{len(losses)} lost; what they wrote is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
