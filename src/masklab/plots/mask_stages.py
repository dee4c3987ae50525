"""Figure of the steps from logits to masks, for the objects with the highest scores (paper, Fig. 1 to 5, 8 and 9)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from masklab.ops.crop_channels import crop_channels
from masklab.plots import colour_maps, sheets
from masklab.plots.inspection import Inspection
from masklab.utils.types import Bytes, Floats

_MOST_OBJECTS = 6
_OBJECT_SIDE = 180  # pixels
_OBJECT_WORDS = 150


def mask_figure(inspection: Inspection) -> Image.Image | str:
    """The logits, the coarse and the refined mask of the best objects, a row each."""
    count = min(_MOST_OBJECTS, len(inspection.found))
    if not count:
        return f"{inspection.summary()}."
    samples = inspection.found.masks.shape[-1]
    side = samples * max(1, _OBJECT_SIDE // samples)
    columns, legends = _columns(inspection, count, side)
    heads = [sheets.text_block(name, side, fixed=True) for name, _ in columns]
    rows = [sheets.row([sheets.text_block("", _OBJECT_WORDS, fixed=True), *heads])]
    for n in range(count):
        tiles = [Image.fromarray(sheets.scaled(shown[n], (side, side))) for _, shown in columns]
        rows.append(sheets.row([_named(inspection, n, side), *tiles]))
    missing = [inspection.reason_missing(name) for name in ("semantic", "direction") if inspection.logits(name) is None]
    if inspection.model.refinement is None:
        missing.append("this model has no refinement (model.mask.refine_levels is empty).")
    notes = " ".join(["Boxes are stretched to squares, as the network sees them.", *missing])
    table = sheets.row([sheets.stack(rows), sheets.stack(legends)])
    best = "the best object" if count == 1 else f"the best {count} objects"
    return sheets.figure(f"{inspection.name}: {best}", table, sheets.text_block(notes, table.width))


def _columns(inspection: Inspection, count: int, side: int) -> tuple[list[tuple[str, list[Bytes]]], list[Image.Image]]:
    """The steps to a mask, with one image per object each, and the legends."""
    columns = [("image", [_crop(inspection, n, side) for n in range(count)])]
    legends = []
    values = _crops(inspection, "semantic", count)
    if values is not None:
        low, high = colour_maps.round_limits(values)
        columns.append(("semantic logits", [colour_maps.heat(v, low, high) for v in values]))
        legends.append(colour_maps.heat_bar(low, high, 150, "semantic logit"))
    values = _crops(inspection, "direction", count)
    if values is not None:
        low, high = colour_maps.round_limits(values)
        columns.append(("direction logits, assembled", [colour_maps.heat(v, low, high) for v in values]))
        legends.append(colour_maps.heat_bar(low, high, 150, "direction logit"))
        mask, limit = inspection.model.config.model.mask, max(high, 0.1)
        coloured = [colour_maps.shade(inspection.table_colours, v, limit) for v in values]
        columns.append(("the same, coloured by direction", coloured))
        legends.append(colour_maps.direction_wheel(inspection.table, mask.directions, mask.start_degrees, 210))
        legends.append(colour_maps.brightness_bar(limit, 150, "direction logit, as brightness"))
    for name, shown in _stages(inspection, count):
        columns.append((name, [colour_maps.heat(v, 0, 1) for v in shown]))
    legends.append(colour_maps.heat_bar(0, 1, 150, "mask: probability"))
    return columns, legends


def _crop(inspection: Inspection, n: int, side: int) -> Bytes:
    """The image inside the box of object ``n``, stretched to a square."""
    image = Image.fromarray(inspection.image)
    x1, y1, x2, y2 = inspection.found.boxes[n].tolist()
    x1, y1 = (
        min(max(x1, 0), image.width - 0.01),
        min(max(y1, 0), image.height - 0.01),
    )  # boxes may be rounded to outside
    box = (x1, y1, min(max(x2, x1 + 0.01), image.width), min(max(y2, y1 + 0.01), image.height))
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST, box=box))


def _crops(inspection: Inspection, name: str, count: int) -> Floats | None:
    """The ``semantic`` or ``direction`` logits of the first objects' coarse masks, ``(count, P, P)``."""
    maps = inspection.logits(name)
    if maps is None:
        return None
    if name == "direction":
        return np.stack([inspection.pooled(maps, n) for n in range(count)])
    side = inspection.found.masks.shape[-1]
    labels = torch.as_tensor(inspection.found.labels[:count], device=maps.device)
    crops: Floats = (
        crop_channels(maps, inspection.rois(inspection.found.boxes[:count]), (side, side), labels).cpu().numpy()
    )
    return crops


def _stages(inspection: Inspection, count: int) -> list[tuple[str, Floats]]:
    """The masks of the first objects as probabilities, ``(count, P, P)``: coarse and refined, or the only one."""
    final = inspection.found.masks[:count]
    if inspection.model.refinement is None:
        return [("mask", final)]
    labels = torch.as_tensor(inspection.found.labels[:count], device=inspection.inputs.device)
    with inspection.predictor.inference():
        coarse = inspection.model.mask_head.coarse_masks(
            inspection.maps, inspection.rois(inspection.found.boxes[:count]), labels
        )
    return [("coarse mask", coarse.sigmoid().float().cpu().numpy()), ("refined mask", final)]


def _named(inspection: Inspection, n: int, height: int) -> Image.Image:
    """The description of object ``n``, to the left of its row."""
    text = sheets.text_block("\n".join(inspection.describe(n)), _OBJECT_WORDS)
    image = Image.new("RGB", (_OBJECT_WORDS, max(height, text.height)), sheets.PAPER)
    image.paste(text, (0, (image.height - text.height) // 2))
    return image
