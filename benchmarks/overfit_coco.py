"""Can the model learn real COCO images by heart? Mask AP50 with ground-truth boxes on the images trained on.

    uv run python benchmarks/overfit_coco.py DIR [--images 8] [--steps 300]

DIR is a COCO folder.  A small network is trained from scratch on the first images that have objects and is then
given their annotated boxes.  The bar is 0.9.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from masklab import evaluate, load_recipe, train
from masklab.datasets.open import open_split

RECIPE = {
    "model": {
        "rpn": {"anchor_sizes": [16, 32, 64, 128, 256]},
        "mask": {"train_masks": 24, "train_refined": 8, "refine_channels": 32},
    },
    "image": {
        "scale": None,
        "min_side": 320,
        "max_side": 480,
        "augment": {"horizontal_flip": False, "vertical_flip": False, "quarter_turns": False},
    },
}


def first_images(folder: str, count: int, target: Path) -> None:
    """Write the first ``count`` images with objects as a COCO folder whose val is its train."""
    split = open_split(folder, "train")
    values, paths = split.coco, {image.image_id: image.path for image in split.images}
    with_objects = {a["image_id"] for a in values["annotations"] if not a["iscrowd"]}
    entries = [image for image in values["images"] if image["id"] in with_objects][:count]
    chosen = {image["id"] for image in entries}
    part = values | {
        "images": entries,
        "annotations": [a for a in values["annotations"] if a["image_id"] in chosen],
    }
    for name in ("train", "val"):
        (target / name).mkdir(parents=True)
        (target / f"{name}.json").write_text(json.dumps(part))
        for image in entries:
            shutil.copy(paths[image["id"]], target / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first_images(arguments.data, arguments.images, folder / "data")
        steps = {"steps": arguments.steps, "validate_every": arguments.steps, "batch_size": 4, "validate_images": 1}
        config = load_recipe("shapes", RECIPE | {"train": steps})
        began = time.monotonic()
        train(config, folder / "data", folder / "run")
        minutes = (time.monotonic() - began) / 60
        metrics = evaluate(folder / "run" / "last.safetensors", folder / "data", "train", ground_truth_boxes=True)
    measured = metrics["measured"]
    print(f"{measured['images']} images, {measured['objects']} objects, {arguments.steps} steps, {minutes:.1f} minutes")
    print(f"mask AP {metrics['mask']['AP']:.3f}, AP50 {metrics['mask']['AP50']:.3f} with ground-truth boxes")


if __name__ == "__main__":
    main()
