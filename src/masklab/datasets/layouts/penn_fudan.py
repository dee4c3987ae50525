"""Penn-Fudan pedestrians: ``PNGImages/x.png`` with the label image ``PedMasks/x_mask.png``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in
from masklab.datasets.layouts.masks import label_objects
from masklab.datasets.layouts.pairing import match_masks
from masklab.datasets.problems import Sink
from masklab.utils.types import Size

_PERSON = 1


def _find(folder: Path) -> dict[str, SplitSource]:
    images, masks = folder / "PNGImages", folder / "PedMasks"
    if not images.is_dir() or not masks.is_dir():
        return {}
    return {"": SplitSource(partial(_pairs, images, masks), _objects, lambda: {_PERSON: "person"})}


def _pairs(images: Path, masks: Path) -> list[Pair]:
    return match_masks(images_in(images), images_in(masks), masks)


def _objects(pair: Pair, size: Size, sink: Sink) -> list[ObjectMask]:
    return [ObjectMask(_PERSON, found.rle) for found in label_objects(pair, size, sink)]


PENN_FUDAN = Layout("penn_fudan", "Penn-Fudan (PNGImages, PedMasks)", _find)
