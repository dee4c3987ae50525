"""Scenes of large, elongated, concave objects: those of one class overlap, and nothing but an outline parts them.

Colour and texture belong to the class in this image, not to the object, and the texture runs on from one object into
the next: what a pixel looks like says its class, and only its place says which object it is of.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from masklab.datasets.synthetic.scene import HUES, Scene, background, colour_near
from masklab.utils.types import Doubles, Size

CLASSES = ("bone", "crescent", "hook", "wave")
MIN_SIDE = 96  # of an image, in pixels
_LENGTHS = (48.0, 200.0)  # longer side of an object's box in pixels, before later objects cover it
_LONGEST = 0.78  # of the image's shorter side
_OBJECTS = (4, 8)  # per image, where they fit
_BESIDE = 0.8  # probability that an object lies on one drawn before and is of its class
_TOGETHER = 3  # objects that lie on one another, at most, but for those that meet by chance
_SIZE_BESIDE = (0.7, 1.3)  # length of such an object over that one's
_OFFSET = 0.45  # largest distance of their centres, over that one's length
_MIN_VISIBLE = 0.5  # smallest share of an object that later ones leave visible
_PALE = 0.5  # share of plain grey in the background
_OUTLINE, _DARK = 2.5, 0.55  # width in pixels of the outline of an object, and its brightness over the object's


class _Stroke(NamedTuple):
    """A shape as a line of varying thickness: ``points`` (n, 2), x and y, and half the thickness ``radii`` (n,) there."""

    points: Doubles
    radii: Doubles


class _Place(NamedTuple):
    """Class, centre in pixels, and length of an object that was drawn; ``group`` counts those that lie on one another."""

    label: int
    y: float
    x: float
    length: float
    group: int


def draw_scene(rng: np.random.Generator, size: Size, number: int) -> Scene:
    """A scene of 4 to 8 objects, where they fit; ``size`` is ``(height, width)``, ``number`` is not used.

    The longer side of an object's box is 48 to 200 pixels, at most 0.78 of the image's shorter side, and the whole
    object lies in the image.  Later objects lie over earlier ones, of which at least half stays visible.
    """
    scene = Scene.empty(_PALE * 0.4 + (1 - _PALE) * background(rng, size))
    colours = np.stack([colour_near(rng, hue) for hue in HUES])
    waves = [_wave(rng, size) for _ in CLASSES]
    longest = min(_LENGTHS[1], _LONGEST * min(size))
    objects = int(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1))
    places: list[_Place] = []
    for _ in range(30 * objects):
        if len(places) == objects:
            break
        place = _choose(rng, size, places, longest)
        stroke = _stroke(rng, place.label, place.length)
        if _draw_object(scene, stroke, place, colours[place.label], waves[place.label]):
            places.append(place)
    scene.colours += rng.normal(0, 0.03, scene.colours.shape)
    return scene


def _choose(rng: np.random.Generator, size: Size, places: list[_Place], longest: float) -> _Place:
    """Where to draw the next object: on one of its class, or anywhere; wholly in the image."""
    groups = [place.group for place in places]
    open_groups = [place for place in places if groups.count(place.group) < _TOGETHER]
    if open_groups and rng.random() < _BESIDE:
        other = open_groups[int(rng.integers(len(open_groups)))]
        turn, far = rng.uniform(0, 2 * np.pi), other.length * _OFFSET * np.sqrt(rng.random())
        label, group, y, x = other.label, other.group, other.y + far * np.sin(turn), other.x + far * np.cos(turn)
        length = float(np.clip(other.length * rng.uniform(*_SIZE_BESIDE), _LENGTHS[0], longest))
    else:
        label, group = int(rng.integers(len(CLASSES))), max(groups, default=-1) + 1
        (y, x), length = (rng.uniform(0, side) for side in size), float(rng.uniform(_LENGTHS[0], longest))
    reach = length / 2 + 1
    y, x = (min(max(middle, reach), side - reach) for middle, side in zip((y, x), size, strict=True))
    return _Place(label, float(y), float(x), length, group)


def _stroke(rng: np.random.Generator, label: int, length: float) -> _Stroke:
    """The shape of a class, turned and perhaps mirrored, in pixels around the middle of its box."""
    points, radii = _SHAPES[label]
    bend, turn = rng.uniform(0.85, 1.15), rng.uniform(0, 2 * np.pi)
    points = points * (1, bend * rng.choice((-1, 1)))
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    low, high = (points - radii[:, None]).min(axis=0), (points + radii[:, None]).max(axis=0)
    scale = length / (high - low).max()
    return _Stroke((points - (low + high) / 2) * scale, radii * scale)


def _draw_object(scene: Scene, stroke: _Stroke, place: _Place, colour: Doubles, wave: Doubles) -> bool:
    """Draw one object unless it would hide too much of another; returns whether it was drawn."""
    reach = place.length / 2 + 1
    top, left = int(place.y - reach), int(place.x - reach)
    window = np.s_[top : int(place.y + reach) + 1, left : int(place.x + reach) + 1]
    owner = scene.owner[window]
    y = np.arange(top, top + owner.shape[0])[:, None] + 0.5 - place.y
    x = np.arange(left, left + owner.shape[1])[None] + 0.5 - place.x
    depth = _depth(stroke, y, x)
    inside = depth > 0
    if not scene.leaves_visible(owner[inside], _MIN_VISIBLE):
        return False
    owner[inside] = len(scene.classes)
    scene.classes.append(place.label)
    scene.areas.append(int(inside.sum()))
    light = np.where(depth < _OUTLINE, _DARK, wave[window])
    scene.colours[window][inside] = (light[:, :, None] * colour)[inside]
    return True


def _depth(stroke: _Stroke, y: Doubles, x: Doubles) -> Doubles:
    """Distance in pixels from the border of a stroke, positive inside, at the rows ``y`` (H, 1) and columns ``x`` (1, W)."""
    deepest = np.full((len(y), x.shape[1]), -np.inf)
    for k in range(len(stroke.radii) - 1):
        (x1, y1), (dx, dy) = stroke.points[k], stroke.points[k + 1] - stroke.points[k]
        along = (((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)).clip(0, 1)
        radius = stroke.radii[k] + along * (stroke.radii[k + 1] - stroke.radii[k])
        np.maximum(deepest, radius - np.hypot(x - x1 - along * dx, y - y1 - along * dy), out=deepest)
    return deepest


def _wave(rng: np.random.Generator, size: Size) -> Doubles:
    """Stripes (H, W) across the whole image, around 1."""
    turn, pitch, start = rng.uniform(0, np.pi), rng.uniform(5, 12), rng.uniform(0, 2 * np.pi)
    y, x = np.arange(size[0])[:, None], np.arange(size[1])[None]
    return 1 + 0.12 * np.sin(2 * np.pi / pitch * (x * np.cos(turn) + y * np.sin(turn)) + start)


def _shape(points: ArrayLike, radii: ArrayLike) -> _Stroke:
    return _Stroke(np.asarray(points, np.float64), np.asarray(radii, np.float64))


_ARC = np.linspace(-1.7, 1.7, 13)
_RUN = np.linspace(-0.5, 0.5, 13)
_SHAPES = (
    _shape([(-0.5, 0), (-0.28, 0), (0.28, 0), (0.5, 0)], (0.2, 0.11, 0.11, 0.2)),
    _shape(np.stack([np.cos(_ARC), np.sin(_ARC)], axis=1) * 0.5, 0.07 + 0.12 * np.cos(_ARC / 1.7 * np.pi / 2)),
    _shape([(-0.5, 0), (0.42, 0), (0.42, 0.42)], (0.13, 0.13, 0.13)),
    _shape(np.stack([_RUN, 0.2 * np.sin(2 * np.pi * _RUN)], axis=1), np.full(13, 0.12)),
)
