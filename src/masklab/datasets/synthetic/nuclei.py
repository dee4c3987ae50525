"""Synthetic microscopy image: bright, touching, soft-edged nuclei on a dark, noisy background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklab.utils.types import Doubles, Size

_HALF_AXES = (7.0, 13.0)  # smallest and largest longer half-axis in pixels
_ROUNDNESS = (0.7, 1.0)  # shorter half-axis over longer
_BRIGHTNESS = (60, 140)  # of a nucleus at its centre, of 255
_BACKGROUND, _NOISE = 8, 2.0  # brightness of the background, and standard deviation of the camera's noise
_MAX_OVERLAP = 0.06  # largest share of a nucleus that may lie on others
_MARGIN = 4.0  # smallest distance in pixels of a centre from the image's border


def draw_nuclei(count: int = 32, seed: int = 0, size: Size = (256, 256)) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draw an image like those of a fluorescence microscope; half of its nuclei touch another.

    Returns the image ``(3, H, W)``, uint8 and grey, and the label image ``(H, W)``, int32: 0 is background, 1 to
    ``count`` are the nuclei, each up to half the brightness of its soft edge.  ``size`` is ``(height, width)``.  The
    same seed gives the same image; there are fewer nuclei where ``count`` do not fit.
    """
    rng = np.random.default_rng(seed)
    light, labels = np.zeros(size), np.zeros(size, np.int32)
    places: list[tuple[float, float, float]] = []
    for _ in range(100 * count):
        if len(places) == count:
            break
        radius = rng.uniform(*_HALF_AXES)
        y, x = (rng.uniform(_MARGIN, side - _MARGIN) for side in size)
        if places and rng.random() < 0.5:
            beside_y, beside_x, other = places[int(rng.integers(len(places)))]
            turn = rng.uniform(0, 2 * np.pi)
            y, x = beside_y + (radius + other) * 0.85 * np.sin(turn), beside_x + (radius + other) * 0.85 * np.cos(turn)
        if min(y, x, size[0] - y, size[1] - x) >= _MARGIN and _draw(
            rng, light, labels, (y, x), radius, len(places) + 1
        ):
            places.append((y, x, radius))
    values = _BACKGROUND + _clouds(rng, size, 64) * _BACKGROUND / 2 + light + rng.normal(0, _NOISE, size)
    image = np.rint(values.clip(0, 255)).astype(np.uint8)
    return np.repeat(image[None], 3, axis=0), labels


def _draw(
    rng: np.random.Generator,
    light: Doubles,
    labels: NDArray[np.int32],
    centre: tuple[float, float],
    radius: float,
    label: int,
) -> bool:
    """Draw one nucleus unless too much of it would lie on others; returns whether it was drawn."""
    (y, x), reach = centre, int(radius) + 5
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    place = np.s_[top : int(y) + reach, left : int(x) + reach]
    part = light[place]
    turn, narrow = rng.uniform(0, np.pi), radius * rng.uniform(*_ROUNDNESS)
    dy = np.arange(top, top + part.shape[0])[:, None] + 0.5 - y
    dx = np.arange(left, left + part.shape[1])[None] + 0.5 - x
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    far = np.hypot(u / radius, v / narrow)  # 1 on the outline
    inside = far < 1
    if (labels[place][inside] > 0).mean() > _MAX_OVERLAP:
        return False
    labels[place][inside & (labels[place] == 0)] = label
    dome = 0.65 + 0.35 * np.sqrt((1 - far**2).clip(0))
    grain = 1 + 0.5 * _clouds(rng, (part.shape[0], part.shape[1]), 5)
    soft = 1 / (1 + np.exp((far - 1) * narrow / 0.7))
    light[place] = np.maximum(part, rng.uniform(*_BRIGHTNESS) * dome * grain * soft)
    return True


def _clouds(rng: np.random.Generator, size: Size, cell: int) -> Doubles:
    """Smooth noise ``(H, W)`` in about -0.5..0.5, with features ``cell`` pixels wide."""
    coarse = rng.random((size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float64) - 0.5
