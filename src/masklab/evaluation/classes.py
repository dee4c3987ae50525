"""Opening of a split whose classes a model is to be measured on."""

from __future__ import annotations

import logging
from typing import NamedTuple

from masklab.datasets.class_names import match_classes
from masklab.datasets.open import open_split
from masklab.datasets.source import Data
from masklab.datasets.split import Split
from masklab.structures import ClassTable

_log = logging.getLogger(__name__)


class ModelSplit(NamedTuple):
    """A split under the labels of a model; the labels that both have, and a note on what differs, "" for nothing."""

    split: Split
    labels: frozenset[int]
    note: str


def open_for_model(classes: ClassTable, data: Data, split: str) -> ModelSplit:
    """Open a split of a data set and match its classes with those of a model by name (see `match_classes`).

    Objects of classes that the model does not know are left out.  What differs is logged.  Raises `InputError` for data
    that cannot be used and where no class is matched.
    """
    source = open_split(data, split)
    match = match_classes(classes, source.categories, source.json_path, source.used_categories)
    source.relabel(classes, match.labels)
    if match.note:
        _log.info(f"{source.json_path}: {match.note}.")
    return ModelSplit(source, frozenset(match.labels.values()), match.note)
