"""Prediction of image files into a folder of results."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masklab.images.intensity import displayed
from masklab.images.read import list_images, read_image
from masklab.inference.predictor import Predictor
from masklab.results.overlay import overlay
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, make_folder
from masklab.utils.progress import track

_log = logging.getLogger(__name__)


def predict_folder(predictor: Predictor, sources: Sequence[str | Path], output: str | Path) -> Path:
    """Predict images and folders of images; returns the path of ``predictions.json``.

    ``predictions.json`` is a COCO results list with every detection: ``segmentation`` as RLE of the image's own size,
    ``category_id`` as in the training data.  ``image_id`` is the file's name as a number, as in COCO, or else the name
    itself; ``file_name`` is an additional field.  An overlay of each image shows the objects with a score of at least
    ``predictor.threshold``.

    Images that cannot be read are reported and skipped; `InputError` is raised after the others are written.
    """
    images = [image for source in sources for image in list_images(source)]
    _refuse_duplicate_names(images)
    output = make_folder(output)
    _refuse_overwriting(images, output)
    results: list[dict[str, Any]] = []
    broken = shown = full = 0
    for path in track(images, "predicting"):
        try:
            image = read_image(path, predictor.config.model.backbone.channels)
            shown_image = displayed(image, predictor.config.image, path)
        except InputError as error:
            _log.warning("%s", error)
            broken += 1
            continue
        instances = predictor.predict(image)
        drawn = len(instances.above(predictor.threshold))
        full += drawn == predictor.max_detections
        shown += drawn
        image_id = int(path.stem) if path.stem.isdecimal() else path.name
        results += [entry | {"file_name": path.name} for entry in instances.to_coco(image_id)]
        with atomic_write(output / f"{path.stem}.png") as temporary:
            overlay(shown_image, instances, predictor.threshold).save(temporary, "PNG")
    target = output / "predictions.json"
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(results))
    if broken < len(images):
        _log.info(
            f"{len(images) - broken} images, {shown} objects of score {predictor.threshold:.2f} or more "
            f"({len(results)} detections in all): {target} and an overlay each"
        )
    if full:
        _log.info(
            f"{full} of {len(images)} images reached the maximum of {predictor.max_detections} detections, so "
            "others may be missing: predict again with a larger --max_detections."
        )
    if broken:
        raise InputError(
            f"{broken} of {len(images)} images could not be used, for the reasons above: correct or replace them."
        )
    return target


def _refuse_overwriting(images: list[Path], output: Path) -> None:
    """Refuse an output folder in which an overlay would replace one of the images."""
    for path in images:
        overlay_path = output / f"{path.stem}.png"
        if overlay_path.exists() and overlay_path.samefile(path):
            raise InputError(f"the overlay of {path} would be written over it: name another --output.")


def _refuse_duplicate_names(images: list[Path]) -> None:
    """Refuse two images with the same overlay name or the same image id, such as 1.png and 01.png."""
    seen: dict[int | str, Path] = {}
    for path in images:
        name = int(path.stem) if path.stem.isdecimal() else path.stem
        if name in seen:
            raise InputError(f"{seen[name]} and {path} would write the same results: predict them into two folders.")
        seen[name] = path
