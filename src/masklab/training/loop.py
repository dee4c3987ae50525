"""The training loop, of `masklab train` and of `masklab pretrain`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from masklab.datasets.split import Split
from masklab.training.clock import Pace, plan
from masklab.training.data.loader import set_steps
from masklab.training.distributed import all_reduce_gradients, all_reduce_mean, broadcast, stopping_processes
from masklab.training.gradients import BatchGradients
from masklab.training.log import RunLog, check_loggers
from masklab.training.optimizer import clip_gradients, set_learning_rate
from masklab.training.record import write_record
from masklab.training.resume import CHECKPOINT, Start, TrainingState
from masklab.training.task import Task
from masklab.utils.device import check_precision, memory_in_use, synchronise
from masklab.utils.errors import BrokenLossError, InputError, MachineError
from masklab.utils.failures import machine_error
from masklab.utils.signals import Stopped, exit_code, stop_signals
from masklab.utils.words import counted

_TRIED, _TIMED = 12, 8  # steps that measure the pace, and how many of them, the last, are timed
_VALIDATED = 3  # images of each process that measure a validation

_log = logging.getLogger(__name__)


def fit(
    fabric: Fabric,
    task: Task,
    batches: DataLoader[Any],
    train_split: Split,
    run: Path,
    start: Start,
    checkpoint: str = CHECKPOINT,
) -> None:
    """Train a task's network on ``batches``, from the step of ``start`` on, and write the run into the folder ``run``.

    The network is validated every ``train.validate_every`` steps and at the last one, on images of ``task.val`` that
    the processes share.  Then ``last.safetensors`` is written, ``best.safetensors`` if no score was higher, and the
    file ``checkpoint``, which is also written every ``train.checkpoint_every`` steps.

    With ``train.minutes`` a new run's steps are measured first and the task's configuration and the batches changed
    accordingly (see `masklab.training.clock`).

    Raises `InputError` for settings that the machine cannot run, `BrokenLossError` for a loss that is not finite,
    `MachineError` for a disk that is full and for memory that is lacking, and `KeyboardInterrupt` after Ctrl-C and
    SIGTERM.
    """
    config, settings = task.config, task.config.train
    if not len(task.val):
        raise InputError(
            f"{task.val.json_path} has no images to choose the best weights by: add some, or leave val out."
        )
    check_precision(settings.precision, fabric.device, "train.precision")
    check_loggers(settings.loggers)
    task.network.to(fabric.device).train()
    with stopping_processes(fabric):
        fabric.launch()
        if settings.minutes is not None and start.checkpoint is None:
            _fix_steps(fabric, task, batches)
            config, settings = task.config, task.config.train
        if fabric.is_global_zero:
            write_record(
                run, config, {"train": train_split, "val": task.val}, checkpoint, start.step, fabric.world_size
            )
        state = TrainingState(task.network, settings)
        if start.checkpoint is not None:
            state.load_state_dict(start.checkpoint)
        with _resumable(run, state):
            broadcast(state.tensors())
            with (
                closing(BatchGradients(task, fabric.device, fabric.world_size, state.scaler)) as gradients,
                nullcontext()
                if start.lock is None
                else RunLog(run, config, state.step, state.loggers, start.lock) as log,
            ):
                if not state.out_of_patience:
                    _loop(fabric, task, batches, state, gradients, log, run / checkpoint)
            fabric.barrier()  # until the first has written the weights, which all read next


def _fix_steps(fabric: Fabric, task: Task, batches: DataLoader[Any]) -> None:
    """Measure some steps and validations, plan the steps of ``train.minutes`` in all processes, and undo what was done."""
    began, processes = time.monotonic(), fabric.world_size
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    broadcast([*task.network.parameters(), *task.network.buffers()])
    set_steps(batches, _TRIED)
    state = TrainingState(task.network, task.config.train)
    with closing(BatchGradients(task, fabric.device, processes, state.scaler)) as gradients:
        for batch in batches:
            _step(fabric, task, fabric.to_device(batch), state, gradients)
            if state.step == _TRIED - _TIMED:
                first = time.monotonic()
    synchronise(fabric.device)
    step = (time.monotonic() - first) / _TIMED
    task.network.eval()
    for count in (1, _VALIDATED):  # the first warms up
        first, images = time.monotonic(), range(min(count * processes, len(task.val)))
        task.validate(task.network, images[fabric.global_rank :: processes])
    image = (time.monotonic() - first) / math.ceil(len(images) / processes)
    task.network.train()
    task.network.load_state_dict(before)
    validation = image * math.ceil(validated(task) / processes)
    pace = Pace(step, validation, time.monotonic() - began, image * task.tuned_images)
    seconds = torch.tensor(pace, dtype=torch.float64, device=fabric.device)
    broadcast([seconds])  # the processes must agree
    settings = plan(task.config.train, Pace(*seconds.tolist()))
    task.reconfigure(task.config.model_copy(update={"train": settings}))
    set_steps(batches, settings.steps)
    if fabric.is_global_zero:
        _log.info(
            f"train.minutes {settings.minutes:g}: {counted(settings.steps, 'step')} of {step:.2g} s, and "
            f"{validation:.2g} s for each validation"
        )


def _loop(
    fabric: Fabric,
    task: Task,
    batches: DataLoader[Any],
    state: TrainingState,
    gradients: BatchGradients,
    log: RunLog | None,
    checkpoint: Path,
) -> None:
    """Train, log, validate and save; ``log`` is None in all processes but the first."""
    settings = task.config.train
    for batch in batches:
        losses = _step(fabric, task, fabric.to_device(batch), state, gradients)
        is_last = state.step == settings.steps
        if is_last or state.step % settings.log_every == 0:
            row = {
                **task.log_row(losses),
                "GiB": torch.tensor(memory_in_use(fabric.device) / 2**30, device=fabric.device),
                "learning_rate": torch.tensor(state.optimizer.param_groups[0]["lr"], device=fabric.device),
            }
            row = all_reduce_mean(row)
            if log is not None:
                log.write_losses(state.step, {name: value.item() for name, value in row.items()})
        if log is not None:
            log.advance(state.step)
        if is_last or state.step % settings.validate_every == 0:
            _validate(fabric, task, state, log, checkpoint)
            if state.out_of_patience:
                return
        elif state.step % settings.checkpoint_every == 0 and log is not None:
            state.save(checkpoint)


def _step(fabric: Fabric, task: Task, batch: Any, state: TrainingState, gradients: BatchGradients) -> dict[str, Tensor]:
    """One step of the optimiser; returns the losses of this process's images."""
    network, settings = task.network, task.config.train
    images = len(batch.image_ids)
    state.optimizer.zero_grad()
    losses = gradients.add(batch, (state.step * fabric.world_size + fabric.global_rank) * images)
    check_finite(losses, state.step, batch.image_ids)
    all_reduce_gradients(network)
    state.scaler.unscale_(state.optimizer)
    clip_gradients(network, settings)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    set_learning_rate(state.optimizer, settings, state.step)
    if state.average is not None:
        state.average.update(network, state.step)
    return losses


