"""Configuration of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from masklab.config.fields import Count, Section
from masklab.utils.types import Auto, Precision


class TrainConfig(Section):
    start_from: Path | None = None
    """A trained model to go on from, in place of all other weights: a run folder, a weights file, or nuclei, which comes with masklab; layers that it lacks, or that are of other classes, start anew and are named."""
    steps: int = Field(1_500_000, ge=1)
    """Optimiser steps in all."""
    batch_size: Count | Auto = 1
    """Images a step, those of all processes together; auto takes the largest power of two that a GPU has memory for."""
    repeat_colour: int = Field(1, ge=1)
    """How often a round through the training images shows those that are not grey, for data in which they are the few."""
    accumulate: int = Field(1, ge=1)
    """Parts that a process works its images of a step off in, one after another, to need less memory; their gradients add up."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum (paper) or AdamW."""
    learning_rate: float = Field(3e-4, gt=0)
    """Learning rate after warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, on weights of two or more dimensions."""
    schedule: Literal["step", "linear", "cosine"] = "step"
    """How the learning rate falls: by 10 at each milestone, linearly to zero, or as a half cosine to zero."""
    milestones: list[float] = Field([0.6, 0.8])
    """Shares of the steps at which the step schedule divides the learning rate by 10."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from near zero."""
    clip_norm: float | None = Field(10.0, gt=0)
    """Largest norm of the gradient; null does not clip."""
    clip_by: Literal["parameter", "global"] = "parameter"
    """Clip each parameter's gradient (paper's library) or all of them together."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running average of the weights, such as 0.999, which is then what is validated and saved; null has none."""
    precision: Precision = "auto"
    """Number format of the convolutions, in training and in prediction; auto takes bf16 where the hardware has it; fp16 is for GPUs, with scaled gradients."""
    validate_every: int = Field(5000, ge=1)
    """Steps between two validations."""
    validate_images: int | None = Field(None, ge=1)
    """Validate on at most this many images during training; null uses all."""
    patience: int | None = Field(None, ge=1)
    """Stop early after this many validations in a row below the best one; null trains all steps."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between two files to resume from; each validation writes one too."""
    log_every: int = Field(20, ge=1)
    """Steps between two lines of the log."""
    loggers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = Field(["csv", "tensorboard"])
    """Where losses and figures are written; csv is the file metrics.csv, wandb and mlflow need their packages."""
    threads: int = Field(2, ge=1)
    """On a CPU, parts of the batch that are worked on at once."""
    workers: int = Field(2, ge=0)
    """Processes that load images, for each that trains."""
    devices: int = Field(1, ge=1)
    """GPUs of a machine to train on, or processes on a CPU; torchrun's own count wins."""
    nodes: int = Field(1, ge=1)
    """Machines to train on; torchrun's own count wins."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything that is drawn at random."""
