"""The thin Lightning modules: optimiser, schedule, clipping, and what is logged and watched."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from masklab.config.train import TrainConfig
from masklab.datasets.split import Split
from masklab.evaluation.coco import coco_metrics
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.model.box_head import BoxHead
from masklab.model.masklab import MaskLab
from masklab.structures import Batch
from masklab.training.data.loader import SAMPLING
from masklab.training.distributed import all_gather, all_reduce_mean, average_gradients, broadcast
from masklab.training.step import TrainingStep
from masklab.utils.device import autocast, memory_in_use
from masklab.utils.errors import BrokenLossError

AnyBatch = TypeVar("AnyBatch")


class BaseModule(pl.LightningModule):
    """What every training here has in common: how a batch becomes a step of the optimiser.

    ``settings`` are the configuration's ``train``.  A subclass says which network is ``trained`` and what
    the ``losses`` of some images are.
    """

    def __init__(self, network: nn.Module, settings: TrainConfig) -> None:
        super().__init__()
        self.settings = settings
        self.automatic_optimization = False  # the parts of a batch go backward on their own
        self.allow_zero_length_dataloader_with_multiple_devices = True  # more processes than images to validate on
        self.average = None if settings.ema is None else ExponentialMovingAverage(network, settings.ema)
        self.scaler = torch.amp.GradScaler(enabled=settings.precision == "fp16" and torch.cuda.is_available())

    def trained(self) -> nn.Module:
        raise NotImplementedError

    def losses(self, batch: Any, first: int) -> dict[str, Tensor]:
        """The losses of images, the first of which is at position ``first`` of the training stream."""
        raise NotImplementedError

    @property
    def evaluated(self) -> Any:
        """The network that is validated and saved: the running average where there is one."""
        return self.trained() if self.average is None else self.average.network

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        losses = self._backward(batch)
        check_finite(losses, self.global_step, batch.image_ids)
        average_gradients(self.trained())
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        if self.average is not None:
            self.average.update(self.trained(), self.global_step)
        self.log_losses(all_reduce_mean(losses), len(batch.image_ids))
        self.log("GiB", memory_in_use(self.device) / 2**30, prog_bar=True)
        self.log("learning_rate", schedule.get_last_lr()[0])

    def _backward(self, batch: Any) -> dict[str, Tensor]:
        """Add the batch's gradients to the parameters, part by part, and return its losses.

        They are those of the whole batch at once, but for rounding and for batch norm, as every loss is a mean
        over images and what is drawn for an image depends on its place in the training stream alone.

        Each part is cut again into `at_once` that go forward and backward at once, each in a thread of its own.
        """
        images = len(batch.image_ids)
        first = (self.global_step * self.processes + self.global_rank) * images
        done: list[dict[str, Tensor]] = []
        for part in split_batch(batch, self.settings.accumulate):
            pieces = split_batch(part, self.at_once)
            sizes = [len(piece.image_ids) for piece in pieces]
            at = [first + before for before in accumulate(sizes, initial=0)]
            shares = [size / images for size in sizes]
            if len(pieces) == 1:
                losses, total = self._part(part, first, shares[0])
                total.backward()
                done.append(losses)
            else:
                for losses, gradients in self.pool.map(self._gradients, pieces, at, shares):
                    add_gradients(self.trained(), gradients)  # in order, for the last bit to be the same each time
                    done.append(losses)
            first = at[-1]
        return {name: torch.stack([losses[name] for losses in done]).sum() for name in done[0]}

    def _part(self, part: Any, first: int, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a part of the batch, times its share of it, and what is to go backward."""
        with autocast(self.device, self.settings.precision):
            losses = self.losses(part, first)
        losses = {name: loss * share for name, loss in losses.items()}
        total = self.scaler.scale(torch.stack(list(losses.values())).sum())
        return {name: loss.detach() for name, loss in losses.items()}, total

    def _gradients(self, part: Any, first: int, share: float) -> tuple[dict[str, Tensor], Sequence[Tensor | None]]:
        losses, total = self._part(part, first, share)
        return losses, torch.autograd.grad(total, trainable_parameters(self.trained()), allow_unused=True)

    @property
    def at_once(self) -> int:
        return 1

    @property
    def processes(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that parts of a batch run in, each with one thread for its operations."""
        return ThreadPoolExecutor(self.settings.threads, initializer=torch.set_num_threads, initargs=(1,))

    def log_losses(self, losses: dict[str, Tensor], images: int) -> None:
        self.log("loss", torch.stack(list(losses.values())).sum(), prog_bar=True, batch_size=images)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        clip_gradients(self.trained(), self.settings)  # here scaled gradients have their own size again

    def on_validation_start(self) -> None:
        broadcast(self.buffers())  # each process has its own statistics of a trained batch norm

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self.trained(), self.settings)


class ExponentialMovingAverage(nn.Module):
    """A running average of a network's weights: ``decay`` of the old and the rest of the new at each step.

    The decay rises to its value over the first steps, so that the weights it began with are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network, self.decay = copy.deepcopy(network).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        kept = min(self.decay, step / (step + 9))
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - kept)
            else:
                mean.copy_(value)


