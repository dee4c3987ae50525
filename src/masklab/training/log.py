"""What a run says while it goes: ``metrics.csv``, TensorBoard's events, and lines on the terminal."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch.utils.tensorboard import SummaryWriter

from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write

LOG = "metrics.csv"
OF_VALIDATION = ("val/", "IoU/")


class RunLog(Callback):
    """Writes a row of losses every ``every`` steps and one of figures after each validation, each at once.

    A resumed run keeps the rows up to its checkpoint and goes on below them.  Of several processes, losses are
    the mean and the first one writes.
    """

    def __init__(self, run: Path, every: int) -> None:
        self.run, self.every = run, every
        self.columns: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        self._rewrite(read_log(self.run / LOG, step))
        self.events = SummaryWriter(str(self.run), purge_step=step + 1 if step else None)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._write(trainer, of_validation=False)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._write(trainer, of_validation=True)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.events.close()

    def _write(self, trainer: pl.Trainer, of_validation: bool) -> None:
        found = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(OF_VALIDATION) == of_validation}
        if not found:
            return
        values: Any = trainer.strategy.reduce(
            torch.stack([value.float() for value in found.values()]), reduce_op="mean"
        )
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        row = {"step": step, **dict(zip(found, values.tolist(), strict=True))}
        for name in found:
            self.events.add_scalar(name, row[name], step)
        self.events.flush()
        if set(row) <= set(self.columns):
            with open(self.run / LOG, "a", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        else:
            self._rewrite([*read_log(self.run / LOG, step), row])

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Write the whole file anew, with a column for everything in its rows."""
        self.columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)])) if rows else []
        if not rows:
            (self.run / LOG).unlink(missing_ok=True)
            return
        with atomic_write(self.run / LOG) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def read_log(path: Path, last: int) -> list[dict[str, Any]]:
    """The rows of a log up to step ``last``; a line that was cut off at the end is left out.

    Raises `InputError` for a file that is no such log.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines: Iterable[str] = text[: text.rfind("\n") + 1].splitlines()
        return [row for row in csv.DictReader(lines) if int(row["step"]) <= last]
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        raise InputError(f"{path} is damaged: remove its bad lines, or give another --output.") from None


class ProgressBar(RichProgressBar):
    """Steps, losses, memory and time left; a run is counted in steps, so no epoch is named."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"


class ProgressLines(Callback):
    """A line now and then instead of a progress bar, where the output is a file."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step, steps = trainer.global_step, trainer.max_steps
        if step % trainer.log_every_n_steps == 0 or step == steps:  # type: ignore[attr-defined]
            seconds = time.monotonic() - self.began
            left = timedelta(seconds=round(seconds / (step - self.first) * (steps - step)))
            values = trainer.callback_metrics
            shown = "  ".join(f"{name} {values[name]:.3f}" for name in ("loss", "mask", "box") if name in values)
            print(f"step {step}/{steps}  {shown}  {values['GiB']:.1f} GiB  {left} left", flush=True)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = trainer.callback_metrics
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if name.startswith("val/"))
        print(f"step {trainer.global_step}: {shown}", flush=True)
