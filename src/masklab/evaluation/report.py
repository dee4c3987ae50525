"""Report of an evaluation: tables and JSON."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from masklab.evaluation.errors import ERROR_TYPES
from masklab.evaluation.recall import RECALL_AT, STAGES
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write
from masklab.utils.words import counted

COCO_COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "small",
    "APm": "medium",
    "APl": "large",
    "AP_max100": "AP, 100 per image",
}
WAYS = {"kaggle": "Kaggle DSB2018", "stardist": "StarDist", "cellpose": "Cellpose"}
SHOWN_THRESHOLDS = ("0.50", "0.60", "0.70", "0.80", "0.90", "mean")


def print_report(metrics: dict[str, Any], console: Console | None = None) -> None:
    """Print ``metrics`` as tables with captions; ``None`` is shown as ``-``.

    ``metrics`` is what `masklab.evaluation.evaluate.evaluate` returns, or parts of it: what `coco_metrics` returns,
    or what `matching_metrics` returns under the key ``matching``, or both.  Classes are listed when there are 2 to 20.
    """
    console = console or Console()
    if "mask" in metrics:
        console.print(_coco_table(metrics))
    if "matching" in metrics:
        console.print(_matching_table(metrics["matching"]))
    if 2 <= len(metrics.get("per_class", {})) <= 20:
        console.print(_class_table(metrics["per_class"]))
    if "by_colour" in metrics:
        console.print(_colour_table(metrics["by_colour"]))
    if "error_analysis" in metrics:
        for table in (
            _oracle_table(metrics),
            _recall_table(metrics["error_analysis"]),
            _errors_table(metrics["error_analysis"]),
        ):
            console.print(table)
    measured = metrics.get("measured", {})
    if measured.get("images_at_max_detections"):
        console.print(
            f"{measured['images_at_max_detections']} of {counted(measured['images'], 'image')} reached the maximum of "
            f"{counted(measured['max_detections'], 'detection')}: measure again with a larger --max_detections to see if it matters."
        )


def write_metrics(path: str | Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics`` atomically as strict JSON with sorted keys.

    Raises `InputError` when a value is NaN or infinite, which JSON does not have.
    """
    path = Path(path)
    try:
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False)
    except ValueError:
        raise InputError(f"{path}: a metric is NaN or infinite: write None for what was not measured.") from None
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _coco_table(metrics: dict[str, Any]) -> Table:
    max_detections = metrics.get("max_detections") or metrics.get("measured", {}).get("max_detections")
    caption = (
        "0 is worst, 1 perfect. AP: mean over overlaps (IoU) 0.50 to 0.95; AP50, AP75: at one overlap. "
        "Small: up to 32 x 32 pixels; medium: up to 96 x 96; large: above."
        + (
            f" The best {max_detections} detections of each image and class count; in the last column the best 100."
            if max_detections
            else ""
        )
    )
    table = _table("Average precision (COCO)", caption, ["", *COCO_COLUMNS.values()])
    for iou_type in ("mask", "box"):
        table.add_row(iou_type, *[_number(metrics[iou_type][key]) for key in COCO_COLUMNS])
    return table


def _matching_table(matching: dict[str, Any]) -> Table:
    caption = (
        f"TP / (TP + FP + FN) of the detections with a score of {matching['score_threshold']:.2f} or more, "
        "at the overlap (IoU) of masks in the column; mean: over 0.50, 0.55 ... 0.95. "
        "Kaggle, Cellpose: mean over images; StarDist: counted over all images together."
    )
    table = _table("Matched objects", caption, ["", *SHOWN_THRESHOLDS])
    for way, title in WAYS.items():
        table.add_row(title, *[_number(matching[way][key]) for key in SHOWN_THRESHOLDS])
    return table


def _class_table(per_class: dict[str, dict[str, Any]]) -> Table:
    table = _table(
        "Average precision of each class (COCO)", None, ["class", "objects", "mask AP", "mask AP50", "box AP"]
    )
    for name, row in per_class.items():
        figures = [_number(row[key]) for key in ("mask_AP", "mask_AP50", "box_AP")]
        table.add_row(escape(name), str(row["objects"]), *figures)
    return table


def _colour_table(by_colour: dict[str, dict[str, Any]]) -> Table:
    caption = "Grey: all channels of the image are equal. Kaggle, StarDist: means over 0.50, 0.55 ... 0.95."
    columns = ["", "images", "objects", "AP", "AP50", "AP75", "Kaggle", "StarDist"]
    table = _table("Masks by colour of image", caption, columns)
    for colour, part in by_colour.items():
        figures = [part["mask"][key] for key in ("AP", "AP50", "AP75")]
        figures += [part["matching"][way]["mean"] for way in ("kaggle", "stardist")]
        table.add_row(colour, str(part["images"]), str(part["objects"]), *map(_number, figures))
    return table


def _oracle_table(metrics: dict[str, Any]) -> Table:
    caption = (
        "In the annotated boxes: what these masks would reach with perfect boxes, classes and scores. With the annotated "
        "masks: what these boxes and scores would reach if each had the mask of the object that it detects (box IoU 0.5)."
    )
    rows = {
        "as predicted": metrics["mask"],
        "in the annotated boxes": metrics["error_analysis"]["annotated_boxes"],
        "with the annotated masks": metrics["error_analysis"]["annotated_masks"],
    }
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    table = _table("What limits the masks: boxes or outlines", caption, ["mask", *(COCO_COLUMNS[key] for key in keys)])
    for name, figures in rows.items():
        table.add_row(name, *[_number(figures[key]) for key in keys])
    return table


def _recall_table(analysis: dict[str, Any]) -> Table:
    caption = (
        "Share of the objects with a box of that overlap (IoU) or more: among the proposals; among all detections of "
        "their class; among those at the score threshold. Touching: the box of the next object touches or overlaps; "
        "near: it is up to half the object's own side away."
    )
    recall = analysis["recall"]
    table = _table("Where boxes are lost", caption, ["", *recall])
    table.add_row("objects", *[str(group["objects"]) for group in recall.values()])
    for stage, least in product(STAGES, (f"{iou:.2f}" for iou in RECALL_AT)):
        table.add_row(f"{stage} {least}", *[_number(group[stage][least]) for group in recall.values()])
    return table


def _errors_table(analysis: dict[str, Any]) -> Table:
    table = _table("Errors at the score threshold", None, ["", "detections", "objects", ""])
    for error_type, meaning in ERROR_TYPES.items():
        counts = analysis["errors"][error_type]
        table.add_row(error_type, str(counts["detections"]), str(counts["objects"]), meaning)
    table.columns[-1].justify = "left"
    return table


def _table(title: str, caption: str | None, columns: list[str]) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
