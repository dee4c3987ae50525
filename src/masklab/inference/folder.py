"""Prediction of image files into a folder of results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from masklab.images.listing import left_out, list_images
from masklab.images.reader import ImageReader, check_level
from masklab.inference.finder import ObjectFinder
from masklab.inference.listing import read_listing
from masklab.inference.output import ResultFolder
from masklab.inference.pipeline import write_results
from masklab.results.formats.registry import DEFAULT
from masklab.results.instances import Instances
from masklab.utils.versions import versions
from masklab.utils.words import counted

_log = logging.getLogger(__name__)


def predict_folder(
    predictor: ObjectFinder,
    sources: Sequence[str | Path],
    output: str | Path,
    annotations: str | Path | None = None,
    formats: Sequence[str] = DEFAULT,
    resume: bool = False,
    pixel_size: float | None = None,
    magnification: float | None = None,
) -> Path:
    """Predict images and folders of images into a folder of results; returns the folder, or ``predictions.json`` in it.

    ``formats`` are those of `masklab.results.formats.registry`.  ``predictions.json`` is a COCO results list with
    every detection: ``segmentation`` as RLE of the image's own size, and, besides COCO's fields, ``file_name`` and
    ``category_name``.  ``image_id`` is the file's name, and ``category_id`` that of the training data; with a COCO JSON
    ``annotations``, both are those of the JSON (see `read_listing`), and images and classes that it does not have are
    left out.  The files of each image, such as its overlay, have the objects with a score of at least
    ``predictor.threshold``, and are written when the image is done.  With ``resume``, images that an earlier run
    did with the same model and options are left as they are (see `masklab.inference.output`).

    ``pixel_size`` (micrometres) or ``magnification`` choose the level of images that are pyramids, as for `open_reader`;
    results are in pixels of that level.

    ``settings.json`` has the options, the threshold, a checksum of the weights and, for each image, the intensities that
    became black and white where the options stretch them.

    Images that cannot be read or drawn, or have another size than the JSON says, are reported and skipped; files that
    are left out of a folder are named, and one warning of a kind counts the images that are far from what the model
    expects.  `InputError` is raised after all others are written.
    """
    check_level(pixel_size, magnification)
    images = [image for source in sources for image in list_images(source)]
    if unread := left_out(sources):
        _log.warning("%s", unread)
    listing = None if annotations is None else read_listing(annotations, images, predictor.classes)
    images = images if listing is None else list(listing.images)
    level = {"pixel_size": pixel_size, "magnification": magnification}
    settings = settings_of(predictor) | {name: value for name, value in level.items() if value is not None}
    folder = ResultFolder(output, images, settings, predictor.threshold, formats, listing, resume)
    checks = {path: predictor.input_check() for path in images}

    def find(path: Path, image: ImageReader) -> Instances:
        return predictor.predict_reader(image, checks[path], folder.tiles(path))

    totals, left = write_results(predictor, folder, find, annotations, pixel_size, magnification, in_threads=True)
    check = predictor.input_check()
    for path in images:
        check.join(checks[path])
    check.warn()
    if totals.kept:
        _log.info(f"{counted(totals.kept, 'image')} of an earlier run kept")
    if totals.images:
        _log.info(
            f"{counted(totals.images, 'image')}, {counted(totals.found, 'object')} of score {predictor.threshold:.2f} or "
            f"more ({counted(totals.detections, 'detection')} in all): {', '.join(map(str, folder.files()))}"
        )
    if totals.full:
        _log.info(
            f"{totals.full} of {counted(len(images), 'image')} reached the maximum of {counted(predictor.max_detections, 'detection')}, "
            "so others may be missing: predict again with a larger --max_detections."
        )
    left.refuse(len(images))
    return folder.main_file


def settings_of(predictor: ObjectFinder) -> dict[str, Any]:
    """All that the results of an image depend on besides it, as plain values for `ResultFolder`.

    ``stretched`` says whether the options stretch the intensities of each image.
    """
    return {
        "options": asdict(predictor.options),
        "threshold": predictor.threshold,
        "value_range": predictor.config.image.value_range,
        "percentiles": predictor.config.image.percentiles,
        "stretched": (predictor.options.intensity != "model" and predictor.config.image.percentiles is None) or None,
        "weights": predictor.weights_id(),
        "versions": versions(),
    }
