"""Figures of a data set: images with their annotations, classes, sizes and counts; and the settings that suit it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklab.config.image import ImageConfig
from masklab.config.recipe import load_recipe
from masklab.config.schema import Config
from masklab.datasets.open import open_split
from masklab.datasets.split import Split
from masklab.datasets.statistics import Statistics, measure, proposals_for
from masklab.images.intensity import displayed
from masklab.plots import sheets as panels
from masklab.plots.inspection import INSIDE
from masklab.plots.sheets import GAP
from masklab.plots.show import save
from masklab.results.overlay import PALETTE, tinted
from masklab.training.auto import resolve_image_fields
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, make_folder

SHOWN = 12  # images of the sheet
COLUMNS = 3
MOST_NAMED = 25  # objects of an image: beyond, names hide more than they tell
CLASSES = 30  # of the bars; the others are counted together
BARS = 24
CHART_HEIGHT = 300
BAR, REST = PALETTE[4], (140, 140, 140)


def show_data(folder: str | Path, output: str | Path, split: str = "train", recipe: str | None = None) -> list[Path]:
    """Write ``SPLIT_images.png``, ``SPLIT_statistics.png`` and ``SPLIT_suggestion.yaml`` into ``output``.

    The sheet's images are spread evenly from the emptiest to the fullest.  Sizes are in pixels of the network's input,
    as ``recipe``, by default the paper's settings, scales images; the suggestion is a recipe on top of it.  Returns
    the paths.  Raises `InputError` for data, a recipe or a folder that cannot be used.
    """
    config = load_recipe(recipe) if recipe else Config()
    source = open_split(folder, split)
    if not len(source):
        raise InputError(f"{source.json_path} holds no images to draw: name another --split.")
    print(source.summary())
    config = resolve_image_fields(config, source)
    statistics = measure(source, config.image)
    output = make_folder(output)
    written = [
        save(_sheet(source, statistics, config), output / f"{split}_images.png"),
        save(_charts(source, statistics, config), output / f"{split}_statistics.png"),
        output / f"{split}_suggestion.yaml",
    ]
    text = suggestion(statistics, recipe, config.model.rpn.pre_nms_test)
    with atomic_write(written[-1]) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {written[-1]}, a recipe of these lines:\n{text}", end="")
    return written


def suggestion(statistics: Statistics, recipe: str | None, pre_nms_test: int) -> str:
    """The anchors and caps that suit a split, as YAML: what "auto" would take where ``pre_nms_test`` is the recipe's."""
    max_detections, proposals = statistics.max_detections, proposals_for(statistics.max_detections)
    raised = 2 * proposals if 2 * proposals > pre_nms_test else None
    rpn = {"anchor_sizes": statistics.anchor_sizes, "proposals_test": proposals, "pre_nms_test": raised}
    rpn = {name: value for name, value in rpn.items() if value is not None}
    base = {"base": recipe} if recipe else {}
    values = {**base, "model": {"rpn": rpn, "box": {"max_detections": max_detections}}}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def _sheet(source: Split, statistics: Statistics, config: Config) -> Image.Image:
    """Images with their annotations, in rising order of their objects."""
    order = np.argsort(statistics.per_image, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
    tiles = [_tile(source, int(order[place]), config.image) for place in places]
    rows = [panels.row(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    title = f"{source.json_path}: {len(tiles)} of {len(source)} images, from the emptiest to the fullest"
    return panels.figure(title, *rows)


def _tile(source: Split, index: int, config: ImageConfig) -> Image.Image:
    """One image, its objects tinted, with names where there are few and several classes; crowds outlined in white."""
    image, objects, names = source.images[index], source.objects(index), source.categories.names
    values = displayed(source.read(index, None), config, image.path)
    width = (INSIDE - (COLUMNS - 1) * GAP) // COLUMNS
    ratio = width / max(image.size)
    size = (max(1, round(image.size[0] * ratio)), max(1, round(image.size[1] * ratio)))
    masks = [objects.runs(row) for row in range(len(objects))]
    canvas, _ = tinted(values, masks, objects.boxes, max(1, math.ceil(ratio)))
    canvas = Image.fromarray(panels.scaled(np.asarray(canvas), size))
    scale = np.array([size[1] / image.size[1], size[0] / image.size[0]])
    draw, labels = ImageDraw.Draw(canvas), panels.Labels(canvas)
    for box in objects.ignored.reshape(-1, 2, 2) * scale:
        corners = np.array([box[0], (box[1, 0], box[0, 1]), box[1], (box[0, 0], box[1, 1]), box[0]])
        panels.stroke(draw, corners, (255, 255, 255), (9.0, 5.0), 1)
        labels.add("crowd", box[0])
    if len(names) > 1 and len(objects) <= MOST_NAMED:
        for row in np.argsort(-objects.areas).tolist():
            name = names[int(objects.labels[row])]
            labels.add(name, _label_corner(objects.boxes[row].reshape(2, 2) * scale, name))
    labels.draw()
    count = f"{len(objects)} object{'' if len(objects) == 1 else 's'}"
    caption = f"{image.path.name}\n{count}, {image.size[1]} x {image.size[0]} pixels"
    return panels.widened(panels.captioned(canvas, caption, width), width)


def _label_corner(box: NDArray[Any], name: str) -> NDArray[Any]:
    """The corner (x, y) above which a name is put: on the middle of a box that is large enough, or above the box."""
    wide, tall = panels.font().getlength(name), 1.2 * panels.TEXT
    inside = (box[1] - box[0] > (1.2 * wide, 2 * tall)).all()
    return box.mean(axis=0) + np.array([-wide / 2, tall / 2]) if inside else box[0]


def _charts(source: Split, statistics: Statistics, config: Config) -> Image.Image:
    """Counts of classes, sizes of objects with the suggested anchors, and objects an image with the suggested cap."""
    half = (INSIDE - GAP) // 2
    sizes, edges = _log_bins(statistics.sides)
    anchors = statistics.anchor_sizes or []
    images = config.image
    rule = (
        f"images enlarged by {images.scale:g}"
        if images.scale is not None
        else f"shortest side of an image {images.min_side}, longest at most {images.max_side}"
    )
    lines = ", ".join(f"{size:g}" for size in anchors) or "none: there is no object"
    left = panels.captioned(
        _histogram(
            sizes,
            [f"{edge:.2g}" if edge < 100 else f"{edge:.0f}" for edge in edges],
            half,
            [_on_log(size, edges) for size in anchors],
        ),
        f"Objects by size: root of the box's area, in pixels of the network's input ({rule}).\n"
        f"Lines: the suggested anchors, {lines}.",
        half,
    )
    counts, borders = _whole_bins(statistics.per_image)
    most = int(statistics.per_image.max(initial=0))
    right = panels.captioned(
        _histogram(counts, [str(border) for border in borders], half),
        f"Images by number of objects: {statistics.per_image.mean():.1f} on average, at most {most}.\n"
        f"Suggested cap: {statistics.max_detections} detections.",
        half,
    )
    title = (
        f"{source.json_path}: {len(source)} images, {len(statistics.sides)} objects, {len(source.categories)} classes"
    )
    return panels.figure(title, panels.row([left, right]), _class_bars(source, statistics))


def _log_bins(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Counts ``(n,)`` in bins of equal ratio over all values, and their edges ``(n + 1,)``."""
    values = values[values > 0]
    low, high = (values.min(), values.max()) if values.size else (1.0, 2.0)
    edges = np.geomspace(low / 1.02, max(high, low * 1.5) * 1.02, BARS + 1)
    return np.histogram(values, edges)[0], edges


def _on_log(value: float, edges: NDArray[np.float64]) -> float:
    """Where a value lies between the first edge, 0, and the last, 1, on a logarithmic scale."""
    return math.log(value / edges[0]) / math.log(edges[-1] / edges[0])


def _whole_bins(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts in bins of equally many whole numbers from 0, and the first number of each, and of the one after."""
    step = math.ceil((int(values.max(initial=0)) + 1) / BARS)
    borders = np.arange(0, int(values.max(initial=0)) + step + 1, step)
    return np.histogram(values, borders)[0], borders


def _histogram(counts: NDArray[np.int64], edges: Sequence[str], width: int, lines: Sequence[float] = ()) -> Image.Image:
    """Bars between labelled edges, the height of the highest beside it; ``lines`` stand at shares of the width."""
    canvas = Image.new("RGB", (width, CHART_HEIGHT), panels.PAPER)
    draw = ImageDraw.Draw(canvas)
    top, bottom, left = panels.TEXT + 8, CHART_HEIGHT - 2 * panels.TEXT, 10
    step = (width - 2 * left) / len(counts)
    for n, count in enumerate(counts.tolist()):
        height = (bottom - top) * count / max(1, counts.max())
        if count:
            draw.rectangle(
                (left + n * step + 1, min(bottom - height, bottom - 2), left + (n + 1) * step - 1, bottom), fill=BAR
            )
    peak = int(counts.argmax())
    place = min(max(left + (peak + 0.5) * step, 30), width - 30)
    draw.text((place, top - 3), str(int(counts.max())), fill=panels.INK, font=panels.font(), anchor="mb")
    draw.line((left, bottom, width - left, bottom), fill=panels.INK)
    for share in lines:
        x = left + share * (width - 2 * left)
        panels.stroke(draw, np.array([(x, top), (x, bottom)]), PALETTE[0], (), 2)
    room = max(panels.font().getlength(edge) for edge in edges) + 14
    every = max(1, math.ceil(room / step))
    for n in range(0, len(edges), every):
        x = left + n * step
        draw.line((x, bottom, x, bottom + 5), fill=panels.INK)
        anchor = "lt" if n == 0 else "mt"
        if x + panels.font().getlength(edges[n]) / 2 <= width:
            draw.text((x if n else 0, bottom + 8), edges[n], fill=panels.INK, font=panels.font(), anchor=anchor)
    return canvas


def _class_bars(source: Split, statistics: Statistics) -> Image.Image:
    """A bar for each class, most objects first; beyond 30 classes the rest together."""
    order = np.argsort(-statistics.per_class, kind="stable").tolist()
    rows = [(source.categories.names[k], int(statistics.per_class[k])) for k in order]
    rest: list[tuple[str, int]] = []
    if len(rows) > CLASSES:
        rest = rows[CLASSES - 1 :]  # shown in grey
        rows = [*rows[: CLASSES - 1], (f"{len(rest)} other classes", sum(count for _, count in rest))]
    label_font, height = panels.font(), round(1.5 * panels.TEXT)
    names = max(label_font.getlength(name) for name, _ in rows) + 12
    numbers = max(label_font.getlength(str(count)) for _, count in rows) + 12
    canvas = Image.new("RGB", (INSIDE, height * len(rows)), panels.PAPER)
    draw, most = ImageDraw.Draw(canvas), max(1, *(count for _, count in rows))
    for n, (name, count) in enumerate(rows):
        middle = (n + 0.5) * height
        draw.text((0, middle), name, fill=panels.INK, font=label_font, anchor="lm")
        end = names + (INSIDE - names - numbers) * count / most
        draw.rectangle(
            (names, middle - height * 0.35, end, middle + height * 0.35),
            fill=BAR if n < len(order) - len(rest) else REST,
        )
        draw.text((end + 8, middle), str(count), fill=panels.INK, font=label_font, anchor="lm")
    return panels.captioned(canvas, "Objects by class")
