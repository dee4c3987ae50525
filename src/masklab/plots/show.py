"""Figures of what a model sees in one image: the paper's figures 1, 3, 7, 8 and 9 for any model and any image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from masklab.images.read import read_image
from masklab.inference.predictor import Predictor
from masklab.plots.channels import directions, semantic
from masklab.plots.inspection import Inspection
from masklab.plots.objects import detections, masks, sub_boxes
from masklab.utils.files import atomic_write, make_folder

FIGURES: dict[str, Callable[[Inspection], Image.Image | str]] = {
    "detections": detections,
    "semantic": semantic,
    "directions": directions,
    "masks": masks,
    "sub_boxes": sub_boxes,
}


def show(predictor: Predictor, image: str | Path, output: str | Path, score: float | None = None) -> list[Path]:
    """Write the figures of one image into the folder ``output``; returns their paths.

    ``NAME_detections.png``, ``NAME_semantic.png``, ``NAME_directions.png``, ``NAME_masks.png`` and
    ``NAME_sub_boxes.png``, NAME being the image's.  A figure of something that the model does not have is
    left out, and a printed line says so.  Objects count from ``score``, by default the model's own threshold.

    Raises `InputError` for an image that cannot be read and for a folder that cannot be written to.
    """
    path = Path(image)
    values = read_image(path, predictor.config.model.backbone.channels)
    output = make_folder(output)
    look = Inspection.at(predictor, path.name, values, predictor.threshold if score is None else score)
    written = []
    for name, draw in FIGURES.items():
        drawn = draw(look)
        if isinstance(drawn, str):
            print(f"no {name} figure: {drawn}")
            continue
        written.append(save(drawn, output / f"{path.stem}_{name}.png"))
    return written


def save(image: Image.Image, path: Path) -> Path:
    """Write a PNG and say so."""
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")
    print(f"written: {path} ({image.width} x {image.height})")
    return path
