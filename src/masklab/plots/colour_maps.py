"""Colour maps of the figures, and their legends: colour bars, direction wheel, sub-box square.

h x w values, P x P samples of a mask.  The colours can be told apart with any kind of colour blindness.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklab.plots.sheets import INK, PAPER, TEXT, captioned, font, stack
from masklab.utils.types import Bytes, Colour, Floats

# From dark to light in nearly equal steps of perceived difference (CIELAB), so that it also reads in grey.
HEAT: tuple[tuple[float, Colour], ...] = (
    (0.00, (38, 8, 74)),
    (0.12, (52, 62, 134)),
    (0.32, (37, 115, 143)),
    (0.56, (42, 164, 122)),
    (0.80, (140, 205, 72)),
    (1.00, (252, 232, 60)),
)
# A closed circle of colours.  Any two of the eight differ by 30 or more in CIELAB, also as people with red,
# green or blue blindness see them (simulated after Machado, Oliveira and Fernandes, 2009).
CIRCLE: tuple[Colour, ...] = (
    (245, 250, 35),
    (205, 165, 40),
    (165, 60, 10),
    (245, 120, 170),
    (150, 35, 155),
    (80, 45, 250),
    (70, 155, 250),
    (15, 105, 80),
)
_PLANE: tuple[tuple[Colour, Colour], ...] = (((86, 180, 233), (240, 228, 66)), ((60, 85, 215), (213, 94, 0)))


def heat(values: NDArray[Any], low: float, high: float) -> Bytes:
    """Values ``(h, w)`` as colours ``(h, w, 3)``: ``low`` and below is dark violet, ``high`` and above yellow."""
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    places = [place for place, _ in HEAT]
    return np.stack([np.interp(share, places, [c[k] for _, c in HEAT]) for k in range(3)], axis=-1).astype(np.uint8)


def direction_colours(count: int) -> Bytes:
    """``count`` colours ``(count, 3)`` evenly round the circle."""
    places = np.arange(count) * len(CIRCLE) / count
    around = np.array([*CIRCLE, CIRCLE[0]])
    return (
        np.stack([np.interp(places, np.arange(len(around)), around[:, k]) for k in range(3)], axis=-1)
        .round()
        .astype(np.uint8)
    )


def shade(colours: Bytes, values: Floats, limit: float) -> Bytes:
    """Colours ``(h, w, 3)`` where the values reach the limit, black where they are 0 or less."""
    return (np.clip(values / limit, 0, 1)[:, :, None] * colours).astype(np.uint8)


def sub_box_colours(count: int) -> Bytes:
    """``count x count`` colours ``(count, count, 3)``: blue to yellow from left to right, light to dark downwards."""
    across = np.linspace(0, 1, count)[None, :, None]
    down = across.transpose(1, 0, 2)
    top, bottom = ((1 - across) * np.array(left) + across * np.array(right) for left, right in _PLANE)
    return ((1 - down) * top + down * bottom).round().astype(np.uint8)


def round_limits(values: NDArray[Any]) -> tuple[float, float]:
    """Limits of a scale that hold 98 % of the values and have two digits, at least 0.01 apart."""
    low, high = np.quantile(values, (0.01, 0.99)).tolist() if values.size else (0.0, 1.0)
    step = 10.0 ** (math.floor(math.log10(max(high - low, 0.01))) - 1)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return low, max(high, low + 0.01)


def _colour_bar(colours: Bytes, low: float, high: float, height: int, name: str) -> Image.Image:
    """A scale from ``low`` at the bottom to ``high`` at the top, with round numbers and its ``name`` above.

    ``colours`` is ``(n, 3)``, from low to high.
    """
    height, thick, top = max(height, 100), 24, TEXT
    most = (high - low) / 2 * (1 + 1e-6)  # at least two steps, whatever the rounding
    step = 10.0 ** math.floor(math.log10(most))
    step = max(factor * step for factor in (1, 2, 5) if factor * step <= most)
    ticks = (np.arange(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1) * step).tolist()
    wide = max(math.ceil(font().getlength(f"{tick:.3g}")) for tick in ticks)
    image = Image.new("RGB", (thick + 12 + wide, height), PAPER)
    draw = ImageDraw.Draw(image)
    inner = height - 2 * top
    pick = np.linspace(len(colours) - 1, 0, inner).round().astype(int)
    draw.rectangle((0, top - 1, thick - 1, top + inner), outline=INK)
    image.paste(Image.fromarray(np.repeat(colours[pick][:, None], thick - 2, axis=1)), (1, top))
    for tick in ticks:
        y = top + (inner - 1) * (high - tick) / (high - low)
        draw.line((thick, y, thick + 5, y), fill=INK)
        draw.text((thick + 9, y), f"{tick:.3g}", fill=INK, font=font(), anchor="lm")
    return captioned(image, name, 120)


def heat_bar(low: float, high: float, height: int, name: str) -> Image.Image:
    """Legend of `heat`."""
    return _colour_bar(heat(np.linspace(0, 1, 256)[None], 0, 1)[0], low, high, height, name)


def brightness_bar(limit: float, height: int, name: str) -> Image.Image:
    """Legend of `shade`."""
    return _colour_bar(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1), 0, limit, height, name)


def _arrow(draw: ImageDraw.ImageDraw, middle: tuple[float, float], degrees: float, length: float) -> None:
    """An arrow through ``middle``, counter-clockwise from the right; black on white, to be seen on any colour."""
    dx, dy = math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))
    (x, y), half, head = middle, length / 2, length * 0.45
    tip = (x + dx * half, y + dy * half)
    neck = (tip[0] - dx * head, tip[1] - dy * head)
    wings = [(neck[0] - side * dy * head * 0.6, neck[1] + side * dx * head * 0.6) for side in (1, -1)]
    for colour, extra in (("white", 4), ("black", 0)):
        draw.line((x - dx * half, y - dy * half, *neck), fill=colour, width=3 + extra)
        draw.polygon([tip, *wings], fill=colour, outline=colour, width=1 + extra)


def draw_direction(draw: ImageDraw.ImageDraw, middle: tuple[float, float], direction: int, degrees: float) -> None:
    """A direction's number, counted from 1, and its arrow, side by side."""
    x, y = middle
    draw.text(
        (x - 13, y), str(direction + 1), fill="black", font=font(), anchor="mm", stroke_width=2, stroke_fill="white"
    )
    _arrow(draw, (x + 11, y), degrees, 22)


