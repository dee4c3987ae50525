"""Prediction of image files into a folder of results."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from masklab.images.exposure import IntensityCheck
from masklab.images.listing import left_out, list_images
from masklab.images.reader import ImageReader, open_reader
from masklab.images.rescaled import ImageIntensities
from masklab.inference.listing import read_listing
from masklab.inference.output import ResultFolder, Totals
from masklab.inference.predictor import Predictor
from masklab.inference.tiles.plan import plan_tiles
from masklab.results.formats.registry import DEFAULT
from masklab.results.instances import Instances
from masklab.utils.errors import InputError
from masklab.utils.leftout import LeftOut
from masklab.utils.progress import track
from masklab.utils.types import Size
from masklab.utils.versions import versions
from masklab.utils.words import counted

_log = logging.getLogger(__name__)


def predict_folder(
    predictor: Predictor,
    sources: Sequence[str | Path],
    output: str | Path,
    annotations: str | Path | None = None,
    formats: Sequence[str] = DEFAULT,
    resume: bool = False,
) -> Path:
    """Predict images and folders of images into a folder of results; returns the folder, or ``predictions.json`` in it.

    ``formats`` are those of `masklab.results.formats.registry`.  ``predictions.json`` is a COCO results list with
    every detection: ``segmentation`` as RLE of the image's own size, and, besides COCO's fields, ``file_name`` and
    ``category_name``.  ``image_id`` is the file's name, and ``category_id`` that of the training data; with a COCO JSON
    ``annotations``, both are those of the JSON (see `read_listing`), and images and classes that it does not have are
    left out.  The files of each image, such as its overlay, have the objects with a score of at least
    ``predictor.threshold``, and are written when the image is done.  With ``resume``, images that an earlier run
    did with the same model and options are left as they are (see `masklab.inference.output`).

    ``settings.json`` has the options, the threshold, a checksum of the weights and, for each image, the intensities that
    became black and white where the options stretch them.

    Images that cannot be read or drawn, or have another size than the JSON says, are reported and skipped; files that
    are left out of a folder are named, and one warning counts the images whose intensities are far from what the model
    expects.  `InputError` is raised after all others are written.
    """
    images = [image for source in sources for image in list_images(source)]
    if unread := left_out(sources):
        _log.warning("%s", unread)
    listing = None if annotations is None else read_listing(annotations, images, predictor.classes)
    images = images if listing is None else list(listing.images)
    folder = ResultFolder(output, images, settings_of(predictor), predictor.threshold, formats, listing, resume)
    check = IntensityCheck(predictor.config.image)

    def find(path: Path, image: ImageReader) -> Instances:
        return predictor.predict_reader(image, check, folder.tiles(path))

    totals, left = write_results(predictor, folder, find, annotations)
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


def write_results(
    predictor: Predictor,
    folder: ResultFolder,
    find: Callable[[Path, ImageReader], Instances],
    annotations: str | Path | None,
) -> tuple[Totals, LeftOut]:
    """Write what ``find`` finds in each image of a folder of results, given its path and the image opened.

    Images that cannot be used, or have another size than the JSON ``annotations`` says, are left out with a warning.
    Returns the counts, and the images left out, which the caller refuses at its end.
    """
    left = LeftOut()
    for path in track(folder.images, "predicting"):
        with left.skipping(path):
            if folder.done(path):
                continue
            with ExitStack() as stack:
                image = stack.enter_context(open_reader(path, predictor.config.model.backbone.channels))
                if folder.listing is not None:
                    _check_size(path, image.size, folder.listing.images[path].size, annotations)
                intensities = ImageIntensities(image, predictor.image_config)
                instances = find(path, image)
                own = stack.enter_context(open_reader(path, None)) if folder.measures else None
                full = plan_tiles(predictor.model, image.size) is None and _is_full(predictor, instances)
                value_range = intensities.rule.value_range
                folder.add(path, instances, own, shown=intensities.shown(), value_range=value_range, full=full)
    return folder.finish(), left


def _is_full(predictor: Predictor, instances: Instances) -> bool:
    """Whether as many objects count as found as the model may find."""
    return len(instances.above(predictor.threshold)) == predictor.max_detections


def settings_of(predictor: Predictor) -> dict[str, Any]:
    """All that the results of an image depend on besides it, as plain values for `ResultFolder`.

    ``stretched`` says whether the options stretch the intensities of each image.
    """
    return {
        "options": asdict(predictor.options),
        "threshold": predictor.threshold,
        "value_range": predictor.config.image.value_range,
        "percentiles": predictor.config.image.percentiles,
        "stretched": (predictor.options.intensity != "model" and predictor.config.image.percentiles is None) or None,
        "weights": _weights_id(predictor),
        "versions": versions(),
    }


def _weights_id(predictor: Predictor) -> str:
    """A checksum of a model: its weights, its configuration and its classes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{predictor.config.model_dump_json()} {predictor.classes}".encode())
    for name, values in sorted(predictor.model.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_size(path: Path, found: Sequence[int], size: Size | None, source: str | Path | None) -> None:
    """Raise `InputError` for an image of another size than a JSON says: its masks would not fit the JSON's."""
    if size is not None and tuple(found) != size:
        raise InputError(
            f"{path} is {found[1]} wide and {found[0]} high (EXIF orientation applied) but {source} says "
            f"{size[1]} wide and {size[0]} high; correct the JSON or replace the image."
        )
