"""Verbs that train: demo, train, pretrain, ablate."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklab.cli.options import given_fields, recipe_help
from masklab.utils.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from masklab.config import Config

_log = logging.getLogger(__name__)


def add_demo(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for all files")
    parser.add_argument("--steps", type=int | None, default=None, help="training steps, if not the recipe's")


def demo(arguments: Namespace) -> None:
    """Draw a data set of textured shapes, train a small model on it from scratch, evaluate it, and write its
    predictions and images: the whole job in a few minutes on a CPU."""
    from masklab.cli.demo import demo

    demo(arguments.output, arguments.steps)


def add_train(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help=recipe_help())
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")


def named_recipe(arguments: Namespace) -> Config:
    from masklab.config import load_recipe

    return load_recipe(arguments.recipe)


def train(arguments: Namespace) -> None:
    """Train a model. Every field of the recipe can be changed here, for example --train.steps 1000
    --model.mask.directions 4; the defaults below are those of the recipe you name."""
    from masklab.training.train import train

    config = given_fields(arguments, f"recipe {arguments.recipe}")
    train(config, resume=arguments.resume)
    _report(config)


def _report(config: Config) -> None:
    """Write the report of a run into its folder, without predicting anything again."""
    from masklab.inference.options import PredictionOptions
    from masklab.report.report import report

    # Fabric starts the other processes of a machine with this variable, a launcher all of them with both
    if config.output is None or any(
        os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID")
    ):
        return
    page = config.output / "report.html"
    try:
        report(config.output, page, options=PredictionOptions(precision=config.train.precision), predict=False)
    except InputError as error:  # the run is done and good without
        _log.warning(f"{page} is not written: {error}")
    else:
        _log.info(f"{page}: the report of this run")


def pretrain(arguments: Namespace) -> None:
    """Train the recipe's backbone to name the class of each pixel, and write weights for `masklab train RECIPE
    --model.backbone.segmentation_weights FILE`. Of the model, only the backbone and mask.dilations are used. Every
    field of the recipe can be changed here, for example --train.steps 1000; the defaults below are those of the recipe
    you name."""
    from masklab.training.pretrain import pretrain

    config = given_fields(arguments, f"recipe {arguments.recipe}")
    pretrain(config, resume=arguments.resume)


def add_ablate(parser: ArgumentParser) -> None:
    from masklab.config.fields import Count
    from masklab.paper.tables import TABLES

    parser.add_argument("table", choices=list(TABLES), help="the table: `masklab recipes` lists what its rows change")
    parser.add_argument(
        "--recipe", type=str | None, default=None, help="recipe that the rows change, if not the table's own"
    )
    parser.add_argument("--seeds", type=Count, default=1, help="runs of each row")
    parser.add_argument("--rows", nargs="+", default=None, help="rows to run, if not all")


def start_recipe(arguments: Namespace) -> Config:
    from masklab.config import load_recipe

    return load_recipe(_start(arguments))


def _start(arguments: Namespace) -> str:
    """The recipe that the rows change."""
    from masklab.paper.tables import table_rows

    return arguments.recipe or table_rows(arguments.table)[0].start


def ablate(arguments: Namespace) -> None:
    """Train and evaluate every row of one of the paper's tables, on any data set and from any recipe, and write the
    figures beside the paper's. Fields that all rows share can be changed as for `masklab train`, for example
    --train.steps 1000. Run the same command again to continue after an interruption."""
    from masklab.paper.ablate import ablate
    from masklab.training.resume import data_and_run

    start = start_recipe(arguments)
    changed = given_fields(arguments, f"recipe {_start(arguments)}")
    ablate(
        arguments.table,
        *data_and_run(changed),
        arguments.seeds,
        arguments.recipe,
        _changes(changed.model_dump(include={"model", "image", "train"}), start.model_dump()),
        arguments.rows,
    )


def _changes(values: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """The nested fields that differ from those of ``start``."""
    changed = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(start[name], dict):
            value = _changes(value, start[name])
            if value:
                changed[name] = value
        elif value != start[name]:
            changed[name] = value
    return changed
