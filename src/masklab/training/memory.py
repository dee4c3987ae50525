"""How many images a GPU has memory for: ``train.batch_size: auto``."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from masklab.config.nested import flatten
from masklab.config.schema import Config
from masklab.datasets.coco import CocoSplit
from masklab.model.build import build_model
from masklab.training.data.loader import InstanceDataset, collate
from masklab.training.distributed import Processes
from masklab.training.module import TrainingModule, build_optimizer
from masklab.training.record import refuse_other_settings
from masklab.training.resume import Start
from masklab.utils.errors import InputError
from masklab.utils.files import read_yaml

USED = 0.9  # of the memory at most: other images may be larger after augmentation, or have more objects


def resolve_batch_size(config: Config, split: CocoSplit, run: Path, start: Start, processes: Processes) -> Config:
    """The configuration with a number of images a step; where it is "auto", the largest power of two that fits.

    It is found by doubling; a resumed ``run`` keeps the one it began with.  Raises `InputError` where there is no
    single GPU to measure.
    """
    if config.train.batch_size != "auto":
        return config
    if start.checkpoint is not None:
        refuse_other_settings(run, config)
        return _with(config, flatten(read_yaml(run / "config.yaml", run / "config.yaml"))["train.batch_size"])
    if not torch.cuda.is_available() or processes.total > 1:
        where = "several processes share it" if processes.total > 1 else "there is no CUDA GPU to measure"
        raise InputError(f"train.batch_size is auto but {where}: give a number.")
    size = 1
    while 2 * size <= len(split) and fits(_with(config, 2 * size), split):
        size *= 2
    print(f"train.batch_size: {size}")
    return _with(config, size)


def fits(config: Config, split: CocoSplit) -> bool:
    """Whether two training steps on the largest images leave some of the GPU's memory free."""
    torch.cuda.reset_peak_memory_stats()
    try:
        try_steps(config, split, "cuda")
        return torch.cuda.max_memory_reserved() <= USED * torch.cuda.get_device_properties("cuda").total_memory
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def try_steps(config: Config, split: CocoSplit, device: str) -> None:
    """Two training steps of a new model: the first makes the optimiser's state, the second has it."""
    size: Any = config.train.batch_size
    largest = sorted(range(len(split)), key=lambda index: -split.images[index].size[0] * split.images[index].size[1])
    dataset, model = InstanceDataset(split, config), config.model
    samples = [dataset[index] for index in largest[:size]]
    batch = collate(samples, model.backbone.output_stride).to(device)
    module = TrainingModule(build_model(config, split.categories, load_pretrained=False), None).to(device).train()
    optimizer = build_optimizer(module.trained(), config.train)
    for _ in range(2):
        optimizer.zero_grad()
        module._backward(batch)
        optimizer.step()


def _with(config: Config, size: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})
