"""Does every part of the paper's Table 6 train? Each row some steps at a fifth of the size: losses, and seconds a step.

    uv run python benchmarks/table6_chain.py DIR [--steps 200] [--rows table6-base table6-bc ...]

DIR is a COCO folder.  The rows are the paper's, with what a CPU can bear: images, anchors and scales divided by 5, a
ResNet-50 (a ResNeXt-50 for the row named after JFT) of a quarter of the width with group norm, random weights in place
of ImageNet's, and for "Seg" weights of `masklab pretrain` after as many steps.  It shows that each switch trains and
what it costs, not what it is worth: that takes COCO and GPUs.  The seconds hold the
whole run, with its start and the tuning of the threshold.  Prints a table in Markdown.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import csv
import tempfile
import time
from pathlib import Path
from statistics import fmean

from masklab import Config, load_recipe, train
from masklab.paper.tables import TABLES
from masklab.training.pretrain import pretrain

SHRINK = 5
ROWS = TABLES["table6"].rows


def small(name: str, steps: int, segmentation: Path | None, batch: int = 2) -> Config:
    """The recipe of a row at a fifth of the size, for ``steps`` steps; ``segmentation`` replaces its weights, if it has any."""
    config = load_recipe(name)
    network = "resnext50_32x4d" if config.model.backbone.name.startswith("resnext") else "resnet50"
    starts = None if config.model.backbone.segmentation_weights is None else segmentation
    augment = {}
    if config.image.augment.min_sides is not None:
        augment = {"min_sides": [side // SHRINK for side in config.image.augment.min_sides]}
    return load_recipe(
        name,
        {
            "model": {
                "backbone": {
                    "name": network,
                    "pretrained": False,
                    "width": 0.25,
                    "norm": "group",
                    "segmentation_weights": starts,
                },
                "rpn": {
                    "anchor_sizes": [float(side) / SHRINK for side in config.model.rpn.anchor_sizes],
                    "channels": 128,
                    "drop_crossing_anchors": False,
                },
                "box": {"append_ground_truth": True},
                "mask": {"refine_channels": 16},
            },
            "image": {
                "min_side": config.image.min_side // SHRINK,
                "max_side": config.image.max_side // SHRINK,
                "augment": augment,
            },
            "train": {
                "steps": steps,
                "batch_size": batch,
                "optimizer": "adamw",
                "learning_rate": 5e-4,
                "schedule": "linear",
                "warmup_steps": steps // 10,
                "validate_every": steps,
                "validate_images": 1,
                "log_every": 1,
                "threads": 1,
                "workers": 0,
            },
        },
    )


def losses(run: Path) -> list[float]:
    """The loss of every step of a run."""
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    arguments = parser.parse_args()
    steps, some = arguments.steps, max(1, arguments.steps // 10)
    rows, weights = [], None
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.rows:
            folder = Path(scratch) / name
            if load_recipe(name).model.backbone.segmentation_weights is not None and weights is None:
                weights = pretrain(small(name, steps, None), arguments.data, Path(scratch) / "segmentation")
            began, used = time.monotonic(), time.process_time()
            train(small(name, steps, weights), arguments.data, folder)
            seconds, cpu = (time.monotonic() - began) / steps, (time.process_time() - used) / steps
            found = losses(folder)
            rows.append((name, fmean(found[:some]), fmean(found[-some:]), seconds, cpu))
    print(f"| row | loss, first {some} steps | last {some} | s / step | CPU s / step |\n|---|---|---|---|---|")
    for name, first, last, seconds, cpu in rows:
        print(f"| {name} | {first:.2f} | {last:.2f} | {seconds:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
