"""Interface of the layouts of data sets, and helpers that they share.

A layout is one file here with one `Layout`, listed in `masklab.datasets.open.LAYOUTS`:

====================  ==========================================================================================
``Layout.find``       ``find(folder) -> {split: SplitSource}``: the splits of a folder, none where it does not fit;
                      "" is the name of an undivided folder
``SplitSource``       ``pairs()`` lists the images; ``objects(pair, size, sink)`` reads the objects of one of them;
                      ``names()`` are the classes
``Pair``              an image and the files that annotate it
``ObjectMask``        category id, None without classes, and run lengths of one object
====================  ==========================================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from masklab.datasets.problems import Sink
from masklab.images.read import IMAGE_SUFFIXES
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.types import Size

VAL_NAMES = ("valid", "validation")  # other names of the split val
MASK_FOLDERS = ("masks", "labels")
_MASK_ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label")
CELLPOSE_ENDINGS = ("_masks", "_cp_masks")


@dataclass(frozen=True)
class Pair:
    """An image and the files that annotate it: one for all its objects, one for each, or none."""

    image: Path
    masks: tuple[Path, ...]


class ObjectMask(NamedTuple):
    """One annotated object: its category id, None without classes, run lengths, and whether it is a crowd region."""

    category: int | None
    rle: RLE
    crowd: bool = False


@dataclass(frozen=True)
class SplitSource:
    """A split that a folder holds.

    ``pairs`` lists its images.  ``objects`` reads the objects of one of them, given its ``(height, width)``; what
    cannot be used of a single object is reported to the sink and left out.  ``names`` returns the classes by category
    id, the same for all splits of a folder; None where the layout has no classes.  All three raise `InputError`.
    """

    pairs: Callable[[], list[Pair]]
    objects: Callable[[Pair, Size, Sink], list[ObjectMask]]
    names: Callable[[], dict[int, str]] | None = None


@dataclass(frozen=True)
class Layout:
    """A layout: ``name`` chooses it, ``description`` names it in messages, ``find`` returns the splits of a folder.

    ``find`` raises `InputError` for a folder that is surely of this layout but cannot be used.
    """

    name: str
    description: str
    find: Callable[[Path], dict[str, SplitSource]]


def check_names(folder: Path, split: str) -> None:
    """Raise `InputError` unless ``folder`` exists and ``split`` is a plain name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such data set folder; correct the path.")
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", split) or ".." in split:
        raise InputError(f"{split!r} cannot be the name of a split; use a plain name such as train or val.")


def subfolders(folder: Path) -> list[Path]:
    """The folders directly inside one, by name; none where it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and entry.name != "__MACOSX"]
    return sorted(
        path for path in (folder / name for name in names) if os.path.isdir(path)
    )  # a link in a circle is none


def images_in(folder: Path) -> list[Path]:
    """The images directly inside a folder, by name; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(
        folder / name
        for name in os.listdir(folder)
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and name[0] != "."
    )


def is_kaggle_folder(folder: Path) -> bool:
    """Whether a folder holds one image, and masks that are not named after it."""
    if not (folder / "masks").is_dir():
        return False
    images = images_in(folder / "images")
    return len(images) == 1 and image_stem(images[0]) not in map(_name_of_mask, images_in(folder / "masks"))


def image_stem(path: Path) -> str:
    """The file name without its suffix, which may be ``.ome.tif``."""
    return path.stem.removesuffix(".ome")


def _name_of_mask(mask: Path) -> str:
    ending = next((ending for ending in _MASK_ENDINGS if image_stem(mask).endswith(ending)), "")
    return image_stem(mask).removesuffix(ending)


def match_masks(images: list[Path], masks: list[Path], where: Path) -> list[Pair]:
    """Each image with the mask of its name; `InputError` for an image without or with two, and a mask without image."""
    named: dict[str, Path] = {}
    for image in images:
        other = named.setdefault(image_stem(image), image)
        if other is not image:
            raise InputError(f"{other} and {image.name} would have the same mask: rename or remove one.")
    mask_of: dict[str, Path] = {}
    for mask in masks:
        name = _name_of_mask(mask)
        name = next((n for n in (image_stem(mask), name, f"{name}_img") if n in named), name)
        if name not in named:
            raise InputError(f"{mask} belongs to an image {name}, which is missing: restore it or move the mask away.")
        if name in mask_of:
            raise InputError(f"{mask_of[name]} and {mask.name} are masks of the same image: remove one.")
        mask_of[name] = mask
    missing = [image for name, image in named.items() if name not in mask_of]
    if missing:
        raise InputError(
            f"{missing[0]} has no mask in {where} ({len(missing)} of {len(named)} images have none): add the masks, "
            "all zero where there is no object, or move the images away."
        )
    return [Pair(image, (mask_of[name],)) for name, image in named.items()]
