"""Configuration of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from masklab.config.fields import Count, Section
from masklab.utils.types import Auto, Precision


class TrainConfig(Section):
    """Training."""

    start_from: Path | None = None
    """Trained model to fine-tune, in place of all other weights: a run folder, a weights file, or nuclei, which comes with masklab. Layers that it lacks, and class layers if its classes are others, are initialised as usual and listed in the log. A model with group norm may become one with batch norm, trained or frozen: its statistics are then measured on training images."""
    minutes: float | None = Field(None, gt=0, le=1e7)
    """Minutes to train, validation and tuning included, in place of steps: the number of steps is measured on the first batches, written to config.yaml and kept by a resumed run; warmup_steps, validate_every and ema keep their share of the run."""
    steps: int = Field(1_500_000, ge=1, le=1_000_000_000)
    """Total number of optimiser steps, unless minutes are given."""
    batch_size: Count | Auto = 1
    """Images per step, over all processes; auto takes the largest power of two that fits the GPU's memory."""
    repeat_colour: int = Field(1, ge=1, le=10_000)
    """How often each colour image appears in an epoch, to oversample them in data sets that are mostly grey."""
    accumulate: Count = 1
    """Gradient accumulation steps per process: each process splits its images of a step into this many parts, to need less memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum (paper) or AdamW."""
    learning_rate: float = Field(3e-4, gt=0, le=1e6)
    """Learning rate after warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay, on weights of two or more dimensions."""
    schedule: Literal["step", "linear", "cosine"] = "step"
    """Decay of the learning rate: divided by 10 at each milestone, linear to zero, or half a cosine to zero."""
    milestones: list[Annotated[float, Field(ge=0, le=1000)]] = Field([0.6, 0.8], max_length=1000)
    """Fractions of the steps at which the step schedule divides the learning rate by 10."""
    warmup_steps: int = Field(0, ge=0, le=1_000_000_000)
    """Steps of linear warm-up of the learning rate from near zero."""
    clip_norm: float | None = Field(10.0, gt=0, le=1e9)
    """Maximum norm of the gradient; null does not clip."""
    clip_by: Literal["parameter", "global"] = "parameter"
    """Clip each parameter's gradient (paper's library) or all of them together."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, such as 0.999; the averaged weights are validated and saved. null keeps no average."""
    precision: Precision = "auto"
    """Number format of the convolutions, in training and its validation; auto takes bf16 where the hardware has it; fp16 needs a GPU and scales the loss."""
    validate_every: int = Field(5000, ge=1, le=1_000_000_000)
    """Steps between two validations."""
    validate_images: int | None = Field(None, ge=1, le=1_000_000_000)
    """Validate on at most this many images during training; null uses all."""
    patience: int | None = Field(None, ge=1, le=1_000_000_000)
    """Early stopping after this many validations in a row without a new best one; null trains all steps."""
    checkpoint_every: int = Field(1000, ge=1, le=1_000_000_000)
    """Steps between two checkpoints to resume from; each validation also writes one."""
    log_every: int = Field(20, ge=1, le=1_000_000_000)
    """Steps between two lines of the log."""
    loggers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = Field(["csv"], max_length=4)
    """Where losses and figures are written; csv is the file metrics.csv; tensorboard, wandb and mlflow need the packages of these names."""
    threads: int = Field(2, ge=1, le=4096)
    """On a CPU, parts of the batch that are computed in parallel threads."""
    workers: int = Field(2, ge=0, le=4096)
    """Data-loading processes per training process."""
    devices: int = Field(1, ge=1, le=4096)
    """Training processes per machine, one per GPU; on a CPU, their number. Under torchrun its own count applies."""
    nodes: Count = 1
    """Number of machines to train on. Under torchrun its own count applies."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of all random numbers."""
