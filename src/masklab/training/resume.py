"""What lets a run go on after it was stopped at any moment: its folder, its weights and its checkpoint."""

from __future__ import annotations

import pickle
import signal
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from masklab.config.train import TrainConfig
from masklab.training.record import read_record
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, make_folder

CHECKPOINT = "resume.ckpt"
UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)


class Start(NamedTuple):
    """The step a run begins at, and the checkpoint it goes on from, if any."""

    step: int
    checkpoint: Path | None


def open_run(run: Path, resume: bool, first: bool = True, name: str = CHECKPOINT) -> Start:
    """Make the run folder, or find where the run there is to go on.

    ``name`` is that of the checkpoint, which says what kind of run it is.  A run that was stopped before its first
    checkpoint begins anew.  Of several processes only the ``first`` changes anything.
    """
    checkpoint = run / name
    if not resume:
        if first and ((run / "metrics.csv").exists() or checkpoint.exists()):
            raise InputError(f"{run} already holds a run: give another --output, or --resume to continue it.")
        make_folder(run)
        return Start(0, None)
    if first:
        for left in run.glob(".*.part"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
    if checkpoint.is_file():
        return Start(_step_of(checkpoint), checkpoint)
    nothing_yet = run.is_dir() and not any(run.iterdir())
    if read_record(run).get("checkpoint") != name and not nothing_yet:
        raise InputError(f"{run} has no {name} to resume from: check --output, or leave --resume out.")
    return Start(0, None)


def _step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, which may hold numbers and text but no code; its checksums, which torch ignores, are verified."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            if archive.testzip() is not None:
                raise ValueError
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except (*UNREADABLE, RuntimeError, LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{checkpoint} is damaged or not a checkpoint of masklab's: train anew with another --output."
        ) from None


class WeightsSaver(Callback):
    """Writes a run's weights and the checkpoint that it is resumed from, and stops it early.

    After each validation ``last.safetensors``, ``best.safetensors`` when the ``figure`` has not been higher, and the
    checkpoint, which is also written every ``settings.checkpoint_every`` steps; ``save(path, notes)`` writes
    weights.  The last step is always validated.  SIGTERM stops a run at once, as Ctrl-C does.
    """

    def __init__(
        self,
        run: Path,
        figure: str,
        save: Callable[[Path, dict[str, Any]], None],
        settings: TrainConfig,
        checkpoint: str = CHECKPOINT,
    ) -> None:
        self.run, self.figure, self.save, self.settings, self.checkpoint = run, figure, save, settings, checkpoint
        self.best, self.below, self.began = -1.0, 0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "below": self.below, "seconds": time.monotonic() - self.began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.below = state_dict["best"], state_dict.get("below", 0)
        self.began = time.monotonic() - state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.should_stop = self._patience_is_over()
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler finishes the step and leaves with exit code 0
            signal.signal(signal.SIGTERM, signal.default_int_handler)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step, settings = trainer.global_step, self.settings
        if step == settings.steps:
            trainer.should_stop = True  # which makes Lightning validate
        elif step % settings.checkpoint_every == 0 and step % settings.validate_every != 0:
            self._write_checkpoint(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        val = {name.removeprefix("val/"): None if value != value else value for name, value in metrics.items()}
        minutes = round((time.monotonic() - self.began) / 60, 1)
        notes = {"step": trainer.global_step, "minutes": minutes, "val": val}
        score = val.get(self.figure) or 0.0
        self.below = 0 if score >= self.best else self.below + 1
        self.best = max(self.best, score)
        if trainer.is_global_zero:
            self.save(self.run / "last.safetensors", notes)
            if self.below == 0:
                self.save(self.run / "best.safetensors", notes)
        self._write_checkpoint(trainer)
        if self._patience_is_over():
            trainer.should_stop = True

    def _patience_is_over(self) -> bool:
        return self.settings.patience is not None and self.below >= self.settings.patience

    def _write_checkpoint(self, trainer: pl.Trainer) -> None:
        path = self.run / self.checkpoint
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # every process takes part, only the first writes
            return
        with atomic_write(path) as temporary:
            trainer.save_checkpoint(temporary)
