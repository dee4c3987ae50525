"""Direction pooling, forward and backward: one channel a sample against crop all channels, then gather.

    uv run python benchmarks/direction_pooling.py [--quick] [--boxes 1000]

Both sides pool the same boxes from the same direction logits.  The other side crops every channel with grid_sample, as
one would write it, and gathers by the table.  Bar: at least 30 times faster, at most 1/20 of the memory.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from side_by_side import alternate, arguments, peak_memory, ratio, show

from masklab.ops.crop_channels import crop_channels
from masklab.ops.direction import direction_table
from masklab.ops.rois import Rois

CROP, DIRECTIONS, BINS = 41, 8, 4
HEIGHT, WIDTH = 101, 151  # 800 x 1200 at stride 8


def main() -> None:
    options = arguments(__doc__, boxes=1000)
    boxes = options.boxes
    torch.manual_seed(0)
    logits = torch.randn(1, DIRECTIONS * BINS, HEIGHT, WIDTH)
    corners = torch.rand(boxes, 2) * 0.9
    rois = Rois(torch.cat([corners, corners + 0.02 + torch.rand(boxes, 2) * 0.08], dim=1), torch.zeros(boxes).long())
    table = direction_table(CROP, DIRECTIONS, BINS)
    upstream = torch.randn(boxes, CROP, CROP)

    def ours() -> torch.Tensor | None:
        leaf = logits.clone().requires_grad_()
        crop_channels(leaf, rois, (CROP, CROP), table).backward(upstream)
        return leaf.grad

    def all_gather() -> torch.Tensor | None:
        leaf = logits.clone().requires_grad_()
        crops = grid_crop(leaf, rois.boxes)
        crops.gather(1, table.expand(boxes, 1, CROP, CROP))[:, 0].backward(upstream)
        return leaf.grad

    torch.testing.assert_close(ours(), all_gather(), rtol=1e-3, atol=1e-3)
    sides = {"one channel a sample": ours, "crop all channels, then gather": all_gather}
    memory = {name: peak_memory(side) for name, side in sides.items()}
    seconds = alternate(sides, 3 if options.quick else 10)
    rows = [(name, seconds[name] * 1e3, memory[name]) for name in sides]
    show(f"direction pooling, {boxes} boxes, forward + backward", ["", "ms", "peak extra MiB"], rows)
    mine, theirs = (memory[name] for name in sides)
    if mine is not None and theirs is not None:
        print(f"memory: 1/{theirs / max(mine, 1):.0f}")
    mine, theirs = (seconds[name] for name in sides)
    ratio(theirs / mine)


def grid_crop(features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """All channels of every box, (R, C, P, P), from one image: the boxes stacked along the grid's height."""
    step = torch.linspace(0, 1, CROP)
    x = boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * step
    y = boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * step
    grid = torch.stack([x[:, None, :].expand(-1, CROP, CROP), y[:, :, None].expand(-1, CROP, CROP)], dim=-1) * 2 - 1
    crops = F.grid_sample(features, grid.reshape(1, -1, CROP, 2), align_corners=True)
    return crops.view(features.shape[1], len(boxes), CROP, CROP).transpose(0, 1)


if __name__ == "__main__":
    main()
