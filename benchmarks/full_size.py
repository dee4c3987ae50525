"""Does the paper's model at full size fit? One training step and one prediction of ResNet-101 at 800 x 1200.

    uv run python benchmarks/full_size.py DIR

DIR is a COCO folder.  Weights are random: memory and time do not depend on them.  The bar is 20 GiB.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import time

from masklab import Predictor, build_model, load_recipe
from masklab.datasets.split import Split
from masklab.training.data.loader import train_loader
from masklab.training.optimizer import build_optimizer, clip_gradients
from masklab.training.step import TrainingStep
from masklab.utils.device import autocast, memory_in_use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    arguments = parser.parse_args()
    config = load_recipe("resnet101", {"model": {"backbone": {"pretrained": False}}, "train": {"workers": 0}})
    split = Split.find(arguments.data, "train")
    model = build_model(config, split.categories).train()
    step, optimizer = TrainingStep(model), build_optimizer(model, config.train)
    batch = next(batch for batch in train_loader(split, config) if min(batch.sizes[0]) == 800)

    began = time.perf_counter()
    with autocast("cpu"):
        losses = step(batch)
    sum(losses.values()).backward()
    clip_gradients(model, config.train)
    optimizer.step()
    report(f"training step on {tuple(batch.sizes[0].tolist())}", began)
    print("  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))

    began = time.perf_counter()
    found = Predictor(model).predict(split.images[0].path)
    report(f"prediction, {len(found)} detections", began)


def report(what: str, began: float) -> None:
    print(
        f"{what}: {time.perf_counter() - began:.1f} s, at most {memory_in_use('cpu') / 2**30:.1f} GiB so far",
        flush=True,
    )


if __name__ == "__main__":
    main()