def _validate(fabric: Fabric, task: Task, state: TrainingState, log: RunLog | None, checkpoint: Path) -> None:
    """Validate and save the weights and the checkpoint."""
    broadcast(state.tensors())  # each process has its own statistics of a trained batch norm
    figures = task.validate(state.evaluated.eval(), range(validated(task))[fabric.global_rank :: fabric.world_size])
    task.network.train()
    val = {n.removeprefix("val/"): None if v != v else v for n, v in figures.items() if n.startswith("val/")}
    is_best = state.add_score(val.get(task.figure) or 0.0)
    if log is None:
        return
    log.write_figures(state.step, figures)
    notes = {"step": state.step, "minutes": round(state.seconds / 60, 1), "val": val}
    task.save(state.evaluated, checkpoint.with_name("last.safetensors"), notes)
    if is_best:
        task.save(state.evaluated, checkpoint.with_name("best.safetensors"), notes)
        task.keep_results(checkpoint.parent, state.step)
    state.save(checkpoint)


def validated(task: Task) -> int:
    """Number of images of a validation."""
    return min(len(task.val), task.config.train.validate_images or len(task.val))


def check_finite(losses: dict[str, Tensor], step: int, image_ids: list[int | str]) -> None:
    """Raise `BrokenLossError` with the step, the images and the losses that are NaN or infinite."""
    if not torch.stack(list(losses.values())).isfinite().all():
        broken = ", ".join(f"{name} = {value.item()}" for name, value in losses.items() if not value.isfinite())
        raise BrokenLossError(
            f"step {step}: {broken} on images {', '.join(map(str, image_ids))}; look at these images, "
            "lower train.learning_rate or set train.precision to float32."
        )


@contextmanager
def _resumable(run: Path, state: TrainingState) -> Iterator[None]:
    """Let SIGTERM, by which schedulers stop a run, do what Ctrl-C does, and say how to go on after what is no fault."""
    try:
        with stop_signals():
            yield
    except KeyboardInterrupt as stop:
        raise Stopped(
            f"stopped after step {state.step}: resume {run} to go on from its last checkpoint.", exit_code(stop)
        ) from None
    except Exception as error:
        refused = machine_error(error)
        if refused is None:
            raise
        how = "" if refused is error else "; --resume goes on from the last checkpoint"
        raise MachineError(f"stopped after step {state.step}: {str(refused).rstrip('.')}{how}.") from error