class TrainingModule(BaseModule):
    """Runs `TrainingStep` and validates by COCO AP on ``val``."""

    def __init__(self, model: MaskLab, val: Split | None) -> None:
        super().__init__(model, model.config.train)
        self.step = TrainingStep(model)
        self.val = val
        self.results: list[tuple[int, list[dict[str, Any]]]] = []

    def trained(self) -> MaskLab:
        return self.step.model

    def losses(self, batch: Batch, first: int) -> dict[str, Tensor]:
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        # samples are a function of seed and position, so that a resumed run draws the same ones
        seed = self.settings.seed
        return self.step(batch, [sample_generator(seed, first + i) for i in range(len(batch.targets))])

    @property
    def at_once(self) -> int:
        """On a CPU, operations on maps of a few dozen cells gain little from several threads, so images have one each.

        Not with a trained batch norm: its running averages would depend on which thread comes first.
        """
        if self.trained().config.model.backbone.norm == "batch":
            return 1
        return self.settings.threads if self.device.type == "cpu" and self.processes == 1 else 1

    def log_losses(self, losses: dict[str, Tensor], images: int) -> None:
        super().log_losses(losses, images)
        masks = torch.stack([loss for name, loss in losses.items() if name.startswith("mask")]).sum()
        boxes = torch.stack([loss for name, loss in losses.items() if not name.startswith("mask")]).sum()
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=images)
        self.log("mask", masks, prog_bar=True, batch_size=images)
        self.log("box", boxes, prog_bar=True, batch_size=images)

    def validation_step(self, batch: tuple[Tensor, int], number: int) -> None:
        assert self.val is not None
        image, index = batch
        predictor = Predictor(self.evaluated, PredictionOptions(precision=self.settings.precision))
        self.results.append((index, predictor.predict(image).to_coco(self.val.images[index].image_id)))

    def on_validation_epoch_end(self) -> None:
        assert self.val is not None
        max_detections = self.trained().box_head.max_detections
        found = dict(sorted(all_gather(self.results)))
        scored = [self.val.images[index].image_id for index in found]
        metrics = coco_metrics(
            self.val.truth, [entry for each in found.values() for entry in each], max_detections, scored
        )
        self.results = []
        for target in ("mask", "box"):
            for name in ("AP", "AP50", "AP75"):
                value = metrics[target][name]
                self.log(
                    f"val/{target}_{name}",
                    math.nan if value is None else value,
                    prog_bar=(target, name) == ("mask", "AP"),
                )


def trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def add_gradients(network: nn.Module, gradients: Sequence[Tensor | None]) -> None:
    """Add to the gradients of the parameters that are trained."""
    for parameter, gradient in zip(trainable_parameters(network), gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.stride() == parameter.stride():
            parameter.grad = gradient
        else:  # a fused optimiser pairs values by where they lie in memory, so they must lie alike
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def sample_generator(seed: int, position: int) -> torch.Generator:
    """What draws the samples of the image at a position of the training stream."""
    state = np.random.SeedSequence([seed, SAMPLING, position]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def split_batch(batch: AnyBatch, parts: int) -> list[AnyBatch]:
    """Cut a batch into at most ``parts`` of nearly equal size, in order."""
    fields = batch._asdict() if hasattr(batch, "_asdict") else vars(batch)
    images = len(fields["image_ids"])
    bounds = [round(images * i / parts) for i in range(parts + 1)]
    return [type(batch)(**{name: values[a:b] for name, values in fields.items()}) for a, b in pairwise(bounds) if b > a]


def check_finite(losses: dict[str, Tensor], step: int, image_ids: list[int | str]) -> None:
    """Raise `BrokenLossError` with the step, the images and the losses that are NaN or infinite."""
    if not torch.stack(list(losses.values())).isfinite().all():
        broken = ", ".join(f"{name} = {value.item()}" for name, value in losses.items() if not value.isfinite())
        raise BrokenLossError(
            f"step {step}: {broken} on images {', '.join(map(str, image_ids))}; look at these images, "
            "lower train.learning_rate or set train.precision=float32."
        )


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; those of one dimension (norms, biases) do not decay.

    The layer that predicts a deformable crop's offsets learns at ``deformable_lr_factor`` times the learning rate.
    """
    dilations = {
        parameter: head.config.deformable_lr_factor
        for head in model.modules()
        if isinstance(head, BoxHead) and head.offsets is not None
        for parameter in head.offsets.parameters()
    }
    groups = []
    for lr_factor in dict.fromkeys([1.0, *dilations.values()]):
        parameters = [p for p in model.parameters() if p.requires_grad and dilations.get(p, 1.0) == lr_factor]
        lr = config.learning_rate * lr_factor
        groups += [
            {"params": [p for p in parameters if p.dim() > 1], "lr": lr, "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "lr": lr, "weight_decay": 0.0},
        ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    on_cpu = next(model.parameters()).device.type == "cpu"  # elsewhere the default is fast already
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=on_cpu)


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
