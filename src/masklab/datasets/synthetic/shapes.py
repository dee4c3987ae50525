"""Synthetic data sets in two styles: dense, overlapping, textured shapes of four classes, and crowds of large ones.

They need no download, are equal byte by byte for one seed, and are learnt from random weights within minutes, so they
serve for tests and experiments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from masklab.datasets.synthetic import crowd
from masklab.datasets.synthetic.scene import HUES, DrawScene, Scene, background, colour_near, write_split
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_folder
from masklab.utils.types import Doubles, Size

CLASSES = ("disc", "box", "triangle", "ring")
_MIN_OBJECTS, _MAX_OBJECTS = 3, 10  # per image
_EMPTY_EVERY = 20  # one image of this number has no objects
_MIN_RADIUS, _MAX_RADIUS = 0.12, 0.24  # as a share of the image's shorter side
_MIN_VISIBLE = 0.6  # smallest share of an object that later ones leave visible


Style = Literal["shapes", "crowd"]


def draw_shapes(
    folder: str | Path,
    images: Mapping[str, int] | None = None,
    seed: int = 0,
    size: Size | None = None,
    style: Style = "shapes",
) -> Path:
    """Draw a COCO data set into ``folder``: ``SPLIT.json`` and ``SPLIT/*.png`` for each split.

    ``images`` is the number of images of each split, by default 160 for train and 40 for val; ``size`` is
    ``(height, width)``, by default 96 x 128, and 256 x 320 for a crowd.  Later objects lie over earlier ones, and a
    mask is the visible part.  ``shapes`` has 3 to 10 objects an image, and none in one image of 20.  ``crowd`` has
    large, elongated, concave objects, of which those of one class overlap and look alike (see
    `masklab.datasets.synthetic.crowd`).  Returns ``folder``.  Raises `InputError` if it exists and is not empty, for a
    negative number of images, for an unknown style, or for images smaller than 32 pixels, of a crowd 96.
    """
    if style not in _STYLES:
        raise InputError(f"there is no style {style}: use one of {', '.join(_STYLES)}.")
    classes, draw, least, usual = _STYLES[style]
    size = size or usual
    if min(size) < least:
        raise InputError(f"images of {size[0]} x {size[1]} are too small to draw on; use at least {least} x {least}.")
    images = {"train": 160, "val": 40} if images is None else images
    for split, count in images.items():
        if count < 0:
            raise InputError(f"{split} is to have {count} images: give 0 or more.")
    with atomic_folder(folder) as temporary:
        for split, count in images.items():
            write_split(temporary, split, count, seed, size, classes, draw)
    return Path(folder)


def _draw_scene(rng: np.random.Generator, size: Size, number: int) -> Scene:
    empty = number % _EMPTY_EVERY == _EMPTY_EVERY // 2
    objects = 0 if empty else int(rng.integers(_MIN_OBJECTS, _MAX_OBJECTS + 1))
    scene = Scene.empty(background(rng, size))
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


def _draw_object(scene: Scene, rng: np.random.Generator, y: float, x: float, radius: float) -> bool:
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
    if inside.sum() < 25 or not scene.leaves_visible(owner[inside], _MIN_VISIBLE):
        return False
    owner[inside] = len(scene.classes)
    scene.classes.append(label)
    scene.areas.append(int(inside.sum()))
    colour = colour_near(rng, HUES[label])
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


class _Style(NamedTuple):
    """Classes and scenes of a style, its smallest side of an image in pixels, and its usual ``(height, width)``."""

    classes: tuple[str, ...]
    draw: DrawScene
    least: int
    usual: Size


_STYLES = {
    "shapes": _Style(CLASSES, _draw_scene, 32, (96, 128)),
    "crowd": _Style(crowd.CLASSES, crowd.draw_scene, crowd.MIN_SIDE, (256, 320)),
}
