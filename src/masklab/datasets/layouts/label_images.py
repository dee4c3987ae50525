"""Label images in a folder of their own: ``images/`` with ``masks/``, one whole number per object.

Other names of the two folders, and how their files belong together, are in `masklab.datasets.layouts.pairing`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import Layout, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.label_classes import classified, has_classes
from masklab.datasets.layouts.masks import label_objects
from masklab.datasets.layouts.pairing import folder_role, is_kaggle_folder, match_masks
from masklab.utils.errors import InputError


def _find(folder: Path) -> dict[str, SplitSource]:
    """Folders of images and of masks, undivided, inside each split, named after a split, or divided into splits."""
    images, masks = _by_split(folder, "images"), _by_split(folder, "masks")
    found: dict[str, SplitSource] = {}
    for split in [split for split in images if split in masks]:
        for places in (images[split], masks[split]):
            if len(places) > 1:
                names = " and a folder ".join(place.relative_to(folder).as_posix() for place in places)
                raise InputError(f"{folder} has both a folder {names} with images: move one away.")
        if not is_kaggle_folder(images[split][0].parent):
            pairs, own = partial(_pairs_of_folders, images[split][0], masks[split][0]), masks[split][0]
            found[split] = classified(pairs, folder) if has_classes(own) else SplitSource(pairs, label_objects)
    return found


def _by_split(folder: Path, wanted: str) -> dict[str, list[Path]]:
    """The folders of images, or of masks, by split.  A folder ``masks`` counts even where it is empty."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for split, place in _places(folder, wanted):
        if images_in(place) or "masks" in (place.name, place.parent.name):
            found[split].append(place)
    return found


def _places(folder: Path, wanted: str) -> Iterator[tuple[str, Path]]:
    for sub in subfolders(folder):
        role, split = folder_role(sub) or ("", "")
        if role == wanted:
            yield split, sub
        if role == wanted and not split:
            yield from ((inner.name, inner) for inner in subfolders(sub))
        if not role:
            yield from ((sub.name, inner) for inner in subfolders(sub) if folder_role(inner) == (wanted, ""))


def _pairs_of_folders(images: Path, masks: Path) -> list[Pair]:
    return match_masks(images_in(images), images_in(masks), masks)


LABEL_IMAGES = Layout("label_images", "label images (images, and masks or labels)", _find)
