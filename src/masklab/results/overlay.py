"""Overlay of objects over their image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklab.masks import rle
from masklab.ops.box_index import BoxIndex
from masklab.results.colours import PALETTE
from masklab.results.instances import Instances
from masklab.results.text import drawable
from masklab.utils.types import Colour

_Rectangle = tuple[float, float, float, float]  # xyxy
_TINT = 0.45  # weight of the colour inside an object
_MIN_SIDE = 512  # pixels: shorter images are enlarged
_MAX_SIDE = 4096  # pixels: no side is enlarged beyond it
_NEIGHBOUR_DISTANCE = 4  # pixels: boxes this close are neighbours
MOST_LABELLED = 60  # objects: more boxes and labels would hide the image
LEAST_LABELLED = 300  # pixels: the shortest side of an image that has room for labels


def overlay(
    image: NDArray[np.uint8], instances: Instances, min_score: float = 0.5, enlarge: bool = True
) -> Image.Image:
    """Tint and outline every object whose score is at least ``min_score``, the smaller on top.

    ``image`` is ``(3, H, W)`` uint8 RGB, ``instances`` belong to it.  Neighbours get different colours.  An
    image whose shortest side is under 512 pixels is enlarged by an integer factor, unless ``enlarge`` is
    false.  Boxes, class names and scores are left out on small images and for more than
    60 objects.  Returns an RGB image.  Raises `ValueError` when the instances belong to an image of another size.
    """
    if image.shape != (3, *instances.size):
        raise ValueError(f"the image is {image.shape} but the instances' size is {instances.size}")
    shown = instances.above(min_score)
    factor = max(1, min(-(-_MIN_SIDE // min(instances.size)), _MAX_SIDE // max(instances.size))) if enlarge else 1
    canvas, colours = tinted(image, shown.rle, shown.boxes, factor)
    if len(shown) <= MOST_LABELLED and min(instances.size) >= LEAST_LABELLED:
        _annotate(canvas, shown, colours, factor)
    return canvas


def tinted(
    image: NDArray[np.uint8], masks: Sequence[rle.RLE], boxes: NDArray[np.float32], factor: int = 1
) -> tuple[Image.Image, list[Colour]]:
    """An image ``(3, H, W)`` ``factor`` times larger with objects tinted and outlined, and the colour of each.

    ``masks`` are run lengths, ``boxes`` ``(n, 4)`` around them; smaller objects lie on top.
    """
    colours = _colours(boxes)
    original = np.ascontiguousarray(image.transpose(1, 2, 0))
    canvas = original.repeat(factor, axis=0).repeat(factor, axis=1)
    width = 1 if min(canvas.shape[:2]) < 800 else 2
    for n in sorted(range(len(masks)), key=lambda n: -rle.area(masks[n])):
        _tint_one(canvas, original, masks[n], colours[n], factor, width)
    return Image.fromarray(canvas), colours


def _colours(boxes: NDArray[np.float32]) -> list[Colour]:
    """A colour for each object, shared with as few neighbours as possible."""
    chosen = np.zeros(len(boxes), np.int64)
    used = np.zeros(len(PALETTE), np.int64)
    half = _NEIGHBOUR_DISTANCE / 2
    around = boxes.astype(np.float64) + np.array([-half, -half, half, half])
    for first, end, rows, others in BoxIndex(around).pairs(around):
        earlier = others < rows
        rows, others = rows[earlier], others[earlier]
        cuts = np.searchsorted(rows, np.arange(first, end + 1)).tolist()
        for n, start, stop in zip(range(first, end), cuts[:-1], cuts[1:], strict=True):
            taken = np.bincount(chosen[others[start:stop]], minlength=len(PALETTE))
            chosen[n] = np.lexsort((used, taken))[0]
            used[chosen[n]] += 1
    return [PALETTE[k] for k in chosen.tolist()]


def _tint_one(
    canvas: NDArray[np.uint8], original: NDArray[np.uint8], mask: rle.RLE, colour: Colour, factor: int, width: int
) -> None:
    """Tint one object and draw its outline, inside its own box only."""
    box = rle.bounds(mask, (original.shape[0], original.shape[1]))
    if box is None:
        return
    x1, y1, x2, y2 = box
    inside = rle.window(mask, (original.shape[0], original.shape[1]), box).view(bool)
    inside = inside.repeat(factor, axis=0).repeat(factor, axis=1)
    beneath = original[y1:y2, x1:x2].repeat(factor, axis=0).repeat(factor, axis=1)
    region = canvas[y1 * factor : y2 * factor, x1 * factor : x2 * factor]
    tint = (beneath[inside] * (1 - _TINT) + np.multiply(colour, _TINT)).astype(np.uint8)
    region[inside] = tint
    region[inside & ~_eroded(inside, width)] = colour


def _eroded(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The mask without the pixels up to ``width`` from its edge."""
    for _ in range(width):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _annotate(canvas: Image.Image, shown: Instances, colours: list[Colour], factor: int) -> None:
    """Draw boxes, then class names, if there are several classes, and scores, best first, where they hide no other label."""
    draw = ImageDraw.Draw(canvas)
    size = max(13, min(canvas.size) // 50)
    boxes = (shown.boxes * factor).tolist()
    order = np.argsort(-shown.scores, kind="stable").tolist()
    for n in reversed(order):
        x1, y1, x2, y2 = boxes[n]
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colours[n])
    placed: list[_Rectangle] = []
    for n in order:
        name = f"{shown.class_names[int(shown.labels[n])]} " if len(shown.class_names) > 1 else ""
        text, font = drawable(f"{name}{shown.scores[n]:.2f}", size)
        spot = _spot(boxes[n], draw.textbbox((0, 0), text, font=font), canvas.size, placed)
        if spot is not None:
            placed.append(spot)
            draw.rectangle(spot, fill=colours[n])
            ink = "black" if np.dot(colours[n], (0.299, 0.587, 0.114)) > 110 else "white"
            draw.text((spot[0] + 3, spot[1] + 1), text, fill=ink, font=font)


def _spot(
    box: list[float],
    text: _Rectangle,
    size: tuple[int, int],
    placed: list[_Rectangle],
) -> _Rectangle | None:
    """The rectangle of a label: above its box, inside at the top, or below; ``None`` if it would hide too much."""
    wide, tall = text[2] + 6, text[3] + 4
    if box[2] - box[0] < 0.6 * wide or box[3] - box[1] < 1.6 * tall:
        return None
    x = min(max(box[0], 0), size[0] - wide)
    for y in (box[1] - tall, box[1], box[3]):
        spot = (x, y, x + wide, y + tall)
        hides = y == box[1] and box[3] - box[1] < 2.5 * tall
        if is_free(spot, placed) and not hides and x >= 0 and 0 <= y <= size[1] - tall:
            return spot
    return None


def is_free(spot: _Rectangle, placed: Iterable[_Rectangle]) -> bool:
    """Whether a label's rectangle (x1, y1, x2, y2) overlaps none of those placed before; they may touch."""
    return all(spot[2] <= p[0] or spot[0] >= p[2] or spot[3] <= p[1] or spot[1] >= p[3] for p in placed)
