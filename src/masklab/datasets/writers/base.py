"""Interface of the writers of data sets, and helpers that they share.

A writer is one file here with one `Writer`, listed in `masklab.datasets.convert.WRITERS`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from masklab.datasets.layouts.base import image_stem
from masklab.datasets.split import Split
from masklab.images.embedded import copy_image, is_embedded, stored_suffix
from masklab.images.read import IMAGE_SUFFIXES
from masklab.utils.errors import InputError

CROWDS = "crowd regions left out"


class Writer(NamedTuple):
    """A format that data sets are written in.

    ``write(splits, folder)`` fills a folder, one image at a time, and returns for each split how much the format cannot
    hold, by what it is.  ``place`` is where a split is in the folder, for messages.
    """

    place: str
    write: Callable[[Mapping[str, Split], Path], dict[str, Counter[str]]]


def copy(source: Path, target: Path) -> Path:
    """Copy an image to ``target``, whose folder is made if it is missing; returns ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_image(source, target)
    return target


def stored_names(split: Split) -> list[PurePosixPath]:
    """The path of each image in its folder, with the suffix of the image itself where it is embedded in another file."""
    names = map(PurePosixPath, split.images.names())
    return [
        name.with_suffix(stored_suffix(image.path)) if is_embedded(image.path) else name
        for name, image in zip(names, split.images, strict=True)
    ]


def flat_names(split: Split) -> list[str]:
    """A file name for each image, such that all can lie in one folder beside files of the same names without suffix.

    Names that differ in their suffix or in case alone get the names of their folders, and a number where that is not
    enough.  Raises `InputError` for an image whose suffix readers of folders do not look for.
    """
    paths = stored_names(split)
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(
                f"{split.folder / path} would not be found in a folder, where images end in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}: rename it, or convert to coco."
            )
    times = Counter(_key(path.name) for path in paths)
    taken: set[str] = set()
    return [_free_name(path, times, taken) for path in paths]


def _free_name(path: PurePosixPath, times: Mapping[str, int], taken: set[str]) -> str:
    name = (path.name if times[_key(path.name)] == 1 else "_".join(path.parts)).lstrip(".")
    stem, number = image_stem(Path(name)), 1
    suffix = name[len(stem) :]
    while _key(name) in taken:
        number += 1
        name = f"{stem}_{number}{suffix}"
    taken.add(_key(name))
    return name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", image_stem(Path(name))).casefold()


def class_names(splits: Mapping[str, Split]) -> dict[int, str]:
    """The classes of all splits by category id; `InputError` where two splits name one id differently."""
    names: dict[int, str] = {}
    for split in splits.values():
        for number, name in zip(split.categories.ids, split.categories.names, strict=True):
            if names.setdefault(number, name) != name:
                raise InputError(
                    f"{split.json_path} calls category {number} {name!r} but another split calls it "
                    f"{names[number]!r}: give both the same categories."
                )
    return dict(sorted(names.items()))
