"""An image of 4096 x 4096 pixels with 5,000 objects whose boxes are given: masks and run lengths of all of them.

    uv run python benchmarks/dense.py [--quick] [--side 4096]

First, the whole way (`Predictor.segment`, then run lengths) with the `nuclei` network, shared refinement and nothing
enlarged: seconds and peak memory.  Then only what grows with the objects, coarse masks, refinement and run lengths on
maps that are held, at 500 and at 5,000.  Bar: neither seconds nor memory grow faster than the objects do.  The last
line is the growth of the seconds over that of the objects: at most 1 is linear.  `--quick` takes 1024 x 1024.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from functools import partial

import numpy as np
import torch
from side_by_side import alternate, arguments, peak_memory, ratio, show

from masklab.config.recipe import load_recipe
from masklab.inference.predictor import Predictor
from masklab.masks.rle import rle_to_coco
from masklab.masks.threshold import encode_masks
from masklab.model.build import build_model
from masklab.structures import ClassTable

FEW, MANY = 500, 5000


def main() -> None:
    options = arguments(__doc__, side=4096)
    side = 1024 if options.quick else options.side
    torch.manual_seed(0)
    changes = {"model": {"mask": {"refinement": "shared"}}, "image": {"scale": 1.0}}
    model = build_model(load_recipe("nuclei", changes), ClassTable((1,), ("object",)))
    model = model.eval().to(memory_format=torch.channels_last)
    predictor = Predictor(model)
    image = torch.randint(256, (3, side, side), dtype=torch.uint8)
    boxes, labels = draw_boxes(MANY, side), np.zeros(MANY, np.int64)

    def whole(count: int) -> None:
        predictor.segment(image, boxes[:count], labels[:count]).rles()

    rows = []
    for count in (FEW, MANY):
        took = alternate({"": partial(whole, count)}, 1, warm=0)[""]
        rows.append((f"{count} objects", took, peak_memory(partial(whole, count))))
    show(f"the whole way, {side} x {side}", ["", "seconds", "peak extra MiB"], rows)

    with predictor.inference():
        tensor, _ = predictor.network_input(image)
        maps = model.mask_maps(model.backbone(tensor))

    def objects(count: int) -> None:
        places = torch.from_numpy(boxes[None, :count])
        with predictor.inference():
            none = torch.zeros(1, count, dtype=torch.long)
            masks = model.masks(maps, places, none, torch.tensor([count]), tensor)
        rle_to_coco(encode_masks(masks[0].numpy(), boxes[:count], (side, side)), (side, side))

    sides = {count: partial(objects, count) for count in (FEW, MANY)}
    seconds = alternate({str(count): run for count, run in sides.items()}, 3 if options.quick else 7)
    memory = {count: peak_memory(run) for count, run in sides.items()}
    show(
        "the objects' own part",
        ["", "seconds", "peak extra MiB"],
        [(f"{count} objects", seconds[str(count)], memory[count]) for count in sides],
    )
    few, many = memory[FEW], memory[MANY]
    if few is not None and many is not None:
        print(f"memory: {many / max(few, 1):.3g} times as much for {MANY // FEW} times the objects")
    ratio(seconds[str(MANY)] / seconds[str(FEW)] / (MANY // FEW))


def draw_boxes(count: int, side: int) -> np.ndarray:
    """Boxes of 20 to 60 pixels all over the image, (N, 4) float32."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(20, 60, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (side - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


if __name__ == "__main__":
    main()
