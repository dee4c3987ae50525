"""Figure of the sub-boxes that the box head's deformable crop reads (paper, Fig. 5 and 8)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from masklab.model.box_head import BoxHead
from masklab.ops.deformable import offset_sub_boxes
from masklab.plots import colour_maps, sheets
from masklab.plots.inspection import Inspection, draw_boxes
from masklab.plots.sheets import GAP
from masklab.utils.types import Floats

_MOST_OBJECTS = 4


def sub_box_figure(inspection: Inspection) -> Image.Image | str:
    """The offset sub-boxes of the best objects, or the reason why there are none."""
    sub_boxes, count = inspection.model.config.model.box.deformable, min(_MOST_OBJECTS, len(inspection.found))
    if sub_boxes is None:
        return "this model's box head has a plain crop (model.box.deformable is null)."
    if not count:
        return f"{inspection.summary()}."
    boxes = inspection.found.boxes[:count]
    head = inspection.model.box_head
    assert isinstance(head, BoxHead)
    with inspection.predictor.inference():
        offsets = head.predict_offsets(inspection.features.conv4, inspection.rois(boxes))
    assert offsets is not None
    pixels, offsets = torch.as_tensor(boxes), offsets.float().cpu()
    moved = offset_sub_boxes(pixels, offsets, sub_boxes).numpy()
    still = offset_sub_boxes(pixels, torch.zeros_like(offsets), sub_boxes).numpy()
    legend = colour_maps.sub_box_legend(moved.shape[1], 190)
    side = (sheets.CONTENT_WIDTH - legend.width - 2 * GAP) // 2
    tiles = [
        sheets.widened(
            sheets.captioned(
                _deformed(inspection, n, still[n], moved[n], side), ", ".join(inspection.describe(n)), side
            ),
            side,
        )
        for n in range(count)
    ]
    rows = [sheets.row(tiles[start : start + 2]) for start in range(0, count, 2)]
    note = (
        "White: the box. Coloured: its sub-boxes where the box head reads them; a line leads to each from its place "
        f"in the plain crop. The mean offset is {offsets.norm(dim=-1).mean():.3f} of the box's sides."
    )
    body = sheets.row([sheets.stack(rows), legend])
    return sheets.figure(f"{inspection.name}: deformed sub-boxes", body, sheets.text_block(note, body.width))


def _deformed(inspection: Inspection, n: int, still: Floats, moved: Floats, side: int) -> Image.Image:
    """Sub-boxes ``(A, A, 4)`` of object ``n`` over the part of the image that they reach."""
    everything = np.concatenate([moved.reshape(-1, 4), inspection.found.boxes[n : n + 1]])
    first = np.floor(np.minimum(everything[:, :2], everything[:, 2:]).min(axis=0)).astype(int) - 2
    last = np.ceil(np.maximum(everything[:, :2], everything[:, 2:]).max(axis=0)).astype(int) + 2
    around = np.asarray(Image.fromarray(inspection.image).crop((*first.tolist(), *last.tolist())))
    size = sheets.shown_size((around.shape[0], around.shape[1]), (side, side))
    image, scale = Image.fromarray(sheets.scaled(around, size)), size[0] / around.shape[0]
    corner = np.tile(first, 2)
    draw_boxes(image, (inspection.found.boxes[n : n + 1] - corner) * scale)
    draw, colours = ImageDraw.Draw(image), colour_maps.sub_box_colours(len(moved))
    for a, b in np.ndindex(moved.shape[:2]):
        colour = tuple(colours[a, b].tolist())
        x1, y1, x2, y2 = ((moved[a, b] - corner) * scale).tolist()
        from_x1, from_y1, from_x2, from_y2 = ((still[a, b] - corner) * scale).tolist()
        way = [((from_x1 + from_x2) / 2, (from_y1 + from_y2) / 2), ((x1 + x2) / 2, (y1 + y2) / 2)]
        sheets.stroke(draw, np.array(way), colour, width=1)
        ring = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
        sheets.stroke(draw, ring, colour, width=2)
    return image