def direction_wheel(table: NDArray[np.int64], directions: int, start: float, side: int) -> Image.Image:
    """The table of direction pooling as a legend: colours, numbers and arrows of directions; rings are distance bins.

    ``table`` is ``(P, P)`` of channels ``bin * directions + direction``.
    """
    samples = len(table)
    factor = max(1, side // samples)
    colours = direction_colours(directions)[table % directions].repeat(factor, axis=0).repeat(factor, axis=1)
    channels = table.repeat(factor, axis=0).repeat(factor, axis=1)
    edge = np.zeros(channels.shape, bool)
    edge[1:] |= channels[1:] != channels[:-1]
    edge[:, 1:] |= channels[:, 1:] != channels[:, :-1]
    edge[[0, -1]] = edge[:, [0, -1]] = True
    colours[edge] = 0
    image = Image.fromarray(colours)
    draw, half = ImageDraw.Draw(image), image.width / 2
    for k in range(directions):
        degrees = start + (k + 0.5) * 360 / directions
        dx, dy = -math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        reach = 0.76 * half / max(abs(dx), abs(dy))
        draw_direction(draw, (half + dx * reach, half + dy * reach), k, degrees)
    axis = Image.new("RGB", (image.width, 26), PAPER)
    line = table[samples // 2, samples // 2 :] // directions
    for ring in np.unique(line).tolist():
        x = (samples // 2 + float(np.flatnonzero(line == ring).mean()) + 0.5) * factor
        ImageDraw.Draw(axis).text((x, 13), str(ring + 1), fill=INK, font=font(), anchor="mm")
    ImageDraw.Draw(axis).text((0, 13), "distance bin:", fill=INK, font=font(), anchor="lm")
    return captioned(stack([image, axis], gap=2), "place in the box: the arrow points to the box's centre")


def sub_box_legend(count: int, side: int) -> Image.Image:
    """Legend of `sub_box_colours`: each colour at its place in the box."""
    cell = max(1, side // count)
    image = Image.fromarray(sub_box_colours(count).repeat(cell, axis=0).repeat(cell, axis=1))
    draw = ImageDraw.Draw(image)
    for k in range(count + 1):
        at = min(k * cell, image.width - 1)
        draw.line((at, 0, at, image.height), fill="black")
        draw.line((0, at, image.width, at), fill="black")
    return captioned(image, "place of the sub-box in the plain crop")
