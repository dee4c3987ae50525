"""How a run was trained: its settings, and losses, rates and validation over time."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masklab.config.migrate import migrate_config
from masklab.config.nested import flatten
from masklab.datasets.source import Data, named_source
from masklab.report.charts import Line, line_chart
from masklab.report.markup import Html, joined, named, table, tag
from masklab.report.page import note
from masklab.training.log import LOG, read_log
from masklab.training.record import read_record
from masklab.utils.errors import InputError
from masklab.utils.files import read_yaml

_SETTINGS = {
    "model.backbone.name": "backbone",
    "train.steps": "steps",
    "train.batch_size": "images of a step",
    "train.optimizer": "optimiser",
    "train.learning_rate": "learning rate",
    "image.scale": "scale of images",
    "train.start_from": "started from",
    "train.seed": "seed",
}
_VALIDATION = {
    "val/mask_AP": "mask AP",
    "val/mask_AP50": "mask AP50",
    "val/mask_AP75": "mask AP75",
    "val/box_AP": "box AP",
}


@dataclass
class Run:
    """What a run folder says: ``record`` is its ``run.json``, ``log`` the rows of its figures, ``problems`` what is damaged."""

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def data(self) -> Data | None:
        """The data set that the run was trained on, None where it is not known."""
        names = ("data", "annotations", "images", "layout", "split_components")
        path, annotations, images, layout, components = (self.config.get(name) for name in names)
        try:
            return named_source(path, annotations, images, layout, bool(components))
        except (InputError, TypeError):
            return None


def read_run(model: str | Path) -> Run | None:
    """The run of a folder, or of a weights file in one; None where there is none.  Damaged files are named in it."""
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.yaml").is_file() or not (path.is_dir() or path.is_file()):
        return None
    run = Run(folder)
    for read in (_read_record, _read_config, _read_log):
        try:
            read(run)
        except InputError as error:
            run.problems.append(str(error))
    return run


def _read_record(run: Run) -> None:
    run.record = read_record(run.folder)


def _read_config(run: Run) -> None:
    values = read_yaml(run.folder / "config.yaml", run.folder / "config.yaml")
    run.config = migrate_config(values) if isinstance(values, dict) else {}


def _read_log(run: Run) -> None:
    run.log = read_log(run.folder / LOG, sys.maxsize)


def training_section(run: Run | None, notes: Mapping[str, Any]) -> Html:
    """Settings and curves of a run; says what is missing where there is none."""
    if run is None:
        return note("This model stands alone, without the folder of its run: there are no losses to show.")
    parts: list[Html] = [note(problem) for problem in run.problems]
    parts.append(_settings(run, notes))
    if not run.log:
        parts.append(note(f"The run has no rows in {LOG}: there are no losses to show."))
        return joined(parts)
    charts = [
        chart for chart in (_losses(run.log), _shares(run.log), _validation(run.log, notes), _rate(run.log)) if chart
    ]
    parts.append(tag("div", *charts, class_="charts"))
    if not any(name in row for row in run.log for name in _VALIDATION):
        parts.append(note("The run has no validation yet."))
    return joined(parts)


def _settings(run: Run, notes: Mapping[str, Any]) -> Html:
    values = flatten(run.config)
    rows: list[Sequence[Any]] = [
        (title, named(values[name])) for name, title in _SETTINGS.items() if values.get(name) is not None
    ]
    if "step" in notes:
        rows.append(("step of these weights", notes["step"]))
    if "minutes" in notes:
        rows.append(("minutes of training until then", notes["minutes"]))
    starts = run.record.get("starts", [])
    last = starts[-1] if starts and isinstance(starts[-1], dict) else {}
    rows += [(name, named(last[name])) for name in ("time", "device", "command") if last.get(name)]
    if len(starts) > 1:
        rows.append(("started and resumed", f"{len(starts)} times"))
    return table(["setting", ""], rows, class_="words") if rows else Html("")


def _series(log: Sequence[Mapping[str, Any]], name: str, title: str, main: bool = False) -> Line:
    """The values of a column that are numbers, by step."""
    points = []
    for row in log:
        try:
            point = (float(row["step"]), float(row[name]))
        except (KeyError, TypeError, ValueError):  # an empty cell
            continue
        if all(map(math.isfinite, point)):
            points.append(point)
    return Line(title, [x for x, _ in points], [y for _, y in points], main)


def _losses(log: Sequence[Mapping[str, Any]]) -> Html:
    lines = [_series(log, "loss", "all losses", True), _series(log, "mask", "masks"), _series(log, "box", "boxes")]
    return line_chart("losses", "Losses of the training.", lines, "step", "loss")


def _shares(log: Sequence[Mapping[str, Any]]) -> Html:
    names = dict.fromkeys(name for row in log for name in row if name and name.startswith("train/"))
    lines = [_series(log, name, name.removeprefix("train/").replace("_", " ")) for name in names]
    return line_chart(
        "parts", "Each loss alone, on a logarithmic axis where none is 0.", lines, "step", "loss", log=True
    )


def _validation(log: Sequence[Mapping[str, Any]], notes: Mapping[str, Any]) -> Html:
    lines = [_series(log, name, title, title == "mask AP") for name, title in _VALIDATION.items()]
    step = notes.get("step")
    upright = float(step) if isinstance(step, (int, float)) else None
    caption = "Validation. " + ("The upright line is at the step of these weights." if upright is not None else "")
    return line_chart("validation", caption, lines, "step", "average precision", marks=True, upright=upright)


def _rate(log: Sequence[Mapping[str, Any]]) -> Html:
    return line_chart(
        "rate", "Learning rate.", [_series(log, "learning_rate", "learning rate")], "step", "learning rate"
    )
