"""What training a recipe costs: its schedule, multiply-adds, and hours of the processes that share it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from masklab.config.schema import Config
from masklab.model.cost import model_cost
from masklab.utils.errors import InputError
from masklab.utils.words import counted

COCO_IMAGES = 118_287  # of train2017
_PASSES = 3  # forward, and backward a gradient of the inputs and one of the weights
_OBJECTS = 7  # masks of an image, as COCO has on average
_RATES = (1e12, 5e12, 20e12)  # multiply-adds a second that a process sustains
PAPER_IMAGES = 1_500_000  # of the schedule of [35], one image a step
_LONGER_IMAGES = 3_000_000  # the schedule that [67] probably had: reported second-hand, not verified


class TrainingCost(NamedTuple):
    """``steps`` of ``batch`` images on ``processes``; ``macs``, multiply-adds of one image, forward and backward."""

    steps: int
    batch: int
    processes: int
    macs: float

    @property
    def images(self) -> int:
        """Images that training sees, repetitions counted."""
        return self.steps * self.batch

    def step_seconds(self, rate: float) -> float:
        """Seconds of a step whose processes each sustain ``rate`` multiply-adds a second."""
        return self.macs * self.batch / self.processes / rate

    def hours(self, step_seconds: float) -> float:
        """Hours of the whole training, at ``step_seconds`` each step."""
        return self.steps * step_seconds / 3600


def training_cost(config: Config, num_classes: int, size: tuple[int, int]) -> TrainingCost:
    """The cost of training a configuration on images of ``size`` (height, width), 7 objects each.

    A process is one GPU.  The box head runs on the proposals that are sampled for its loss and the mask head on the objects.  Nothing is
    computed.  Raises `InputError` for a batch or a number of steps that is found only when training begins.
    """
    train, model = config.train, config.model
    if train.batch_size == "auto" or train.minutes is not None:
        field, fixed = ("minutes", "steps") if train.minutes is not None else ("batch_size", "a number of images")
        raise InputError(f"train.{field} is found when training begins, so there is nothing to count: set {fixed}.")
    objects = min(_OBJECTS, model.mask.train_masks)
    rpn = model.rpn.model_copy(update={"proposals_test": model.box.samples})
    box = model.box.model_copy(update={"max_detections": objects})
    sampled = config.model_copy(update={"model": model.model_copy(update={"rpn": rpn, "box": box})})
    macs = _PASSES * model_cost(sampled, num_classes, size)["total"].macs
    return TrainingCost(train.steps, train.batch_size, train.devices * train.nodes, macs)


def training_lines(cost: TrainingCost, measured: float | None = None) -> Iterator[str]:
    """What a training costs, in lines of text; ``measured`` is the time of one of its steps in seconds."""
    epochs = cost.images / COCO_IMAGES
    yield (
        f"training: {cost.steps:,} steps of {counted(cost.batch, 'image')} on {counted(cost.processes, 'process', 'processes')}, "
        f"{cost.images:,} images, {epochs:.1f} epochs of COCO's {COCO_IMAGES:,}"
    )
    yield (
        f"multiply-adds: {cost.macs / 1e12:.2f} T an image, forward and backward with {_OBJECTS} objects; "
        f"{cost.macs * cost.images / 1e18:.3g} E in all"
    )
    if measured is not None:
        rate = cost.macs * cost.batch / cost.processes / measured
        yield (
            f"at {measured:g} s a step: {_hours(cost, measured)}; a process sustains {rate / 1e12:.3g} T multiply-adds a second"
        )
    else:
        for rate in _RATES:
            seconds = cost.step_seconds(rate)
            yield (
                f"if a process sustains {rate / 1e12:g} T multiply-adds a second: {seconds:.2f} s a step, {_hours(cost, seconds)}"
            )
    if cost.images == PAPER_IMAGES:
        yield (
            f"[67]'s schedule, which the paper may have taken, was probably longer, about {_LONGER_IMAGES:,} images "
            f"(unverified): {_LONGER_IMAGES / cost.images:g} times as much of everything"
        )


def _hours(cost: TrainingCost, step_seconds: float) -> str:
    hours = cost.hours(step_seconds)
    return f"{hours:,.0f} hours ({hours / 24:.1f} days), {hours * cost.processes:,.0f} process-hours"
