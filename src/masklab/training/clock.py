"""``train.minutes``: the number of steps that fit into a time, fixed before the first step.

The steps are measured on the run's own first batches, after which the network is put back, so a run by the clock is, bit
for bit, the run that the same ``train.steps`` would have given; what was measured is written to ``config.yaml`` and a
resumed run reads it there.  Nothing is planned anew later: on a machine that becomes slower the run takes longer by as
much, which the log shows, and its schedule stays as written.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from masklab.config.migrate import migrate_config
from masklab.config.nested import flatten
from masklab.config.schema import Config
from masklab.config.train import TrainConfig
from masklab.utils.errors import InputError
from masklab.utils.files import read_yaml

_PLANNED = ("steps", "warmup_steps", "validate_every", "ema")


class Pace(NamedTuple):
    """Seconds that were measured: of one step, of one validation, of what is ``spent`` already and what comes ``after``."""

    step: float
    validation: float
    spent: float
    after: float


def plan(settings: TrainConfig, pace: Pace) -> TrainConfig:
    """The settings of a run of ``settings.minutes``: the steps that fit beside the validations, at least one.

    Warm-up, distance of validations and memory of the average keep their share of the run: all are scaled as the steps
    are.  The validations keep their number.
    """
    if settings.minutes is None:
        return settings
    validations = math.ceil(settings.steps / settings.validate_every)
    left = settings.minutes * 60 - pace.spent - pace.after - validations * pace.validation
    steps = max(1, int(left / pace.step))
    scale = steps / settings.steps
    changed = {
        "steps": steps,
        "warmup_steps": round(settings.warmup_steps * scale),
        "validate_every": max(1, math.ceil(settings.validate_every * scale)),
        "ema": None if settings.ema is None else settings.ema ** (1 / scale),
    }
    return settings.model_copy(update=changed)


def with_plan_of(run: Path, config: Config) -> Config:
    """The configuration with the plan that a run by the clock was started with, to resume it.

    Raises `InputError` if the run's ``config.yaml`` is missing or damaged.
    """
    if config.train.minutes is None:
        return config
    written = run / "config.yaml"
    values = read_yaml(written, written)
    there = flatten(migrate_config(values)) if isinstance(values, dict) else {}
    try:
        planned = {name: there[f"train.{name}"] for name in _PLANNED}
        # checked, as a file that was edited may hold anything
        settings = TrainConfig.model_validate(config.train.model_dump() | planned)
    except (LookupError, ValueError):
        raise InputError(f"{written} is damaged: bring it back to go on, or give another output folder.") from None
    return config.model_copy(update={"train": settings})
