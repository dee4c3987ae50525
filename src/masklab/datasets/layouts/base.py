"""Interface of the layouts of data sets, and helpers that they share.

A layout is one file here with one `Layout`, listed in `masklab.datasets.layouts.registry.LAYOUTS`:

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
    id, the same for all splits of a folder, empty where this folder has none; None where the layout has no classes.
    All three raise `InputError`.
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
    if not re.fullmatch(r"[\w. ()+,-]*\w[\w. ()+,-]*", split) or ".." in split:
        raise InputError(f"{folder}: {split!r} cannot be the name of a split; use a plain name such as train or val.")


def subfolders(folder: Path) -> list[Path]:
    """The folders directly inside one, by name; none where it does not exist."""
    names = [entry.name for entry in _entries(folder) if entry.name[0] != "." and entry.name != "__MACOSX"]
    return sorted(folder / name for name in names if os.path.isdir(folder / name))  # a link in a circle is none


def images_in(folder: Path) -> list[Path]:
    """The images directly inside a folder, by name; none where it does not exist."""
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path) -> list[str]:
    """The file names of `images_in`, which cost less than the paths."""
    names = sorted(entry.name for entry in _entries(folder) if entry.name[0] != ".")
    return [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where it does not exist.  Raises `InputError` where it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): make it readable or move it away.") from None


def image_stem(path: Path) -> str:
    """The file name without its suffix, which may be ``.ome.tif``."""
    return path.stem.removesuffix(".ome")
