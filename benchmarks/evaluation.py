"""COCO metrics of 100 images with 400 objects each: `masklab.evaluation.coco_metrics` against pycocotools.

    uv run python benchmarks/evaluation.py [--quick] [--images 100] [--objects 400]

Drawn discs, found a pixel or two off, with random scores and classes.  Both sides begin at dictionaries in COCO's
formats and end at the average precisions of masks and boxes, with as many detections an image as there are objects.
Bar: at least 20 times faster, and AP, AP50, AP75 and the three sizes equal to 1e-9.
"""

from __future__ import annotations

import contextlib
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from side_by_side import alternate, arguments, draw_discs, ratio, show

from masklab.evaluation.coco import coco_metrics

SIZE = (512, 512)
CLASSES = 3
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def main() -> None:
    options = arguments(__doc__, images=100, objects=400)
    images = 10 if options.quick else options.images
    truth, results = draw(images, options.objects)
    figures: dict[str, dict[str, dict[str, float]]] = {}

    def ours() -> None:
        figures["ours"] = coco_metrics(truth, results, options.objects)

    def theirs() -> None:
        figures["theirs"] = {
            "mask": pycocotools_metrics(truth, results, "segm", options.objects),
            "box": pycocotools_metrics(truth, results, "bbox", options.objects),
        }

    seconds = alternate({"ours": ours, "theirs": theirs}, 1, warm=0)
    again = alternate({"ours": ours}, 3)  # the first run was not warm; theirs is far too long for that to matter
    rows = [
        (f"{kind} {name}", figures["ours"][kind][name], figures["theirs"][kind][name])
        for kind in ("mask", "box")
        for name in FIGURES
    ]
    show("average precision", ["", "masklab", "pycocotools"], rows)
    show(
        f"{images} images x {options.objects} objects, masks and boxes",
        ["", "seconds"],
        [("masklab", again["ours"]), ("pycocotools", seconds["theirs"])],
    )
    print(f"largest difference: {max(abs(a - b) for _, a, b in rows):.2g}")
    ratio(seconds["theirs"] / again["ours"])


def draw(images: int, objects: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results; every object is found, with its box and mask moved and resized a little."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        centres, radii = rng.uniform(8, SIZE[0] - 8, (objects, 2)), rng.uniform(4, 20, objects)
        radii[::40] *= 5  # some large ones
        found = centres + rng.normal(0, 1, (objects, 2)), radii * rng.uniform(0.9, 1.1, objects)
        labels = rng.integers(CLASSES, size=objects) + 1
        for disc, label in zip(draw_discs(centres, radii, SIZE), labels.tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            annotations.append(entry | disc)
        for disc, label in zip(draw_discs(*found, SIZE), labels.tolist(), strict=True):
            entry = {"image_id": image, "category_id": label, "score": float(rng.random())}
            results.append(entry | {"bbox": disc["bbox"], "segmentation": disc["segmentation"]})
    entries = [{"id": n, "height": SIZE[0], "width": SIZE[1], "file_name": f"{n}.png"} for n in range(1, images + 1)]
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)]
    return {"images": entries, "annotations": annotations, "categories": categories}, results


def pycocotools_metrics(truth: dict[str, Any], results: list[dict[str, Any]], kind: str, cap: int) -> dict[str, float]:
    """The six average precisions of one kind at a cap."""
    left_out = "bbox" if kind == "segm" else "segmentation"  # so that a detection's area is that of its mask or box
    entries = [{key: value for key, value in result.items() if key != left_out} for result in results]
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        ours = COCO()
        ours.dataset = truth
        ours.createIndex()
        evaluation = COCOeval(ours, ours.loadRes(entries), kind)
        evaluation.params.maxDets = [cap]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]  # IoU threshold, recall, class, area range
    every = precision[..., 0]
    parts = (every, every[0], every[5], *(precision[..., area] for area in (1, 2, 3)))
    return {name: float(part[part > -1].mean()) for name, part in zip(FIGURES, parts, strict=True)}


if __name__ == "__main__":
    main()
