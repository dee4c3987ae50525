"""Gradients of a batch, computed in parts one after another and in threads at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from masklab.model.norms import NormStatistics, add_statistics, held_statistics
from masklab.training.task import Task
from masklab.utils.device import autocast

_AnyBatch = TypeVar("_AnyBatch")


class BatchGradients:
    """Losses and gradients of a task's batches.

    A batch is split into ``train.accumulate`` parts, which run one after another to need less memory.  On a CPU each
    part is split again into ``train.threads`` parts, which run at the same time: operations on maps of a few dozen
    cells gain little from several threads of their own.  The gradients are those of the whole batch except for
    rounding and batch norm, whose statistics are those of the images of a part, as every loss is a mean over images and the random samples of an image depend only on its
    position in the training stream.
    """

    def __init__(
        self,
        task: Task,
        device: torch.device,
        num_processes: int = 1,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.task, self.device, self.settings = task, device, task.config.train
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        in_threads = task.thread_safe and device.type == "cpu" and num_processes == 1
        self.threads = self.settings.threads if in_threads else 1
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def add(self, batch: Any, first: int = 0) -> dict[str, Tensor]:
        """Add a batch's gradients to those of the parameters and return its losses.

        ``first`` is the position of its first image in the training stream.
        """
        images = len(batch.image_ids)
        done: list[dict[str, Tensor]] = []
        for part in split_batch(batch, self.settings.accumulate):
            pieces = split_batch(part, self.threads)
            sizes = [len(piece.image_ids) for piece in pieces]
            positions = [first + before for before in accumulate(sizes, initial=0)]
            shares = [size / images for size in sizes]
            if len(pieces) == 1:
                losses, total = self._forward(part, first, shares[0])
                total.backward()
                done.append(losses)
            else:
                # added in order, so that sums do not depend on which thread finishes first
                for losses, gradients, seen in self.pool.map(self._forward_backward, pieces, positions, shares):
                    add_gradients(self.task.network, gradients)
                    add_statistics(seen)
                    done.append(losses)
                # the pool limited its threads to one each, and torch gives threads that begin later what was set last
                torch.set_num_threads(torch.get_num_threads())
            first = positions[-1]
        return {name: torch.stack([losses[name] for losses in done]).sum() for name in done[0]}

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()

    def _forward(self, part: Any, first: int, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a part, times its share of the batch, detached; and their scaled sum, to go backward from."""
        with autocast(self.device, self.settings.precision):
            losses = self.task.losses(part, first)
        losses = {name: loss * share for name, loss in losses.items()}
        total = self.scaler.scale(torch.stack(list(losses.values())).sum())
        return {name: loss.detach() for name, loss in losses.items()}, total

    def _forward_backward(
        self, part: Any, first: int, share: float
    ) -> tuple[dict[str, Tensor], Sequence[Tensor | None], Sequence[NormStatistics]]:
        with held_statistics() as seen:
            losses, total = self._forward(part, first, share)
        gradients = torch.autograd.grad(total, _trainable_parameters(self.task.network), allow_unused=True)
        return losses, gradients, seen


def split_batch(batch: _AnyBatch, parts: int) -> list[_AnyBatch]:
    """Split a batch into at most ``parts`` of nearly equal size, in order."""
    fields = batch._asdict() if hasattr(batch, "_asdict") else vars(batch)
    images = len(fields["image_ids"])
    bounds = [round(images * i / parts) for i in range(parts + 1)]
    return [type(batch)(**{name: values[a:b] for name, values in fields.items()}) for a, b in pairwise(bounds) if b > a]


def add_gradients(network: nn.Module, gradients: Sequence[Tensor | None]) -> None:
    """Add to the gradients of the trainable parameters, one gradient for each or None."""
    for parameter, gradient in zip(_trainable_parameters(network), gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.stride() == parameter.stride():
            parameter.grad = gradient
        else:  # a fused optimiser pairs values by their places in memory, so the layouts must be the same
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
