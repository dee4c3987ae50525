"""The thin Lightning module: optimiser, schedule, clipping, and what is logged and watched."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from masklab.config import TrainConfig
from masklab.data.coco import CocoSplit
from masklab.errors import BrokenLossError
from masklab.evaluation import coco_metrics
from masklab.hardware import memory_in_use
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
        self.results: list[dict[str, Any]] = []
        self.scored: list[int | str] = []

    @property
    def model(self) -> MaskLab:
        return self.step.model

    def training_step(self, batch: Batch, index: int) -> Tensor:
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        # samples are a function of seed and step, so that a resumed run draws the same ones
        generator = torch.Generator().manual_seed(hash((self.config.seed, self.global_step)) & (2**63 - 1))
        losses = self.step(batch, generator)
        check_finite(losses, self.global_step, batch.image_ids)
        total = torch.stack(list(losses.values())).sum()
        values = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(values, batch_size=len(batch.image_ids))
        self.log("loss", total.detach(), prog_bar=True, batch_size=len(batch.image_ids))
        self.log("mask", sum(v for k, v in values.items() if "mask" in k), prog_bar=True, logger=False)
        self.log("box", sum(v for k, v in values.items() if "mask" not in k), prog_bar=True, logger=False)
        self.log("GiB", memory_in_use(self.device) / 2**30, prog_bar=True)
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return total

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
        optimizer = build_optimizer(self.model, self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, self.config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        clip_gradients(self.model, self.config)


def check_finite(losses: dict[str, Tensor], step: int, image_ids: list[int | str]) -> None:
    """Raise `BrokenLossError` with the step, the pictures and the losses that are NaN or infinite."""
    if not torch.stack(list(losses.values())).isfinite().all():
        broken = ", ".join(f"{name} = {value.item()}" for name, value in losses.items() if not value.isfinite())
        raise BrokenLossError(
            f"step {step}: {broken} on pictures {', '.join(map(str, image_ids))}; look at these pictures, "
            "lower train.learning_rate or set train.precision=float32."
        )


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; those of one dimension (norms, biases) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


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
