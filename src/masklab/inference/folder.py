"""Prediction of image files into a folder of results."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from masklab.images.exposure import IntensityCheck
from masklab.images.intensity import displayed
from masklab.images.listing import left_out, list_images
from masklab.images.read import IMAGE_SUFFIXES, read_image
from masklab.inference.listing import Listing, read_listing
from masklab.inference.predictor import Predictor
from masklab.results.instances import Instances
from masklab.results.overlay import overlay
from masklab.utils.errors import InputError
from masklab.utils.failures import only_this_file
from masklab.utils.files import atomic_write, file_name, make_folder
from masklab.utils.leftout import LeftOut
from masklab.utils.progress import track
from masklab.utils.types import Size
from masklab.utils.versions import versions
from masklab.utils.words import counted

_log = logging.getLogger(__name__)


def predict_folder(
    predictor: Predictor, sources: Sequence[str | Path], output: str | Path, annotations: str | Path | None = None
) -> Path:
    """Predict images and folders of images; returns the path of ``predictions.json``.

    ``predictions.json`` is a COCO results list with every detection: ``segmentation`` as RLE of the image's own size,
    and, besides COCO's fields, ``file_name`` and ``category_name``.  ``image_id`` is the file's name, and
    ``category_id`` that of the training data; with a COCO JSON ``annotations``, both are those of the JSON (see
    `read_listing`), and images and classes that it does not have are left out.  An overlay of each image shows the
    objects with a score of at least ``predictor.threshold``.

    ``settings.json`` has the options, the threshold and, for each image, the intensities that became black and white
    where the options stretch them.

    Images that cannot be read or drawn, or have another size than the JSON says, are reported and skipped; files that
    are left out of a folder are named, and one warning counts the images whose intensities are far from what the model
    expects.  `InputError` is raised after all others are written.
    """
    images = [image for source in sources for image in list_images(source)]
    if unread := left_out(sources):
        _log.warning("%s", unread)
    listing = None if annotations is None else read_listing(annotations, images, predictor.classes)
    images = images if listing is None else list(listing.images)
    _refuse_duplicate_names(images)
    output = make_folder(output)
    _refuse_overwriting(images, output)
    results: list[dict[str, Any]] = []
    check = IntensityCheck(predictor.config.image)
    ranges: dict[str, tuple[float, float] | None] = {}
    shown = full = 0
    left = LeftOut()
    for path in track(images, "predicting"):
        with left.skipping(path):
            image = read_image(path, predictor.config.model.backbone.channels)
            if listing is not None:
                _check_size(path, image.shape[1:], listing.images[path].size, annotations)
            rule = predictor.image_config(torch.from_numpy(image))
            shown_image = displayed(image, rule, path)
            instances = predictor.predict(image, check=check)
            full += len(instances.above(predictor.threshold)) == predictor.max_detections
            if listing is not None and listing.category_ids is not None:
                instances = instances.of_labels(listing.category_ids)
            _write_overlay(overlay(shown_image, instances, predictor.threshold), path, output)
            ranges[path.name] = rule.value_range
            shown += len(instances.above(predictor.threshold))
            results += _entries(path, instances, listing)
    broken = len(left.paths)
    target = output / "predictions.json"
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(results))
    with atomic_write(output / "settings.json") as temporary:
        temporary.write_text(json.dumps(_settings(predictor, ranges), indent=1))
    check.warn()
    if broken < len(images):
        _log.info(
            f"{counted(len(images) - broken, 'image')}, {counted(shown, 'object')} of score {predictor.threshold:.2f} or "
            f"more ({counted(len(results), 'detection')} in all): {target} and an overlay each"
        )
    if full:
        _log.info(
            f"{full} of {counted(len(images), 'image')} reached the maximum of {counted(predictor.max_detections, 'detection')}, "
            "so others may be missing: predict again with a larger --max_detections."
        )
    left.refuse(len(images))
    return target


def _write_overlay(drawn: Image.Image, path: Path, output: Path) -> None:
    try:
        with atomic_write(output / _overlay_name(path)) as temporary:
            drawn.save(temporary, "PNG")
    except OSError as error:
        if not only_this_file(error):
            raise
        raise InputError(f"{path} cannot be drawn: {error}.") from error


def _entries(path: Path, instances: Instances, listing: Listing | None) -> list[dict[str, Any]]:
    """The results of an image, under its name or the ids of a JSON."""
    entries = instances.to_coco(path.name if listing is None else listing.images[path].image_id)
    for entry, label in zip(entries, instances.labels.tolist(), strict=True):
        entry |= {"file_name": path.name, "category_name": instances.class_names[label]}
        if listing is not None and listing.category_ids is not None:
            entry["category_id"] = listing.category_ids[label]
    return entries


def _check_size(path: Path, found: Sequence[int], size: Size | None, source: str | Path | None) -> None:
    """Raise `InputError` for an image of another size than a JSON says: its masks would not fit the JSON's."""
    if size is not None and tuple(found) != size:
        raise InputError(
            f"{path} is {found[1]} wide and {found[0]} high (EXIF orientation applied) but {source} says "
            f"{size[1]} wide and {size[0]} high; correct the JSON or replace the image."
        )


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
    """Refuse two images with the same overlay name, such as a.png and a.jpg."""
    seen: dict[str, Path] = {}
    for path in images:
        name = _overlay_name(path)
        if name in seen:
            raise InputError(f"{seen[name]} and {path} would write the same results: predict them into two folders.")
        seen[name] = path
