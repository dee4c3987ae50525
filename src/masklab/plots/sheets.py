"""What figures are put together from: panels, captions, colour scales, legends; readable at full size by any eyes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from masklab.results.overlay import Colour
from masklab.utils.types import Size

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]

PAGE = 1600  # pixels: no figure is wider
GAP = 14
TEXT = 17  # pixels: capitals of the default font are 0.7 of it high
PAPER, INK = "white", "black"

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
PLANE: tuple[tuple[Colour, Colour], ...] = (((86, 180, 233), (240, 228, 66)), ((60, 85, 215), (213, 94, 0)))


def heat(values: NDArray[Any], low: float, high: float) -> Bytes:
    """Values ``(h, w)`` as colours ``(h, w, 3)``: ``low`` and below is dark violet, ``high`` and above yellow."""
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    places = [place for place, _ in HEAT]
    return np.stack([np.interp(share, places, [c[k] for _, c in HEAT]) for k in range(3)], axis=-1).astype(np.uint8)


def circle(count: int) -> Bytes:
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


def plane(count: int) -> Bytes:
    """``count x count`` colours ``(count, count, 3)``: blue to yellow from left to right, light to dark downwards."""
    across = np.linspace(0, 1, count)[None, :, None]
    down = across.transpose(1, 0, 2)
    top, bottom = ((1 - across) * np.array(left) + across * np.array(right) for left, right in PLANE)
    return ((1 - down) * top + down * bottom).round().astype(np.uint8)


def round_limits(values: NDArray[Any]) -> tuple[float, float]:
    """Limits of a scale that hold 98 % of the values and have two digits, at least 0.01 apart."""
    low, high = np.quantile(values, (0.01, 0.99)).tolist() if values.size else (0.0, 1.0)
    step = 10.0 ** (math.floor(math.log10(max(high - low, 0.01))) - 1)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return low, max(high, low + 0.01)


def font(size: int = TEXT) -> Any:
    """The font of every figure: it comes with Pillow."""
    return ImageFont.load_default(size=size)


def shown_size(size: Size, room: Size) -> Size:
    """``(height, width)`` at which an image is shown in ``room``: a whole number of times larger, or fitted."""
    factor = min(room[0] / size[0], room[1] / size[1])
    if factor >= 1:
        factor = math.floor(factor)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def scaled(image: Bytes, size: Size) -> Bytes:
    """An image ``(H, W, 3)`` at another size: every pixel repeated when larger, smoothed when smaller."""
    larger = size[0] >= image.shape[0]
    method = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), method))


def words(text: str, width: int, size: int = TEXT, fixed: bool = False) -> Image.Image:
    """Text broken into lines of at most ``width`` pixels; an image of just that width when ``fixed``."""
    text_font = font(size)
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.append("")
        for word in chain.from_iterable(_pieces(word, width, text_font) for word in paragraph.split(" ")):
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and text_font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    wide = width if fixed else max(math.ceil(text_font.getlength(line)) for line in lines)
    height = round(1.35 * size)
    image = Image.new("RGB", (max(wide, 1), height * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    for n, line in enumerate(lines):
        draw.text((0, n * height), line, fill=INK, font=text_font)
    return image


def _pieces(word: str, width: int, text_font: Any) -> Iterator[str]:
    """A word in pieces of at most ``width`` pixels, of a letter at least: file names have no spaces to break at."""
    while len(word) > 1 and text_font.getlength(word) > width:
        count = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or text_font.getlength(word[:n]) <= width)
        yield word[:count]
        word = word[count:]
    yield word


def captioned(panel: Image.Image, caption: str, width: int | None = None) -> Image.Image:
    """A panel below its caption."""
    return stack([words(caption, width or max(panel.width, 240)), panel], gap=4)


def widened(panel: Image.Image, width: int) -> Image.Image:
    """A panel with paper at its right."""
    image = Image.new("RGB", (max(width, panel.width), panel.height), PAPER)
    image.paste(panel, (0, 0))
    return image


def stack(parts: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Parts one below the other, flush left."""
    size = (max(part.width for part in parts), sum(part.height for part in parts) + gap * (len(parts) - 1))
    image, y = Image.new("RGB", size, PAPER), 0
    for part in parts:
        image.paste(part, (0, y))
        y += part.height + gap
    return image


