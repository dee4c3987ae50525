"""What the drawn data sets share: a scene of objects, one over the other, and how it is written as COCO's JSON."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklab.masks import encode, rle
from masklab.utils.types import Doubles, Size

HUES = (0.02, 0.30, 0.58, 0.82)
"""Of four classes, in turns of the colour circle."""


@dataclass
class Scene:
    """An image being drawn: colours ``(H, W, 3)`` in 0..1 and, at each pixel, the topmost object or -1.

    ``classes`` and ``areas`` are of the objects in the order in which they were drawn; an area is that of the whole
    object, in pixels, also where later ones cover it.
    """

    colours: Doubles
    owner: NDArray[np.int64]
    classes: list[int]
    areas: list[int]

    @classmethod
    def empty(cls, colours: Doubles) -> Scene:
        """A background ``(H, W, 3)`` without objects."""
        return cls(colours, np.full(colours.shape[:2], -1, np.int64), [], [])

    def leaves_visible(self, covered: NDArray[np.int64], least: float) -> bool:
        """Whether a new object that covers the topmost objects ``covered`` (P,), -1 for none, leaves the share ``least`` of each visible."""
        hidden = np.bincount(covered[covered >= 0], minlength=len(self.areas))
        seen = np.bincount(self.owner[self.owner >= 0], minlength=len(self.areas)) - hidden
        return bool((seen >= least * np.array(self.areas)).all())


DrawScene = Callable[[np.random.Generator, Size, int], Scene]
"""Draws the scene of an image: its random numbers, its ``(height, width)`` and its number in the split, from 0."""


def write_split(
    folder: Path, split: str, count: int, seed: int, size: Size, classes: Sequence[str], draw: DrawScene
) -> None:
    """Draw ``count`` images of a split into ``folder``: ``SPLIT.json`` and ``SPLIT/*.png``.

    The random numbers of an image are of the seed, the split's name and the image's number alone.
    """
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k in range(count):
        scene = draw(np.random.default_rng([seed, zlib.crc32(split.encode()), k]), size, k)
        name = f"{k + 1:05d}.png"  # the number is the image id, as in COCO
        Image.fromarray(np.rint(scene.colours.clip(0, 1) * 255).astype(np.uint8)).save(folder / split / name)
        images.append({"id": k + 1, "file_name": name, "height": size[0], "width": size[1]})
        for entry in _annotate(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": k + 1, **entry})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / f"{split}.json").write_text(text, encoding="utf-8")


def _annotate(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of the visible parts, without ids."""
    height, width = scene.owner.shape
    boxes, bitmaps = [], []
    for k in range(len(scene.classes)):
        rows, columns = np.nonzero(scene.owner == k)
        boxes.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
        x1, y1, x2, y2 = boxes[-1]
        bitmaps.append(scene.owner[y1:y2, x1:x2] == k)
    strings = rle.rle_to_strings(encode.encode_windows(bitmaps, boxes, (height, width)))
    return [
        {
            "category_id": label + 1,
            "iscrowd": 0,
            "area": int(bitmap.sum()),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": {"size": [height, width], "counts": counts},
        }
        for label, bitmap, (x1, y1, x2, y2), counts in zip(scene.classes, bitmaps, boxes, strings, strict=True)
    ]


def background(rng: np.random.Generator, size: Size) -> Doubles:
    """Smooth coloured noise with fine grain, ``(H, W, 3)``."""
    coarse = Image.fromarray(rng.integers(60, 150, (5, 6, 3), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float64) / 255
    return clouds + rng.normal(0, 0.06, (*size, 1))


def colour_near(rng: np.random.Generator, hue: float) -> Doubles:
    """A bright colour ``(3,)`` with a hue near ``hue``, which is in turns of the colour circle."""
    hue = hue + rng.normal(0, 0.04)
    pure = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return (0.45 + 0.55 * pure) * rng.uniform(0.75, 1.0)
