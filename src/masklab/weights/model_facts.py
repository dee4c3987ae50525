"""What a file with a model says of it besides the weights: configuration, classes, threshold, training data.  Works without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masklab.config.fields import MOST_PIXELS
from masklab.config.migrate import migrate_config
from masklab.config.schema import DATA_AND_OUTPUT, Config, validate
from masklab.structures import ClassTable, Looks, TrainingData
from masklab.utils.errors import InputError
from masklab.weights.facts import class_table
from masklab.weights.header import header_value

if TYPE_CHECKING:
    from masklab.model.masklab import MaskLab


class ModelFacts(NamedTuple):
    """What a model carries besides its weights; see `masklab.model.masklab.MaskLab`."""

    config: Config
    classes: ClassTable
    score_threshold: float | None
    training_data: TrainingData | None


def header_of(model: MaskLab) -> dict[str, str]:
    """The facts of a model as a header of texts."""
    config = model.config.model_dump(mode="json")
    for field in DATA_AND_OUTPUT:
        del config[field]
    config["model"]["backbone"] |= {"weights": None, "segmentation_weights": None}
    config["train"]["start_from"] = None
    return {
        "config": json.dumps(config),
        "classes": json.dumps({"ids": model.classes.ids, "names": model.classes.names}),
        "score_threshold": json.dumps(model.score_threshold),
        "training_data": json.dumps(model.training_data and asdict(model.training_data)),
    }


def read_facts(header: Mapping[str, str], path: Path) -> ModelFacts:
    """The facts of a header; `InputError` names the file ``path`` where it is damaged."""
    config = validate(migrate_config(header_value(header, "config", dict, path)), str(path))
    threshold: Any = header_value(header, "score_threshold", object, path)
    if not (threshold is None or (isinstance(threshold, (int, float)) and 0 <= threshold <= 1)):
        raise InputError(
            f"{path}: its score_threshold is {threshold}, not from 0 to 1: use the file as it was written."
        )
    return ModelFacts(config, class_table(header, path), threshold, training_data(header, path))


def training_data(header: Mapping[str, str], path: Path) -> TrainingData | None:
    """What a model was trained on; None in files that do not say it."""
    if header.get("training_data", "null") == "null":
        return None
    given = header_value(header, "training_data", dict, path)
    try:
        size, sides = given["image_size"], (given["smallest_object"], given["largest_object"])
        numbers = [float(number) for number in (*size, *sides)]
        if len(size) != 2 or not all(0 < number < MOST_PIXELS * 64 for number in numbers):
            raise ValueError
        looks = None if given.get("looks") is None else Looks(*(float(number) for number in given["looks"]))
    except (TypeError, KeyError, ValueError):
        raise InputError(
            f"{path}: the training_data of its header is damaged: use the file as it was written."
        ) from None
    return TrainingData((int(size[0]), int(size[1])), numbers[2], numbers[3], looks)
