"""Label images: ``images/`` with ``masks/`` or ``labels/``, one whole number per object."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import (
    MASK_FOLDERS,
    Layout,
    Pair,
    SplitSource,
    images_in,
    is_kaggle_folder,
    match_masks,
    subfolders,
)
from masklab.datasets.layouts.label_classes import classified, has_classes
from masklab.datasets.layouts.masks import label_objects
from masklab.utils.errors import InputError


def _find(folder: Path) -> dict[str, SplitSource]:
    """Folders ``images`` with ``masks`` or ``labels``, undivided, inside each split, or divided into splits."""
    found: dict[str, SplitSource] = {}
    for split, images, masks in _image_and_mask_folders(folder):
        if split in found:
            raise InputError(f"{masks.parent} has both a folder masks and a folder labels with images: move one away.")
        pairs = partial(_pairs_of_folders, images, masks)
        found[split] = SplitSource(pairs, label_objects) if not has_classes(masks) else classified(pairs, folder)
    return found


def _image_and_mask_folders(folder: Path) -> Iterable[tuple[str, Path, Path]]:
    for place in (folder, *subfolders(folder)):
        for word in MASK_FOLDERS:
            if _are_label_images(place / "images", place / word) and not is_kaggle_folder(place):
                yield ("" if place == folder else place.name), place / "images", place / word
    for images in subfolders(folder / "images"):
        for word in MASK_FOLDERS:
            if _are_label_images(images, folder / word / images.name):
                yield images.name, images, folder / word / images.name


def _are_label_images(images: Path, masks: Path) -> bool:
    """Whether both folders hold images; ``labels/`` without images may be YOLO's."""
    return bool(images_in(images)) and masks.is_dir() and ("masks" in masks.parts[-2:] or bool(images_in(masks)))


def _pairs_of_folders(images: Path, masks: Path) -> list[Pair]:
    return match_masks(images_in(images), images_in(masks), masks)


LABEL_IMAGES = Layout("label_images", "label images (images, and masks or labels)", _find)
