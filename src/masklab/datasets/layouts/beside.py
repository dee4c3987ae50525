"""Annotation files that have the names of their images and lie beside them, or in a folder beside theirs."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from masklab.datasets.layouts.base import VAL_NAMES, Pair, image_stem, images_in, subfolders
from masklab.utils.errors import InputError

SPLIT_NAMES = frozenset({"train", "training", "val", *VAL_NAMES, "test", "testing"})
_IMAGE_WORDS = ("image", "img")
_OTHER_WORDS = ("mask", "label", "overlay", "result", "predict")
_log = logging.getLogger(__name__)

Files = Callable[[Path], list[Path]]
"""The annotation files of a layout directly inside a folder."""
Names = Callable[[Path], Iterable[str]]
"""The names that the image of a file may have, with or without suffix, the likeliest first; none if it annotates none."""


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files directly inside a folder with one of the suffixes, in any case, by name; hidden ones left out."""
    if not folder.is_dir():
        return []
    return sorted(folder / name for name in os.listdir(folder) if name.lower().endswith(suffixes) and name[0] != ".")


def find_beside(folder: Path, files: Files, names: Names) -> dict[str, Callable[[], list[Pair]]]:
    """The splits of a folder, each a function that lists its pairs.

    Annotations lie beside their images, or images and annotations have a folder each, inside the folder, inside the
    folder of each split, or divided into splits themselves (``images/train`` and ``labels/train``).  Folders that are
    not called as splits are joined into one undivided pool.
    """
    places: dict[str, tuple[Path, Path]] = {}
    if where := _locate(folder, files, names):
        places[""] = where
    for sub in subfolders(folder):
        if sub.name in SPLIT_NAMES or not where:
            if inside := _locate(sub, files, names):
                places[sub.name] = inside
                continue
            for part in subfolders(sub):
                others = [other / part.name for other in subfolders(folder) if other != sub]
                if part.name in SPLIT_NAMES and (images := _images_of(part, [*others], files, names)):
                    places[part.name] = images, part
    return join_pools({split: _lister(*place, files, names) for split, place in places.items()})


def join_pools(found: dict[str, Callable[[], list[Pair]]]) -> dict[str, Callable[[], list[Pair]]]:
    """The same where a folder is called as a split; else one undivided pool of all of them."""
    if not found or SPLIT_NAMES & set(found):
        return found
    return {"": lambda: [pair for pairs in found.values() for pair in pairs()]}


def key(name: str) -> str:
    """A file name for comparison: accents may be stored in two ways."""
    return unicodedata.normalize("NFC", name)


def _locate(place: Path, files: Files, names: Names) -> tuple[Path, Path] | None:
    """The folders of images and annotations at a place, or None."""
    if _images_of(place, [place], files, names):
        return place, place
    subs = subfolders(place)
    for sub in subs:
        if _images_of(sub, [sub], files, names):
            continue
        if images := _images_of(sub, [place, *(other for other in subs if other != sub)], files, names):
            return images, sub
    return None


def _images_of(annotations: Path, candidates: list[Path], files: Files, names: Names) -> Path | None:
    """The folder among the candidates that holds the images of the annotations of a folder."""
    own = files(annotations)
    if not own:
        return None
    tables = [(folder, table) for folder in candidates if (table := _image_table(images_in(folder)))]
    fitting = [folder for folder, table in tables if any(key(name) in table for path in own for name in names(path))]
    if len(fitting) > 1:
        likely = [f for f in fitting if any(word in f.name.lower() for word in _IMAGE_WORDS)] or fitting
        fitting = [f for f in likely if not any(word in f.name.lower() for word in _OTHER_WORDS)] or likely
    if len(fitting) > 1:
        raise InputError(
            f"{annotations} fits the images of both {fitting[0]} and {fitting[1].name}: move one of these away."
        )
    return fitting[0] if fitting else None


def _image_table(images: list[Path]) -> dict[str, Path]:
    """Images by file name, and by name without suffix."""
    table = {key(name): image for image in images for name in (image.stem, image_stem(image))}
    return table | {key(image.name): image for image in images}


def _lister(images: Path, annotations: Path, files: Files, names: Names) -> Callable[[], list[Pair]]:
    return lambda: _pairs(images, annotations, files, names)


def _pairs(folder: Path, annotations: Path, files: Files, names: Names) -> list[Pair]:
    images = images_in(folder)
    table = _image_table(images)
    found: dict[Path, Path] = {}
    for path in (path for path in files(annotations) if any(names(path))):
        image = next((table[key(name)] for name in names(path) if key(name) in table), None)
        if image is None:
            raise InputError(
                f"{path} belongs to an image {path.stem}, which is not in {folder}: restore it or move the file away."
            )
        if image in found:
            raise InputError(f"{found[image]} and {path.name} annotate the same image {image.name}: remove one.")
        found[image] = path
    without = [image for image in images if image not in found]
    for image in without:
        twin = next((path for path in found if path.stem == image.stem), None)
        if twin:
            raise InputError(
                f"{image} and {twin.name} have one annotation file, {found[twin].name}: rename or remove one."
            )
    if without:
        _log.warning(
            "%s: %d of %d images have no annotation file, such as %s; they are left out.",
            folder, len(without), len(images), without[0].name,
        )  # fmt: skip
    return [Pair(image, (found[image],)) for image in images if image in found]
