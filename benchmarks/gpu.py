"""MaskLab on a CUDA device: images a second, training steps a second, and the floor that arithmetic sets.

    uv run python benchmarks/gpu.py [--quick]

ResNet-101, output stride 8, 800 x 1200, 300 proposals, 100 detections, shared refinement, random weights, bf16 and
channels-last, from images on the device to soft masks there, at batch 1 and 8: as it is, and with the parts of fixed
shapes compiled and captured as CUDA graphs.  Beside them the floor, the model's multiply-adds over the measured rate of
a large bf16 matrix product, and torchvision's Mask R-CNN ResNet-50-FPN on as many images of the same size (its masks
pasted, as it always does).  Aim: at most 2 times as long as the floor at batch 8, which is the last line's ratio.

Without a CUDA device it says so and ends.
"""

from __future__ import annotations

import torch
from inference import random_model
from side_by_side import Side, alternate, arguments, ratio, show
from torchvision.models.detection import maskrcnn_resnet50_fpn

from masklab.model.cost import model_cost
from masklab.model.masklab import MaskLab
from masklab.structures import Batch, Targets
from masklab.training.optimizer import build_optimizer, clip_gradients
from masklab.training.step import TrainingStep
from masklab.utils.device import autocast

SIZE = (801, 1201)  # 800 x 1200, padded
CLASSES = 80
MATRIX = 8192


def main() -> None:
    options = arguments(__doc__)
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure.")
        return
    torch.manual_seed(0)
    rounds = 3 if options.quick else 10
    model = random_model("resnet101", CLASSES, mask={"refinement": "shared"}).cuda()
    rate = matrix_rate(rounds)
    floor = model_cost(model.config, CLASSES, SIZE)["total"].macs / rate
    print(f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} T multiply-adds a second, bf16")
    seconds = {batch: alternate(build_sides(model, batch), rounds, warm=3) for batch in (1, 8)}
    rows = [(name, 1 / seconds[1][name], 8 / seconds[8][name]) for name in seconds[1]]
    show("images a second", ["", "batch 1", "batch 8"], [("the floor", 1 / floor, 1 / floor), *rows])
    times = min(seconds[8][name] for name in ("masklab", "masklab, compiled")) / (8 * floor)
    train = alternate({"training step": training_step(model)}, rounds, warm=3)["training step"]
    print(f"training steps a second, 1 image each: {1 / train:.3g}")
    ratio(times)


def matrix_rate(rounds: int) -> float:
    """Multiply-adds a second of a large bf16 matrix product."""
    matrix = torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16)
    return MATRIX**3 / alternate({"": synchronised(lambda: matrix @ matrix)}, rounds)[""]


def synchronised(side: Side) -> Side:
    """The side, and the wait until the device has done it."""

    def run() -> None:
        side()
        torch.cuda.synchronize()

    return run


def build_sides(model: MaskLab, batch: int) -> dict[str, Side]:
    """Inference of ``batch`` images that are on the device."""
    inputs = torch.randn(batch, 3, *SIZE, device="cuda").contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([SIZE] * batch, device="cuda")
    torchvisions = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=800, max_size=1200, box_score_thresh=0.0
    )
    theirs = torchvisions.eval().cuda().to(memory_format=torch.channels_last)
    images = [torch.rand(3, 800, 1200, device="cuda") for _ in range(batch)]

    def inference(run: Side) -> Side:
        def side() -> object:
            with torch.inference_mode(), autocast("cuda", "bf16"):
                return run()

        return synchronised(side)

    # what has fixed shapes is compiled; suppression, whose shapes depend on the image, stays as it is
    compiled = CompiledParts(model)
    return {
        "masklab": inference(lambda: model(inputs, sizes)),
        "masklab, compiled": inference(lambda: compiled(inputs, sizes)),
        "backbone alone": inference(lambda: model.mask_head.conv5(model.backbone(inputs).conv4)),
        "Mask R-CNN ResNet-50-FPN": inference(lambda: theirs(images)),
    }


class CompiledParts:
    """The model with its fixed-shape parts captured as CUDA graphs."""

    PARTS = ("backbone", "rpn", "box_head", "mask_head")

    def __init__(self, model: MaskLab) -> None:
        self.model = model
        self.plain = {name: getattr(model, name).forward for name in self.PARTS}
        self.graphs = {
            name: torch.compile(forward, mode="reduce-overhead", dynamic=False) for name, forward in self.plain.items()
        }

    def __call__(self, inputs: torch.Tensor, sizes: torch.Tensor) -> object:
        for name, graph in self.graphs.items():
            getattr(self.model, name).forward = graph
        try:
            torch.compiler.cudagraph_mark_step_begin()
            return self.model(inputs, sizes)
        finally:
            for name, forward in self.plain.items():
                getattr(self.model, name).forward = forward


def training_step(model: MaskLab) -> Side:
    """A whole step, optimiser included, on one image of 20 objects."""
    config = model.config
    crop, objects = config.model.mask.mask_size, 20
    corner = torch.rand(objects, 2) * torch.tensor([SIZE[1], SIZE[0]]) * 0.8
    boxes = torch.cat([corner, corner + 40 + torch.rand(objects, 2) * 100], dim=1)
    targets = Targets(
        boxes=boxes,
        labels=torch.randint(CLASSES, (objects,)),
        masks=torch.rand(objects, crop, crop),
        mask_boxes=boxes,
        mask_rows=torch.arange(objects),
        ignored=torch.zeros(0, 4),
    )
    inputs = torch.randn(1, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    batch = Batch(inputs, torch.tensor([SIZE]), [targets], [0]).to("cuda")
    step, optimizer = TrainingStep(model), build_optimizer(model, config.train)

    def side() -> None:
        model.train()
        optimizer.zero_grad()
        with autocast("cuda", "bf16"):
            losses = step(batch)
        torch.stack(list(losses.values())).sum().backward()
        clip_gradients(model, config.train)
        optimizer.step()

    return synchronised(side)


if __name__ == "__main__":
    main()
