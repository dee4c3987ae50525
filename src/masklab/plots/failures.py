"""A model's worst images of a split, with what went wrong marked on them (paper, Fig. 9, last row)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from masklab.datasets.coco import ImageRecord
from masklab.datasets.open import open_split
from masklab.evaluation.errors import LOCALISATION_IOU, Errors, find_errors
from masklab.evaluation.matching import overlaps
from masklab.masks import coco_segmentation, rle
from masklab.masks.polygons import rle_to_polygons
from masklab.model.masklab import MaskLab
from masklab.plots import sheets as panels
from masklab.plots.inspection import as_rgb
from masklab.plots.save import save_png
from masklab.plots.sheets import CONTENT_WIDTH, GAP
from masklab.results.instances import Instances
from masklab.results.overlay import PALETTE
from masklab.utils.errors import InputError
from masklab.utils.files import make_folder
from masklab.utils.progress import track
from masklab.utils.types import Bytes, Colour, Size

COLUMNS = 3
ORANGE, SKY, YELLOW, WHITE = PALETTE[5], PALETTE[1], PALETTE[3], (255, 255, 255)
SOLID: tuple[float, ...] = ()
DASHED, DOTTED = (14.0, 8.0), (3.0, 6.0)


@dataclass(frozen=True)
class Failures:
    """What went wrong in one image.

    ``annotations`` are its COCO annotations, ``found`` the detections that count and ``errors`` the kind of each (see
    `masklab.evaluation.errors`).  ``missed`` are rows of the first, ``wrong`` of the second, those without a match;
    ``localisation`` (detection, annotation, IoU) the matches below an IoU of 0.75.  ``score`` is TP / (TP + FP + FN)
    at IoU 0.5.
    """

    image: ImageRecord
    annotations: list[dict[str, Any]]
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


def find_failures(
    image: ImageRecord, annotations: list[dict[str, Any]], categories: list[Any], found: Instances
) -> Failures:
    """Compare the detections that count with an image's annotations, as `masklab.evaluation.matching` does.

    ``annotations`` and ``categories`` are COCO's; crowds are neither missed nor do they make a detection wrong.
    """
    canvas = {"id": image.image_id, "height": image.size[0], "width": image.size[1]}
    truth = {"images": [canvas], "annotations": annotations, "categories": categories}
    shared = overlaps(truth, found.to_coco(image.image_id))
    return Failures(image, annotations, found, find_errors(shared, score_threshold=-np.inf))


def show_failures(
    model: MaskLab,
    data: str | Path,
    output: str | Path,
    split: str = "val",
    worst: int = 9,
    score: float | None = None,
) -> list[Path]:
    """Write the worst images of a split into the folder ``output``; returns their paths.

    Worst is the lowest AP(0.5) = TP / (TP + FP + FN) of an image, of detections with at least ``score``, by
    default the model's own threshold.  ``failures.png`` shows them together, ``failure_01_NAME.png``, ... one by
    one.  Images without any failure are left out.

    Raises `InputError` for data that cannot be used and for a folder that cannot be written to.
    """
    if worst < 1:
        raise InputError(f"--worst is {worst}: give the number of images to show, at least 1.")
    score = model.threshold if score is None else score
    source = open_split(data, split, model.classes)
    output = make_folder(output)
    groups: defaultdict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for annotation in source.truth["annotations"]:
        groups[annotation["image_id"]].append(annotation)
    kept: list[Failures] = []
    totals = np.zeros(4, np.int64)
    for index, image in enumerate(track(source.images, "predicting")):
        found = model.predict(source.read(index, model.config.model.backbone.channels)).above(score)
        failures = find_failures(image, groups[image.image_id], source.truth["categories"], found)
        totals += (failures.matched, *_counts(failures))
        if any(_counts(failures)):
            kept = sorted([*kept, failures], key=lambda f: f.rank)[:worst]
    matched, missed, wrong, bad = totals.tolist()
    print(
        f"{len(source)} images at score {score:.2f}: {matched} objects found ({bad} badly localised), "
        f"{missed} missed, {wrong} wrong"
    )
    if not kept:
        print("no failure figures: every image is right.")
        return []
    channels = model.config.model.backbone.channels
    images = [
        as_rgb(source.read(source.images.index(failures.image), channels), model.config.image) for failures in kept
    ]
    written = [save_png(_sheet(kept, images), output / "failures.png")]
    for place, (failures, values) in enumerate(zip(kept, images, strict=True), 1):
        name = f"failure_{place:02d}_{failures.image.path.stem}.png"
        written.append(save_png(failure_figure(failures, values), output / name))
    return written


def _counts(failures: Failures) -> tuple[int, int, int]:
    return len(failures.missed), len(failures.wrong), len(failures.localisation)


def failure_figure(failures: Failures, image: Bytes) -> Image.Image:
    """One image ``(H, W, 3)``, plain where there is room and with its failures marked, and the legend with counts."""
    size = panels.shown_size(failures.image.size, (1200, CONTENT_WIDTH))
    half = panels.shown_size(failures.image.size, (1200, (CONTENT_WIDTH - GAP) // 2))
    temporary = half == size or half[0] >= 2 * image.shape[0]
    size = half if temporary else size
    shown = [marked(failures, image, size, named=True)]
    if temporary:
        shown.insert(0, Image.fromarray(panels.scaled(image, size)))
    return panels.figure(failures.title, panels.row(shown), _legend([failures]))


def _sheet(kept: Sequence[Failures], images: Sequence[Bytes]) -> Image.Image:
    """All of them, small, in the order of their rank."""
    width = (CONTENT_WIDTH - (COLUMNS - 1) * GAP) // COLUMNS
    tiles = []
    for place, (failures, values) in enumerate(zip(kept, images, strict=True), 1):
        size = panels.shown_size(failures.image.size, (width, width))
        tile = panels.captioned(marked(failures, values, size, named=False), f"{place}. {failures.title}", width)
        tiles.append(panels.widened(tile, width))
    rows = [panels.row(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    return panels.figure("The images with the lowest AP(0.5)", *rows, _legend(kept))


def _legend(kept: Sequence[Failures]) -> Image.Image:
    missed, wrong, bad = np.sum([_counts(failures) for failures in kept], axis=0).tolist()
    return panels.legend(
        [
            (f"{missed} missed: annotated, not found", ORANGE, SOLID),
            (f"{wrong} wrong: found, not annotated or of another class", SKY, DASHED),
            (f"{bad} badly localised: found, but with an IoU under {LOCALISATION_IOU}", YELLOW, DOTTED),
            ("the annotated outline of these", WHITE, SOLID),
        ]
    )


def marked(failures: Failures, image: Bytes, size: Size, named: bool) -> Image.Image:
    """The image ``(H, W, 3)`` at ``size`` with the outlines of its failures, and names and figures if ``named``."""
    canvas = Image.fromarray(panels.scaled(image, size))
    found, names = failures.found, failures.found.class_names
    table = dict(zip(found.category_ids, names, strict=True))
    marks: list[tuple[rle.RLE | None, Colour, tuple[float, ...], str]] = []
    for detection, row, iou in failures.localisation:
        marks.append((_runs(failures, row), WHITE, SOLID, ""))
        marks.append((found.runs[detection], YELLOW, DOTTED, f"IoU {iou:.2f}"))
    for detection in failures.wrong:
        text = _named(failures.errors.detections[detection], f"{found.scores[detection]:.2f}")
        text = f"{names[int(found.labels[detection])]} {text}" if len(names) > 1 else text
        marks.append((found.runs[detection], SKY, DASHED, text))
    for row in failures.missed:
        text = _named(failures.errors.objects[row], "")
        text = f"{table[failures.annotations[row]['category_id']]} {text}" if len(names) > 1 else text
        marks.append((_runs(failures, row), ORANGE, SOLID, text))
    draw, labels = ImageDraw.Draw(canvas), panels.Labels(canvas)
    scale = np.array([size[1] / failures.image.size[1], size[0] / failures.image.size[0]])
    for runs, colour, pattern, text in marks:
        rings = (
            [ring * scale for polygon in rle_to_polygons(runs, failures.image.size) for ring in polygon]
            if runs is not None
            else []
        )
        for ring in rings:
            panels.stroke(draw, np.vstack([ring, ring[:1]]), colour, pattern, 1 if colour == WHITE else 3)
        if named and rings:
            labels.add(text, np.concatenate(rings).min(axis=0))
    labels.draw()
    return canvas


def _named(error_type: str, text: str) -> str:
    """What is written beside an outline: more than its colour says."""
    return text if error_type in ("false", "missed") else f"{error_type.replace('_', ' ')} {text}".rstrip()


def _runs(failures: Failures, row: int) -> rle.RLE | None:
    """The mask of an annotation; none where it cannot be drawn, as a polygon of two points."""
    try:
        return coco_segmentation.rle_from_segmentation(
            failures.annotations[row].get("segmentation"), failures.image.size
        )
    except ValueError:
        return None
