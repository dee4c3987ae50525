"""Optimiser, learning rate schedule and gradient clipping."""

from __future__ import annotations

import math

import torch
from torch import nn

from masklab.config.train import TrainConfig
from masklab.model.box_head import BoxHeadBase


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters, without weight decay for those of one dimension (norms, biases).

    The layer that predicts the offsets of a deformable crop learns at ``deformable_lr_factor`` times the learning rate.
    """
    lr_factors = {
        parameter: head.config.deformable_lr_factor
        for head in model.modules()
        if isinstance(head, BoxHeadBase) and head.offsets is not None
        for parameter in head.offsets.parameters()
    }
    groups = []
    for lr_factor in dict.fromkeys([1.0, *lr_factors.values()]):
        parameters = [p for p in model.parameters() if p.requires_grad and lr_factors.get(p, 1.0) == lr_factor]
        lr = config.learning_rate * lr_factor
        for weight_decay, chosen in (
            (config.weight_decay, [p for p in parameters if p.dim() > 1]),
            (0.0, [p for p in parameters if p.dim() <= 1]),
        ):
            groups.append({"params": chosen, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    on_cpu = next(model.parameters()).device.type == "cpu"  # on a GPU the default is already fast
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=on_cpu)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Set the learning rates of a step, counted from 0; each group's ``initial_lr`` is its rate without the schedule."""
    factor = learning_rate_factor(step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate at a step, counted from 0: warm-up times schedule."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = min(1.0, step / config.steps)
    if config.schedule == "step":
        return warmup * 0.1 ** sum(done >= milestone for milestone in config.milestones)
    if config.schedule == "linear":
        return warmup * (1 - done)
    return warmup * (1 + math.cos(math.pi * done)) / 2


def clip_gradients(model: nn.Module, config: TrainConfig) -> None:
    """Clip the norm of each parameter's gradient, or of all gradients together, to ``clip_norm``."""
    if config.clip_norm is None:
        return
    parameters = [p for p in model.parameters() if p.grad is not None]
    for group in [[p] for p in parameters] if config.clip_by == "parameter" else [parameters]:
        nn.utils.clip_grad_norm_(group, config.clip_norm)
