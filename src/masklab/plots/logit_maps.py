"""Figures of the maps that masks are made of: semantic and direction logits (paper, Fig. 3, 6 and 7)."""

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
from masklab.plots import colour_maps, sheets
from masklab.plots.inspection import Inspection, draw_boxes
from masklab.utils.types import Bytes, Floats, Size

_MOST_CLASSES = 3
_DIM = 0.35  # brightness of the image beneath colours


def semantic_figure(inspection: Inspection) -> Image.Image | str:
    """The semantic channels of the classes found, over the image and alone (paper, Fig. 7)."""
    maps = inspection.logits("semantic")
    if maps is None:
        return inspection.reason_missing("semantic")
    size = inspection.fitted_size(700, (sheets.CONTENT_WIDTH - 150) // 2)
    chosen, note = _classes(inspection, maps)
    channels = {label: inspection.channel(maps, label, size) for label in chosen}
    low, high = colour_maps.round_limits(np.stack(list(channels.values())))
    grey = inspection.shown(size).mean(axis=2, keepdims=True)
    rows = []
    for label, values in channels.items():
        colours = colour_maps.heat(values, low, high)
        over = Image.fromarray((0.35 * grey + 0.65 * colours).astype(np.uint8))
        boxes = inspection.found.boxes[inspection.found.labels == label]
        draw_boxes(over, boxes * (size[0] / inspection.image.shape[0]))
        name = inspection.model.classes.names[label]
        bar = colour_maps.heat_bar(low, high, size[0], "logit")
        rows.append(
            sheets.row(
                [
                    sheets.captioned(over, f"{name}: channel over the image, with the boxes found"),
                    sheets.captioned(Image.fromarray(colours), f"{name}: channel alone"),
                    bar,
                ]
            )
        )
    return sheets.figure(f"{inspection.name}: semantic logits", *rows, sheets.text_block(note, max(2 * size[1], 500)))


def _classes(inspection: Inspection, maps: Tensor) -> tuple[list[int], str]:
    """The classes to show and a note on the choice."""
    counts = Counter(inspection.found.labels.tolist()).most_common()
    if counts:
        left = len(counts) - _MOST_CLASSES
        note = (
            f"The {_MOST_CLASSES} classes with most objects; {left} more were found."
            if left > 0
            else "Every class found."
        )
        return [
            label for label, _ in counts[:_MOST_CLASSES]
        ], f"{note} The logits are trained inside boxes only, so they may be high outside."
    peaks = maps[0].float().amax(dim=(1, 2))
    best = peaks.topk(min(_MOST_CLASSES, len(peaks))).indices.tolist()
    return best, f"{inspection.summary()}: these are the channels with the highest peaks."


def direction_figure(inspection: Inspection) -> Image.Image | str:
    """The direction channels and what each box is assembled from (paper, Fig. 3 and 6)."""
    maps, mask = inspection.logits("direction"), inspection.model.config.model.mask
    if maps is None:
        return inspection.reason_missing("direction")
    table = inspection.table
    wheel = colour_maps.direction_wheel(table, mask.directions, mask.start_degrees, 300)
    size = inspection.fitted_size(560, (sheets.CONTENT_WIDTH - wheel.width - 130) // 2)
    strongest, limit = strongest_direction(inspection, maps, size)
    top = sheets.row(
        [
            sheets.captioned(strongest, "strongest direction at each pixel"),
            sheets.captioned(
                _assembled(inspection, maps, size, limit),
                "assembled inside each box found: each place reads the channel of its colour",
            ),
            wheel,
            colour_maps.brightness_bar(limit, wheel.height - 80, "logit, as brightness"),
        ]
    )
    return sheets.figure(
        f"{inspection.name}: direction logits, {mask.directions} directions and {mask.distance_bins} distance bins",
        top,
        sheets.text_block("All channels over the whole image; frame, number and arrow say which direction:", top.width),
        _grid(inspection, maps),
    )


def _grid(inspection: Inspection, maps: Tensor) -> Image.Image:
    """Every direction channel: a column for each direction, a row for each distance bin."""
    mask = inspection.model.config.model.mask
    count, colours = mask.directions, colour_maps.direction_colours(mask.directions)
    size = inspection.fitted_size(240, min(240, (sheets.CONTENT_WIDTH - 64 - 80) // count - 14))
    channels = [inspection.channel(maps, k, size) for k in range(maps.shape[1])]
    low, high = colour_maps.round_limits(np.stack(channels))
    heads = [_head(k, count, mask.start_degrees, size[1] + 8) for k in range(count)]
    rows = [sheets.row([_side("", heads[0].height), *heads], gap=6)]
    for ring in range(mask.distance_bins):
        tiles = [_framed(colour_maps.heat(channels[ring * count + k], low, high), colours[k]) for k in range(count)]
        rows.append(sheets.row([_side(f"bin {ring + 1}", tiles[0].height), *tiles], gap=6))
    return sheets.row([sheets.stack(rows, gap=6), colour_maps.heat_bar(low, high, 240, "logit")])


def strongest_direction(inspection: Inspection, maps: Tensor, size: Size) -> tuple[Image.Image, float]:
    """The direction with the highest logit at each pixel, and the logit of full brightness."""
    best, which = np.full(size, -np.inf, np.float32), np.zeros(size, np.int64)
    count = inspection.model.config.model.mask.directions
    for k in range(maps.shape[1]):
        values = inspection.channel(maps, k, size)
        which[values > best] = k % count
        best = np.maximum(best, values)
    limit = max(colour_maps.round_limits(best)[1], 0.1)
    return Image.fromarray(colour_maps.shade(colour_maps.direction_colours(count)[which], best, limit)), limit


def _assembled(inspection: Inspection, maps: Tensor, size: Size, limit: float) -> Image.Image:
    """Each box's pooled direction logits at its place, the best on top, over the darkened image."""
    canvas = (inspection.shown(size) * _DIM).astype(np.uint8)
    colours = inspection.table_colours
    scale = np.array([size[1] / inspection.image.shape[1], size[0] / inspection.image.shape[0]] * 2, np.float32)
    boxes = inspection.found.boxes * scale
    for n in reversed(range(len(boxes))):
        (columns, x), (rows, y) = (_samples(boxes[n, k::2], size[1 - k], len(colours)) for k in (0, 1))
        values = _interpolated(inspection.pooled(maps, n), x, y)
        nearest = colours[y.round().astype(np.int64)[:, None], x.round().astype(np.int64)]
        canvas[rows, columns] = colour_maps.shade(nearest, values, limit)
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
    image = Image.new("RGB", (width, 34), tuple(colour_maps.direction_colours(count)[direction].tolist()))
    colour_maps.draw_direction(
        ImageDraw.Draw(image), (width / 2, 17), direction, start + (direction + 0.5) * 360 / count
    )
    return image


def _side(text: str, height: int) -> Image.Image:
    image = Image.new("RGB", (64, height), sheets.PAPER)
    ImageDraw.Draw(image).text((60, height // 2), text, fill=sheets.INK, font=sheets.font(), anchor="rm")
    return image
