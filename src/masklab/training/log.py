"""Log of a run: ``metrics.csv``, other loggers by name, and progress on the terminal."""

from __future__ import annotations

import csv
import importlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger, TensorBoardLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from masklab.config.nested import flatten
from masklab.config.schema import Config
from masklab.utils.errors import InputError
from masklab.utils.extras import installed
from masklab.utils.files import atomic_write, naming
from masklab.utils.lock import RunLock
from masklab.utils.words import counted

LOG = "metrics.csv"
_EXTERNAL = {
    "tensorboard": "masklab[tensorboard]",
    "wandb": "wandb",
    "mlflow": "mlflow",
}  # what to install for a logger
_SERVED = ("wandb", "mlflow")  # loggers whose server may be out of reach
_SHOWN = ("loss", "mask", "box")

_PACE_SEEN = 10  # steps after which the log says how long the run will take

_log = logging.getLogger(__name__)


class RunLog:
    """Writes rows of figures to the loggers that ``train.loggers`` names, and shows progress.

    A resumed run, one with a ``step`` above 0, keeps the rows up to that step and appends to them.  ``ids`` holds the
    ids under which external loggers know the run, and gets those of a new one.  Only the process that holds the
    ``lock`` has a log; its methods raise `MachineError` if the folder is gone, which loggers would make anew.
    """

    def __init__(self, run: Path, config: Config, step: int, ids: dict[str, str], lock: RunLock) -> None:
        settings, self.lock = config.train, lock
        self.loggers: dict[str, Logger] = {
            name: _open_logger(name, run, config, step, ids) for name in settings.loggers
        }
        self.first, self.steps, self.began = step, settings.steps, time.monotonic()
        self.bar = Progress(
            "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[shown]}"
        )
        self.task = self.bar.add_task("training", total=settings.steps, completed=step, shown="")
        self.in_terminal = sys.stdout.isatty()
        if self.in_terminal:
            self.bar.start()

    def advance(self, step: int) -> None:
        """Move the progress bar to a step."""
        self.lock.check()
        self.bar.update(self.task, completed=step)
        if step - self.first == _PACE_SEEN:
            pace = (time.monotonic() - self.began) / _PACE_SEEN
            _log.info(
                f"{counted(self.steps - self.first, 'step')} of {pace:.2g} s on this machine: about "
                f"{max(1, round((self.steps - self.first) * pace / 60))} min"
            )

    def write_losses(self, step: int, row: dict[str, float]) -> None:
        """Log the losses of a step."""
        self._write(step, row)
        left = timedelta(seconds=round((time.monotonic() - self.began) / (step - self.first) * (self.steps - step)))
        shown = "  ".join(f"{name} {row[name]:.3f}" for name in _SHOWN if name in row) + f"  {row['GiB']:.1f} GiB"
        self._show(f"step {step}/{self.steps}  {shown}  {left} left", shown)

    def write_figures(self, step: int, row: dict[str, float]) -> None:
        """Log the figures of a validation."""
        self._write(step, row)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in row.items() if name.startswith("val/"))
        self._show(f"step {step}: {shown}", shown)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        """End the progress bar and the loggers."""
        if self.in_terminal:
            self.bar.stop()
        for name, each in list(self.loggers.items()):
            with self._parting_with(name):
                each.finalize("failed" if error else "success")
                if name == "wandb":  # Lightning's logger leaves its run open, and the next run would go on in it
                    each.experiment.finish(int(error is not None))  # type: ignore[attr-defined]

    def _write(self, step: int, row: dict[str, float]) -> None:
        self.lock.check()
        with naming(self.lock.folder):
            for name, each in list(self.loggers.items()):
                with self._parting_with(name):
                    each.log_metrics(row, step)
                    each.save()

    @contextmanager
    def _parting_with(self, name: str) -> Iterator[None]:
        """Go on without a logger whose server fails: figures are not worth a training."""
        try:
            yield
        except Exception as error:
            if name not in _SERVED:
                raise
            del self.loggers[name]
            _log.warning(f"train.loggers: {name} failed ({_reason(error)}): the training goes on without it.")

    def _show(self, line: str, in_bar: str) -> None:
        if self.in_terminal:
            self.bar.update(self.task, shown=in_bar)
        else:
            _log.info(line)


def check_loggers(names: Sequence[str]) -> None:
    """Raise `InputError` for a logger whose package is not installed."""
    for name in names:
        if name in _EXTERNAL and not installed(name):
            raise InputError(
                f"train.loggers names {name} but the package {name} is not installed: "
                f'pip install "{_EXTERNAL[name]}", or leave it out, as --train.loggers [csv] does.'
            )


def _open_logger(name: str, run: Path, config: Config, step: int, ids: dict[str, str]) -> Logger:
    if name == "csv":
        return _CSVLogger(run / LOG, step)
    if name == "tensorboard":
        return TensorBoardLogger(run, "", "", purge_step=step + 1 if step else None)
    try:
        return _open_served(name, run, config, ids)
    except Exception as error:
        raise InputError(
            f"train.loggers names {name}, which cannot be opened ({_reason(error)}): correct its settings, or leave it "
            "out, as --train.loggers [csv] does."
        ) from error


def _reason(error: Exception) -> str:
    """What an error says, in one line without its last stop."""
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")


def _open_served(name: str, run: Path, config: Config, ids: dict[str, str]) -> Logger:
    """W&B or MLflow, by Lightning's loggers."""
    loggers = importlib.import_module("lightning.pytorch.loggers")
    made: Any
    if name == "wandb":
        made = loggers.WandbLogger(name=run.name, save_dir=run, project="masklab", version=ids.get(name))
    else:
        uri = importlib.import_module("mlflow").get_tracking_uri()  # Lightning's default is one that MLflow 3 refuses
        made = loggers.MLFlowLogger("masklab", run_name=run.name, tracking_uri=uri, run_id=ids.get(name))
    if name in ids:
        _ = made.experiment  # opened now, not at the first figures
    else:
        made.log_hyperparams(flatten(config.model_dump(mode="json")))
        ids[name] = str(made.version if name == "wandb" else made.run_id)
    return made


class _CSVLogger(Logger):
    """Writes each row to a CSV file at once, whose columns are those of all rows so far."""

    name = "csv"
    version = None

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self._rewrite(read_log(path, step))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if set(row) <= set(self.columns):
            with naming(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        else:
            self._rewrite([*read_log(self.path, step or 0), row])

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Write the whole file, with a column for everything in its rows; without rows there is no file."""
        self.columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)])) if rows else []
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def read_log(path: Path, last: int) -> list[dict[str, Any]]:
    """The rows of a ``metrics.csv`` up to step ``last``, without a line that was cut off at the end.

    Raises `InputError` for a file that is damaged.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines: Iterable[str] = text[: text.rfind("\n") + 1].splitlines()
        return [row for row in csv.DictReader(lines) if int(row["step"]) <= last]
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        raise InputError(f"{path} is damaged: remove its bad lines, or give another output folder.") from None
