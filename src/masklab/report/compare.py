"""Two models on the same images: the difference of each figure with its interval, and the images that changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masklab.datasets.source import Data
from masklab.evaluation.evaluate import Evaluation, evaluate_in_full
from masklab.evaluation.matching import image_counts
from masklab.inference.options import PredictionOptions
from masklab.report.errors import key
from masklab.report.markup import DASH, Html, joined, named, number, paragraph, signed, table, tag
from masklab.report.page import note, page, page_to_write, write_page
from masklab.report.pictures import Budget, Gallery
from masklab.report.training import read_run
from masklab.utils.errors import InputError
from masklab.utils.types import Doubles, Integers
from masklab.utils.words import counted

_RESAMPLES = 2000
_LEVEL = 0.95
_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_SHOWN = 3  # images won and lost that are drawn
_LISTED = 100


@dataclass(frozen=True)
class Difference:
    """A figure of both models and the second less the first, with the bounds of its interval; None where not measured."""

    name: str
    first: float | None
    second: float | None
    low: float | None = None
    high: float | None = None

    @property
    def change(self) -> float | None:
        """The second less the first."""
        return None if self.first is None or self.second is None else self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same images, named; ``scores`` ``(2, N)`` are TP / (TP + FP + FN) of each image at IoU 0.5."""

    names: tuple[str, str]
    evaluations: tuple[Evaluation, Evaluation]
    scores: Doubles
    differences: list[Difference]

    @property
    def changes(self) -> Doubles:
        """The second model's score of each image less the first's, ``(N,)``."""
        changes: Doubles = self.scores[1] - self.scores[0]
        return changes


def compare(
    first: str | Path,
    second: str | Path,
    output: str | Path,
    data: Data | None = None,
    split: str = "val",
    options: PredictionOptions | None = None,
    seed: int = 0,
) -> Comparison:
    """Measure two models on the images of a split, each at its own score threshold, and write the comparison to a file.

    ``data`` is by default what the first run was trained on.  Images that one of them cannot use are left out of both.
    Raises `InputError` for models and data that cannot be used, and for a file that cannot be written.
    """
    output = page_to_write(output)
    if data is None:
        run = read_run(first)
        data = None if run is None else run.data
    if data is None:
        raise InputError(f"{first} does not say what data to compare on: give --data DIR.")
    one, two = (evaluate_in_full(model, data, split, options) for model in (first, second))
    compared = comparison((str(first), str(second)), one, two, seed)
    write_page(output, _page(compared))
    return compared


