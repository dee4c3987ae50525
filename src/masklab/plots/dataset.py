"""Figures of a data set: annotated images, and statistics with the settings that suit it."""

from __future__ import annotations

import logging
import math
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
from masklab.datasets.source import Data
from masklab.datasets.split import Split
from masklab.datasets.statistics import SHARED, Statistics, measure, proposals_for, shared_boxes
from masklab.images.intensity import displayed
from masklab.plots import sheets
from masklab.plots.charts import statistics_chart
from masklab.plots.save import save_png
from masklab.plots.sheets import CONTENT_WIDTH, GAP
from masklab.results.overlay import tinted
from masklab.results.text import drawable
from masklab.training.auto import resolve_image_fields
from masklab.utils.errors import InputError
from masklab.utils.extras import require
from masklab.utils.files import atomic_write, make_folder
from masklab.utils.leftout import LeftOut
from masklab.utils.words import counted

_log = logging.getLogger(__name__)

_MOST_IMAGES = 12
_COLUMNS = 3
_MOST_NAMED = 25  # objects of an image: more names would hide the image


def show_data(data: Data, output: str | Path, split: str = "train", recipe: str | None = None) -> list[Path]:
    """Write ``SPLIT_images.png``, ``SPLIT_statistics.png`` and ``SPLIT_suggestion.yaml`` into ``output``.

    The sheet's images are evenly spaced in the order of their numbers of objects.  Sizes are in pixels of the network's
    input, as ``recipe``, by default the paper's settings, scales images; the suggestion is a recipe on top of it, and is
    logged, as is the share of boxes that hold part of another object of the same class.  Returns the paths.  Raises
    `InputError` for data, a recipe or a folder that cannot be used.
    """
    require("matplotlib", "report", "masklab data show")
    config = load_recipe(recipe) if recipe else Config()
    source = open_split(data, split)
    if not len(source):
        raise InputError(f"{source.json_path} holds no images to draw: name another --split.")
    output = make_folder(output)
    _log.info(source.summary())
    left = LeftOut()
    config = resolve_image_fields(config, source, left)
    statistics = measure(source, config.image)
    written = [
        save_png(_sheet(source, statistics, config, left), output / f"{split}_images.png"),
        save_png(_chart(source, statistics, config), output / f"{split}_statistics.png"),
        output / f"{split}_suggestion.yaml",
    ]
    text = suggestion(statistics, recipe, config.model.rpn.pre_nms_test)
    with atomic_write(written[-1]) as temporary:
        temporary.write_text(text, encoding="utf-8")
    shared = shared_boxes(source)
    if shared is not None:
        _log.info(
            "boxes that hold at least %.0f %% of another object of their class: %.1f %%", 100 * SHARED, 100 * shared
        )
    _log.info("written: %s, a recipe of these lines:\n%s", written[-1], text.rstrip())
    return written


def suggestion(statistics: Statistics, recipe: str | None, pre_nms_test: int) -> str:
    """The anchors and limits of detections that suit a split, as YAML: what "auto" resolves to.

    ``pre_nms_test`` is the recipe's; a higher one is suggested where it is too low.
    """
    max_detections, proposals = statistics.max_detections, proposals_for(statistics.max_detections)
    raised = 2 * proposals if 2 * proposals > pre_nms_test else None
    rpn = {"anchor_sizes": statistics.anchor_sizes, "proposals_test": proposals, "pre_nms_test": raised}
    rpn = {name: value for name, value in rpn.items() if value is not None}
    base = {"base": recipe} if recipe else {}
    values = {**base, "model": {"rpn": rpn, "box": {"max_detections": max_detections}}}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def _sheet(source: Split, statistics: Statistics, config: Config, left: LeftOut) -> Image.Image:
    """Images with their annotations, in ascending order of their number of objects."""
    order = np.argsort(statistics.per_image, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(_MOST_IMAGES, len(order))).round().astype(int))
    tiles: list[Image.Image] = []
    for index in order[places].tolist():
        if source.images[index].path in left.paths:
            continue
        with left.skipping(source.images[index].path):
            tiles.append(_tile(source, index, config.image))
    if not tiles:
        left.refuse(len(source))
    rows = [sheets.row(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
    title = f"{source.json_path}: {len(tiles)} of {counted(len(source), 'image')}, from the emptiest to the fullest"
    return sheets.figure(title, *rows)


def _tile(source: Split, index: int, config: ImageConfig) -> Image.Image:
    """One image with its objects tinted; named if they are few and of several classes; crowds outlined in white."""
    image, objects, names = source.images[index], source.objects(index), source.categories.names
    values = displayed(source.read(index, None), config, image.path)
    width = (CONTENT_WIDTH - (_COLUMNS - 1) * GAP) // _COLUMNS
    ratio = width / max(image.size)
    size = (max(1, round(image.size[0] * ratio)), max(1, round(image.size[1] * ratio)))
    masks = [objects.rle(row) for row in range(len(objects))]
    canvas, _ = tinted(values, masks, objects.boxes, max(1, math.ceil(ratio)))
    canvas = Image.fromarray(sheets.scaled(np.asarray(canvas), size))
    scale = np.array([size[1] / image.size[1], size[0] / image.size[0]])
    draw, labels = ImageDraw.Draw(canvas), sheets.Labels(canvas)
    for box in objects.ignored.reshape(-1, 2, 2) * scale:
        corners = np.array([box[0], (box[1, 0], box[0, 1]), box[1], (box[0, 0], box[1, 1]), box[0]])
        sheets.stroke(draw, corners, (255, 255, 255), (9.0, 5.0), 1)
        labels.add("crowd", box[0])
    if len(names) > 1 and len(objects) <= _MOST_NAMED:
        for row in np.argsort(-objects.areas).tolist():
            name = names[int(objects.labels[row])]
            labels.add(name, _label_corner(objects.boxes[row].reshape(2, 2) * scale, name))
    labels.draw()
    count = counted(len(objects), "object")
    caption = f"{image.path.name}\n{count}, {image.size[1]} x {image.size[0]} pixels"
    return sheets.widened(sheets.captioned(canvas, caption, width), width)


def _label_corner(box: NDArray[Any], name: str) -> NDArray[Any]:
    """The corner (x, y) above which a name is written: in the middle of a box that is large enough, or above the box."""
    text, font = drawable(name, sheets.TEXT)
    wide, tall = font.getlength(text), 1.2 * sheets.TEXT
    inside = (box[1] - box[0] > (1.2 * wide, 2 * tall)).all()
    return box.mean(axis=0) + np.array([-wide / 2, tall / 2]) if inside else box[0]


def _chart(source: Split, statistics: Statistics, config: Config) -> Image.Image:
    """The counts of the split, with the suggested anchors and number of detections."""
    image, classes = config.image, source.categories.names
    scaling = (
        f"images enlarged by {image.scale:g}"
        if image.scale is not None
        else f"shortest side of an image {image.min_side}, longest at most {image.max_side}"
    )
    objects = f"{counted(len(source), 'image')}, {counted(len(statistics.sides), 'object')}, {counted(len(classes), 'class', 'classes')}"
    return statistics_chart(f"{source.json_path}: {objects}", statistics, classes, scaling)
