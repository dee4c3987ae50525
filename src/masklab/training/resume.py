"""Run folder and checkpoint: what lets a run that was stopped at any moment go on."""

from __future__ import annotations

import pickle
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masklab.config.schema import Config
from masklab.config.train import TrainConfig
from masklab.datasets.source import Data, DataSource, as_source, named_source
from masklab.training.ema import ExponentialMovingAverage
from masklab.training.optimizer import build_optimizer, set_learning_rate
from masklab.training.record import read_record
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write
from masklab.utils.lock import LOCK, RunLock, locked
from masklab.weights.migrate import migrate_checkpoint

CHECKPOINT = "resume.ckpt"
_UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)


class Start(NamedTuple):
    """How a run starts: its step, and the checkpoint that it resumes, as `TrainingState.state_dict` made it, or None.

    ``lock`` is held by the first process of the run; the others have None.
    """

    step: int
    checkpoint: dict[str, Any] | None
    lock: RunLock | None = None


def data_and_run(config: Config, data: Data | None = None, output: str | Path | None = None) -> tuple[DataSource, Path]:
    """The data set and the folder of the run, by default those of the configuration; `InputError` without one."""
    own = config.data, config.annotations, config.images, config.layout, config.split_components
    source = named_source(*own) if data is None else as_source(data)
    if config.split_components and source is not None:
        source = replace(source, split_components=True)
    output = output or config.output
    if source is None or output is None:
        name = "output" if source else "data"
        raise InputError(
            f"training needs the folder {name}: give it, or set {name} in the configuration (--{name} DIR)."
        )
    return source, Path(output)


@contextmanager
def open_run(run: Path, resume: bool, first: bool = True, name: str = CHECKPOINT) -> Iterator[Start]:
    """Make the run folder, or read the checkpoint of the run that is there; it is locked while the context is open.

    ``name`` is the checkpoint's, which differs by type of run.  A run that was stopped before its first checkpoint
    starts again from step 0.  Of several processes only the ``first`` changes anything and locks.  Raises `InputError`
    for a folder that holds a run that is not to be resumed or that another process is at work in (see
    `masklab.utils.lock.locked`), for one without a checkpoint and for a damaged checkpoint.
    """
    if resume and not run.is_dir():
        raise _nothing_to_resume(run, name)
    with locked(run) if first else nullcontext() as lock:
        yield _start(run, resume, name, lock)


def _start(run: Path, resume: bool, name: str, lock: RunLock | None) -> Start:
    checkpoint = run / name
    if not resume:
        if lock is not None and ((run / "metrics.csv").exists() or checkpoint.exists()):
            raise InputError(f"{run} already holds a run: give another output folder, or resume the run (--resume).")
        return Start(0, None, lock)
    if lock is not None:
        for partial in run.glob(".*.part"):  # of a process that was killed while it wrote
            partial.unlink(missing_ok=True)
    if checkpoint.is_file():
        return _read_checkpoint(checkpoint, lock)
    is_empty = all(file.name == LOCK for file in run.iterdir())
    if read_record(run).get("checkpoint") != name and not is_empty:
        raise _nothing_to_resume(run, name)
    return Start(0, None, lock)


def _nothing_to_resume(run: Path, name: str) -> InputError:
    return InputError(f"{run} has no {name} to resume from: check the output folder, or leave resume out.")


def _read_checkpoint(path: Path, lock: RunLock | None) -> Start:
    """Read a checkpoint, which may hold numbers and text but no code; verifies its checksums, which torch ignores."""
    try:
        with open(path, "rb") as file:  # once: what is read is what was verified
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    raise ValueError
            file.seek(0)
            checkpoint = migrate_checkpoint(torch.load(file, map_location="cpu", weights_only=True))
        return Start(int(checkpoint["global_step"]), checkpoint, lock)
    except (*_UNREADABLE, RuntimeError, LookupError, TypeError, ValueError, AttributeError, StopIteration):
        raise InputError(
            f"{path} is damaged or not a checkpoint of masklab's: train anew in another output folder."
        ) from None


class TrainingState:
    """All that changes during training: the content of a checkpoint.

    ``step`` counts finished steps; ``best`` is the highest validation score and ``below`` counts the validations in a
    row since with a lower one; ``loggers`` are the ids under which external loggers know the run.
    """

    def __init__(self, network: nn.Module, settings: TrainConfig) -> None:
        self.network, self.settings = network, settings
        self.average = None if settings.ema is None else ExponentialMovingAverage(network, settings.ema)
        self.optimizer = build_optimizer(network, settings)
        self.scaler = torch.amp.GradScaler(enabled=settings.precision == "fp16" and torch.cuda.is_available())
        self.step, self.best, self.below = 0, -1.0, 0
        self.loggers: dict[str, str] = {}
        self._began = time.monotonic()
        set_learning_rate(self.optimizer, settings, 0)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the exponential moving average where there is one."""
        return self.network if self.average is None else self.average.network

    @property
    def seconds(self) -> float:
        """Seconds of training, those before the run was resumed included."""
        return time.monotonic() - self._began

    def tensors(self) -> Iterator[Tensor]:
        """The parameters and buffers of the network and of its average."""
        for network in filter(None, (self.network, self.average)):
            yield from (*network.parameters(), *network.buffers())

    def add_score(self, score: float) -> bool:
        """Take note of a validation score; returns whether none was higher before."""
        self.below = 0 if score >= self.best else self.below + 1
        self.best = max(self.best, score)
        return self.below == 0

    @property
    def out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.below >= self.settings.patience

    def state_dict(self) -> dict[str, Any]:
        return {
            "global_step": self.step,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "below": self.below,
            "seconds": self.seconds,
            "loggers": self.loggers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.best, self.below = state["global_step"], state["best"], state["below"]
        self.loggers = dict(state["loggers"])
        self._began = time.monotonic() - state["seconds"]
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def save(self, path: Path) -> None:
        """Write the checkpoint; a process killed meanwhile leaves the file before."""
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(self.state_dict(), file)
            except RuntimeError as error:  # torch hides the error of the disk behind its own
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
