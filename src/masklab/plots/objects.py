"""The objects found, how the masks of the best come about, and where their boxes look (paper, Fig. 1 to 5, 8 and 9)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from masklab.ops.crop_channels import crop_channels
from masklab.ops.deformable import offset_sub_boxes
from masklab.plots import sheets as panels
from masklab.plots.inspection import INSIDE, Inspection, draw_boxes
from masklab.plots.sheets import GAP, Bytes, Floats
from masklab.results.overlay import LEAST_LABELLED, MOST_LABELLED, overlay

MOST_OBJECTS = 6
MOST_DEFORMED = 4
OBJECT_SIDE = 180  # pixels
OBJECT_WORDS = 150


def detections(look: Inspection) -> Image.Image:
    """Masks and boxes with class and score (paper, Fig. 1 and 9)."""
    size = look.room(1200, INSIDE)
    scale = np.array([size[1] / look.image.shape[1], size[0] / look.image.shape[0]] * 2, np.float32)
    larger = replace(look.found, size=size, boxes=look.found.boxes * scale)
    image = np.ascontiguousarray(look.shown(size).transpose(2, 0, 1))
    drawn = overlay(image, larger, look.score, enlarge=False)
    note = f"{look.counted()}. Colours tell neighbours apart and have no other meaning."
    if len(look.found) > MOST_LABELLED or min(size) < LEAST_LABELLED:
        note += " Boxes and scores are left out: too many objects or too small an image."
    return panels.figure(f"{look.name}: objects found", drawn, panels.words(note, max(drawn.width, 500)))


def masks(look: Inspection) -> Image.Image | str:
    """How the masks of the best few objects come about, a row each (paper, Fig. 2 to 4)."""
    count = min(MOST_OBJECTS, len(look.found))
    if not count:
        return f"{look.counted()}."
    samples = look.found.masks.shape[-1]
    side = samples * max(1, OBJECT_SIDE // samples)
    columns, legends = _columns(look, count, side)
    heads = [panels.words(name, side, fixed=True) for name, _ in columns]
    rows = [panels.row([panels.words("", OBJECT_WORDS, fixed=True), *heads])]
    for n in range(count):
        tiles = [Image.fromarray(panels.scaled(shown[n], (side, side))) for _, shown in columns]
        rows.append(panels.row([_named(look, n, side), *tiles]))
    missing = [look.without(kind) for kind in ("semantic", "direction") if look.logits(kind) is None]
    if look.model.refinement is None:
        missing.append("this model has no refinement (model.mask.refine_levels is empty).")
    notes = " ".join(["Boxes are stretched to squares, as the network sees them.", *missing])
    table = panels.row([panels.stack(rows), panels.stack(legends)])
    return panels.figure(f"{look.name}: the best {count} objects", table, panels.words(notes, table.width))


def _columns(look: Inspection, count: int, side: int) -> tuple[list[tuple[str, list[Bytes]]], list[Image.Image]]:
    """The steps to a mask, each with an image an object, and the legends."""
    columns = [("image", [_crop(look, n, side) for n in range(count)])]
    legends = []
    values = _crops(look, "semantic", count)
    if values is not None:
        low, high = panels.round_limits(values)
        columns.append(("semantic logits", [panels.heat(v, low, high) for v in values]))
        legends.append(panels.heat_bar(low, high, 150, "semantic logit"))
    values = _crops(look, "direction", count)
    if values is not None:
        low, high = panels.round_limits(values)
        columns.append(("direction logits, assembled", [panels.heat(v, low, high) for v in values]))
        legends.append(panels.heat_bar(low, high, 150, "direction logit"))
        mask, limit = look.model.config.model.mask, max(high, 0.1)
        coloured = [panels.shade(look.table_colours, v, limit) for v in values]
        columns.append(("the same, coloured by direction", coloured))
        legends.append(panels.wheel(look.table, mask.directions, mask.start_degrees, 210))
        legends.append(panels.brightness_bar(limit, 150, "direction logit, as brightness"))
    for name, shown in _stages(look, count):
        columns.append((name, [panels.heat(v, 0, 1) for v in shown]))
    legends.append(panels.heat_bar(0, 1, 150, "mask: probability"))
    return columns, legends


def _crop(look: Inspection, n: int, side: int) -> Bytes:
    """The image inside the box of object ``n``, stretched to a square."""
    image = Image.fromarray(look.image)
    x1, y1, x2, y2 = look.found.boxes[n].tolist()
    x1, y1 = min(max(x1, 0), image.width - 0.01), min(max(y1, 0), image.height - 0.01)  # rounding may lead outside
    box = (x1, y1, min(max(x2, x1 + 0.01), image.width), min(max(y2, y1 + 0.01), image.height))
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST, box=box))


def _crops(look: Inspection, kind: str, count: int) -> Floats | None:
    """The logits that the coarse masks of the first objects are made of, ``(count, P, P)``."""
    maps = look.logits(kind)
    if maps is None:
        return None
    if kind == "direction":
        return np.stack([look.pooled(maps, n) for n in range(count)])
    side = look.found.masks.shape[-1]
    labels = torch.as_tensor(look.found.labels[:count], device=maps.device)
    crops: Floats = crop_channels(maps, look.rois(look.found.boxes[:count]), (side, side), labels).cpu().numpy()
    return crops


def _stages(look: Inspection, count: int) -> list[tuple[str, Floats]]:
    """The masks of the first objects as probabilities, ``(count, P, P)``: coarse and refined, or the only one."""
    final = look.found.masks[:count]
    if look.model.refinement is None:
        return [("mask", final)]
    labels = torch.as_tensor(look.found.labels[:count], device=look.inputs.device)
    with look.predictor.inference():
        coarse = look.model.mask_head.coarse_masks(look.maps, look.rois(look.found.boxes[:count]), labels)
    return [("coarse mask", coarse.sigmoid().float().cpu().numpy()), ("refined mask", final)]


def _words_on(look: Inspection, n: int) -> list[str]:
    x1, y1, x2, y2 = look.found.boxes[n].tolist()
    name = look.found.class_names[int(look.found.labels[n])]
    return [name, f"score {look.found.scores[n]:.2f}", f"{x2 - x1:.0f} x {y2 - y1:.0f} px", f"at {x1:.0f}, {y1:.0f}"]


def _named(look: Inspection, n: int, height: int) -> Image.Image:
    """What object ``n`` is, beside its row."""
    text = panels.words("\n".join(_words_on(look, n)), OBJECT_WORDS)
    image = Image.new("RGB", (OBJECT_WORDS, max(height, text.height)), panels.PAPER)
    image.paste(text, (0, (image.height - text.height) // 2))
    return image


def sub_boxes(look: Inspection) -> Image.Image | str:
    """Where the box head's deformable crop looks, for the best few objects (paper, Fig. 5 and 8)."""
    kind, count = look.model.config.model.box.deformable, min(MOST_DEFORMED, len(look.found))
    if kind is None:
        return "this model's box head has a plain crop (model.box.deformable is null)."
    if not count:
        return f"{look.counted()}."
    boxes = look.found.boxes[:count]
    with look.predictor.inference():
        offsets = look.model.box_head.predict_offsets(look.features.conv4, look.rois(boxes))
    assert offsets is not None
    pixels, offsets = torch.as_tensor(boxes), offsets.float().cpu()
    moved = offset_sub_boxes(pixels, offsets, kind).numpy()
    still = offset_sub_boxes(pixels, torch.zeros_like(offsets), kind).numpy()
    legend = panels.plane_legend(moved.shape[1], 190)
    side = (INSIDE - legend.width - 2 * GAP) // 2
    tiles = [
        panels.widened(
            panels.captioned(_deformed(look, n, still[n], moved[n], side), ", ".join(_words_on(look, n)), side), side
        )
        for n in range(count)
    ]
    rows = [panels.row(tiles[start : start + 2]) for start in range(0, count, 2)]
    note = (
        "White: the box. Coloured: its sub-boxes where the box head reads them; a line leads from the place of "
        f"each in the plain crop. The mean move is {offsets.norm(dim=-1).mean():.3f} of the box's sides."
    )
    body = panels.row([panels.stack(rows), legend])
    return panels.figure(f"{look.name}: deformed sub-boxes", body, panels.words(note, body.width))


