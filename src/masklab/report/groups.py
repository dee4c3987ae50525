"""How good a model is on some objects and images: by size, by neighbours, by kind of image."""

from __future__ import annotations

from collections.abc import Sequence

from masklab.evaluation.evaluate import Evaluation, part_metrics
from masklab.evaluation.groups import Group, image_kinds, object_groups
from masklab.report.markup import Html, joined, number, table

_COLOURS = {"grey": "grey images", "colour": "images in colour"}


def groups_section(evaluation: Evaluation) -> Html:
    """What is found by size and by number of neighbours, and figures by kind of image."""
    inputs, metrics = evaluation.inputs, evaluation.metrics
    groups = object_groups(inputs, evaluation.overlaps, evaluation.threshold, evaluation.max_detections)
    tables = [
        _group_table(
            "side of the mask",
            groups["size"],
            "Four groups of about as many objects; the side is the root of the mask's area. A wrong detection counts in the "
            "group of its own size.",
        ),
        _group_table(
            "neighbours",
            groups["neighbours"],
            "Other objects whose box is at most half of the object's side away. A wrong detection counts by the objects "
            "around it.",
        ),
    ]
    kinds = [
        (name, part_metrics(inputs.subset(ids), evaluation.max_detections, evaluation.threshold))
        for name, ids in image_kinds(inputs)
    ]
    kinds += [(_COLOURS[name], part) for name, part in metrics.get("by_colour", {}).items()]
    rows = [
        (
            name,
            part["images"],
            part["objects"],
            *(number(part["mask"][key]) for key in ("AP", "AP50")),
            number(part["matching"]["stardist"]["0.50"]),
        )
        for name, part in kinds
    ]
    head = ["images", "number", "objects", "mask AP", "mask AP50", "TP / (TP + FP + FN)"]
    caption = (
        "By number of objects in the image, by its size where there are few sizes, and by colour where both occur. "
        "TP / (TP + FP + FN): at the model's threshold, at IoU 0.5."
    )
    return joined([*tables, table(head, rows, caption)])


def _group_table(title: str, groups: Sequence[Group], caption: str) -> Html:
    if not groups:
        return Html("")
    rows = [(each.name, each.objects, *map(number, (each.ap, each.ap50, each.found, each.iou))) for each in groups]
    return table([title, "objects", "mask AP", "mask AP50", "share found", "mean IoU of those"], rows, caption)
