"""Figures of what a model makes of one image: the paper's figures 1, 3, 7, 8 and 9 for any model and any image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from masklab.images.read import read_image
from masklab.inference.predictor import Predictor
from masklab.plots.detections import detection_figure
from masklab.plots.inspection import Inspection
from masklab.plots.logit_maps import direction_figure, semantic_figure
from masklab.plots.mask_stages import mask_figure
from masklab.plots.save import save_png
from masklab.plots.sub_boxes import sub_box_figure
from masklab.utils.files import file_name, make_folder

_log = logging.getLogger(__name__)

_FIGURES: dict[str, Callable[[Inspection], Image.Image | str]] = {
    "detections": detection_figure,
    "semantic": semantic_figure,
    "directions": direction_figure,
    "masks": mask_figure,
    "sub_boxes": sub_box_figure,
}
"""Each returns its figure, or the reason why the model has none."""


def show_image(predictor: Predictor, image: str | Path, output: str | Path) -> list[Path]:
    """Write the figures of one image into the folder ``output``; returns their paths.

    ``NAME_detections.png``, ``NAME_semantic.png``, ``NAME_directions.png``, ``NAME_masks.png`` and
    ``NAME_sub_boxes.png``, NAME being the image's.  A figure of something that the model does not have is
    left out, and a log message gives the reason.  Objects are those with a score of at least
    ``predictor.threshold``.

    Raises `InputError` for an image that cannot be read and for a folder that cannot be written to.
    """
    path = Path(image)
    values = read_image(path, predictor.config.model.backbone.channels)
    output = make_folder(output)
    inspection = Inspection.of(predictor, path.name, values)
    written = []
    for name, draw in _FIGURES.items():
        drawn = draw(inspection)
        if isinstance(drawn, str):
            _log.info("no %s figure: %s", name, drawn)
            continue
        written.append(save_png(drawn, output / file_name(path.stem, f"_{name}.png")))
    return written
