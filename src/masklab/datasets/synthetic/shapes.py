"""Synthetic data set: dense, overlapping, textured shapes of four classes.

It needs no download, is equal byte by byte for one seed, and is learnt from random weights within minutes, so it
serves for tests and experiments.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklab.masks import encode, rle
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_folder
from masklab.utils.types import Doubles, Size

CLASSES = ("disc", "box", "triangle", "ring")
_HUES = (0.02, 0.30, 0.58, 0.82)
_MIN_OBJECTS, _MAX_OBJECTS = 3, 10  # per image
_EMPTY_EVERY = 20  # one image of this number has no objects
_MIN_RADIUS, _MAX_RADIUS = 0.12, 0.24  # as a share of the image's shorter side
_MIN_VISIBLE = 0.6  # smallest share of an object that later ones leave visible


@dataclass
class _Scene:
    """An image being drawn: colours ``(H, W, 3)`` in 0..1 and, at each pixel, the topmost object or -1."""

    colours: Doubles
    owner: NDArray[np.int64]
    classes: list[int]
    areas: list[int]


def draw_shapes(
    folder: str | Path, images: Mapping[str, int] | None = None, seed: int = 0, size: Size = (96, 128)
) -> Path:
    """Draw a COCO data set into ``folder``: ``SPLIT.json`` and ``SPLIT/*.png`` for each split.

    ``images`` is the number of images of each split, by default 160 for train and 40 for val; ``size`` is
    ``(height, width)``.  An image holds 3 to 10 objects, later ones over earlier ones; a mask is the visible part.
    One image in 20 is empty.  Returns ``folder``.  Raises `InputError` if it exists and is not empty, for a negative
    number of images or for images smaller than 32 pixels.
    """
    if min(size) < 32:
        raise InputError(f"images of {size[0]} x {size[1]} are too small to draw on; use at least 32 x 32.")
    images = {"train": 160, "val": 40} if images is None else images
    for split, count in images.items():
        if count < 0:
            raise InputError(f"{split} is to have {count} images: give 0 or more.")
    with atomic_folder(folder) as temporary:
        for split, count in images.items():
            _draw_split(temporary, split, count, seed, size)
    return Path(folder)


def _draw_split(folder: Path, split: str, count: int, seed: int, size: Size) -> None:
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k in range(count):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), k])
        scene = _draw_scene(
            rng, size, 0 if k % _EMPTY_EVERY == _EMPTY_EVERY // 2 else int(rng.integers(_MIN_OBJECTS, _MAX_OBJECTS + 1))
        )
        name = f"{k + 1:05d}.png"  # the number is the image id, as in COCO
        Image.fromarray(np.rint(scene.colours.clip(0, 1) * 255).astype(np.uint8)).save(folder / split / name)
        images.append({"id": k + 1, "file_name": name, "height": size[0], "width": size[1]})
        for entry in _annotate(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": k + 1, **entry})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / f"{split}.json").write_text(text, encoding="utf-8")


def _annotate(scene: _Scene) -> list[dict[str, Any]]:
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


def _draw_scene(rng: np.random.Generator, size: Size, objects: int) -> _Scene:
    scene = _Scene(_background(rng, size), np.full(size, -1, np.int64), [], [])
    places: list[tuple[float, float, float]] = []
    for _ in range(40 * objects):
        if len(scene.classes) == objects:
            break
        radius = float(min(size) * np.exp(rng.uniform(np.log(_MIN_RADIUS), np.log(_MAX_RADIUS))))
        y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        if places and rng.random() < 0.5:
            beside_y, beside_x, other = places[int(rng.integers(len(places)))]
            turn = rng.uniform(0, 2 * np.pi)
            y, x = beside_y + (radius + other) * 0.9 * np.sin(turn), beside_x + (radius + other) * 0.9 * np.cos(turn)
        if _draw_object(scene, rng, y, x, radius):
            places.append((y, x, radius))
    scene.colours += rng.normal(0, 0.025, scene.colours.shape)
    return scene


def _background(rng: np.random.Generator, size: Size) -> Doubles:
    """Smooth coloured noise with fine grain, ``(H, W, 3)``."""
    coarse = Image.fromarray(rng.integers(60, 150, (5, 6, 3), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float64) / 255
    return clouds + rng.normal(0, 0.06, (*size, 1))


def _draw_object(scene: _Scene, rng: np.random.Generator, y: float, x: float, radius: float) -> bool:
    """Draw one object unless it would be too small or hide too much of another; returns whether it was drawn."""
    height, width = scene.owner.shape
    top, bottom = max(0, int(y - radius)), min(height, int(y + radius) + 2)
    left, right = max(0, int(x - radius)), min(width, int(x + radius) + 2)
    if top >= bottom or left >= right:
        return False
    turn, label = rng.uniform(0, 2 * np.pi), int(rng.integers(len(CLASSES)))
    dy = np.arange(top, bottom)[:, None] + 0.5 - y
    dx = np.arange(left, right)[None] + 0.5 - x
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    depth = _depth(label, u, v, radius, rng.uniform(0.55, 0.8))
    inside = depth > 0
    owner = scene.owner[top:bottom, left:right]
    covered = np.bincount(owner[inside & (owner >= 0)], minlength=len(scene.areas))
    seen = np.bincount(scene.owner[scene.owner >= 0], minlength=len(scene.areas)) - covered
    if inside.sum() < 25 or (seen < _MIN_VISIBLE * np.array(scene.areas)).any():
        return False
    owner[inside] = len(scene.classes)
    scene.classes.append(label)
    scene.areas.append(int(inside.sum()))
    colour = _colour(rng, label)
    texture = 1 + 0.15 * np.sin(u * rng.uniform(0.6, 1.6) + rng.uniform(0, 6)) - 0.25 * np.hypot(u, v) / radius
    texture = np.where(depth < 1.2, 0.55, texture)
    scene.colours[top:bottom, left:right][inside] = (texture[:, :, None] * colour)[inside]
    return True


def _depth(label: int, u: Doubles, v: Doubles, radius: float, shape: float) -> Doubles:
    """Distance in pixels from the shape's border, positive inside; ``shape`` is its slenderness."""
    distance = np.hypot(u, v)
    if CLASSES[label] == "disc":
        return radius - distance
    if CLASSES[label] == "ring":
        return np.minimum(radius - distance, distance - 0.6 * shape * radius)
    if CLASSES[label] == "box":
        long, short = np.cos(shape) * radius, np.sin(shape) * radius
        return np.minimum(long - np.abs(u), short - np.abs(v))
    sides = [radius / 2 - (u * np.cos(a) + v * np.sin(a)) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.minimum(np.minimum(sides[0], sides[1]), sides[2])


def _colour(rng: np.random.Generator, label: int) -> Doubles:
    """A bright colour ``(3,)`` with a hue near the class's."""
    hue = _HUES[label] + rng.normal(0, 0.04)
    pure = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return (0.45 + 0.55 * pure) * rng.uniform(0.75, 1.0)
