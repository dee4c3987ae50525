"""Cellpose: ``x_masks.png`` or ``.tif``, or ``x_seg.npy`` of its graphical interface, beside ``x.png``.

Where an image has both, the label image is read, which Cellpose itself trains on.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import (
    CELLPOSE_ENDINGS,
    MASK_FOLDERS,
    Layout,
    ObjectMask,
    Pair,
    SplitSource,
    image_stem,
    images_in,
    match_masks,
    name_of_mask,
    subfolders,
)
from masklab.datasets.layouts.cellpose_npy import image_name, label_image
from masklab.datasets.layouts.masks import check_size, label_objects
from masklab.datasets.problems import Sink
from masklab.masks import encode
from masklab.utils.errors import InputError
from masklab.utils.types import Size

_CELLPOSE_OTHERS = ("_flows", "_cp_flows", "_cp_output", "_cp_outlines")
_SEG = "_seg.npy"


def is_cellpose_folder(folder: Path) -> bool:
    """Whether a folder holds masks as Cellpose saves them."""
    return any(image_stem(path).endswith(CELLPOSE_ENDINGS) for path in images_in(folder)) or bool(_segs_in(folder))


def _find(folder: Path) -> dict[str, SplitSource]:
    """Images ``x.png`` or ``x_img.png`` beside ``x_masks.png``, ``.tif`` or ``x_seg.npy``, undivided or by split."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder))]
    return {
        split: SplitSource(partial(_pairs_beside, place), _objects)
        for split, place in places
        if split not in ("images", *MASK_FOLDERS) and is_cellpose_folder(place)
    }


def _segs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(folder / name for name in os.listdir(folder) if name.lower().endswith(_SEG) and name[0] != ".")


def _pairs_beside(folder: Path) -> list[Pair]:
    paths = [path for path in images_in(folder) if not image_stem(path).endswith(_CELLPOSE_OTHERS)]
    masks = [path for path in paths if image_stem(path).endswith(CELLPOSE_ENDINGS)]
    images = {image_stem(path): path for path in paths if path not in set(masks)}
    covered = {name_of_mask(mask).removesuffix("_img") for mask in masks}
    renamed: list[Pair] = []
    for seg in _segs_in(folder):
        name = name_of_mask(seg)
        if name.removesuffix("_img") in covered:
            continue
        if name in images or f"{name}_img" in images:
            masks.append(seg)
            continue
        image = folder / image_name(seg)
        if image not in images.values():
            raise InputError(f"{seg} belongs to an image {name}, which is missing: restore it or move the file away.")
        renamed.append(Pair(image, (seg,)))
    others = [path for path in paths if path not in {*masks, *(pair.image for pair in renamed)}]
    return sorted([*match_masks(others, masks, folder), *renamed], key=lambda pair: pair.image)


def _objects(pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
    path = pair.masks[0]
    if path.suffix.lower() != ".npy":
        return label_objects(pair, size, sink)
    return [ObjectMask(None, runs) for runs in encode.encode_labels(check_size(label_image(path), pair, path, size))[1]]


CELLPOSE = Layout("cellpose", "Cellpose (x_masks.png or .tif, or x_seg.npy, beside x.png)", _find)