def _deformed(look: Inspection, n: int, still: Floats, moved: Floats, side: int) -> Image.Image:
    """Sub-boxes ``(A, A, 4)`` of object ``n`` over the part of the image that they reach."""
    everything = np.concatenate([moved.reshape(-1, 4), look.found.boxes[n : n + 1]])
    first = np.floor(np.minimum(everything[:, :2], everything[:, 2:]).min(axis=0)).astype(int) - 2
    last = np.ceil(np.maximum(everything[:, :2], everything[:, 2:]).max(axis=0)).astype(int) + 2
    around = np.asarray(Image.fromarray(look.image).crop((*first.tolist(), *last.tolist())))
    size = panels.shown_size((around.shape[0], around.shape[1]), (side, side))
    image, scale = Image.fromarray(panels.scaled(around, size)), size[0] / around.shape[0]
    corner = np.tile(first, 2)
    draw_boxes(image, (look.found.boxes[n : n + 1] - corner) * scale)
    draw, colours = ImageDraw.Draw(image), panels.plane(len(moved))
    for a, b in np.ndindex(moved.shape[:2]):
        colour = tuple(colours[a, b].tolist())
        x1, y1, x2, y2 = ((moved[a, b] - corner) * scale).tolist()
        from_x1, from_y1, from_x2, from_y2 = ((still[a, b] - corner) * scale).tolist()
        way = [((from_x1 + from_x2) / 2, (from_y1 + from_y2) / 2), ((x1 + x2) / 2, (y1 + y2) / 2)]
        panels.stroke(draw, np.array(way), colour, width=1)
        ring = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
        panels.stroke(draw, ring, colour, width=2)
    return image
