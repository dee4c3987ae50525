"""A training step of the `nuclei` recipe against its backbone alone, and the loader against the step.

    uv run python benchmarks/training.py [--quick]

Images with 150 drawn discs each, read as the recipe reads them: batches of 8 crops of 256 x 256.  The step is
`BatchGradients`': losses and gradients of parts of the batch in threads, clipping and the optimiser, with the recipe's light
box head, with the paper's, and of the recipe `nuclei-1`.  The other side is forward and backward of conv1 to conv5, in the
same threads, precision and memory layout.  Bar: at most 1.5 times as long, with the paper's box head 1.8 times.  The loader
runs alone with the recipe's workers; bar: at least 3 times the images that the step takes.  The share of validation and
tuning is that of a training by the recipe with 83 images of val, by what the weights `nuclei` take for each of 16 drawn
images of 256 x 256 with 50 discs; bar: 5 %.  An image of 1,000 objects at 1024 x 1024, whole and at its own scale: bar
150 ms.  The last line is the step's ratio.
"""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from side_by_side import alternate, arguments, breakdown, draw_discs, ratio, show

from masklab.config.fields import resolved
from masklab.config.recipe import load_recipe
from masklab.datasets.split import Split
from masklab.model.build import build_model
from masklab.model.masklab import MaskLab
from masklab.structures import Batch
from masklab.training.data.loader import InstanceDataset, train_loader
from masklab.training.gradients import BatchGradients, split_batch
from masklab.training.optimizer import build_optimizer, clip_gradients
from masklab.training.step import TrainingStep
from masklab.training.task import InstanceTask
from masklab.utils.device import autocast
from masklab.utils.types import Precision
from masklab.weights.checkpoint import load_model

IMAGES, SIDE, OBJECTS = 16, 512, 150
VALIDATED = 83  # images of val, as of the data set `nuclei`


def main() -> None:
    options = arguments(__doc__)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        split = draw_split(Path(folder), "train", IMAGES, SIDE, OBJECTS)
        times, consumed = step_against_backbone(split, 3 if options.quick else 10)
        delivered = loader_speed(split, 20 if options.quick else 100)
        print(f"loader: {delivered:.3g} images a second, {delivered / consumed:.3g} times what the step takes")
        validation_share(Path(folder), consumed, 4 if options.quick else IMAGES)
        crowded_image(Path(folder))
    ratio(times)


def step_against_backbone(split: Split, rounds: int) -> tuple[float, float]:
    """How many times as long as the backbone a step takes, and the images a second that it takes."""
    config, sides = load_recipe("nuclei"), {}
    batches = {recipe: read_batch(split, recipe) for recipe in ("nuclei-1", "nuclei")}
    batch = batches["nuclei"]
    parts = split_batch(batch, config.train.threads)
    for name, recipe, head in (
        ("recipe nuclei-1", "nuclei-1", "conv5"),
        ("with the paper's box head", "nuclei", "conv5"),
        ("training step", "nuclei", config.model.box.head),
    ):
        changed = load_recipe(recipe, {"model": {"box": {"head": head}}})
        model = build_model(changed, split.categories).train().to(memory_format=torch.channels_last)
        gradients = BatchGradients(InstanceTask(model, split), torch.device("cpu"))
        optimizer = build_optimizer(model, config.train)
        sides[name] = partial(take_step, model, gradients, optimizer, batches[recipe])

    def backward(part: Batch) -> None:
        with autocast("cpu", config.train.precision):
            conv5 = model.mask_head.conv5(model.backbone(part.images).conv4)
        conv5.float().mean().backward()

    def backbone() -> None:
        optimizer.zero_grad()
        list(gradients.pool.map(backward, parts))

    seconds = alternate({**sides, "backbone alone": backbone}, rounds)
    images, alone = len(batch.image_ids), seconds["backbone alone"]
    rows = [(name, value * 1e3, images / value, value / alone) for name, value in seconds.items()]
    show(f"{images} images in {len(parts)} threads", ["", "ms", "images / s", "over backbone"], rows)
    show_parts(TrainingStep(model), config.train.precision, parts[0])
    return seconds["training step"] / seconds["backbone alone"], images / seconds["training step"]


