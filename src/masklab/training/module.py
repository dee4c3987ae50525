"""The thin Lightning module: optimiser, schedule, clipping, and what is logged and watched."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from masklab.config import TrainConfig
from masklab.data.coco import CocoSplit
from masklab.errors import BrokenLossError
from masklab.evaluation import coco_metrics
from masklab.hardware import autocast, memory_in_use
from masklab.model.box_classifier import BoxClassifier
from masklab.model.masklab import MaskLab
from masklab.structures import Batch
from masklab.training.step import TrainingStep


class TrainingModule(pl.LightningModule):
    """Runs `TrainingStep` and validates by COCO AP on ``val``."""

    def __init__(self, model: MaskLab, val: CocoSplit | None) -> None:
        super().__init__()
        self.step = TrainingStep(model)
        self.config = model.config.train
        self.val = val
        self.automatic_optimization = False  # the parts of a batch go backward on their own
        self.results: list[dict[str, Any]] = []
        self.scored: list[int | str] = []

    @property
    def model(self) -> MaskLab:
        return self.step.model

    def training_step(self, batch: Batch, index: int) -> None:
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        losses = self._backward(batch)
        check_finite(losses, self.global_step, batch.image_ids)
        clip_gradients(self.model, self.config)
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        self._log_losses(losses, len(batch.image_ids), optimizer.param_groups[0]["lr"])

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add the batch's gradients to the parameters and return its losses.

        On a CPU, operations on maps of a few dozen cells gain little from several threads, so the batch
        is cut into parts that go forward and backward at once, each in a thread of its own.
        """
        parts = split_batch(batch, self.config.threads if self.device.type == "cpu" else 1)
        # samples are a function of seed and step, so that a resumed run draws the same ones
        seed = self.config.seed * 2**32 + self.global_step
        precision = self.config.precision

        def run(number: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(seed + number * 2**48)
            with autocast(self.device, precision):
                losses = self.step(parts[number], generator)
            share = len(parts[number].image_ids) / len(batch.image_ids)
            losses = {name: loss * share for name, loss in losses.items()}
            torch.stack(list(losses.values())).sum().backward()
            return {name: loss.detach() for name, loss in losses.items()}

        if len(parts) == 1:
            return run(0)
        every = list(self.pool.map(run, range(len(parts))))
        return {name: torch.stack([losses[name] for losses in every]).sum() for name in every[0]}

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that parts of a batch run in, each with one thread for its operations."""
        return ThreadPoolExecutor(self.config.threads, initializer=torch.set_num_threads, initargs=(1,))

    def _log_losses(self, losses: dict[str, Tensor], pictures: int, learning_rate: float) -> None:
        masks = sum(loss for name, loss in losses.items() if name.startswith("mask"))
        total = sum(losses.values())
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=pictures)
        self.log("loss", total, prog_bar=True, batch_size=pictures)
        self.log("mask", masks, prog_bar=True, logger=False, batch_size=pictures)
        self.log("box", total - masks, prog_bar=True, logger=False, batch_size=pictures)
        self.log("GiB", memory_in_use(self.device) / 2**30, prog_bar=True)
        self.log("learning_rate", learning_rate)

    def validation_step(self, batch: tuple[Any, int | str], index: int) -> None:
        picture, image_id = batch
        self.results += self.model.predict(picture).to_coco(image_id)
        self.scored.append(image_id)

    def on_validation_epoch_end(self) -> None:
        assert self.val is not None
        cap = self.model.config.model.box.max_detections
        metrics = coco_metrics(self.val.ground_truth, self.results, cap, self.scored)
        self.results, self.scored = [], []
        for kind in ("mask", "box"):
            for name in ("AP", "AP50", "AP75"):
                value = metrics[kind][name]
                self.log(
                    f"val/{kind}_{name}", math.nan if value is None else value, prog_bar=(kind, name) == ("mask", "AP")
                )

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self.model, self.config)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into at most ``parts`` of nearly equal size, in order."""
    bounds = [round(len(batch.targets) * i / parts) for i in range(parts + 1)]
    return [
        Batch(batch.images[a:b], batch.sizes[a:b], batch.targets[a:b], batch.image_ids[a:b])
        for a, b in pairwise(bounds)
        if b > a
    ]


def check_finite(losses: dict[str, Tensor], step: int, image_ids: list[int | str]) -> None:
    """Raise `BrokenLossError` with the step, the pictures and the losses that are NaN or infinite."""
    if not torch.stack(list(losses.values())).isfinite().all():
        broken = ", ".join(f"{name} = {value.item()}" for name, value in losses.items() if not value.isfinite())
        raise BrokenLossError(
            f"step {step}: {broken} on pictures {', '.join(map(str, image_ids))}; look at these pictures, "
            "lower train.learning_rate or set train.precision=float32."
        )


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; those of one dimension (norms, biases) do not decay.

    The layer that predicts a deformable crop's offsets learns at ``deformable_rate`` times the learning rate.
    """
    rates = {
        parameter: head.config.deformable_rate
        for head in model.modules()
        if isinstance(head, BoxClassifier) and head.offsets is not None
        for parameter in head.offsets.parameters()
    }
    groups = []
    for rate in dict.fromkeys([1.0, *rates.values()]):
        parameters = [p for p in model.parameters() if p.requires_grad and rates.get(p, 1.0) == rate]
        lr = config.learning_rate * rate
        groups += [
            {"params": [p for p in parameters if p.dim() > 1], "lr": lr, "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "lr": lr, "weight_decay": 0.0},
        ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def optimizer_and_schedule(model: nn.Module, config: TrainConfig) -> dict[str, Any]:
    """The optimiser and its schedule, moved on each step, as Lightning takes them."""
    optimizer = build_optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate at a step: the warm-up's rise times the schedule's fall."""
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = min(1.0, step / config.steps)
    if config.schedule == "step":
        return rise * 0.1 ** sum(done >= milestone for milestone in config.milestones)
    if config.schedule == "linear":
        return rise * (1 - done)
    return rise * (1 + math.cos(math.pi * done)) / 2


def clip_gradients(model: nn.Module, config: TrainConfig) -> None:
    """Clip the norm of each parameter's gradient, or of all together, to ``clip_norm``."""
    if config.clip_norm is None:
        return
    parameters = [p for p in model.parameters() if p.grad is not None]
    for group in [[p] for p in parameters] if config.clip_by == "parameter" else [parameters]:
        nn.utils.clip_grad_norm_(group, config.clip_norm)
