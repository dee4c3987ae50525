"""The maps that masks are made of: semantic and direction logits (paper, Fig. 3, 6 and 7)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from masklab.ops.coordinates import pixels_inside, sample_indices
from masklab.ops.crop import sample_map
from masklab.ops.rois import Rois
from masklab.plots import sheets as panels
from masklab.plots.inspection import INSIDE, Inspection, draw_boxes
from masklab.plots.sheets import Bytes, Floats
from masklab.utils.types import Size

MOST_CLASSES = 3
DIM = 0.35  # brightness of the image beneath colours


def semantic(look: Inspection) -> Image.Image | str:
    """The semantic channels of the classes found, over the image and alone (paper, Fig. 7)."""
    maps = look.logits("semantic")
    if maps is None:
        return look.without("semantic")
    size = look.room(700, (INSIDE - 150) // 2)
    chosen, note = _classes(look, maps)
    channels = {label: look.channel(maps, label, size) for label in chosen}
    low, high = panels.round_limits(np.stack(list(channels.values())))
    grey = look.shown(size).mean(axis=2, keepdims=True)
    rows = []
    for label, values in channels.items():
        colours = panels.heat(values, low, high)
        over = Image.fromarray((0.35 * grey + 0.65 * colours).astype(np.uint8))
        boxes = look.found.boxes[look.found.labels == label]
        draw_boxes(over, boxes * (size[0] / look.image.shape[0]))
        name = look.model.classes.names[label]
        bar = panels.heat_bar(low, high, size[0], "logit")
        rows.append(
            panels.row(
                [
                    panels.captioned(over, f"{name}: channel over the image, with the boxes found"),
                    panels.captioned(Image.fromarray(colours), f"{name}: channel alone"),
                    bar,
                ]
            )
        )
    return panels.figure(f"{look.name}: semantic logits", *rows, panels.words(note, max(2 * size[1], 500)))


def _classes(look: Inspection, maps: Tensor) -> tuple[list[int], str]:
    """The classes worth showing, and a note on the choice."""
    counts = Counter(look.found.labels.tolist()).most_common()
    if counts:
        left = len(counts) - MOST_CLASSES
        note = (
            f"The {MOST_CLASSES} classes with most objects; {left} more were found."
            if left > 0
            else "Every class found."
        )
        return [
            label for label, _ in counts[:MOST_CLASSES]
        ], f"{note} The branch is trained inside boxes only, so it may be high outside."
    peaks = maps[0].float().amax(dim=(1, 2))
    best = peaks.topk(min(MOST_CLASSES, len(peaks))).indices.tolist()
    return best, f"{look.counted()}: these are the channels with the highest peaks."


def directions(look: Inspection) -> Image.Image | str:
    """The direction channels and what each box assembles from them (paper, Fig. 3 and 6)."""
    maps, mask = look.logits("direction"), look.model.config.model.mask
    if maps is None:
        return look.without("direction")
    table = look.table
    wheel = panels.wheel(table, mask.directions, mask.start_degrees, 300)
    size = look.room(560, (INSIDE - wheel.width - 130) // 2)
    strongest, limit = _strongest(look, maps, size)
    top = panels.row(
        [
            panels.captioned(strongest, "strongest direction at each pixel"),
            panels.captioned(
                _assembled(look, maps, size, limit),
                "assembled inside each box found: each place reads the channel of its colour",
            ),
            wheel,
            panels.brightness_bar(limit, wheel.height - 80, "logit, as brightness"),
        ]
    )
    return panels.figure(
        f"{look.name}: direction logits, {mask.directions} directions and {mask.distance_bins} distance bins",
        top,
        panels.words("All channels over the whole image; frame, number and arrow say which direction:", top.width),
        _grid(look, maps),
    )


def _grid(look: Inspection, maps: Tensor) -> Image.Image:
    """Every direction channel: a column for each direction, a row for each distance bin."""
    mask = look.model.config.model.mask
    count, colours = mask.directions, panels.circle(mask.directions)
    size = look.room(240, min(240, (INSIDE - 64 - 80) // count - 14))
    channels = [look.channel(maps, k, size) for k in range(maps.shape[1])]
    low, high = panels.round_limits(np.stack(channels))
    heads = [_head(k, count, mask.start_degrees, size[1] + 8) for k in range(count)]
    rows = [panels.row([_side("", heads[0].height), *heads], gap=6)]
    for ring in range(mask.distance_bins):
        tiles = [_framed(panels.heat(channels[ring * count + k], low, high), colours[k]) for k in range(count)]
        rows.append(panels.row([_side(f"bin {ring + 1}", tiles[0].height), *tiles], gap=6))
    return panels.row([panels.stack(rows, gap=6), panels.heat_bar(low, high, 240, "logit")])


def _strongest(look: Inspection, maps: Tensor, size: Size) -> tuple[Image.Image, float]:
    """The direction with the highest logit at each pixel, and the logit of full brightness."""
    best, which = np.full(size, -np.inf, np.float32), np.zeros(size, np.int64)
    count = look.model.config.model.mask.directions
    for k in range(maps.shape[1]):
        values = look.channel(maps, k, size)
        which[values > best] = k % count
        best = np.maximum(best, values)
    limit = max(panels.round_limits(best)[1], 0.1)
    return Image.fromarray(panels.shade(panels.circle(count)[which], best, limit)), limit


def _assembled(look: Inspection, maps: Tensor, size: Size, limit: float) -> Image.Image:
    """Each box's pooled direction logits at its place, the best on top, over the darkened image."""
    canvas = (look.shown(size) * DIM).astype(np.uint8)
    colours = look.table_colours
    scale = np.array([size[1] / look.image.shape[1], size[0] / look.image.shape[0]] * 2, np.float32)
    boxes = look.found.boxes * scale
    for n in reversed(range(len(boxes))):
        (columns, x), (rows, y) = (_samples(boxes[n, k::2], size[1 - k], len(colours)) for k in (0, 1))
        values = _interpolated(look.pooled(maps, n), x, y)
        nearest = colours[y.round().astype(np.int64)[:, None], x.round().astype(np.int64)]
        canvas[rows, columns] = panels.shade(nearest, values, limit)
    image = Image.fromarray(canvas)
    draw_boxes(image, boxes)
    return image


