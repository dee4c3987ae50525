"""Where formats other than COCO keep pictures and masks: label images, Cellpose's and Kaggle's; YOLO's are in `yolo`.

A format's ``find_...`` function says which splits a folder holds in it, by name; ``""`` is a folder of pictures that
is not divided.  Nothing is opened before a split is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ImageOps

from masklab.decode import TIFF_SUFFIXES, decoding, open_picture_file, open_pillow, open_verified
from masklab.errors import InputError
from masklab.ops import rle
from masklab.pictures import PICTURE_SUFFIXES

Size = tuple[int, int]
Annotated = list[tuple[int | None, rle.Runs]]

LABEL_SUFFIXES = TIFF_SUFFIXES | {".png"}
MASK_FOLDERS = ("masks", "labels")
MASK_ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label")
CELLPOSE_ENDINGS = ("_masks", "_cp_masks")
CELLPOSE_OTHERS = ("_flows", "_cp_flows", "_cp_output", "_cp_outlines")


@dataclass(frozen=True)
class Pair:
    """A picture and the files that annotate it: one for all its objects, one for each, or none."""

    picture: Path
    masks: tuple[Path, ...]


@dataclass(frozen=True)
class Found:
    """A split that a folder holds.

    ``pairs`` lists its pictures; ``objects`` reads the category id and the run lengths of each object of one of them,
    given its ``(height, width)``; ``names`` are the classes by category id.  Ids and names are None where the format
    has no classes.  Both functions raise `InputError`.
    """

    pairs: Callable[[], list[Pair]]
    objects: Callable[[Pair, Size], Annotated]
    names: dict[int, str] | None = None


def find_label_images(folder: Path) -> dict[str, Found]:
    """``images/`` with ``masks/`` or ``labels/``, one whole number an object; each of them, or ``folder``, by split."""
    found: dict[str, Found] = {}
    for split, pictures, masks in _picture_and_mask_folders(folder):
        if split in found:
            raise InputError(
                f"{masks.parent} has both a folder masks and a folder labels with pictures: move one away."
            )
        found[split] = Found(partial(_pairs_of_folders, pictures, masks), label_objects)
    return found


def find_cellpose(folder: Path) -> dict[str, Found]:
    """``x.png`` or ``x_img.png`` with a label image ``x_masks.png`` or ``.tif`` beside it, perhaps by split."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder))]
    return {
        split: Found(partial(_pairs_beside, place), label_objects)
        for split, place in places
        if split not in ("images", *MASK_FOLDERS)
        and any(_stem(path).endswith(CELLPOSE_ENDINGS) for path in pictures_in(place))
    }


def find_kaggle(folder: Path) -> dict[str, Found]:
    """``ID/images/x.png`` with ``ID/masks/*.png``, one mask an object, perhaps by split."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder))]
    return {
        split: Found(partial(_pairs_of_ids, place), bitmap_objects)
        for split, place in places
        if any(_is_kaggle_id(sub) for sub in subfolders(place))
    }


def subfolders(folder: Path) -> list[Path]:
    """The folders directly inside one, by name; none where it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly inside a folder, by name; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(
        folder / name
        for name in os.listdir(folder)
        if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and name[0] != "."
    )


def _picture_and_mask_folders(folder: Path) -> Iterable[tuple[str, Path, Path]]:
    for place in (folder, *subfolders(folder)):
        for word in MASK_FOLDERS:
            if _are_label_images(place / "images", place / word) and not _is_kaggle_id(place):
                yield ("" if place == folder else place.name), place / "images", place / word
    for pictures in subfolders(folder / "images"):
        for word in MASK_FOLDERS:
            if _are_label_images(pictures, folder / word / pictures.name):
                yield pictures.name, pictures, folder / word / pictures.name


def _are_label_images(pictures: Path, masks: Path) -> bool:
    """Whether both are there; ``labels/`` without pictures may be YOLO's."""
    return bool(pictures_in(pictures)) and masks.is_dir() and ("masks" in masks.parts[-2:] or bool(pictures_in(masks)))


def _is_kaggle_id(folder: Path) -> bool:
    """One picture, and masks that are not named after it."""
    if not (folder / "masks").is_dir():
        return False
    pictures = pictures_in(folder / "images")
    return len(pictures) == 1 and _stem(pictures[0]) not in map(_name_of_mask, pictures_in(folder / "masks"))


def _stem(path: Path) -> str:
    """The file name without its suffix, ``.ome.tif`` being one."""
    return path.stem.removesuffix(".ome")


def _name_of_mask(mask: Path) -> str:
    ending = next((ending for ending in MASK_ENDINGS if _stem(mask).endswith(ending)), "")
    return _stem(mask).removesuffix(ending)


def _pairs_of_folders(pictures: Path, masks: Path) -> list[Pair]:
    return _match(pictures_in(pictures), pictures_in(masks), masks)


def _pairs_beside(folder: Path) -> list[Pair]:
    paths = [path for path in pictures_in(folder) if not _stem(path).endswith(CELLPOSE_OTHERS)]
    masks = [path for path in paths if _stem(path).endswith(CELLPOSE_ENDINGS)]
    return _match([path for path in paths if path not in set(masks)], masks, folder)


