"""Label images beside their images: Cellpose's ``x.png`` and ``x_masks.png``, ``x_rgb.png`` and ``x_label.png``.

Other endings are in `masklab.datasets.layouts.pairing`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import Layout, Pair, SplitSource, image_names, image_stem, images_in, subfolders
from masklab.datasets.layouts.masks import label_objects
from masklab.datasets.layouts.notes import inform_once
from masklab.datasets.layouts.pairing import (
    ImageFinder,
    folder_role,
    have_mask_word,
    is_image_name,
    is_mask_name,
    match_masks,
)

_ENDINGS = ("_masks", "_cp_masks")  # which Cellpose writes, so that they need an image
_OTHERS = ("_flows", "_cp_flows", "_cp_output", "_cp_outlines")


def _find(folder: Path) -> dict[str, SplitSource]:
    """Images beside label images, undivided or by split."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder) if folder_role(sub) is None)]
    return {split: SplitSource(partial(_pairs_beside, place), label_objects) for split, place in places if _fits(place)}


def _fits(folder: Path) -> bool:
    if not have_mask_word(image_names(folder)):
        return False
    images, masks = _divided(folder)
    finder = ImageFinder(images)
    return any(image_stem(mask).endswith(_ENDINGS) or finder.image_of(mask) for mask in masks)


def _divided(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images and the label images of a folder, by name."""
    paths = [path for path in images_in(folder) if not image_stem(path).endswith(_OTHERS)]
    return [path for path in paths if not is_mask_name(path)], [path for path in paths if is_mask_name(path)]


def _pairs_beside(folder: Path) -> list[Pair]:
    """Each image with its label image.

    Where most label images belong to images that are called so, such as ``x_rgb.png``, other images are left out.
    """
    images, masks = _divided(folder)
    called = [image for image in images if is_image_name(image)]
    finder = ImageFinder(called)
    if 2 * sum(finder.image_of(mask) is not None for mask in masks) > len(masks):
        others = len(images) - len(called)
        if others:
            inform_once(f"{folder}: {others} files beside images such as {called[0].name} are left out.")
        images = called
    return match_masks(images, masks, folder)


CELLPOSE = Layout("cellpose", "Cellpose (x_masks.png or .tif beside x.png, also x_label.png beside x_rgb.png)", _find)
