"""Masks of N objects: MaskLab's coarse and refined masks against torchvision's Mask R-CNN mask head.

    uv run python benchmarks/mask_head.py [--quick]

All sides begin at the maps of an 800 x 1200 image and end at one soft mask an object, 41 x 41 against 28 x 28, for
the same boxes.  What an image costs once is not in it on either side (conv5 and its logits, a feature pyramid), but
for the maps that `refinement: shared` makes once an image: they are part of its figure, and a row of their own.
Random weights.  Bars at N = 1000: coarse at least 200 times faster, shared refinement at least 5 times.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from side_by_side import Side, alternate, arguments, ratio, show
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from masklab.config.model import MaskConfig
from masklab.model.backbone import Features
from masklab.model.mask_head import MaskLabHead, MaskLogits
from masklab.model.refinement import Refinement, SharedRefinement
from masklab.ops.rois import Rois
from masklab.utils.device import autocast, has_bf16

HEIGHT, WIDTH, CLASSES = 801, 1201, 80
CHANNELS = {"conv1": 64, "conv2": 256}  # of a ResNet-50 or ResNet-101


def main() -> None:
    options = arguments(__doc__)
    torch.manual_seed(0)
    ratios: dict[str, tuple[float, float]] = {}
    for precision in ("float32", "bf16") if has_bf16() else ("float32",):
        rows: dict[str, list[float | str | None]] = {}
        for count in (100, 1000):
            sides = build_sides(count, precision)
            if options.quick and count == 1000:
                del sides["coarse + refinement: paper"]
            with torch.inference_mode(), autocast("cpu", precision):
                seconds = alternate(sides, 1 if options.quick else 5)
            for name in (*sides, "coarse + refinement: paper"):
                rows.setdefault(name, [name])
            for name, row in rows.items():
                row.append(seconds[name] * 1e3 if name in seconds else None)
        show(f"masks of N objects, {precision}, milliseconds", ["", "N = 100", "N = 1000"], list(rows.values()))
        theirs = seconds["Mask R-CNN's mask head"]
        ratios[precision] = (theirs / seconds["coarse"], theirs / seconds["coarse + refinement: shared"])
    for precision, (coarse, refined) in ratios.items():
        print(f"at N = 1000 in {precision}: coarse {coarse:.3g} times faster, shared refinement {refined:.3g} times")
    ratio(ratios["float32"][0])


def build_sides(count: int, precision: str) -> dict[str, Side]:
    """The sides over ``count`` boxes of 20 to 300 pixels, with maps of the precision's own number format."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def maps(channels: int, stride: int) -> torch.Tensor:
        values = torch.randn(1, channels, -(-HEIGHT // stride), -(-WIDTH // stride), dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last)

    extent = torch.tensor([WIDTH, HEIGHT])
    sides_ = torch.exp(torch.empty(count, 2).uniform_(3, 5.7))
    corner = torch.rand(count, 2) * (extent - sides_)
    boxes, labels = torch.cat([corner, corner + sides_], dim=1), torch.randint(CLASSES, (count,))
    rois = Rois.from_pixels(boxes, torch.zeros(count, dtype=torch.long), (HEIGHT, WIDTH))

    config = MaskConfig()
    branch = MaskLabHead(config, nn.Identity(), 1, CLASSES)
    logits = MaskLogits(maps(CLASSES, 8), maps(config.directions * config.distance_bins, 8))
    features = Features(maps(CHANNELS["conv1"], 2), maps(CHANNELS["conv2"], 4), torch.empty(0), torch.empty(0))
    levels = list(CHANNELS)
    paper = Refinement(levels, CHANNELS, config.refine_channels).to(memory_format=torch.channels_last)
    shared = SharedRefinement(levels, CHANNELS, config.refine_channels).to(memory_format=torch.channels_last)

    pyramid = {str(level): maps(256, 4 * 2**level) for level in range(4)}
    align = MultiScaleRoIAlign(list(pyramid), output_size=14, sampling_ratio=2)
    head = nn.Sequential(MaskRCNNHeads(256, (256, 256, 256, 256), 1), MaskRCNNPredictor(256, 256, CLASSES + 1))
    head.to(memory_format=torch.channels_last)

    def coarse() -> torch.Tensor:
        return branch.coarse_masks(logits, rois, labels)

    def theirs() -> torch.Tensor:
        found = head(align(pyramid, [boxes], [(HEIGHT, WIDTH)]))
        return found[torch.arange(count), labels + 1].float().sigmoid()

    return {
        "coarse": lambda: coarse().sigmoid(),
        "coarse + refinement: shared": lambda: shared(coarse(), shared.maps(features), rois).sigmoid(),
        "  of it the maps, once an image": lambda: shared.maps(features),
        "coarse + refinement: paper": lambda: paper(coarse(), paper.maps(features), rois).sigmoid(),
        "Mask R-CNN's mask head": theirs,
    }


if __name__ == "__main__":
    main()