def _samples(edges: NDArray[np.float32], side: int, samples: int) -> tuple[slice, NDArray[np.float64]]:
    """The pixels of one axis between two edges of a box, and the index of each, a fraction, among the box's samples."""
    start, stop = edges[:1].astype(np.float64), edges[1:].astype(np.float64)
    first, count = (int(value[0]) for value in pixels_inside(start, stop, side))
    return slice(first, first + count), sample_indices(np.arange(first, first + count), start, stop - start, samples)


def _interpolated(values: Floats, x: NDArray[np.float64], y: NDArray[np.float64]) -> Floats:
    """Values ``(P, P)`` of a box between its samples, at the indices ``x`` and ``y`` of columns and rows."""
    places = (torch.as_tensor(index / (len(values) - 1), dtype=torch.float32) for index in (x, y))
    columns, rows = next(places)[None, None, :], next(places)[None, :, None]
    box = Rois(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.zeros(1, dtype=torch.long))
    sampled: Floats = sample_map(torch.as_tensor(values)[None, None], box, columns, rows)[0, 0].numpy()
    return sampled


def _framed(values: Bytes, colour: Bytes) -> Image.Image:
    image = Image.new("RGB", (values.shape[1] + 8, values.shape[0] + 8), tuple(colour.tolist()))
    image.paste(Image.fromarray(values), (4, 4))
    return image


def _head(direction: int, count: int, start: float, width: int) -> Image.Image:
    """Number, arrow and colour of a direction."""
    image = Image.new("RGB", (width, 34), tuple(panels.circle(count)[direction].tolist()))
    panels.tag(ImageDraw.Draw(image), (width / 2, 17), direction, start + (direction + 0.5) * 360 / count)
    return image


def _side(text: str, height: int) -> Image.Image:
    image = Image.new("RGB", (64, height), panels.PAPER)
    ImageDraw.Draw(image).text((60, height // 2), text, fill=panels.INK, font=panels.font(), anchor="rm")
    return image
