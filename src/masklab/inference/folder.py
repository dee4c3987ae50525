"""Predicting images from files into a folder of results."""

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

    ``predictions.json`` is a COCO results list: every detection, ``segmentation`` as run lengths at the
    image's own size, the data set's own category ids; ``image_id`` is the number that the file is named
    by, as in COCO, or its name, and ``file_name`` stands beside.  Each image also gets an overlay of the
    objects with a score of at least ``predictor.threshold``.

    Images that cannot be read are named and left out; the others are written, then `InputError` is raised.
    """
    images = [image for source in sources for image in list_images(source)]
    _refuse_namesakes(images)
    output = make_folder(output)
    _spare_sources(images, output)
    results: list[dict[str, Any]] = []
    broken = shown = capped = 0
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
        capped += drawn == predictor.max_detections
        shown += drawn
        image_id = int(path.stem) if path.stem.isdecimal() else path.name
        results += [entry | {"file_name": path.name} for entry in instances.to_coco(image_id)]
        with atomic_write(output / f"{path.stem}.png") as temporary:
            overlay(shown_image, instances, predictor.threshold).save(temporary, "PNG")
    target = output / "predictions.json"
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(results))
    _log.info(
        f"{len(images) - broken} images, {shown} objects of score {predictor.threshold:.2f} or more "
        f"({len(results)} detections in all): {target} and an overlay each"
    )
    if capped:
        _log.info(
            f"{capped} of {len(images)} images reached the cap of {predictor.max_detections} objects, so "
            "others may be missing: predict again with a larger --max_detections."
        )
    if broken:
        raise InputError(f"{broken} of {len(images)} images could not be read: replace those named above.")
    return target


def _spare_sources(images: list[Path], output: Path) -> None:
    """Refuse to write an overlay over one of the images."""
    for path in images:
        overlay_path = output / f"{path.stem}.png"
        if overlay_path.exists() and overlay_path.samefile(path):
            raise InputError(f"the overlay of {path} would be written over it: name another --output.")


def _refuse_namesakes(images: list[Path]) -> None:
    """Refuse two images of one overlay or, such as 1.png and 01.png, of one image id."""
    seen: dict[int | str, Path] = {}
    for path in images:
        name = int(path.stem) if path.stem.isdecimal() else path.stem
        if name in seen:
            raise InputError(f"{seen[name]} and {path} would write the same results: predict them into two folders.")
        seen[name] = path
