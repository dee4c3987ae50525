"""Masks for boxes that a detector wrote into a file, into a folder of results."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masklab.datasets.boxes.box_list import BoxList, describe
from masklab.datasets.boxes.class_names import given_names
from masklab.datasets.boxes.read import read_boxes
from masklab.images.listing import left_out, list_images
from masklab.images.reader import ImageReader
from masklab.inference.folder import settings_of
from masklab.inference.given_boxes import BoxCheck, labels_of_boxes, rows_of_images
from masklab.inference.listing import Listing, read_listing
from masklab.inference.output import ResultFolder
from masklab.inference.pipeline import write_results
from masklab.inference.predictor import Predictor
from masklab.results.formats.registry import DEFAULT
from masklab.results.instances import Instances
from masklab.utils.types import Integers
from masklab.utils.words import counted

_log = logging.getLogger(__name__)


def segment_folder(
    predictor: Predictor,
    sources: Sequence[str | Path],
    boxes: str | Path,
    output: str | Path,
    annotations: str | Path | None = None,
    classes: Sequence[str] | None = None,
    label: str | None = None,
    formats: Sequence[str] = DEFAULT,
    resume: bool = False,
) -> Path:
    """Compute the masks of given boxes in images and folders of images; returns what `predict_folder` does.

    ``boxes`` is a file or folder of one of the kinds of `read_boxes`.  Its images are found by name, or by the ids of the
    COCO JSON ``annotations``; its classes are matched by name, with the help of ``classes`` where it has numbers (see
    `given_names`), or all boxes are of the model's class ``label`` (see `labels_of_boxes`).  Scores of boxes are kept.
    The output is that of `predict_folder`, where the drawn objects are those of at least the score of the predictor's
    options, by default all.

    Boxes are clipped to their image; those without area in it are skipped, with a warning, and another warning counts
    those of a size that the model does not know (see `BoxCheck`).  Raises `InputError` for boxes that cannot be used,
    and for images as `predict_folder` does.
    """
    images = [image for source in sources for image in list_images(source)]
    if unread := left_out(sources):
        _log.warning("%s", unread)
    listing = None if annotations is None else read_listing(annotations, images, predictor.classes)
    images = images if listing is None else list(listing.images)
    given = read_boxes(boxes)
    _log.info(f"{boxes}: {describe(given)}")
    labels = labels_of_boxes(given, predictor.classes, _names(given, classes, listing), label)
    rows = rows_of_images(given, images, listing)
    threshold = predictor.options.score_threshold or 0.0
    settings = settings_of(predictor) | {"threshold": threshold, "boxes": str(boxes), "content": _digest(given, labels)}
    folder = ResultFolder(output, images, settings, threshold, formats, listing, resume)
    check, box_check = predictor.input_check(), BoxCheck(predictor.model)

    def find(path: Path, image: ImageReader) -> Instances:
        if predictor.options.intensity == "model":
            check.add_overview(image, path)
        mine = rows[path][labels[rows[path]] >= 0]
        height, width = image.size
        corners = given.boxes[mine] * ((width, height, width, height) if given.relative else 1)
        fitted = box_check.fit(corners, image.size, path.name)
        kept = mine[fitted.usable]
        return predictor.segment(image, fitted.boxes[fitted.usable], labels[kept], given.scores[kept])

    totals, left = write_results(predictor, folder, find, annotations)
    check.warn()
    box_check.warn()
    if totals.kept:
        _log.info(f"{counted(totals.kept, 'image')} of an earlier run kept")
    if totals.images:
        masks = counted(totals.detections, "mask")
        _log.info(f"{counted(totals.images, 'image')}, {masks}: {', '.join(map(str, folder.files()))}")
    left.refuse(len(images))
    return folder.main_file


def _names(given: BoxList, classes: Sequence[str] | None, listing: Listing | None) -> dict[int, str] | None:
    """The names of class numbers: those given, or else those of the JSON that gives the ids."""
    if classes:
        if given.named:
            _log.warning("%s has class names of its own: --classes is left out", given.path)
        return given_names(classes)
    return None if listing is None or not listing.class_names else listing.class_names


def _digest(given: BoxList, labels: Integers) -> str:
    """A checksum of the boxes, so that results of other boxes are not taken for theirs."""
    digest = hashlib.blake2b(str(given.images).encode("utf-8", "surrogatepass"), digest_size=16)
    for values in (given.boxes, given.image, given.scores, labels):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