def read_batch(split: Split, recipe: str) -> Batch:
    """The first batch of a recipe, whose masks have the size that it says."""
    batch: Batch = next(iter(train_loader(split, load_recipe(recipe, {"train": {"workers": 0}}))))
    batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    return batch


def take_step(model: MaskLab, gradients: BatchGradients, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    gradients.add(batch)
    clip_gradients(model, model.config.train)
    optimizer.step()


def show_parts(step: TrainingStep, precision: Precision, part: Batch) -> None:
    """Where the time of one thread's share goes, in one run in this thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run() -> None:
        with autocast("cpu", precision):
            losses = step(part)
        torch.stack(list(losses.values())).sum().backward()

    parts = {
        "forward: conv1 to conv4": (step.model.backbone, "forward"),
        "forward: proposals": (step.model.rpn, "propose"),
        "forward: anchors and their losses": (step, "_rpn_losses"),
        "forward: box head": (step, "_box_losses"),
        "forward: conv5 and masks": (step, "_mask_losses"),
    }
    names = {"the rest": "backward, and the rest"}
    rows = [(names.get(name, name), value * 1e3) for name, value in breakdown(run, parts).items()]
    show(f"one run by part, {len(part.image_ids)} images in one thread", ["", "ms"], rows)
    torch.set_num_threads(threads)


def loader_speed(split: Split, batches: int) -> float:
    """Images a second that the recipe's loader delivers while nothing takes its time."""
    config = load_recipe("nuclei")
    loader = iter(train_loader(split, config))
    next(loader)
    began = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batches * resolved(config.train.batch_size, "train.batch_size") / (time.perf_counter() - began)


def validation_share(folder: Path, consumed: float, images: int) -> None:
    """The share of a training by the recipe, which takes ``consumed`` images a second, that validation and tuning take."""
    split, model = draw_split(folder, "val", images, 256, 50), load_model("nuclei")
    task, settings = InstanceTask(model, split), load_recipe("nuclei").train
    step = resolved(settings.batch_size, "train.batch_size") / consumed
    seconds = alternate({"": lambda: task.validate(model, range(images))}, 1)[""] / images
    validated = settings.steps // settings.validate_every * VALIDATED + task.tuned_images
    share = validated * seconds / (settings.steps * step + validated * seconds)
    print(f"validation and tuning: {validated} images of {seconds * 1e3:.3g} ms, {share:.1%} of {settings.steps} steps")


def crowded_image(folder: Path) -> None:
    """Milliseconds of one image of 1,000 objects: the first time, when its masks are read, and later."""
    split = draw_split(folder, "crowded", 1, 1024, 1000)
    whole = {"scale": 1.0, "augment": {"crop_size": None, "scale_jitter": None}}
    dataset = InstanceDataset(split, load_recipe("nuclei", {"image": whole}))
    began = time.perf_counter()
    _, targets, _ = dataset[0]
    first = time.perf_counter() - began
    numbers = count(1)
    later = alternate({"": lambda: dataset[next(numbers), 0]}, 3)[""]
    print(f"one image of {len(targets.boxes)} objects: {later * 1e3:.3g} ms, {first * 1e3:.3g} ms the first time")


def draw_split(folder: Path, name: str, images: int, side: int, objects: int) -> Split:
    """A COCO split of images with bright discs on a noisy ground."""
    rng = np.random.default_rng(0)
    (folder / name).mkdir()
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        centres, radii = rng.uniform(0, side, (objects, 2)), rng.uniform(5, 14, objects)
        values = rng.integers(60, size=(side, side), dtype=np.uint8)
        rows, columns = np.mgrid[:side, :side] + 0.5
        for (x, y), radius in zip(centres, radii, strict=True):
            values[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] += 60
        Image.fromarray(values).convert("RGB").save(folder / name / f"{image}.png")
        for disc in draw_discs(centres, radii, (side, side)):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0}
            annotations.append(entry | disc)
    entries = [{"id": n, "file_name": f"{n}.png", "height": side, "width": side} for n in range(1, images + 1)]
    categories = [{"id": 1, "name": "disc"}]
    values_ = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(values_))
    return Split.find(folder, name)


if __name__ == "__main__":
    main()
