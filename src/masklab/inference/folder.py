"""Prediction of image files into a folder of results."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from masklab.images.exposure import IntensityCheck
from masklab.images.intensity import displayed
from masklab.images.listing import left_out, list_images
from masklab.images.read import IMAGE_SUFFIXES, read_image
from masklab.inference.predictor import Predictor
from masklab.results.overlay import overlay
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, file_name, make_folder
from masklab.utils.progress import track
from masklab.utils.versions import versions

_log = logging.getLogger(__name__)


def predict_folder(predictor: Predictor, sources: Sequence[str | Path], output: str | Path) -> Path:
    """Predict images and folders of images; returns the path of ``predictions.json``.

    ``predictions.json`` is a COCO results list with every detection: ``segmentation`` as RLE of the image's own size,
    ``category_id`` as in the training data.  ``image_id`` is the file's name as a number, as in COCO, or else the name
    itself; ``file_name`` is an additional field.  An overlay of each image shows the objects with a score of at least
    ``predictor.threshold``.

    ``settings.json`` has the options, the threshold and, for each image, the intensities that became black and white
    where the options stretch them.

    Images that cannot be read or drawn are reported and skipped, files that are left out of a folder are named, and one
    warning counts the images whose intensities are far from what the model expects.  `InputError` is raised after all
    others are written.
    """
    images = [image for source in sources for image in list_images(source)]
    if unread := left_out(sources):
        _log.warning("%s", unread)
    _refuse_duplicate_names(images)
    output = make_folder(output)
    _refuse_overwriting(images, output)
    results: list[dict[str, Any]] = []
    check = IntensityCheck(predictor.config.image)
    ranges: dict[str, tuple[float, float] | None] = {}
    broken = shown = full = 0
    for path in track(images, "predicting"):
        try:
            image = read_image(path, predictor.config.model.backbone.channels)
            rule = predictor.image_config(torch.from_numpy(image))
            shown_image = displayed(image, rule, path)
            instances = predictor.predict(image, check=check)
            with atomic_write(output / _overlay_name(path)) as temporary:
                overlay(shown_image, instances, predictor.threshold).save(temporary, "PNG")
        except (InputError, OSError) as error:
            _log.warning("%s", error if isinstance(error, InputError) else f"{path} cannot be drawn: {error}.")
            broken += 1
            continue
        ranges[path.name] = rule.value_range
        drawn = len(instances.above(predictor.threshold))
        full += drawn == predictor.max_detections
        shown += drawn
        image_id = int(path.stem) if path.stem.isdecimal() else path.name
        results += [entry | {"file_name": path.name} for entry in instances.to_coco(image_id)]
    target = output / "predictions.json"
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(results))
    with atomic_write(output / "settings.json") as temporary:
        temporary.write_text(json.dumps(_settings(predictor, ranges), indent=1))
    check.warn()
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


def _settings(predictor: Predictor, ranges: dict[str, tuple[float, float] | None]) -> dict[str, Any]:
    """How the images were predicted, with the range of each image whose intensities were stretched."""
    stretched = predictor.options.intensity != "model" and predictor.config.image.percentiles is None
    return {
        "options": asdict(predictor.options),
        "threshold": predictor.threshold,
        "value_range": predictor.config.image.value_range,
        "percentiles": predictor.config.image.percentiles,
        "stretched": ranges if stretched else None,
        "versions": versions(),
    }


def _label(path: Path) -> str:
    """An image's name without the suffix of an image; frame.001 and frame.002 stay apart."""
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def _overlay_name(path: Path) -> str:
    return file_name(_label(path), ".png")


def _refuse_overwriting(images: list[Path], output: Path) -> None:
    """Refuse an output folder in which an overlay would replace one of the images."""
    for path in images:
        overlay_path = output / _overlay_name(path)
        if overlay_path.exists() and overlay_path.samefile(path):
            raise InputError(f"the overlay of {path} would be written over it: name another --output.")


def _refuse_duplicate_names(images: list[Path]) -> None:
    """Refuse two images with the same overlay name or the same image id, such as 1.png and 01.png."""
    seen: dict[int | str, Path] = {}
    for path in images:
        name = int(path.stem) if path.stem.isdecimal() else _label(path)
        if name in seen:
            raise InputError(f"{seen[name]} and {path} would write the same results: predict them into two folders.")
        seen[name] = path
