"""Figures of what a model sees in one picture: the paper's figures 1, 3, 7, 8 and 9 for any model and any picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from masklab.figures.channels import directions, semantic
from masklab.figures.look import Look
from masklab.figures.objects import detections, masks, sub_boxes
from masklab.files import make_folder, whole
from masklab.model.masklab import MaskLab
from masklab.pictures import read_picture

FIGURES: dict[str, Callable[[Look], Image.Image | str]] = {
    "detections": detections,
    "semantic": semantic,
    "directions": directions,
    "masks": masks,
    "sub_boxes": sub_boxes,
}


def show(model: MaskLab, picture: str | Path, output: str | Path, score: float | None = None) -> list[Path]:
    """Write the figures of one picture into the folder ``output``; returns their paths.

    ``NAME_detections.png``, ``NAME_semantic.png``, ``NAME_directions.png``, ``NAME_masks.png`` and
    ``NAME_sub_boxes.png``, NAME being the picture's.  A figure of something that the model does not have is
    left out, and a printed line says so.  Objects count from ``score``, by default the model's own threshold.

    Raises `InputError` for a picture that cannot be read and for a folder that cannot be written to.
    """
    path = Path(picture)
    values = read_picture(path, model.config.model.backbone.channels)
    output = make_folder(output)
    look = Look.at(model, path.name, values, model.threshold if score is None else score)
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
    with whole(path) as beside:
        image.save(beside, "PNG")
    print(f"written: {path} ({image.width} x {image.height})")
    return path
