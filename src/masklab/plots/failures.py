"""Figures of a model's worst images of a split, with the errors marked (paper, Fig. 9, last row)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from masklab.datasets.ground_truth import GroundTruth, Region
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.source import Data
from masklab.evaluation.classes import open_for_model
from masklab.evaluation.errors import LOCALISATION_IOU, Errors, find_errors
from masklab.evaluation.matching import overlaps
from masklab.inference.predictor import Predictor
from masklab.masks import rle
from masklab.masks.polygons import rle_to_polygons
from masklab.plots import sheets
from masklab.plots.inspection import as_rgb
from masklab.plots.save import save_png
from masklab.plots.sheets import CONTENT_WIDTH, GAP
from masklab.results.colours import PALETTE
from masklab.results.instances import Instances
from masklab.utils.errors import InputError
from masklab.utils.files import file_name, make_folder
from masklab.utils.leftout import LeftOut
from masklab.utils.progress import track
from masklab.utils.types import Box, Bytes, Colour, Size
from masklab.utils.words import counted

_log = logging.getLogger(__name__)

_COLUMNS = 3
ORANGE, SKY, YELLOW, _WHITE = PALETTE[5], PALETTE[1], PALETTE[3], (255, 255, 255)
_SOLID: tuple[float, ...] = ()
_DASHED, _DOTTED = (14.0, 8.0), (3.0, 6.0)


@dataclass(frozen=True)
class Failures:
    """The errors in one image.

    ``objects`` are its annotated objects, ``found`` the detections that count and ``errors`` the type of each (see
    `masklab.evaluation.errors`).  ``missed`` and ``wrong`` are the rows of objects and of detections without a match;
    ``localisation`` has (detection, object, IoU) of the matches with an IoU below 0.75.  ``score`` is
    TP / (TP + FP + FN) at IoU 0.5.
    """

    image: ImageRecord
    objects: list[Region]
    found: Instances
    errors: Errors

    @property
    def matched(self) -> int:
        return len(self.errors.matched)

    @property
    def missed(self) -> list[int]:
        return sorted({*np.flatnonzero(self.errors.objects != "").tolist()} - {*self.errors.owners.tolist()})

    @property
    def wrong(self) -> list[int]:
        return sorted({*np.flatnonzero(self.errors.detections != "").tolist()} - {*self.errors.matched.tolist()})

    @property
    def localisation(self) -> list[tuple[int, int, float]]:
        errors = self.errors
        pairs = zip(errors.matched.tolist(), errors.owners.tolist(), errors.ious.tolist(), strict=True)
        return [pair for pair in pairs if pair[2] < LOCALISATION_IOU]

    @property
    def score(self) -> float:
        total = self.matched + len(self.wrong) + len(self.missed)
        return self.matched / total if total else 1.0

    @property
    def rank(self) -> tuple[float, int]:
        """Lowest first."""
        return self.score, -len(self.missed) - len(self.wrong) - len(self.localisation)

    @property
    def title(self) -> str:
        parts = f"{self.matched} / ({self.matched} + {len(self.wrong)} wrong + {len(self.missed)} missed)"
        return f"{self.image.path.name}\nAP(0.5) = {self.score:.2f} = {parts}"


def find_failures(image: ImageRecord, truth: GroundTruth, found: Instances) -> Failures:
    """Compare the detections that count with an image's annotated objects, as `masklab.evaluation.matching` does.

    Crowds are never missed, and detections in them never wrong.
    """
    shared = overlaps(truth, found.to_coco(image.image_id), [image.image_id])
    return Failures(image, truth.regions[image.image_id], found, find_errors(shared, score_threshold=-np.inf))


def show_failures(
    predictor: Predictor,
    data: Data,
    output: str | Path,
    split: str = "val",
    worst: int = 9,
) -> list[Path]:
    """Write the worst images of a split into the folder ``output``; returns the paths of the figures.

    The worst images are those with the lowest AP(0.5) = TP / (TP + FP + FN) of detections with a score
    of at least ``predictor.threshold``.  ``failures.png`` shows them together, ``failure_01_NAME.png``, ... one each.
    Images without errors are left out, and so are those that cannot be used, which are reported.

    Raises `InputError` for data that cannot be used, for a folder that cannot be written to, and, after all else is
    written, if an image was left out because it cannot be used.
    """
    if worst < 1:
        raise InputError(f"--worst is {worst}: give the number of images to show, at least 1.")
    score = predictor.threshold
    source, known, _ = open_for_model(predictor.classes, data, split)
    output = make_folder(output)
    truth = source.truth
    kept: list[Failures] = []
    totals = np.zeros(4, np.int64)
    left = LeftOut()
    for index, image in enumerate(track(source.images, "predicting")):
        with left.skipping(image.path):
            found = predictor.predict(source.read(index, predictor.config.model.backbone.channels))
            found = found.above(score).of_labels(known)
            failures = find_failures(image, truth, found)
            totals += (failures.matched, *_counts(failures))
            if any(_counts(failures)):
                kept = sorted([*kept, failures], key=lambda f: f.rank)[:worst]
    matched, missed, wrong, bad = totals.tolist()
    _log.info(
        f"{counted(len(source), 'image')} at score {score:.2f}: {counted(matched, 'object')} found ({bad} badly localised), "
        f"{missed} missed, {wrong} wrong"
    )
    if not kept:
        left.refuse(len(source))
        _log.info("no failure figures: every image is right.")
        return []
    channels = predictor.config.model.backbone.channels
    images = [as_rgb(source.read(source.images.index(failures.image), channels), predictor) for failures in kept]
    written = [save_png(_sheet(kept, images), output / "failures.png")]
    for place, (failures, values) in enumerate(zip(kept, images, strict=True), 1):
        name = file_name(f"failure_{place:02d}_{failures.image.path.stem}", ".png")
        written.append(save_png(failure_figure(failures, values), output / name))
    left.refuse(len(source))
    return written


def _counts(failures: Failures) -> tuple[int, int, int]:
    return len(failures.missed), len(failures.wrong), len(failures.localisation)


def failure_figure(failures: Failures, image: Bytes) -> Image.Image:
    """One image ``(H, W, 3)`` with its errors marked, beside it the plain image if there is room, and a legend."""
    size = sheets.shown_size(failures.image.size, (1200, CONTENT_WIDTH))
    half = sheets.shown_size(failures.image.size, (1200, (CONTENT_WIDTH - GAP) // 2))
    both = half == size or half[0] >= 2 * image.shape[0]
    size = half if both else size
    shown = [marked(failures, image, size, named=True)]
    if both:
        shown.insert(0, Image.fromarray(sheets.scaled(image, size)))
    return sheets.figure(failures.title, sheets.row(shown), _legend([failures]))


def _sheet(kept: Sequence[Failures], images: Sequence[Bytes]) -> Image.Image:
    """Small images of all failures, by rank."""
    width = (CONTENT_WIDTH - (_COLUMNS - 1) * GAP) // _COLUMNS
    tiles = []
    for place, (failures, values) in enumerate(zip(kept, images, strict=True), 1):
        size = sheets.shown_size(failures.image.size, (width, width))
        tile = sheets.captioned(marked(failures, values, size, named=False), f"{place}. {failures.title}", width)
        tiles.append(sheets.widened(tile, width))
    rows = [sheets.row(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
    return sheets.figure("The images with the lowest AP(0.5)", *rows, _legend(kept))


def _legend(kept: Sequence[Failures]) -> Image.Image:
    missed, wrong, bad = np.sum([_counts(failures) for failures in kept], axis=0).tolist()
    return sheets.legend(
        [
            (f"{missed} missed: annotated, not found", ORANGE, _SOLID),
            (f"{wrong} wrong: found, not annotated or of another class", SKY, _DASHED),
            (f"{bad} badly localised: found, but with an IoU under {LOCALISATION_IOU}", YELLOW, _DOTTED),
            ("the annotated outline of these", _WHITE, _SOLID),
        ]
    )


def marked(failures: Failures, image: Bytes, size: Size, named: bool, window: Box | None = None) -> Image.Image:
    """The image ``(H, W, 3)`` at ``size`` with the outlines of its errors, and their names and scores if ``named``.

    ``window`` (xyxy, whole pixels) is the part to show, by default the whole image.
    """
    left, top, right, bottom = window or (0, 0, failures.image.size[1], failures.image.size[0])
    canvas = Image.fromarray(sheets.scaled(image[top:bottom, left:right], size))
    found, names, objects = failures.found, failures.found.class_names, failures.objects
    marks: list[tuple[rle.RLE | None, Colour, tuple[float, ...], str]] = []
    for detection, row, iou in failures.localisation:
        marks.append((objects[row].rle, _WHITE, _SOLID, ""))
        marks.append((found.rle[detection], YELLOW, _DOTTED, f"IoU {iou:.2f}"))
    for detection in failures.wrong:
        text = _named(failures.errors.detections[detection], f"{found.scores[detection]:.2f}")
        text = f"{names[int(found.labels[detection])]} {text}" if len(names) > 1 else text
        marks.append((found.rle[detection], SKY, _DASHED, text))
    for row in failures.missed:
        text = _named(failures.errors.objects[row], "")
        text = f"{names[objects[row].label]} {text}" if len(names) > 1 else text
        marks.append((objects[row].rle, ORANGE, _SOLID, text))
    draw, labels = ImageDraw.Draw(canvas), sheets.Labels(canvas)
    scale, origin = np.array([size[1] / (right - left), size[0] / (bottom - top)]), np.array([left, top])
    for runs, colour, pattern, text in marks:
        around = None if runs is None else rle.bounds(runs, failures.image.size)
        if runs is None or around is None or not _overlap(around, (left, top, right, bottom)):
            continue
        rings = [(ring - origin) * scale for polygon in rle_to_polygons(runs, failures.image.size) for ring in polygon]
        for ring in rings:
            sheets.stroke(draw, np.vstack([ring, ring[:1]]), colour, pattern, 1 if colour == _WHITE else 3)
        if named and rings:
            labels.add(text, np.concatenate(rings).min(axis=0))
    labels.draw()
    return canvas


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _named(error_type: str, text: str) -> str:
    """The label of an outline; types that the colour shows are left out."""
    return text if error_type in ("background", "missed") else f"{error_type} {text}".rstrip()
