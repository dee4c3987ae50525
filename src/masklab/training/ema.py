"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage(nn.Module):
    """Exponential moving average of a network's weights; ``network`` is a copy that holds them, in evaluation mode.

    After ``n`` steps the decay is ``min(decay, n / (n + 9))``: it is low at first, so that the initial weights soon
    stop counting.  Integers, such as batch norm's counters, are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network, self.decay = copy.deepcopy(network).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Add the weights after ``step`` steps."""
        decay = min(self.decay, step / (step + 9))
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
