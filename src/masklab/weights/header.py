"""What a file with a model says of it besides the weights: configuration, classes, threshold, training data.  Works without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from masklab.config.fields import MOST_PIXELS
from masklab.config.migrate import migrate_config
from masklab.config.schema import DATA_AND_OUTPUT, Config, validate
from masklab.structures import ClassTable, TrainingData
from masklab.utils.errors import InputError

if TYPE_CHECKING:
    from masklab.model.masklab import MaskLab

T = TypeVar("T")


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


def header_value(header: Mapping[str, str], name: str, type_: type[T], path: str | Path) -> T:
    """A JSON value of a header; `InputError` names the file if the value is missing or not of ``type_``."""
    try:
        value = json.loads(header[name])
    except (LookupError, ValueError, RecursionError):
        value = ...
    if not isinstance(value, type_):
        raise InputError(f"{path}: the {name} of its header cannot be read: use the file as it was written.")
    return value


def class_table(header: Mapping[str, str], path: Path) -> ClassTable:
    """The classes of a header; `InputError` where they form no table."""
    given = header_value(header, "classes", dict, path)
    ids, names = given.get("ids"), given.get("names")
    if not isinstance(ids, list) or not isinstance(names, list) or len(ids) != len(names):
        raise InputError(
            f"{path}: the classes of its header do not form a class table: use the file as it was written."
        )
    table = ClassTable.from_categories([{"id": i, "name": n} for i, n in zip(ids, names, strict=True)], path)
    if table.ids != tuple(ids):
        raise InputError(f"{path}: the classes of its header are not in order: use the file as it was written.")
    return table


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
    except (TypeError, KeyError, ValueError):
        raise InputError(
            f"{path}: the training_data of its header is damaged: use the file as it was written."
        ) from None
    return TrainingData((int(size[0]), int(size[1])), *numbers[2:])
