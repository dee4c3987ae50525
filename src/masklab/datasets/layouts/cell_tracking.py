"""Cell Tracking Challenge: frames ``01/t000.tif`` with the label images ``01_GT/SEG/man_seg000.tif``."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import Layout, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.masks import label_objects
from masklab.datasets.layouts.notes import inform_once
from masklab.utils.errors import InputError

_TRUTHS = ("GT", "ST")  # annotated by hand, then computed from the results of many methods


def _find(folder: Path) -> dict[str, SplitSource]:
    """The sequences of a folder, undivided, or those of each of its subfolders such as ``train``."""
    places = [("", folder), *((sub.name, sub) for sub in subfolders(folder))]
    return {
        split: SplitSource(partial(_pairs, place, sequences), label_objects)
        for split, place in places
        if (sequences := _sequences(place))
    }


def _sequences(folder: Path) -> list[Path]:
    """The folders of frames ``01``, ``02``, ... that have masks."""
    names = {sub.name for sub in subfolders(folder)}
    return [
        folder / name
        for name in sorted(names)
        if re.fullmatch(r"\d{2}", name) and any((folder / f"{name}_{truth}" / "SEG").is_dir() for truth in _TRUTHS)
    ]


def _pairs(folder: Path, sequences: list[Path]) -> list[Pair]:
    """The frames with masks: those annotated by hand, where there are none those of ``ST``; others are left out."""
    pairs: list[Pair] = []
    frames = 0
    for sequence in sequences:
        image_of = _numbered(sequence, "t")
        mask_of: dict[int, Path] = {}
        for truth in reversed(_TRUTHS):
            mask_of |= _numbered(sequence.parent / f"{sequence.name}_{truth}" / "SEG", "man_seg")
        alone = sorted(mask_of.keys() - image_of.keys())
        if alone:
            raise InputError(
                f"{mask_of[alone[0]]} has no frame {alone[0]} in {sequence}: restore it or remove the mask."
            )
        pairs += [Pair(image_of[number], (mask_of[number],)) for number in sorted(mask_of)]
        frames += len(image_of)
    if not pairs:
        raise InputError(f"{folder} has no masks man_seg000.tif in {sequences[0].name}_GT/SEG: restore them.")
    if len(pairs) < frames:
        inform_once(f"{folder}: {frames - len(pairs)} of {frames} frames have no masks and are left out.")
    return pairs


def _numbered(folder: Path, start: str) -> dict[int, Path]:
    """The images of a folder called ``start`` and a number, by it; `InputError` for masks of single slices."""
    found: dict[int, Path] = {}
    for path in images_in(folder):
        if re.fullmatch(rf"{start}_\d+_\d+", path.stem, re.IGNORECASE):
            raise InputError(f"{path} is a slice of a volume, but masklab reads flat images: give a 2D data set.")
        if match := re.fullmatch(rf"{start}(\d{{3,9}})", path.stem, re.IGNORECASE):
            found[int(match[1])] = path
    return found


CELL_TRACKING = Layout("cell_tracking", "Cell Tracking Challenge (01, 01_GT/SEG)", _find)
