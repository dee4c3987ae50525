"""Check of classes: their table, their use, and those that another split lacks."""

from __future__ import annotations

from masklab.datasets.check.split import LenientSplit
from masklab.structures import ClassTable
from masklab.utils.errors import InputError


def check_classes(split: LenientSplit, train: ClassTable | None) -> ClassTable | None:
    """Compare the categories of a split with their use and with those of the first split, ``train``.

    Returns the table to compare the next split with.
    """
    for number, name in split.names.items():
        if number not in split.used:
            split.add("unused category", f"{number} ({name})")
    if split.categories is None:
        return train
    try:
        own = ClassTable.from_categories(split.categories, split.json_path)
    except InputError as error:
        split.add("unusable categories", str(error))
        return train
    if train is None:
        return own
    try:
        train.check_covers(own, split.json_path)
    except InputError as error:
        split.add("category not in train", str(error))
    return train
