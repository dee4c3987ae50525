"""Several processes that train together, one on each device: how they are started and what they exchange."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from torch import Tensor, nn

from masklab.config.train import TrainConfig
from masklab.utils.device import default_device
from masklab.utils.errors import InputError

_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # numbers of processes of srun, mpirun, mpiexec


def build_fabric(settings: TrainConfig) -> Fabric:
    """Lightning Fabric for the processes that torchrun started or, without it, that `Fabric.launch` will start.

    Rank and number of processes are known before the launch.  Raises `InputError` where srun or mpirun started
    several processes, each of which would be a run of its own.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):  # whichever was imported last logs for both
        logging.getLogger(name).setLevel(logging.WARNING)
    environment, devices, nodes = os.environ, settings.devices, settings.nodes
    launcher: ClusterEnvironment = LightningEnvironment()  # explicit, or Fabric uses the tasks of a SLURM job
    if "TORCHELASTIC_RUN_ID" in environment:
        devices = int(environment["LOCAL_WORLD_SIZE"])
        nodes = int(environment["WORLD_SIZE"]) // devices
        launcher = TorchElasticEnvironment()
    else:
        tasks = max(int(environment.get(name, 1)) for name in _TASKS)
        if tasks > 1 and not (tasks == nodes and "NODE_RANK" in environment):
            raise InputError(
                f"{tasks} processes were started, and not by torchrun: let srun or mpirun start torchrun, once per machine."
            )
    return Fabric(accelerator=default_device().type, devices=devices, num_nodes=nodes, plugins=launcher)


@contextmanager
def stopping_processes(fabric: Fabric) -> Iterator[None]:
    """Kill the processes that Fabric started when this one fails, as they would wait for it."""
    try:
        yield
    except BaseException:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()
        raise


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of process 0 to all processes, in place."""
    if _several():
        for tensor in tensors:
            values = tensor.detach().contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)


@torch.no_grad()
def all_reduce_gradients(network: nn.Module) -> None:
    """Average each gradient over the processes, in place.

    That is the gradient of the whole batch, as every process has the same number of images.
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if not _several() or not gradients:
        return
    joint = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joint)
    joint /= dist.get_world_size()
    for gradient, values in zip(gradients, joint.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(values.view(gradient.shape))


def all_gather(values: list[Any]) -> list[Any]:
    """The lists of all processes in one, by rank."""
    if not _several():
        return values
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, values)
    return [value for each in lists for value in each]


def all_reduce_mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each scalar over the processes."""
    if not _several():
        return values
    joint = all_reduce_sum(torch.stack(list(values.values()))) / dist.get_world_size()
    return dict(zip(values, joint, strict=True))


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the processes."""
    if _several():
        values = values.clone()
        dist.all_reduce(values)
    return values