def comparison(names: tuple[str, str], first: Evaluation, second: Evaluation, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same images; intervals are of the bootstrap over images, drawn with ``seed``.

    Raises `InputError` where they are of other images, or of other objects, as of models with other classes.
    """
    if first.inputs.images != second.inputs.images or (first.overlaps.objects != second.overlaps.objects).any():
        raise InputError(
            "the two models were not measured on the same images and objects, as they know other classes or an image "
            "could not be used by one of them: compare models of the same classes, and correct the images named above."
        )
    counts = np.stack([_counts(first), _counts(second)])
    drawn = np.random.default_rng(seed).integers(0, max(counts.shape[2], 1), (_RESAMPLES, counts.shape[2]))
    kaggle = _scores(counts).mean(axis=1)
    differences = [
        _of_coco("mask AP", "AP", first, second),
        _of_coco("mask AP50", "AP50", first, second),
        _of_images("TP / (TP + FP + FN), mean over images and IoU 0.50 to 0.95", kaggle, drawn),
        _of_images("TP / (TP + FP + FN) at IoU 0.5, mean over images", _scores(counts)[:, 0], drawn),
        _of_counts("F1 at IoU 0.5, all objects together", counts[:, 0], drawn),
    ]
    return Comparison(names, (first, second), _scores(counts)[:, 0], differences)


def _counts(evaluation: Evaluation) -> Integers:
    """TP, FP and FN ``(T, N, 3)``."""
    overlaps = evaluation.overlaps
    return image_counts(overlaps, overlaps.scores >= evaluation.threshold, _IOUS)


def _scores(counts: Integers) -> Doubles:
    """TP / (TP + FP + FN), 1 where there is nothing."""
    total = counts.sum(axis=-1)
    scores: Doubles = np.where(total == 0, 1.0, counts[..., 0] / np.maximum(total, 1))
    return scores


def _of_coco(name: str, key: str, first: Evaluation, second: Evaluation) -> Difference:
    return Difference(name, first.metrics["mask"][key], second.metrics["mask"][key])


def _of_images(name: str, scores: Doubles, drawn: Integers) -> Difference:
    """The difference of a mean over images; ``scores`` ``(2, N)``."""
    if not scores.shape[1]:
        return Difference(name, None, None)
    changes = (scores[1] - scores[0])[drawn].mean(axis=1)
    return Difference(name, float(scores[0].mean()), float(scores[1].mean()), *_bounds(changes))


def _of_counts(name: str, counts: Integers, drawn: Integers) -> Difference:
    """The difference of F1 of all images together; ``counts`` ``(2, N, 3)``."""
    if not counts.sum():
        return Difference(name, None, None)
    whole = _f1(counts.sum(axis=1))
    resampled = np.stack([np.stack([each[rows].sum(axis=0) for rows in drawn]) for each in counts])
    changes = _f1(resampled[1]) - _f1(resampled[0])
    return Difference(name, float(whole[0]), float(whole[1]), *_bounds(changes))


def _f1(counts: Integers) -> Doubles:
    """F1 of TP, FP and FN ``(..., 3)``, 1 where there is nothing."""
    under = 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
    f1: Doubles = np.where(under == 0, 1.0, 2 * counts[..., 0] / np.maximum(under, 1))
    return f1


def _bounds(changes: Doubles) -> tuple[float, float]:
    low, high = np.quantile(changes, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist()
    return low, high


def sentences(compared: Comparison) -> list[str]:
    """The comparison in lines of plain text."""
    lines = [
        f"{each.name}: {number(each.first)} and {number(each.second)}, {_interval(each)}"
        for each in compared.differences
    ]
    return [*lines, _won(compared)]


def _interval(each: Difference) -> str:
    if each.low is None:
        return f"difference {signed(each.change)}"
    return f"difference {signed(each.change)} ({signed(each.low)} to {signed(each.high)})"


def _won(compared: Comparison) -> str:
    changes = compared.changes
    won, lost = int((changes > 0).sum()), int((changes < 0).sum())
    return (
        f"of {counted(len(changes), 'image')} the second model does {won} better and {lost} worse, "
        f"{len(changes) - won - lost} alike"
    )


def _page(compared: Comparison) -> str:
    budget, galleries = Budget(), [Gallery(each) for each in compared.evaluations]
    order = np.argsort(-compared.changes, kind="stable").tolist()
    won = [row for row in order if compared.changes[row] > 0]
    lost = [row for row in reversed(order) if compared.changes[row] < 0]
    sections = [
        ("summary", "Difference", _summary(compared)),
        ("won", "Images that the second does better", _images(compared, won, galleries, budget)),
        ("lost", "Images that the second does worse", _images(compared, lost, galleries, budget)),
    ]
    first, second = compared.names
    measured = compared.evaluations[0].metrics["measured"]
    subtitle = paragraph(
        "First ",
        named(first),
        ", second ",
        named(second),
        ", on the split ",
        named(measured["split"]),
        " of ",
        named(measured["data"]),
    )
    return page(f"{Path(first).name} and {Path(second).name} compared", subtitle, sections)


def _summary(compared: Comparison) -> Html:
    rows = []
    for each in compared.differences:
        interval = DASH if each.low is None else f"{signed(each.low)} to {signed(each.high)}"
        rows.append((each.name, number(each.first), number(each.second), signed(each.change), interval))
    caption = (
        f"Each model at its own score threshold, {compared.evaluations[0].threshold:.2f} and "
        f"{compared.evaluations[1].threshold:.2f}. Interval: 95 % of {_RESAMPLES} draws of as many images with replacement; "
        "one that holds 0 is no evidence of a difference. Average precision has none, as it is no mean over images."
    )
    parts = [paragraph(f"{_won(compared)[0].upper()}{_won(compared)[1:]}.")]
    parts.append(table(["figure", "first", "second", "difference", "interval"], rows, caption))
    if len(compared.changes) < 10:
        parts.append(note("With so few images the intervals are rough."))
    return joined(parts)


def _images(compared: Comparison, rows: list[int], galleries: list[Gallery], budget: Budget) -> Html:
    """The images that changed most, as each model sees them, and the list of all."""
    if not rows:
        return paragraph("There are none.")
    ids: list[Any] = list(compared.evaluations[0].inputs.images)
    parts = [key()]
    for row in rows[:_SHOWN]:
        pair = []
        for gallery, which, score in zip(galleries, ("first", "second"), compared.scores[:, row].tolist(), strict=True):
            drawn = gallery.whole(ids[row])
            if drawn is not None:
                text = f"{which}: {score:.2f}"
                pair.append(budget.embed(drawn, f"{gallery.name(ids[row])}, {text}", text))
        parts += [tag("h3", named(galleries[0].name(ids[row]))), tag("div", *pair, class_="images")]
    listed = [
        (
            named(galleries[0].name(ids[row])),
            *map(number, compared.scores[:, row].tolist()),
            signed(float(compared.changes[row])),
        )
        for row in rows[:_LISTED]
    ]
    rest = len(rows) - len(listed)
    caption = "TP / (TP + FP + FN) at IoU 0.5." + (f" {counted(rest, 'image')} more are left out." if rest else "")
    parts.append(table(["image", "first", "second", "difference"], listed, caption))
    return joined(parts)
