"""Images of a report: data URIs within a budget, the worst and best images, and pieces of each kind of error."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from masklab.datasets.ground_truth import Region
from masklab.datasets.image_table import ImageRecord
from masklab.evaluation.errors import find_errors
from masklab.evaluation.evaluate import Evaluation
from masklab.evaluation.matching import image_counts, overlaps_of
from masklab.masks import rle
from masklab.plots import sheets
from masklab.plots.failures import Failures, marked
from masklab.plots.inspection import as_rgb
from masklab.report.markup import Html, figure, tag
from masklab.results.instances import Instances
from masklab.utils.leftout import reason_of
from masklab.utils.types import Box, Bytes, Doubles, Size

_BUDGET = 9_000_000  # bytes of JPEG in a report, a third more as text
_SHOWN = 1000  # pixels of the longer side of a whole image
_PIECE = 300  # pixels of a piece's side
_LEAST_PIECE = 32  # pixels of the image that a piece shows at least
_QUALITY = 82
GALLERY = ("merged", "split", "missed", "background", "duplicate", "localisation")
"""Kinds of errors that have a gallery."""


@dataclass
class Budget:
    """Counts the bytes of the images of a report, and refuses those beyond ``left``."""

    left: int = _BUDGET
    refused: int = 0

    def embed(self, image: Image.Image, text: str, caption: Html | str) -> Html:
        """An image that a click enlarges, with its description and caption; "" where there is no room for it."""
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=_QUALITY, optimize=True)
        if len(file.getvalue()) > self.left:
            self.refused += 1
            return Html("")
        self.left -= len(file.getvalue())
        source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        shown = tag("img", src=source, alt=text, width=image.width, height=image.height)
        return figure(tag("button", shown, type="button", class_="enlarge"), caption)


def image_scores(evaluation: Evaluation, iou: float = 0.5) -> Doubles:
    """TP / (TP + FP + FN) of each image at the model's threshold, ``(N,)``, 1 where there is nothing to find."""
    overlaps = evaluation.overlaps
    counts = image_counts(overlaps, overlaps.scores >= evaluation.threshold, (iou,))[0]
    total = counts.sum(axis=1)
    scores: Doubles = np.where(total == 0, 1.0, counts[:, 0] / np.maximum(total, 1))
    return scores


@dataclass
class Gallery:
    """The images of an evaluation with their errors; each is read once, and what cannot be read is left out."""

    evaluation: Evaluation
    _records: dict[int | str, tuple[int, ImageRecord]] = field(default_factory=dict)
    _by_image: dict[int | str, tuple[list[Region], list[Region]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, record in enumerate(self.evaluation.split.images):
            self._records[record.image_id] = place, record
        for image_id in self.evaluation.inputs.images:
            self._by_image[image_id] = [], []
        for n, regions in enumerate((self.evaluation.inputs.objects, self.evaluation.inputs.detections)):
            for region in regions:
                self._by_image[region.image_id][n].append(region)

    def name(self, image_id: int | str) -> str:
        """The file name of an image."""
        return self._records[image_id][1].path.name

    def failures(self, image_id: int | str) -> Failures:
        """The errors of one image among the detections that count."""
        evaluation, (objects, detections) = self.evaluation, self._by_image[image_id]
        detections = [region for region in detections if region.score >= evaluation.threshold]
        record = self._records[image_id][1]
        inputs = type(evaluation.inputs)(
            {image_id: 0}, [record.size], evaluation.inputs.class_names, objects, detections
        )
        found = _instances(detections, record.size, evaluation.inputs.class_names)
        return Failures(record, objects, found, find_errors(overlaps_of(inputs), -np.inf))

    def opened(self, image_id: int | str) -> tuple[Failures, Bytes] | None:
        """The errors of an image and the image ``(H, W, 3)``; None where it cannot be read any more."""
        predictor = self.evaluation.predictor
        try:
            values = self.evaluation.split.read(self._records[image_id][0], predictor.config.model.backbone.channels)
        except Exception as error:
            if reason_of(error) is None:
                raise
            return None
        return self.failures(image_id), as_rgb(values, predictor)

    def whole(self, image_id: int | str) -> Image.Image | None:
        """An image with its errors marked."""
        opened = self.opened(image_id)
        if opened is None:
            return None
        failures, image = opened
        size = sheets.shown_size(failures.image.size, (_SHOWN, _SHOWN))
        return marked(failures, image, size, named=max(size) >= 500)

    def pieces(self, order: list[int | str], most: int) -> Iterator[tuple[str, str, Image.Image]]:
        """Up to ``most`` pieces of each kind of error as (kind, file name, image), at most two of an image.

        Images come in the given order until every kind has its pieces, or a few times as many were read.
        """
        left = dict.fromkeys(GALLERY, most)
        for image_id in order[: 8 * most]:
            if not any(left.values()):
                return
            opened = self.opened(image_id)
            if opened is None:
                continue
            failures, image = opened
            for kind in GALLERY:
                for box in _places(failures, kind)[: min(2, left[kind])]:
                    left[kind] -= 1
                    window, size = _around(box, failures.image.size)
                    yield kind, self.name(image_id), marked(failures, image, size, named=False, window=window)


def _instances(detections: list[Region], size: Size, names: list[str]) -> Instances:
    boxes = np.array([region.box for region in detections], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    count = len(detections)
    return Instances(
        size,
        boxes,
        np.array([region.score for region in detections], np.float32),
        np.array([region.label for region in detections], np.int64),
        np.zeros((count, 0, 0), np.float32),
        tuple(names),
        tuple(range(len(names))),
        rle.rles_from_strings([region.mask["counts"] for region in detections]) if count else [],
    )


def _places(failures: Failures, kind: str) -> list[Box]:
    """Boxes around the errors of a kind, those of objects first, the largest first."""
    size = failures.image.size
    objects = [region.rle for region in failures.objects]
    rows = [objects[k] for k in np.flatnonzero(failures.errors.objects == kind).tolist()]
    if not rows:
        rows = [failures.found.rle[k] for k in np.flatnonzero(failures.errors.detections == kind).tolist()]
    boxes = [box for runs in rows if runs is not None and (box := rle.bounds(runs, size)) is not None]
    return sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))


def _around(box: Box, size: Size) -> tuple[Box, Size]:
    """A square window of three times a box's longer side, inside the image, and the size to show it at."""
    side = max(_LEAST_PIECE, 3 * max(box[2] - box[0], box[3] - box[1]))
    edges = []
    for low, high, length in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        own = min(side, length)
        first = min(max(0, (low + high - own) // 2), length - own)
        edges.append((first, first + own))
    (left, right), (top, bottom) = edges
    longer = max(right - left, bottom - top)
    shown = (max(1, round((bottom - top) * _PIECE / longer)), max(1, round((right - left) * _PIECE / longer)))
    return (left, top, right, bottom), shown