def row(parts: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Parts beside each other, flush at the bottom, so that panels under captions line up."""
    size = (sum(part.width for part in parts) + gap * (len(parts) - 1), max(part.height for part in parts))
    image, x = Image.new("RGB", size, PAPER), 0
    for part in parts:
        image.paste(part, (x, size[1] - part.height))
        x += part.width + gap
    return image


def figure(title: str, *parts: Image.Image) -> Image.Image:
    """A whole figure: title, parts below one another, a margin around."""
    inside = max(part.width for part in parts)
    sheet = stack([words(title, max(inside, 500), TEXT + 2), *parts])
    image = Image.new("RGB", (sheet.width + 2 * GAP, sheet.height + 2 * GAP), PAPER)
    image.paste(sheet, (GAP, GAP))
    return image


def colour_bar(colours: Bytes, low: float, high: float, height: int, name: str) -> Image.Image:
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
    """The scale of `heat`."""
    return colour_bar(heat(np.linspace(0, 1, 256)[None], 0, 1)[0], low, high, height, name)


def brightness_bar(limit: float, height: int, name: str) -> Image.Image:
    """The scale of `shade`."""
    return colour_bar(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1), 0, limit, height, name)


def stroke(
    draw: ImageDraw.ImageDraw, path: NDArray[Any], colour: Colour, pattern: Sequence[float] = (), width: int = 3
) -> None:
    """A line through ``path`` ``(n, 2)`` (x, y), on a wider black one that sets it off from any image.

    ``pattern`` are pixels of line and of gap in turn, none for a line without gaps.
    """
    points = [tuple(point) for point in path.tolist()]
    pieces = _dashes(points, pattern) if pattern else [points]
    for piece in pieces:
        draw.line(piece, fill="black", width=width + 2, joint="curve")
    for piece in pieces:
        draw.line(piece, fill=colour, width=width, joint="curve")


def _dashes(points: list[Any], pattern: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The drawn pieces of a broken line."""
    pieces: list[list[tuple[float, float]]] = []
    turn, left = 0, float(pattern[0])
    piece: list[tuple[float, float]] = [points[0]]
    for (x1, y1), (x2, y2) in pairwise(points):
        length = math.hypot(x2 - x1, y2 - y1)
        done = 0.0
        while length - done > left:
            done += left
            place = (x1 + (x2 - x1) * done / length, y1 + (y2 - y1) * done / length)
            if turn % 2 == 0:
                pieces.append([*piece, place])
            turn += 1
            left, piece = float(pattern[turn % len(pattern)]), [place]
        left -= length - done
        piece.append((x2, y2))
    return [*pieces, piece] if turn % 2 == 0 else pieces


class Labels:
    """Words on an image, white on black strokes; those that would cover an earlier one are left out."""

    def __init__(self, image: Image.Image) -> None:
        self.inputs, self.draw_on = image, ImageDraw.Draw(image)
        self.placed: list[tuple[Box, str]] = []

    def add(self, text: str, corner: NDArray[Any]) -> None:
        """Put words above a corner (x, y), or below it at the image's top."""
        wide, tall = font().getlength(text), 1.2 * TEXT
        x = min(max(float(corner[0]), 2), self.inputs.width - wide - 2)
        y = float(corner[1]) - tall - 2
        box = (x, y if y >= 0 else float(corner[1]) + 4, x + wide, (y if y >= 0 else float(corner[1]) + 4) + tall)
        apart = all(box[2] < p[0] or box[0] > p[2] or box[3] < p[1] or box[1] > p[3] for p, _ in self.placed)
        if text and x >= 0 and apart:
            self.placed.append((box, text))

    def draw(self) -> None:
        for box, text in self.placed:
            self.draw_on.text(box[:2], text, fill="white", font=font(), stroke_width=2, stroke_fill="black")


def legend(entries: Sequence[tuple[str, Colour, Sequence[float]]]) -> Image.Image:
    """What each kind of line means: a sample of it, then its words."""
    parts = []
    for text, colour, pattern in entries:
        sample = Image.new("RGB", (76, round(1.35 * TEXT)), (110, 110, 110))
        middle = sample.height // 2
        stroke(ImageDraw.Draw(sample), np.array([(6, middle), (69, middle)]), colour, pattern)
        parts.append(row([sample, words(text, PAGE)], gap=8))
    return stack(parts, gap=6)


def arrow(draw: ImageDraw.ImageDraw, middle: tuple[float, float], degrees: float, length: float) -> None:
    """An arrow through ``middle``, counter-clockwise from the right; black on white, to be seen on any colour."""
    dx, dy = math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))
    (x, y), half, head = middle, length / 2, length * 0.45
    tip = (x + dx * half, y + dy * half)
    neck = (tip[0] - dx * head, tip[1] - dy * head)
    wings = [(neck[0] - side * dy * head * 0.6, neck[1] + side * dx * head * 0.6) for side in (1, -1)]
    for colour, extra in (("white", 4), ("black", 0)):
        draw.line((x - dx * half, y - dy * half, *neck), fill=colour, width=3 + extra)
        draw.polygon([tip, *wings], fill=colour, outline=colour, width=1 + extra)


def tag(draw: ImageDraw.ImageDraw, middle: tuple[float, float], direction: int, degrees: float) -> None:
    """A direction's number, counted from 1, and its arrow, side by side."""
    x, y = middle
    draw.text(
        (x - 13, y), str(direction + 1), fill="black", font=font(), anchor="mm", stroke_width=2, stroke_fill="white"
    )
    arrow(draw, (x + 11, y), degrees, 22)


def wheel(table: NDArray[np.int64], directions: int, start: float, side: int) -> Image.Image:
    """The table of direction pooling as a legend: colours, numbers and arrows of directions; rings are distance bins.

    ``table`` is ``(P, P)`` of channels ``bin * directions + direction``.
    """
    samples = len(table)
    factor = max(1, side // samples)
    colours = circle(directions)[table % directions].repeat(factor, axis=0).repeat(factor, axis=1)
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
        tag(draw, (half + dx * reach, half + dy * reach), k, degrees)
    axis = Image.new("RGB", (image.width, 26), PAPER)
    line = table[samples // 2, samples // 2 :] // directions
    for ring in np.unique(line).tolist():
        x = (samples // 2 + float(np.flatnonzero(line == ring).mean()) + 0.5) * factor
        ImageDraw.Draw(axis).text((x, 13), str(ring + 1), fill=INK, font=font(), anchor="mm")
    ImageDraw.Draw(axis).text((0, 13), "distance bin:", fill=INK, font=font(), anchor="lm")
    return captioned(stack([image, axis], gap=2), "place in the box: the arrow points to the box's centre")


def plane_legend(count: int, side: int) -> Image.Image:
    """The colours of `plane` where they belong: the places in the box."""
    cell = max(1, side // count)
    image = Image.fromarray(plane(count).repeat(cell, axis=0).repeat(cell, axis=1))
    draw = ImageDraw.Draw(image)
    for k in range(count + 1):
        at = min(k * cell, image.width - 1)
        draw.line((at, 0, at, image.height), fill="black")
        draw.line((0, at, image.width, at), fill="black")
    return captioned(image, "place of the sub-box in the plain crop")
