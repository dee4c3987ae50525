"""Ablation tables of the paper on any data set: every row trained and evaluated with several seeds."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from masklab.config.nested import flatten, merge
from masklab.config.recipe import load_recipe, read_recipe
from masklab.config.schema import Config, validate
from masklab.datasets.open import open_split
from masklab.datasets.source import Data
from masklab.evaluation.evaluate import evaluate
from masklab.evaluation.report import write_metrics
from masklab.model.build import build_model
from masklab.paper.comparison import FIGURES, Result, print_results, write_results
from masklab.paper.tables import TABLES, Row, table_rows
from masklab.structures import ClassTable
from masklab.training.auto import resolve_auto
from masklab.training.record import RECORD, refuse_other_settings
from masklab.training.train import train
from masklab.utils.errors import FailedRunsError, InputError
from masklab.utils.extras import require
from masklab.utils.files import atomic_write, make_folder
from masklab.utils.words import counted
from masklab.weights.segmentation import check_network

_log = logging.getLogger(__name__)

METRICS = "metrics.json"
_SEGMENTATION = "model.backbone.segmentation_weights"
_FROM_IMAGENET = "model.box.from_imagenet"


class _Run(NamedTuple):
    """Training run of a row with one seed; its configuration, folder and data."""

    row: str
    config: Config
    folder: Path
    data: Data


def ablate(
    table: str,
    data: Data,
    output: str | Path,
    seeds: int = 1,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    rows: Sequence[str] | None = None,
) -> list[Result]:
    """Train and evaluate the rows of a table; writes ``TABLE.md``, ``TABLE.csv`` and ``TABLE.png`` into ``output``.

    ``table`` is one of `masklab.paper.tables.TABLES`.  Its rows change the fields of ``recipe``, by default the one that
    the paper's table starts from; ``overrides`` is a nested dictionary of further fields that all rows share, and
    ``rows`` names the rows to run, by default all.  Run k of a row has the recipe's ``train.seed`` plus k, so it sees
    the images in the same order as run k of every other row; its folder is ``output/ROW/seedS``.  Finished runs are
    kept and interrupted ones resumed; if a run fails, the others still run.  Each run is evaluated with the model's own
    boxes and with the annotated ones, which measures the masks alone.

    Raises `InputError`, before anything is trained, for data that cannot be used, rows that do not fit the recipe, and
    runs in ``output`` with other settings; raises `FailedRunsError` at the end if a run failed.
    """
    require("matplotlib", "report", "masklab ablate")
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}: give the number of runs of each row, at least 1.")
    chosen = _choose(table, rows)
    start = recipe or chosen[0].start
    configs = {row.name: row_config(row, start, overrides or {}, table_rows(table)) for row in chosen}
    train_split = open_split(data, "train")
    configs = {name: resolve_auto(config, train_split) for name, config in configs.items()}
    runs = [_run(name, config, k, data, output) for k in range(seeds) for name, config in configs.items()]
    classes = train_split.categories
    open_split(data, "val", classes)
    for name, config in configs.items():
        _check_row(name, config, classes)
    for run in runs:
        refuse_other_settings(run.folder, run.config)
    make_folder(output)
    failed = {}
    fields = ", ".join(f"`{name} {value}`" for name, value in flatten(overrides or {}).items())
    about = f"Rows trained and evaluated on {data} with {seeds} seeds, starting from recipe {start}"
    about += f" with {fields}." if fields else "."
    for number, run in enumerate(runs, 1):
        _log.info("\n%s: run %d of %d", run.folder, number, len(runs))
        try:
            _train_and_evaluate(run)
        except Exception as error:  # the other runs may succeed
            failed[run.folder] = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            with atomic_write(run.folder / "error.txt") as temporary:
                temporary.write_text(traceback.format_exc(), encoding="utf-8")
            _log.warning("%s failed: %s", run.folder, failed[run.folder])
        results = [Result(row, _figures(runs, row)) for row in chosen]
        write_results(Path(output), table, about, results)
    print_results(table, results)
    if failed:
        raise FailedRunsError(
            f"{len(failed)} of {counted(len(runs), 'run')} failed ({'; '.join(f'{run}: {why}' for run, why in failed.items())}); "
            "remove the cause and run this again, which keeps what is finished."
        )
    return results


def row_config(row: Row, start: str, overrides: dict[str, Any], rows: Sequence[Row]) -> Config:
    """The configuration of a row of the table ``rows``, from the recipe ``start`` with ``overrides``.

    If some rows use segmentation weights, a file in the overrides applies to these rows only.  Raises `InputError` if
    the overrides hold another field that a row changes, or if the row does not fit the recipe.
    """
    changes, shared = flatten(row.changes), flatten(overrides)
    if any(_SEGMENTATION in flatten(other.changes) for other in rows) and _SEGMENTATION in shared:
        weights = shared.pop(_SEGMENTATION)
        changes |= {_SEGMENTATION: weights} if _SEGMENTATION in changes else {}
    for other in rows:
        for field in flatten(other.changes).keys() & shared.keys():
            raise InputError(f"{field} is what row {other.name} of the table changes: leave --{field} out.")
    config = validate(merge(load_recipe(start, _nested(shared)).model_dump(), _nested(changes)), f"row {row.name}")
    backbone, own = config.model.backbone, flatten(read_recipe(row.name).changes)
    if _FROM_IMAGENET in own and not (backbone.pretrained or backbone.segmentation_weights):
        raise InputError(
            f"row {row.name} changes {_FROM_IMAGENET} but model.backbone.pretrained is false, so there are no weights to "
            "start from: set model.backbone.pretrained to true, or name the rows to run with --rows."
        )
    return config


def _choose(table: str, names: Sequence[str] | None) -> list[Row]:
    rows = table_rows(table)
    unknown = set(names or ()) - {row.name for row in rows}
    if unknown:
        raise InputError(
            f"{', '.join(sorted(unknown))}: {table} has no such row; choose from {', '.join(TABLES[table].rows)}."
        )
    return [row for row in rows if not names or row.name in names]


def _run(name: str, config: Config, k: int, data: Data, output: str | Path) -> _Run:
    seed = config.train.seed + k
    folder = Path(output) / name / f"seed{seed}"
    settings = config.train.model_copy(update={"seed": seed})
    return _Run(name, config.model_copy(update={"train": settings, "output": folder}), folder, data)


def _check_row(name: str, config: Config, classes: ClassTable) -> None:
    """Build the row's model without memory, to refuse a row that cannot be built before the other rows train for hours."""
    weights = config.model.backbone.segmentation_weights
    if weights is not None and not weights.is_file():
        raise InputError(
            f"row {name}: {_SEGMENTATION}: there is no file {weights}; give one that `masklab pretrain` wrote as "
            f"--{_SEGMENTATION} FILE, or name the rows to run with --rows."
        )
    try:
        check_network(config.model)
        with torch.device("meta"):
            build_model(config, classes, load_pretrained=False)
    except InputError as error:
        raise InputError(f"row {name}: {error}") from None


def _train_and_evaluate(run: _Run) -> None:
    if (run.folder / METRICS).is_file():
        _log.info("finished before")
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    train(run.config, run.data, resume=(run.folder / RECORD).is_file())
    masks_alone = evaluate(run.folder, run.data, "val", ground_truth_boxes=True)["mask"]
    write_metrics(run.folder / METRICS, evaluate(run.folder, run.data, "val") | {"mask_in_true_boxes": masks_alone})
    (run.folder / "error.txt").unlink(missing_ok=True)


def _figures(runs: Sequence[_Run], row: Row) -> list[dict[str, float | None]]:
    """Figures of the finished runs of a row, in percent."""
    found = []
    for run in runs:
        if run.row == row.name and (run.folder / METRICS).is_file():
            metrics = json.loads((run.folder / METRICS).read_text())
            values = {name: metrics.get(section, {}).get(key) for name, (section, key) in FIGURES.items()}
            found.append({name: None if value is None else 100 * value for name, value in values.items()})
    return found


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested
