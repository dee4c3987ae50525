"""Cellpose: ``x_masks.png`` or ``.tif`` beside ``x.png``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import (
    CELLPOSE_ENDINGS,
    MASK_FOLDERS,
    Layout,
    Pair,
    SplitSource,
    image_stem,
    images_in,
    match_masks,
    subfolders,
)
from masklab.datasets.layouts.masks import label_objects

_CELLPOSE_OTHERS = ("_flows", "_cp_flows", "_cp_output", "_cp_outlines")


def _find(folder: Path) -> dict[str, SplitSource]:
    """Images ``x.png`` or ``x_img.png`` beside label images ``x_masks.png`` or ``.tif``, undivided or by split."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder))]
    return {
        split: SplitSource(partial(_pairs_beside, place), label_objects)
        for split, place in places
        if split not in ("images", *MASK_FOLDERS)
        and any(image_stem(path).endswith(CELLPOSE_ENDINGS) for path in images_in(place))
    }


def _pairs_beside(folder: Path) -> list[Pair]:
    paths = [path for path in images_in(folder) if not image_stem(path).endswith(_CELLPOSE_OTHERS)]
    masks = [path for path in paths if image_stem(path).endswith(CELLPOSE_ENDINGS)]
    return match_masks([path for path in paths if path not in set(masks)], masks, folder)


CELLPOSE = Layout("cellpose", "Cellpose (x_masks.png or .tif beside x.png)", _find)
