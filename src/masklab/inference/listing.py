"""Ids that a COCO JSON gives to images and classes, for results that are to be compared with it."""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from masklab.datasets.class_names import match_classes
from masklab.datasets.coco_document import CocoDocument
from masklab.datasets.image_table import id_of, is_id, name_key
from masklab.images.read import IMAGE_SUFFIXES
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.utils.types import Size
from masklab.utils.words import counted, listed

_log = logging.getLogger(__name__)

_Parts = tuple[str, ...]  # of a path, its file name last


class ListedImage(NamedTuple):
    """An image as a JSON lists it; ``size`` is (height, width), None where it gives none."""

    image_id: int | str
    file_name: str
    size: Size | None


@dataclass(frozen=True)
class Listing:
    """What a COCO JSON calls images and classes.

    ``images`` has those of the given images that it lists, ``category_ids`` its own id of each label of the model that
    it has a class for; None where it has no classes, so that the model's own ids stand.  ``class_names`` has the name of
    each of its category ids.
    """

    images: dict[Path, ListedImage]
    category_ids: dict[int, int] | None
    class_names: dict[int, str]


def read_listing(path: str | Path, images: Sequence[Path], classes: ClassTable) -> Listing:
    """Find images and the classes of a model in a COCO JSON.

    Images are found as `match_images` does.  Classes are matched by name (see `match_classes`).  What is left out on
    either side is logged.  Raises `InputError` for a file that is no such JSON, where several entries fit an image, and where it
    lists none of the images or has none of the classes.
    """
    path = Path(path)
    document = CocoDocument.read(path, ("images",))
    entries = [_read_entry(entry, path) for entry in document.images]
    found = match_images(images, entries, path)
    if not found:
        raise InputError(
            f"{path} lists none of the images, such as {images[0]}: name the JSON that they belong to, or leave it out."
        )
    if unlisted := sum(image not in found for image in images):
        _log.warning("%s not listed in %s and left out", _are(unlisted, len(images)), path)
    if missing := len(entries) - len(found):
        _log.info(f"{_are(missing, len(entries))} listed in {path} but not given: they get no results")
    return Listing(found, *_categories(document, classes))


def _are(some: int, total: int) -> str:
    return f"{some} of {counted(total, 'image')} {'is' if some == 1 else 'are'}"


def _read_entry(entry: Any, path: Path) -> ListedImage:
    image_id = id_of(entry)
    if image_id is None:
        raise InputError(f"{path}: an entry of images has no id; correct the file.")
    name = entry.get("file_name") or entry.get("coco_url")  # LVIS has addresses alone
    if not isinstance(name, str):
        raise InputError(f"{path}: image {image_id} has no file_name; correct the file.")
    height, width = (entry.get(key) for key in ("height", "width"))
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return ListedImage(image_id, name, size)


def _parts(name: str) -> _Parts:
    """The parts of a path on any system; accents that are letters of their own are joined to theirs."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", "."))


def match_images(images: Sequence[Path], entries: Sequence[ListedImage], source: str | Path) -> dict[Path, ListedImage]:
    """The entry of each image that has one; ``source`` names the file of the entries in messages.

    It is the entry whose ``file_name`` is the end of the image's path, the longest such; else the one whose file name
    without folders is the same.  Where no image is called so, letters may differ in case, and the suffix may be missing
    from the entry.  Raises `InputError` where several entries fit an image or have one id.
    """
    seen: dict[int | str, ListedImage] = {}
    for entry in entries:
        if (first := seen.setdefault(entry.image_id, entry)) is not entry:
            raise InputError(
                f"{source}: image id {entry.image_id} occurs twice, for {first.file_name} and {entry.file_name}; "
                "give each image its own id."
            )
    found: dict[Path, ListedImage] = {}
    parts = {image: _parts(str(image.absolute())) for image in images}
    for likeness in (_as_written, _in_any_case, _without_suffix):
        taken = {entry.image_id for entry in found.values()}
        names = _Names(likeness, (entry for entry in entries if entry.image_id not in taken))
        for image in images:
            fitting = [] if image in found else names.fitting(parts[image])
            if len(fitting) > 1:
                several = listed(f"{entry.file_name} (id {entry.image_id})" for entry in fitting)
                raise InputError(
                    f"{image} may be any of several images of {source}, {several}: give each its own file_name."
                )
            if fitting:
                found[image] = fitting[0]
    return found


def _as_written(parts: _Parts) -> _Parts:
    return parts


def _in_any_case(parts: _Parts) -> _Parts:
    return tuple(map(name_key, parts))


def _without_suffix(parts: _Parts) -> _Parts:
    """A path without the suffix of an image."""
    folded = _in_any_case(parts)
    stem, dot, suffix = folded[-1].rpartition(".") if folded else ("", "", "")
    return (*folded[:-1], stem) if stem and dot + suffix in IMAGE_SUFFIXES else folded


class _Names:
    """Entries by their paths and by their names alone, brought into one form."""

    def __init__(self, likeness: Callable[[_Parts], _Parts], entries: Iterable[ListedImage]) -> None:
        self._likeness = likeness
        self._by_path: defaultdict[_Parts, list[ListedImage]] = defaultdict(list)
        self._by_name: defaultdict[_Parts, list[ListedImage]] = defaultdict(list)
        for entry in entries:
            parts = _parts(entry.file_name)
            if likeness is _without_suffix and likeness(parts) != _in_any_case(parts):
                continue  # a.jpg is not a.png
            self._by_path[likeness(parts)].append(entry)
            self._by_name[likeness(parts)[-1:]].append(entry)

    def fitting(self, parts: _Parts) -> list[ListedImage]:
        """The entries whose path is the longest end of an image's, else those of the same name."""
        own = self._likeness(parts)
        ends = (own[start:] for start in range(len(own)))
        return next((self._by_path[end] for end in ends if end in self._by_path), self._by_name.get(own[-1:], []))


def _categories(document: CocoDocument, classes: ClassTable) -> tuple[dict[int, int] | None, dict[int, str]]:
    """The JSON's own id of each label of the model, and the names of all its ids."""
    path = document.path
    if not document.categories:
        _log.info(f"{path} has no categories: results have the category ids of the model")
        return None, {}
    given = (header.category_id for header in document.annotations.headers())
    used = {number for number in given if isinstance(number, int) and is_id(number)}
    table = ClassTable.from_categories(document.classes(used), path)
    match = match_classes(classes, table, path, used or None)
    if match.note:
        _log.info(f"{path}: {match.note}.")
    category_ids: dict[int, int] = {}
    for number in sorted(match.labels, key=lambda number: number not in used):
        category_ids.setdefault(match.labels[number], number)
    return category_ids, dict(zip(table.ids, table.names, strict=True))