def _pairs_of_ids(folder: Path) -> list[Pair]:
    pairs = []
    for sub in subfolders(folder):
        pictures = pictures_in(sub / "images")
        if len(pictures) != 1 or not (sub / "masks").is_dir():
            raise InputError(
                f"{sub} has {len(pictures)} pictures in images and {'a' if (sub / 'masks').is_dir() else 'no'} folder "
                "masks, but needs one picture and the masks: restore them or move it away."
            )
        pairs.append(Pair(pictures[0], tuple(pictures_in(sub / "masks"))))
    return pairs


def _match(pictures: list[Path], masks: list[Path], where: Path) -> list[Pair]:
    """Each picture with the mask of its name; `InputError` for one that has none or two, and for a mask without one."""
    named: dict[str, Path] = {}
    for picture in pictures:
        other = named.setdefault(_stem(picture), picture)
        if other is not picture:
            raise InputError(f"{other} and {picture.name} would have the same mask: rename or remove one.")
    of: dict[str, Path] = {}
    for mask in masks:
        name = _name_of_mask(mask)
        name = next((n for n in (_stem(mask), name, f"{name}_img") if n in named), name)
        if name not in named:
            raise InputError(f"{mask} belongs to a picture {name}, which is missing: restore it or move the mask away.")
        if name in of:
            raise InputError(f"{of[name]} and {mask.name} are masks of the same picture: remove one.")
        of[name] = mask
    missing = [picture for name, picture in named.items() if name not in of]
    if missing:
        raise InputError(
            f"{missing[0]} has no mask in {where} ({len(missing)} of {len(named)} pictures have none): add the masks, "
            "all zero where there is no object, or move the pictures away."
        )
    return [Pair(picture, (of[name],)) for name, picture in named.items()]


def label_objects(pair: Pair, size: Size) -> Annotated:
    """Every value of a label image but 0 is an object."""
    labels = _fitting(read_labels(pair.masks[0]), pair, pair.masks[0], size)
    return [(None, runs) for runs in rle.encode_labels(labels)[1]]


def bitmap_objects(pair: Pair, size: Size) -> Annotated:
    """Every mask is an object: where it is not 0, in any colour."""
    objects: Annotated = []
    for mask in pair.masks:
        bits = _fitting(np.any(_numbers(mask), axis=2), pair, mask, size)
        runs = rle.encode_labels(bits)[1] or [np.array([bits.size])]
        objects.append((None, runs[0]))
    return objects


def _fitting(values: NDArray[Any], pair: Pair, mask: Path, size: Size) -> NDArray[Any]:
    if values.shape != size:
        raise InputError(
            f"{mask} is {values.shape[1]} wide and {values.shape[0]} high but {pair.picture} is {size[1]} wide and "
            f"{size[0]} high (EXIF orientation applied): make them the same size."
        )
    return values


def read_labels(path: str | Path) -> NDArray[Any]:
    """Read a label image, PNG or TIFF, as ``(H, W)`` whole numbers that are not negative; a palette's are its indices.

    Raises `InputError` naming the file for anything else, such as colours, and for a file that cannot be read.
    """
    path = Path(path)
    values = _numbers(path)
    if values.shape[2] != 1:
        raise InputError(
            f"{path} has {values.shape[2]} channels but a label image has one whole number a pixel: save it as a grey "
            "PNG or TIFF of 8, 16 or 32 bits."
        )
    values = values[:, :, 0]
    if values.dtype.kind == "f":
        whole = np.nan_to_num(values, nan=0.5, posinf=0.5, neginf=0.5)
        if (np.rint(whole) != whole).any():
            raise InputError(f"{path} holds fractions but a label image has whole numbers: save it as integers.")
        values = whole.astype(np.int64)
    if values.dtype.kind not in "uib" or values.min(initial=0) < 0:
        raise InputError(
            f"{path} holds numbers below 0 or of another kind: save 0 for background and whole numbers for objects."
        )
    return values


def _numbers(path: Path) -> NDArray[Any]:
    """A mask's numbers as they are stored, upright, without alpha: ``(H, W, C)``; a palette's are its indices."""
    if path.suffix.lower() not in LABEL_SUFFIXES:
        raise InputError(f"{path} cannot hold exact masks: save it as PNG or TIFF.")
    with decoding(path):
        if _has_palette(path):
            with open_verified(path) as opened:
                return np.asarray(ImageOps.exif_transpose(opened))[:, :, None]
    with open_picture_file(path, None) as picture:
        values = picture.part(slice(None), slice(None))
    inverted = values.dtype == np.uint8 and _photometric(path) == tifffile.PHOTOMETRIC.MINISWHITE
    return 255 - values if inverted else values  # Pillow shows 8 bits of which 0 is white as they look


def _has_palette(path: Path) -> bool:
    if path.suffix.lower() in TIFF_SUFFIXES:
        return _photometric(path) == tifffile.PHOTOMETRIC.PALETTE
    with open_pillow(path) as opened:
        return opened.mode == "P"


def _photometric(path: Path) -> int | None:
    """What the numbers of a TIFF stand for; None for other files."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        return int(page.photometric)
