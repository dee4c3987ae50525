"""Label images beside their images: Cellpose's ``x.png`` and ``x_masks.png``, ``x_rgb.png`` and ``x_label.png``.

Other endings are in `masklab.datasets.layouts.pairing`.  Cellpose's graphical interface writes ``x_seg.npy``; where an
image has both, the label image is read, which Cellpose itself trains on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import (
    Layout,
    ObjectMask,
    Pair,
    SplitSource,
    image_names,
    image_stem,
    images_in,
    subfolders,
)
from masklab.datasets.layouts.beside import files_in
from masklab.datasets.layouts.cellpose_npy import image_name, label_image
from masklab.datasets.layouts.masks import check_size, label_objects
from masklab.datasets.layouts.notes import inform_once
from masklab.datasets.layouts.pairing import (
    ImageFinder,
    folder_role,
    have_mask_word,
    is_image_name,
    is_mask_name,
    match_masks,
)
from masklab.datasets.problems import Sink
from masklab.masks import encode
from masklab.utils.errors import InputError
from masklab.utils.types import Size

_ENDINGS = ("_masks", "_cp_masks")  # which Cellpose writes, so that they need an image
_OTHERS = ("_flows", "_cp_flows", "_cp_output", "_cp_outlines")
_SEG = "_seg.npy"


def is_cellpose_folder(folder: Path) -> bool:
    """Whether a folder holds masks as Cellpose saves them."""
    return any(image_stem(path).endswith(_ENDINGS) for path in images_in(folder)) or bool(files_in(folder, (_SEG,)))


def _find(folder: Path) -> dict[str, SplitSource]:
    """Images beside label images, undivided or by split."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder) if folder_role(sub) is None)]
    return {split: SplitSource(partial(_pairs_beside, place), _objects) for split, place in places if _fits(place)}


def _fits(folder: Path) -> bool:
    if files_in(folder, (_SEG,)):
        return True
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
    arrays = _arrays(folder, images, masks)
    rest = match_masks([image for image in images if image not in arrays], masks, folder)
    return sorted([*rest, *(Pair(image, (path,)) for image, path in arrays.items())], key=lambda pair: pair.image)


def _arrays(folder: Path, images: list[Path], masks: list[Path]) -> dict[Path, Path]:
    """The ``_seg.npy`` files of the images that have no label image."""
    finder, known = ImageFinder(images), set(images)
    covered = {finder.image_of(mask) for mask in masks}
    found: dict[Path, Path] = {}
    for path in files_in(folder, (_SEG,)):
        name = path.name[: -len(_SEG)].removesuffix(".ome")
        image = finder.called(name) or folder / image_name(path)
        if image not in known:
            raise InputError(f"{path} belongs to an image {name}, which is missing: restore it or move the file away.")
        if image in found:
            raise InputError(f"{found[image]} and {path.name} are masks of the same image: remove one.")
        if image not in covered:
            found[image] = path
    return found


def _objects(pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
    path = pair.masks[0]
    if path.suffix.lower() != ".npy":
        return label_objects(pair, size, sink)
    return [ObjectMask(None, runs) for runs in encode.encode_labels(check_size(label_image(path), pair, path, size))[1]]


CELLPOSE = Layout(
    "cellpose",
    "Cellpose (x_masks.png or .tif, or x_seg.npy, beside x.png; also x_label.png beside x_rgb.png)",
    _find,
)
