"""Figure of the objects found in one image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from masklab.plots import sheets
from masklab.plots.inspection import Inspection
from masklab.results.overlay import LEAST_LABELLED, MOST_LABELLED, overlay


def detection_figure(inspection: Inspection) -> Image.Image:
    """Masks and boxes with class and score over the image (paper, Fig. 1 and 9)."""
    size = inspection.fitted_size(1200, sheets.CONTENT_WIDTH)
    scale = np.array([size[1] / inspection.image.shape[1], size[0] / inspection.image.shape[0]] * 2, np.float32)
    larger = replace(inspection.found, size=size, boxes=inspection.found.boxes * scale)
    image = np.ascontiguousarray(inspection.shown(size).transpose(2, 0, 1))
    drawn = overlay(image, larger, inspection.score, enlarge=False)
    note = f"{inspection.summary()}. Colours tell neighbours apart and have no other meaning."
    if len(inspection.found) > MOST_LABELLED or min(size) < LEAST_LABELLED:
        note += " Boxes and scores are left out: too many objects or too small an image."
    return sheets.figure(f"{inspection.name}: objects found", drawn, sheets.text_block(note, max(drawn.width, 500)))
