"""Pascal VOC: ``JPEGImages`` with ``SegmentationObject`` and ``SegmentationClass``, splits in ``ImageSets/Segmentation``.

The masks are palette images as VOC's own, grey images of the same numbers, or colours, as CVAT and datumaro write them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.masks import check_size, has_palette, read_numbers
from masklab.datasets.layouts.notes import inform_once
from masklab.datasets.layouts.voc_classes import VOC_COLOURS, VOID, Colour, VocClasses, read_classes
from masklab.datasets.problems import MALFORMED, Problem, Sink
from masklab.images.read import read_image
from masklab.masks import encode
from masklab.utils.errors import InputError
from masklab.utils.files import open_plain, read_text
from masklab.utils.types import Size

_OBJECTS = ("SegmentationObject", "SegmentationObjectPNG")  # the latter by earlier versions of labelme
_CLASSES = ("SegmentationClass", "SegmentationClassPNG")
_IMAGES = "JPEGImages"
_LISTS = "ImageSets/Segmentation"
_UNDIVIDED = ("default", "trainval")  # a list of everything, where it is the only one
_HEAD = 2**16  # bytes of an XML file that are looked at
_NO_CLASS = -1
_FIRST_UNKNOWN = 2**32


def _find(folder: Path) -> dict[str, SplitSource]:
    """The splits that lists name and of which some image has masks, or all images with masks as undivided.

    Raises `InputError` for a folder with boxes or with classes only.
    """
    roots = [root for root in (folder, *subfolders(folder / "VOCdevkit")) if _folder_with_images(root, _OBJECTS)]
    if len(roots) > 1:
        raise InputError(f"{folder} holds {roots[0].name} and {roots[1].name}: give one of them as the data set.")
    if not roots:
        _refuse_without_objects(folder)
        return {}
    root = roots[0]
    objects, classes = _folder_with_images(root, _OBJECTS), _folder_with_images(root, _CLASSES)
    if not (root / _IMAGES).is_dir():
        raise InputError(f"{root} has masks but no {_IMAGES}: export the images too.")
    listed = {path.stem: _listed_names(path) for path in sorted((root / _LISTS).glob("*.txt"))}
    known = _masks_below(objects) if objects else {}
    splits = {split: names for split, names in listed.items() if any(name in known for name in names)}
    if not splits:
        splits = {"": sorted(known)}
    if len(splits) == 1 and next(iter(splits)) in _UNDIVIDED:
        splits = {"": next(iter(splits.values()))}
    found = read_classes(root) if classes else None
    read = partial(_objects, folder=folder, classes=found)
    names = None if found is None else lambda: found.names
    return {
        split: SplitSource(partial(_pairs, root, own, known, classes), read, names) for split, own in splits.items()
    }


def _folder_with_images(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir() and _masks_below(root / name)), None)


def _masks_below(folder: Path, prefix: str = "") -> dict[str, Path]:
    """The images of a folder and its subfolders, by path without suffix."""
    found = {_normal(prefix + path.stem): path for path in images_in(folder)}
    for sub in subfolders(folder):
        if not sub.is_symlink():
            found |= _masks_below(sub, f"{prefix}{sub.name}/")
    return found


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _refuse_without_objects(folder: Path) -> None:
    """Raise `InputError` for what other tasks of VOC have: classes of pixels, or boxes."""
    if (folder / _IMAGES).is_dir() and _folder_with_images(folder, _CLASSES):
        raise InputError(
            f"{folder} holds SegmentationClass without {_OBJECTS[0]}, so that objects cannot be told apart: "
            "export instance masks."
        )
    for place in (folder / "Annotations", folder, *subfolders(folder)):
        first = next(islice(place.glob("*.xml"), 1), None)
        if first and _has_boxes_only(first):
            raise InputError(
                f"{first} holds Pascal VOC boxes, and there are no masks in {_OBJECTS[0]}: export outlines or masks, "
                "not boxes."
            )


def _has_boxes_only(path: Path) -> bool:
    try:
        with open_plain(path) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b"<annotation" in head and b"<bndbox" in head and b"<polygon" not in head


def _listed_names(path: Path) -> list[str]:
    """The names that a list of ``ImageSets/Segmentation`` has, one per line; quotes of names with spaces are removed."""
    names = [line.strip().strip('"').replace("\\", "/") for line in read_text(path).splitlines()]
    return list(dict.fromkeys(_normal(name) for name in names if name))


def _pairs(root: Path, names: list[str], known: Mapping[str, Path], classes: Path | None) -> list[Pair]:
    """The images of a split, each with its object mask and class mask; those without masks have no objects."""
    class_of = _masks_below(classes) if classes else {}
    images = _masks_below(root / _IMAGES)
    missing = [name for name in names if name not in images]
    if missing:
        raise InputError(
            f"{root / _IMAGES} has no image {missing[0]} ({len(missing)} of {len(names)} of the split are missing): "
            "restore them or remove them from the list."
        )
    pairs = []
    for name in names:
        masks = [known[name]] if name in known else []
        if masks and classes:
            if name not in class_of:
                raise InputError(f"{known[name]} has no counterpart in {classes}: restore it or remove the mask.")
            masks.append(class_of[name])
        pairs.append(Pair(images[name], tuple(masks)))
    bare = sum(not pair.masks for pair in pairs)
    if bare:
        inform_once(f"{root}: {bare} of {len(pairs)} listed images have no masks and are taken as images of no object.")
    return pairs


def _objects(pair: Pair, size: Size, sink: Sink, folder: Path, classes: VocClasses | None) -> list[ObjectMask]:
    """The objects of an image: each number of the object mask, with the class that most of its pixels have."""
    if not pair.masks:
        return []
    numbers = _read_numbers(pair.masks[0], pair, size, VOC_COLOURS)
    numbers = np.where(numbers == VOID, 0, numbers)
    values, runs = encode.encode_labels(numbers)
    if classes is None:
        return [ObjectMask(None, own) for own in runs]
    categories = _read_numbers(pair.masks[1], pair, size, classes.numbers)
    chosen = _most_frequent(numbers, np.where(np.isin(categories, list(classes.names)), categories, _NO_CLASS))
    objects = []
    for value, own in zip(values.tolist(), runs, strict=True):
        if value in chosen:
            objects.append(ObjectMask(chosen[value], own))
        else:
            name = pair.image.relative_to(folder).as_posix()
            detail = f"object {value} has no class in {pair.masks[1].parent.name}"
            sentence = f"{pair.masks[0]}: {detail}; draw it there too."
            sink.report(Problem(MALFORMED, detail, file_name=name, sentence=sentence))
    return objects


def _most_frequent(numbers: NDArray[np.int64], categories: NDArray[np.int64]) -> dict[int, int]:
    """The most frequent category of each number, without those that have none."""
    used = (numbers != 0) & (categories != _NO_CLASS)
    pairs, counts = np.unique(np.stack([numbers[used], categories[used]]), axis=1, return_counts=True)
    order = np.argsort(counts, kind="stable")
    return dict(zip(pairs[0, order].tolist(), pairs[1, order].tolist(), strict=True))


def _read_numbers(path: Path, pair: Pair, size: Size, known: Mapping[Colour, int]) -> NDArray[np.int64]:
    """A mask ``(H, W)`` as numbers: those that its colours stand for, else those that are stored.

    In an image without palette, colours that are not known get high numbers of their own.
    """
    stored = read_numbers(path)
    values = check_size(stored[:, :, 0], pair, path, size).astype(np.int64)
    has_colours = stored.shape[2] == 3
    if not has_colours and not has_palette(path):
        return values
    red, green, blue = read_image(path, 3).astype(np.int64)
    codes, places = np.unique((red << 32) | (green << 16) | blue, return_inverse=True)
    colours = [(int(code) >> 32, int(code) >> 16 & 0xFFFF, int(code) & 0xFFFF) for code in codes]
    unknown = [colour for colour in colours if colour not in known and colour != (0, 0, 0)]
    if not has_colours and (unknown or len(codes) < len(np.unique(values))):
        return values
    own = {colour: _FIRST_UNKNOWN + k for k, colour in enumerate(unknown)} | {(0, 0, 0): 0} | dict(known)
    return np.array([own[colour] for colour in colours])[places].reshape(values.shape)


VOC = Layout("voc", "Pascal VOC (JPEGImages, SegmentationObject, SegmentationClass)", _find)
