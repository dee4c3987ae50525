"""Kaggle 2018: ``ID/images/x.png`` with a bitmap for each object in ``ID/masks/``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.masks import check_size, read_numbers
from masklab.datasets.layouts.pairing import is_kaggle_folder
from masklab.datasets.problems import Sink
from masklab.masks import encode
from masklab.utils.errors import InputError
from masklab.utils.types import Size
from masklab.utils.words import counted


def _find(folder: Path) -> dict[str, SplitSource]:
    """Folders ``ID/images/x.png`` with ``ID/masks/*.png``, one mask per object, undivided or inside each split."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder))]
    return {
        split: SplitSource(partial(_pairs_of_ids, place), _bitmap_objects)
        for split, place in places
        if any(is_kaggle_folder(sub) for sub in subfolders(place))
    }


def _pairs_of_ids(folder: Path) -> list[Pair]:
    pairs = []
    for sub in subfolders(folder):
        images = images_in(sub / "images")
        if len(images) != 1 or not (sub / "masks").is_dir():
            raise InputError(
                f"{sub} has {counted(len(images), 'image')} in images and {'a' if (sub / 'masks').is_dir() else 'no'} folder "
                "masks, but needs one image and the masks: restore them or move it away."
            )
        pairs.append(Pair(images[0], tuple(images_in(sub / "masks"))))
    return pairs


def _bitmap_objects(pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
    """One object per mask: the pixels that are not 0 in some channel."""
    objects: list[ObjectMask] = []
    for mask in pair.masks:
        bits = check_size(np.any(read_numbers(mask), axis=2), pair, mask, size)
        runs = encode.encode_labels(bits)[1] or [np.array([bits.size])]
        objects.append(ObjectMask(None, runs[0]))
    return objects


KAGGLE = Layout("kaggle", "Kaggle 2018 (ID/images, ID/masks)", _find)
