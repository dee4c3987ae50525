"""What goes wrong: kinds of errors and their cost, confusion of classes, the worst and best images, galleries."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from masklab.evaluation.confusion import Confusion
from masklab.evaluation.errors import ERROR_TYPES, find_errors
from masklab.evaluation.evaluate import Evaluation
from masklab.evaluation.mended import MENDED, gains
from masklab.plots.failures import ORANGE, SKY, YELLOW
from masklab.report.markup import Html, joined, named, number, paragraph, signed, table, tag
from masklab.report.page import note
from masklab.report.pictures import GALLERY, Budget, Gallery, image_scores
from masklab.utils.words import counted

_WORST, _BEST, _PIECES = 6, 3, 6  # images, and pieces of each kind of error
_MATRIX = 30  # classes of a whole matrix
_PAIRS = 25  # of classes that are listed where there are more
_MEANINGS = {"class": "found with the wrong class", **ERROR_TYPES}


def kinds_section(evaluation: Evaluation, mixed: Confusion) -> Html:
    """Counts of each kind of error at the threshold, and the average precision that mending it would add."""
    errors = find_errors(evaluation.overlaps, evaluation.threshold)
    counts = errors.counts()
    wrong_class = len(mixed.detections)
    found = gains(evaluation.inputs, evaluation.overlaps, evaluation.max_detections)
    rows = []
    for gain in sorted(found, key=lambda gain: -(gain.ap or 0)):
        at = counts.get(gain.kind, {"detections": wrong_class, "objects": wrong_class})
        rows.append(
            (
                gain.kind,
                at["detections"],
                at["objects"],
                signed(gain.ap),
                signed(gain.ap50),
                _MEANINGS[gain.kind],
                MENDED[gain.kind],
            )
        )
    right = counts["right"]["objects"]
    head = ["kind", "detections", "objects", "mask AP if mended", "AP50 if mended", "what it is", "mended"]
    caption = (
        "Detections and objects: at the model's threshold. If mended: what the mask AP of all detections, whatever their score, "
        "would gain if only this kind were mended; gains do not add up, and one "
        "below 0 says that the repeated detections fit better. In the manner of TIDE (Bolya et al., ECCV 2020)."
        + (
            " Errors of class are counted as background and missed too."
            if len(evaluation.inputs.class_names) > 1
            else ""
        )
    )
    return joined(
        [
            paragraph(f"{counted(right, 'object')} found with an IoU of 0.75 or more."),
            table(head, rows, caption, class_="last-words"),
        ]
    )


def confusion_section(evaluation: Evaluation, mixed: Confusion) -> Html:
    """The confusion matrix with background, or the most frequent confusions where there are many classes."""
    names, matrix = evaluation.inputs.class_names, mixed.matrix
    caption = (
        f"Matched at a mask IoU of 0.5, detections with a score of {evaluation.threshold:.2f} or more. Background: nothing is "
        "annotated there; missed: nothing was found."
    )
    if len(names) <= _MATRIX:
        head = ["annotated / found as", *(named(name) for name in names), "missed"]
        *found, made_up = matrix.tolist()
        rows: list[list[Any]] = [[named(name), *_heat(row)] for name, row in zip(names, found, strict=True)]
        rows.append(["background", *made_up])
        return table(head, rows, caption)
    pairs = [(int(matrix[a, b]), a, b) for a, b in np.argwhere(matrix).tolist() if a != b]
    labels = [*names, None]
    listed = [
        (named(labels[a] or "background"), named(labels[b] or "missed"), count)
        for count, a, b in sorted(pairs, key=lambda pair: -pair[0])[:_PAIRS]
    ]
    if not listed:
        return paragraph("No class is taken for another, and nothing is missed or made up.")
    return table(
        ["annotated", "found as", "times"], listed, f"The {len(listed)} most frequent of {len(pairs)}. {caption}"
    )


def _heat(row: list[int]) -> list[Html]:
    """The cells of a row, the darker the larger their share of it."""
    total = max(sum(row), 1)
    return [tag("td", count, class_="heat", style=f"--share:{0.65 * count / total:.3f}") for count in row]


def images_section(evaluation: Evaluation, gallery: Gallery, budget: Budget) -> Html:
    """The worst and the best images with their errors marked."""
    ids, scores = list(evaluation.inputs.images), image_scores(evaluation)
    objects = evaluation.overlaps.objects
    order = np.lexsort((-objects, scores)).tolist()
    worst = [row for row in order if scores[row] < 1][:_WORST]
    best = [row for row in reversed(order) if objects[row] and row not in worst][:_BEST]
    parts: list[Html] = [key()]
    if not worst:
        parts.append(paragraph("Every image is right: at IoU 0.5 nothing is missed and nothing wrong."))
    for title, rows in (("Lowest", worst), ("Highest", best)):
        shown = [_image(ids[row], float(scores[row]), gallery, budget) for row in rows]
        if any(shown):
            parts += [tag("h3", f"{title} TP / (TP + FP + FN) at IoU 0.5"), tag("div", *shown, class_="images")]
    parts.append(_all_images(ids, scores.tolist(), order, gallery))
    return joined(parts)


def _image(image_id: int | str, score: float, gallery: Gallery, budget: Budget) -> Html:
    drawn = gallery.whole(image_id)
    if drawn is None:
        return Html("")
    failures = gallery.failures(image_id)
    counts = f"{score:.2f}: {failures.matched} found, {len(failures.wrong)} wrong, {len(failures.missed)} missed"
    name = gallery.name(image_id)
    return budget.embed(drawn, f"{name}, {counts}", joined([named(name), tag("br"), counts]))


def _all_images(ids: list[int | str], scores: list[float], order: list[int], gallery: Gallery) -> Html:
    """A list of the images by score that one can open, at most some hundred."""
    most = 200
    rows = [(named(gallery.name(ids[row])), number(scores[row])) for row in order[:most]]
    rest = f", the {most} lowest of {len(order)}" if len(order) > most else ""
    return tag("details", tag("summary", f"All images by score{rest}"), table(["image", "TP / (TP + FP + FN)"], rows))


def key() -> Html:
    """What the outlines of `masklab.plots.failures.marked` mean."""
    entries = (
        ("missed: annotated, not found", ORANGE, "solid"),
        ("wrong: found, not annotated or of another class", SKY, "dashed"),
        ("badly localised: found, but with an IoU under 0.75", YELLOW, "dotted"),
        ("the annotated outline of these", (255, 255, 255), "solid"),
    )
    items = (
        tag("li", tag("i", style=f"--mark:rgb{colour};--dash:{dash}".replace(" ", "")), text)
        for text, colour, dash in entries
    )
    return tag("ul", *items, class_="key marks")


def gallery_section(evaluation: Evaluation, gallery: Gallery, budget: Budget) -> Html:
    """Pieces of images around errors of each kind."""
    ids, scores = list(evaluation.inputs.images), image_scores(evaluation)
    order = [ids[row] for row in np.argsort(scores, kind="stable").tolist() if scores[row] < 1 or len(ids) < 50]
    pieces: defaultdict[str, list[Html]] = defaultdict(list)
    for kind, name, image in gallery.pieces(order, _PIECES):
        pieces[kind].append(budget.embed(image, f"{kind}: {name}", named(name)))
    parts: list[Html] = [key()]
    for kind in GALLERY:
        shown = [piece for piece in pieces[kind] if piece]
        if shown:
            parts += [tag("h3", f"{kind}: {ERROR_TYPES[kind]}"), tag("div", *shown, class_="crops")]
    if len(parts) == 1:
        return paragraph("There are no errors to show.")
    if budget.refused:
        parts.append(note(f"{counted(budget.refused, 'image')} left out to keep the file small."))
    return joined(parts)
