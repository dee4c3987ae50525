"""The whole model against its own backbone alone, and the `nuclei` model against torchvision's Mask R-CNN.

    uv run python benchmarks/inference.py [--quick]

First table: `resnet101` with shared refinement on one image of 800 x 1200, 300 proposals and 100 detections, from
uint8 pixels to masks (`Predictor.predict`), against conv1 to conv5 of the same network on the same input.  Bar: at most
1.8 times as long; with the light box head (`model.box.head`), whose figures stand beside, 1.35 times.  The multiply-adds
alone are printed.  Second table: images a second of the `nuclei` recipe's model,
from uint8 pixels to run lengths, against torchvision's Mask R-CNN with a ResNet-18-FPN, from uint8 pixels to masks
pasted into the image; both see 512 x 512 pixels and are made to find 300 objects.  Bar: at least 2 times as many.

Random weights; the machine's default precision and channels-last memory on all sides.  The last line is the first
table's ratio.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Sized
from typing import Any

import torch
from masks_to_rle import encode
from side_by_side import alternate, arguments, breakdown, mask_rcnn, ratio, show
from torch import nn

from masklab.config.recipe import load_recipe
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.model.cost import model_cost
from masklab.model.masklab import MaskLab
from masklab.results.instances import Instances
from masklab.structures import ClassTable
from masklab.utils.device import autocast, number_format

FOUND = 300  # objects that both sides of the second table are made to find
SIDE, SCALE = 256, 2  # pixels of a nuclei image, and how much larger the networks see it


def main() -> None:
    options = arguments(__doc__)
    torch.manual_seed(0)
    print(f"{number_format('cpu', 'auto')}, {torch.get_num_threads()} threads")
    times = against_backbone(1 if options.quick else 5)
    against_mask_rcnn(2 if options.quick else 10)
    ratio(times)


def random_model(recipe: str, classes: int, **model: Any) -> MaskLab:
    """A model of a recipe with random weights, the ``model`` fields given, and no threshold on scores."""
    model = {"backbone": {"pretrained": False}} | model
    model["box"] = {"score_threshold": 0.0} | model.get("box", {})
    table = ClassTable(tuple(range(classes)), tuple(map(str, range(classes))))
    return build_model(load_recipe(recipe, {"model": model}), table).eval().to(memory_format=torch.channels_last)


def against_backbone(rounds: int) -> float:
    """How many times as long as its backbone the whole model takes."""
    size = (800, 1200)
    model = random_model("resnet101", 80, mask={"refinement": "shared"})
    predictor, image = Predictor(model), torch.randint(256, (3, *size), dtype=torch.uint8)
    with predictor.inference():
        tensor, _ = predictor.network_input(image)

    found: list[Instances] = []

    def whole() -> None:
        found[:] = [predictor.predict(image)]

    def backbone() -> torch.Tensor:
        with predictor.inference():
            return model.mask_head.conv5(model.backbone(tensor).conv4)

    light = Predictor(
        random_model("resnet101", 80, mask={"refinement": "shared"}, box={"head": "light", "dilations": None})
    )
    sides = {"whole model": whole, "light box head": lambda: light.predict(image), "backbone alone": backbone}
    seconds = alternate(sides, rounds)
    rows = [(name, value, value / seconds["backbone alone"]) for name, value in seconds.items()]
    show("ResNet-101, 800 x 1200", ["", "seconds", "over backbone"], rows)
    parts = {
        "resize and normalise": (predictor, "_prepare"),
        "conv1 to conv4": (model.backbone, "forward"),
        "region proposal network": (model.rpn, "forward"),
        "proposals": (model.rpn, "propose"),
        "box crops, conv5 and linear": (model.box_head, "forward"),
        "detections": (model.box_head, "detect"),
        "mask conv5 and logits": (model.mask_head, "forward"),
        "refinement maps": (model.refinement, "maps"),
        "coarse masks": (model.mask_head, "coarse_masks"),
        "refinement": (model.refinement, "forward"),
    }
    show(f"one run by part, {len(found[0])} detections", ["", "seconds"], list(breakdown(whole, parts).items()))
    for name, config in (("", model.config), (" with the light box head", light.model.config)):
        cost = model_cost(config, 80, size)
        alone = sum(cost[part].macs for part in ("conv1-conv3", "conv4", "mask conv5"))
        print(f"multiply-adds{name}: {cost['total'].macs / alone:.3g} times the backbone's")
    return seconds["whole model"] / seconds["backbone alone"]


def against_mask_rcnn(rounds: int) -> None:
    """Images a second of the nuclei model and of torchvision's."""
    ours = Predictor(random_model("nuclei", 1, box={"max_detections": FOUND}))
    seen = SIDE * SCALE
    theirs: nn.Module = mask_rcnn(1, min_size=seen, max_size=seen, box_score_thresh=0.0, box_detections_per_img=FOUND)
    theirs = theirs.eval().to(memory_format=torch.channels_last)
    image = torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8)

    def pasted() -> torch.Tensor:
        with torch.inference_mode(), autocast("cpu"):
            masks: torch.Tensor = theirs([image / 255])[0]["masks"]
            return masks[:, 0] > 0.5

    sides: dict[str, Callable[[], Sized]] = {
        "masklab, run lengths": lambda: ours.predict(image).rles(),
        "Mask R-CNN, pasted masks": pasted,
        "Mask R-CNN, pasted masks and run lengths": lambda: encode(pasted()),
    }
    found = {name: len(side()) for name, side in sides.items()}
    seconds = alternate(sides, rounds)
    rows = [(name, found[name], 1 / seconds[name]) for name in sides]
    show(f"nuclei model, images of {SIDE} x {SIDE} seen as {seen} x {seen}", ["", "objects", "images / s"], rows)
    print(f"images a second, ours over pasted masks: {rows[0][2] / rows[1][2]:.3g}")


if __name__ == "__main__":
    main()
