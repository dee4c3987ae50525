"""What a model was trained and measured on: the data sheet of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from masklab.datasets.split import Split
from masklab.evaluation.inputs import EvaluationInputs
from masklab.report.markup import DASH, Html, joined, named, paragraph, table
from masklab.utils.types import Size

_MOST_MEASURED = 3000  # images whose objects are read for the sheet alone
_MOST_CLASSES = 30
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass
class Facts:
    """Counts and sizes of one split; a ``record`` of a run adds how many images there were and their fingerprints."""

    sizes: Sequence[Size] = ()
    per_image: Sequence[int] = ()
    sides: Sequence[float] = ()
    per_class: Mapping[str, int] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def facts_of(inputs: EvaluationInputs, note: str = "") -> Facts:
    """The facts of a split that was measured."""
    per_image, per_class = np.zeros(len(inputs.images), np.int64), dict.fromkeys(inputs.class_names, 0)
    sides = []
    for region in inputs.objects:
        if not region.crowd:
            per_image[inputs.images[region.image_id]] += 1
            per_class[inputs.class_names[region.label]] += 1
            sides.append((region.box[2] * region.box[3]) ** 0.5)
    return Facts(inputs.sizes, per_image.tolist(), sides, per_class, note=note)


def facts_of_split(split: Split) -> Facts:
    """The facts of a split that is read for the sheet; of a very large one only the sizes of its images."""
    sizes = [image.size for image in split.images]
    if len(split) > _MOST_MEASURED:
        return Facts(sizes, note=split.note)
    per_image, sides, per_class = [], [], np.zeros(len(split.categories), np.int64)
    for index in range(len(split)):
        objects = split.objects(index)
        per_image.append(len(objects))
        per_class += np.bincount(objects.labels, minlength=len(per_class))
        lengths = objects.boxes[:, 2:] - objects.boxes[:, :2]
        sides += np.sqrt(lengths.prod(axis=1)).tolist()
    return Facts(
        sizes, per_image, sides, dict(zip(split.categories.names, per_class.tolist(), strict=True)), note=split.note
    )


def data_sheet(facts: Mapping[str, Facts]) -> Html:
    """A table of the splits side by side, and the objects of each class where there are several classes."""
    if not facts:
        return paragraph("Nothing is known of the data: the weights alone do not say what they were trained on.")
    rows = {
        "images": lambda f: len(f.sizes) or f.record.get("images"),
        "images without objects": lambda f: sum(n == 0 for n in f.per_image) if f.per_image else None,
        "objects": lambda f: sum(f.per_image) if f.per_image else None,
        "objects of an image: median, most": _per_image,
        "side of objects: 5 %, median, 95 %": _sides,
        "size of images (width x height)": _sizes,
        "held out": lambda f: f.note or None,
        "annotations": lambda f: named(f.record["annotations"]) if "annotations" in f.record else None,
        "fingerprint of the annotations": lambda f: f.record.get("annotations_sha256", "")[:16] or None,
        "fingerprint of the images": lambda f: f.record.get("images_sha256", "")[:16] or None,
    }
    cells = [(name, [of(each) for each in facts.values()]) for name, of in rows.items()]
    shown = [
        (name, *(DASH if v is None else v for v in values))
        for name, values in cells
        if any(v is not None for v in values)
    ]
    caption = (
        "The side of an object is the root of its box's area, in pixels of the image. Fingerprints are the first half of "
        "SHA-256 sums of the annotations, and of the names and sizes in bytes of the images."
    )
    return joined([table(["", *facts], shown, caption, class_="words"), _classes(facts)])


def _classes(facts: Mapping[str, Facts]) -> Html:
    total = Counter[str]()
    for each in facts.values():
        total.update(each.per_class)
    if len(total) < 2:
        return Html("")
    kept = [name for name, _ in total.most_common(_MOST_CLASSES)]
    with_classes = {name: each for name, each in facts.items() if each.per_class}
    rows = [(named(name), *(each.per_class.get(name, DASH) for each in with_classes.values())) for name in kept]
    rest = len(total) - len(kept)
    caption = f"The {len(kept)} most frequent classes; {rest} more are left out." if rest else None
    return table(["objects of class", *with_classes], rows, caption)


def _per_image(facts: Facts) -> str | None:
    return f"{np.median(facts.per_image):g}, {max(facts.per_image)}" if facts.per_image else None


def _sides(facts: Facts) -> str | None:
    if not len(facts.sides):
        return None
    return ", ".join(f"{side:.0f}" for side in np.quantile(facts.sides, _QUANTILES)) + " pixels"


def _sizes(facts: Facts) -> str | None:
    if not facts.sizes:
        return None
    common = Counter(facts.sizes).most_common()
    (height, width), count = common[0]
    if len(common) == 1:
        return f"{width} x {height}"
    if len(common) <= 3:
        return ", ".join(f"{w} x {h} ({n})" for (h, w), n in common)
    heights, widths = zip(*facts.sizes, strict=True)
    return f"{min(widths)} x {min(heights)} to {max(widths)} x {max(heights)}, most often {width} x {height} ({count})"
