"""The norms of a network: batch norm that several threads may train, frozen batch norm, and group norm.

C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS_PER_GROUP = 16
_held = threading.local()


class BatchNorm(nn.BatchNorm2d):
    """Trainable batch norm that several threads may train at the same time, each with the statistics of its own images.

    Inside `held_statistics` the running averages stay as they are, and `add_statistics` adds what was seen in an order
    that does not depend on which thread was first.
    """

    def forward(self, input: Tensor) -> Tensor:
        held: list[NormStatistics] | None = getattr(_held, "statistics", None)
        if not self.training or held is None or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        # with a momentum of 1, the averages become the statistics of this batch
        mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        result = F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        held.append(NormStatistics(self, mean, var))
        return result


class NormStatistics(NamedTuple):
    """Mean and variance of each channel (C,) that a norm has seen in one batch."""

    norm: BatchNorm
    mean: Tensor
    variance: Tensor


@contextmanager
def held_statistics() -> Iterator[list[NormStatistics]]:
    """What the batch norms of this thread see meanwhile, in the order in which they run, in place of their averages."""
    _held.statistics = []
    try:
        yield _held.statistics
    finally:
        _held.statistics = None


@torch.no_grad()
def add_statistics(seen: Sequence[NormStatistics]) -> None:
    """Move running averages towards what was seen, in order."""
    for norm, mean, variance in seen:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance, norm.momentum)
        norm.num_batches_tracked += 1


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics, scale and shift are never trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


def _group_norm(channels: int, **kwargs: Any) -> nn.GroupNorm:
    """Group norm with groups of 16 channels."""
    return nn.GroupNorm(max(1, channels // _CHANNELS_PER_GROUP), channels)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen_batch": FrozenBatchNorm,
    "batch": BatchNorm,
    "group": _group_norm,
}
