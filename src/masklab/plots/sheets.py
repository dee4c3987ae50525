"""Sheets: figures composed of images, captions, outlines, labels and legends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklab.results.overlay import is_free
from masklab.results.text import default_font, drawable
from masklab.utils.types import Bytes, Colour, Size

PAGE = 1600  # pixels: no figure is wider
GAP = 14
CONTENT_WIDTH = PAGE - 2 * GAP
TEXT = 17  # pixels: capitals of the default font are 0.7 of it high
PAPER, INK = "white", "black"


def font(size: int = TEXT) -> Any:
    """The font of numbers and of English text in figures; other text is drawn in the font of `drawable`."""
    return default_font(size)


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


def text_block(text: str, width: int, size: int = TEXT, fixed: bool = False) -> Image.Image:
    """Text broken into lines of at most ``width`` pixels, as an image; ``fixed`` makes it exactly ``width`` wide."""
    text, text_font = drawable(text, size, lines=True)
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
    """A word in pieces of at most ``width`` pixels, one letter at least: file names have no spaces to break at."""
    while len(word) > 1 and text_font.getlength(word) > width:
        count = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or text_font.getlength(word[:n]) <= width)
        yield word[:count]
        word = word[count:]
    yield word


def captioned(panel: Image.Image, caption: str, width: int | None = None) -> Image.Image:
    """An image below its caption."""
    return stack([text_block(caption, width or max(panel.width, 240)), panel], gap=4)


def widened(panel: Image.Image, width: int) -> Image.Image:
    """An image with margin at its right, ``width`` wide."""
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
    """Parts beside each other, flush at the bottom, so that images under captions line up."""
    size = (sum(part.width for part in parts) + gap * (len(parts) - 1), max(part.height for part in parts))
    image, x = Image.new("RGB", size, PAPER), 0
    for part in parts:
        image.paste(part, (x, size[1] - part.height))
        x += part.width + gap
    return image


def figure(title: str, *parts: Image.Image) -> Image.Image:
    """A figure: title, parts below one another, a margin around."""
    inside = max(part.width for part in parts)
    sheet = stack([text_block(title, max(inside, 500), TEXT + 2), *parts])
    image = Image.new("RGB", (sheet.width + 2 * GAP, sheet.height + 2 * GAP), PAPER)
    image.paste(sheet, (GAP, GAP))
    return image


def stroke(
    draw: ImageDraw.ImageDraw, path: NDArray[Any], colour: Colour, pattern: Sequence[float] = (), width: int = 3
) -> None:
    """Draw a line through ``path`` ``(n, 2)`` (x, y), on a wider black one that sets it off from the image.

    ``pattern`` is the lengths of dashes and gaps in turn, in pixels; empty for a solid line.
    """
    points = [tuple(point) for point in path.tolist()]
    pieces = _dashes(points, pattern) if pattern else [points]
    for piece in pieces:
        draw.line(piece, fill="black", width=width + 2, joint="curve")
    for piece in pieces:
        draw.line(piece, fill=colour, width=width, joint="curve")


def _dashes(points: list[Any], pattern: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The dashes of a line."""
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
    """Labels on an image, white with black strokes; one that would cover an earlier one is left out."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.draw_on = image, ImageDraw.Draw(image)
        self.placed: list[tuple[tuple[float, float, float, float], str, Any]] = []

    def add(self, text: str, corner: NDArray[Any]) -> None:
        """Add a label above a corner (x, y), or below it at the image's top."""
        text, text_font = drawable(text, TEXT)
        wide, tall = text_font.getlength(text), 1.2 * TEXT
        x = min(max(float(corner[0]), 2), self.image.width - wide - 2)
        y = float(corner[1]) - tall - 2
        box = (x, y if y >= 0 else float(corner[1]) + 4, x + wide, (y if y >= 0 else float(corner[1]) + 4) + tall)
        if text and x >= 0 and is_free(box, (other for other, _, _ in self.placed)):
            self.placed.append((box, text, text_font))

    def draw(self) -> None:
        """Draw all labels."""
        for box, text, text_font in self.placed:
            self.draw_on.text(box[:2], text, fill="white", font=text_font, stroke_width=2, stroke_fill="black")


def legend(entries: Sequence[tuple[str, Colour, Sequence[float]]]) -> Image.Image:
    """A sample of each line style, and its meaning: entries are (text, colour, pattern)."""
    parts = []
    for text, colour, pattern in entries:
        sample = Image.new("RGB", (76, round(1.35 * TEXT)), (110, 110, 110))
        middle = sample.height // 2
        stroke(ImageDraw.Draw(sample), np.array([(6, middle), (69, middle)]), colour, pattern)
        parts.append(row([sample, text_block(text, PAGE)], gap=8))
    return stack(parts, gap=6)
