"""Several processes that train together, one on each device: how many there are, and what they exchange.

Each works on its share of a step's images; their gradients are averaged by hand after the last part of it,
so that parts, threads and processes are the same to the one that reads `BaseModule.training_step`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from masklab.config.train import TrainConfig
from masklab.utils.errors import InputError

TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # how many srun, mpirun and mpiexec started


class Processes(NamedTuple):
    """This one's number ``rank``, how many there are, and how they lie on ``nodes`` machines of ``devices`` each."""

    rank: int = 0
    total: int = 1
    devices: int = 1
    nodes: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        return self.rank, self.total


def launched(settings: TrainConfig) -> Processes:
    """The processes that torchrun started or, without it, those that ``settings`` ask Lightning's launcher for.

    Raises `InputError` where srun or mpirun started several, each of which would be a run of its own.
    """
    environment = os.environ
    if by_torchrun():
        total, devices = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return Processes(int(environment["RANK"]), total, devices, total // devices)
    devices, nodes = settings.devices, settings.nodes
    tasks = max(int(environment.get(name, 1)) for name in TASKS)
    if tasks > 1 and not (tasks == nodes and "NODE_RANK" in environment):
        raise InputError(
            f"{tasks} processes were started, and not by torchrun: let srun or mpirun start torchrun, once a machine."
        )
    node = int(environment.get("NODE_RANK", environment.get("GROUP_RANK", 0)))
    return Processes(node * devices + int(environment.get("LOCAL_RANK", 0)), devices * nodes, devices, nodes)


def by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher() -> ClusterEnvironment:
    """Lightning's view of who starts the processes: without torchrun it is Lightning, also inside a SLURM job."""
    return TorchElasticEnvironment() if by_torchrun() else LightningEnvironment()


class Together(DDPStrategy):
    """Lightning's processes without its wrapper: they begin alike and call `average_gradients` themselves."""

    def configure_ddp(self) -> None:
        assert isinstance(self.model, nn.Module)
        broadcast([*self.model.parameters(), *self.model.buffers()])


def running_together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give the tensors of process 0 to all, in place."""
    if running_together():
        for tensor in tensors:
            values = tensor.detach().contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)


@torch.no_grad()
def average_gradients(network: nn.Module) -> None:
    """The mean over the processes of each gradient, in place: that of the joint batch, as each has as many images."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if not running_together() or not gradients:
        return
    joint = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joint)
    joint /= dist.get_world_size()
    for gradient, values in zip(gradients, joint.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(values.view(gradient.shape))


def all_gather(values: list[Any]) -> list[Any]:
    """The lists of all processes in one, by rank."""
    if not running_together():
        return values
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, values)
    return [value for each in lists for value in each]


def all_reduce_mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the processes of each value."""
    if not running_together():
        return values
    joint = all_reduce_sum(torch.stack(list(values.values()))) / dist.get_world_size()
    return dict(zip(values, joint, strict=True))


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the processes."""
    if running_together():
        values = values.clone()
        dist.all_reduce(values)
    return values
