"""How good a model is: figures, curves, the score threshold and its slider, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from masklab.evaluation.coco import ap_by_iou
from masklab.evaluation.evaluate import Evaluation
from masklab.evaluation.report import COCO_COLUMNS, SHOWN_THRESHOLDS, WAYS
from masklab.evaluation.sweep import STEPS, Curve, Sweep, best_threshold, calibration, curve, stored
from masklab.report.charts import Line, line_chart
from masklab.report.markup import Html, joined, named, number, paragraph, table, tag
from masklab.report.page import data_block, note
from masklab.utils.words import counted

_MOST_CLASSES = 30  # rows of a table
_MOST_CURVES = 80  # classes with a curve
_SLIDER_STEP = 0.005
_COUNTS = ("found", "wrong", "missed")
_SHARES = ("precision", "recall", "f1", "ap")


def summary(evaluation: Evaluation, swept: Sweep) -> Html:
    """The first figures to look at."""
    metrics, (found, wrong, missed) = evaluation.metrics, swept.counts(evaluation.threshold)
    counts = int(found.sum()), int(wrong.sum()), int(missed.sum())
    precision, recall, f1, _ = _shares(*counts)
    tiles = [
        (number(metrics["mask"]["AP"]), "mask AP (COCO)"),
        (number(metrics["mask"]["AP50"]), "mask AP50"),
        (number(metrics["box"]["AP"]), "box AP"),
        (number(f1), "F1 at IoU 0.5"),
        (number(precision), "precision: found objects that are right"),
        (number(recall), "recall: annotated objects that are found"),
    ]
    shown = tag(
        "div", *(tag("div", tag("b", value), tag("span", name), class_="tile") for value, name in tiles), class_="tiles"
    )
    objects = int(swept.objects.sum())
    sentence = paragraph(
        f"{counted(len(evaluation.inputs.images), 'image')} with {counted(objects, 'object')}. At a score of "
        f"{evaluation.threshold:.2f} or more, {counts[0]} of them are found, {counts[2]} missed, and "
        f"{counted(counts[1], 'detection')} wrong."
    )
    parts: list[Html] = [shown, sentence]
    if not objects:
        parts.append(note("There is no annotated object: average precision and recall cannot be measured."))
    if not len(swept.scores):
        parts.append(note("The model found nothing in these images, not even with a low score."))
    return joined([*parts, _remarks(evaluation)])


def _remarks(evaluation: Evaluation) -> Html:
    measured, parts = evaluation.metrics["measured"], []
    if measured["class_note"]:
        parts.append(note("Classes: ", named(measured["class_note"]), "."))
    if left := measured["images_left_out"]:
        names = joined([joined([", " if k else "", named(name)]) for k, name in enumerate(left[:10])])
        parts.append(
            note(
                f"{counted(len(left), 'image')} could not be used and left out: ", names, " …" if len(left) > 10 else ""
            )
        )
    if measured["images_at_max_detections"]:
        parts.append(
            note(
                f"{counted(measured['images_at_max_detections'], 'image')} reached the most detections of an image, "
                f"{measured['max_detections']}: objects may be missing for that alone."
            )
        )
    if measured["ground_truth_boxes"]:
        parts.append(note("The model was given the annotated boxes: these figures are of its masks alone."))
    return joined(parts)


def figures(evaluation: Evaluation) -> Html:
    """The tables of `masklab evaluate`."""
    metrics = evaluation.metrics
    coco = table(
        ["average precision", *COCO_COLUMNS.values()],
        [(kind, *(number(metrics[kind][key]) for key in COCO_COLUMNS)) for kind in ("mask", "box")],
        "0 is worst, 1 perfect. AP: mean over overlaps (IoU) 0.50 to 0.95; AP50, AP75: at one overlap. Small: up to "
        "32 x 32 pixels; medium: up to 96 x 96; large: above. A dash: nothing to measure.",
    )
    matching = metrics["matching"]
    matched = table(
        ["TP / (TP + FP + FN)", *SHOWN_THRESHOLDS],
        [(title, *(number(matching[way][key]) for key in SHOWN_THRESHOLDS)) for way, title in WAYS.items()],
        f"Of the detections with a score of {matching['score_threshold']:.2f} or more, at the overlap (IoU) in the "
        "column; mean: over 0.50, 0.55 ... 0.95. Kaggle, Cellpose: mean over images; StarDist: counted over all images.",
    )
    return joined([coco, matched, _class_table(metrics["per_class"])])


def _class_table(per_class: dict[str, dict[str, Any]]) -> Html:
    if len(per_class) < 2:
        return Html("")
    frequent = sorted(per_class, key=lambda name: -per_class[name]["objects"])[:_MOST_CLASSES]
    rows = [
        (
            named(name),
            per_class[name]["objects"],
            *(number(per_class[name][key]) for key in ("mask_AP", "mask_AP50", "box_AP")),
        )
        for name in frequent
    ]
    rest = len(per_class) - len(rows)
    caption = f"The {len(rows)} most frequent classes; {rest} more are left out." if rest else None
    return table(["class", "objects", "mask AP", "mask AP50", "box AP"], rows, caption)


def curves(evaluation: Evaluation, swept: Sweep) -> Html:
    """Precision and recall, F1 by score, average precision by IoU."""
    names = evaluation.inputs.class_names
    whole, classes = curve(swept), []
    if len(names) > 1:
        frequent = np.argsort(-swept.objects, kind="stable")[:_MOST_CURVES].tolist()
        classes = [(names[k], curve(swept.of_class(k))) for k in frequent if swept.objects[k]]
    lines = [("all classes" if classes else "all objects", whole), *classes]
    charts = [
        line_chart(
            "precision-recall",
            "Precision against recall at IoU 0.5, by falling score.",
            [_line(name, each.recall, each.precision, k == 0) for k, (name, each) in enumerate(lines)],
            "recall",
            "precision",
            unit=True,
        ),
        line_chart(
            "f1-score",
            "F1 at IoU 0.5 of the detections with at least a score; the upright line is at the model's threshold.",
            [_line(name, *_by_score(each), k == 0) for k, (name, each) in enumerate(lines)],
            "score threshold",
            "F1",
            unit=True,
            upright=evaluation.threshold,
        ),
        _by_iou(evaluation),
        _calibration(swept),
    ]
    if not len(swept.scores):
        return note("There are no detections to draw curves of.")
    return tag("div", *charts, class_="charts")


def _line(name: str, x: Any, y: Any, main: bool) -> Line:
    return Line(name, x, y, main)


def _by_score(each: Curve) -> tuple[list[float], list[float]]:
    """F1 as a line over rising score thresholds, flat between the scores that occur."""
    scores, f1 = each.scores[::-1].tolist(), each.f1[::-1].tolist()
    x, y, before = [], [], 0.0
    for score, value in zip(scores, f1, strict=True):
        x += [before, score]
        y += [value, value]
        before = score
    return ([*x, before, 1.0], [*y, 0.0, 0.0]) if x else ([], [])


def _by_iou(evaluation: Evaluation) -> Html:
    ap = {
        iou: value
        for iou, value in ap_by_iou(evaluation.inputs, evaluation.max_detections).items()
        if value is not None
    }
    matched = {
        float(iou): value
        for iou, value in evaluation.metrics["matching"]["stardist"].items()
        if iou != "mean" and value is not None
    }
    lines = [
        Line("average precision (COCO), all scores", list(ap), list(ap.values())),
        Line("TP / (TP + FP + FN) at the threshold", list(matched), list(matched.values())),
    ]
    return line_chart(
        "by-iou",
        "How exact the masks are: figures by the overlap (IoU) that counts as found.",
        lines,
        "IoU",
        "",
        marks=True,
    )


def _calibration(swept: Sweep) -> Html:
    bins, error = calibration(swept)
    points = [(score, share) for total, score, share in bins if total]
    caption = (
        "Calibration: the share of detections that are right at IoU 0.5, by their score, in ten bins. On the dotted line a "
        "score is a probability; below it scores promise too much."
        + ("" if error is None else f" Mean distance: {error:.3f}.")
    )
    line = Line("detections", [x for x, _ in points], [y for _, y in points])
    return line_chart(
        "calibration", caption, [line], "score", "share that is right", unit=True, marks=True, diagonal=True
    )


def threshold_section(evaluation: Evaluation, swept: Sweep) -> Html:
    """The slider, and the counts that it changes; without a script the counts at the model's threshold stand there."""
    names, threshold = evaluation.inputs.class_names, evaluation.threshold
    found, wrong, missed = (values.tolist() for values in swept.counts(threshold))
    rows = [_counts_row("all", "all", sum(found), sum(wrong), sum(missed))]
    if len(names) > 1:
        for k in np.argsort(-swept.objects, kind="stable")[:_MOST_CLASSES].tolist():
            rows.append(_counts_row(f"c{k}", names[k], found[k], wrong[k], missed[k]))
    best = best_threshold(curve(swept))
    advice = (
        ""
        if best is None
        else f" On these images F1 would be largest at {best:.2f}; choose on other images than those you report."
    )
    slider = tag(
        "div",
        tag(
            "label",
            "Score threshold: ",
            tag("output", f"{threshold:.3f}", id="threshold-now", for_="threshold"),
            for_="threshold",
        ),
        tag("input", type="range", id="threshold", min="0", max="1", step=_SLIDER_STEP, value=f"{threshold:.3f}"),
        tag("span", f"The model's own threshold is {threshold:.2f}.{advice}", class_="soft"),
        id="slide",
    )
    head = ["class", *_COUNTS, "precision", "recall", "F1", "TP / (TP + FP + FN)"]
    caption = (
        "Matched at a mask IoU of 0.5. A lower threshold finds more objects and more that are none. Found: annotated objects "
        "with a detection of their class; wrong: detections without one; missed: objects without one."
    )
    values = {"scale": STEPS, "classes": stored(swept)}
    return joined([slider, table(head, rows, caption), data_block("matches", values)])


def _counts_row(identifier: str, name: str, found: int, wrong: int, missed: int) -> list[Any]:
    values = [*(found, wrong, missed), *map(number, _shares(found, wrong, missed))]
    cells = zip((*_COUNTS, *_SHARES), values, strict=True)
    return [named(name), *(tag("span", value, id=f"{identifier}-{column}") for column, value in cells)]


def _shares(found: int, wrong: int, missed: int) -> tuple[float | None, float | None, float | None, float | None]:
    """Precision, recall, F1 and TP / (TP + FP + FN); None where there is nothing to divide by."""
    return (
        _ratio(found, found + wrong),
        _ratio(found, found + missed),
        _ratio(2 * found, 2 * found + wrong + missed),
        _ratio(found, found + wrong + missed),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
