"""A training run: from a configuration and a data folder to a run folder with weights in it."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.progress import track
from torch.utils.data import DataLoader

from masklab.config import Config
from masklab.data.coco import CocoSplit
from masklab.data.loader import SplitPictures, train_loader
from masklab.errors import InputError
from masklab.evaluation import overlaps, tune_score_threshold
from masklab.files import whole
from masklab.model.masklab import MaskLab, build_model
from masklab.training.module import TrainingModule
from masklab.weights import load_model, read_notes, save_model

TUNING_PICTURES = 30
CHECKPOINT = "resume.ckpt"


def train(
    config: Config, data: str | Path | None = None, output: str | Path | None = None, resume: bool = False
) -> MaskLab:
    """Train a model and return the best one.

    ``data`` is a COCO folder with the splits ``train`` and, to choose the best weights by, ``val``; the
    run is written to the folder ``output``: ``best.safetensors`` and ``last.safetensors`` (see
    `masklab.weights`), ``config.yaml``, ``metrics.csv`` and TensorBoard's events.  Both default to the
    configuration's ``data`` and ``output``.  At the end the score threshold of the best
    weights is tuned on training pictures and stored with them.  ``resume`` continues the run in
    ``output`` from its last validation as if it had never stopped.

    Raises `InputError` for data that cannot be used and `BrokenLossError` for a loss that is not finite.
    """
    folder, run = required(data or config.data, "--data"), required(output or config.output, "--output")
    train_split = CocoSplit.find(folder, "train")
    val_split = CocoSplit.find(folder, "val", train_split.categories)
    first_step = open_run(run, resume)
    print(train_split.summary())
    torch.manual_seed(config.train.seed)
    model = build_model(config, train_split.categories).to(memory_format=torch.channels_last)
    fit(
        TrainingModule(model, val_split),
        config,
        WeightsSaver(run, "mask_AP", partial(save_model, model)),
        train_loader(train_split, config, first_step),
        val_split,
        resume,
    )
    return _tune(run, train_split)


def fit(
    module: pl.LightningModule,
    config: Config,
    saver: WeightsSaver,
    batches: DataLoader[Any],
    val: CocoSplit,
    resume: bool,
) -> None:
    """Run ``batches`` through a module as ``config.train`` says, in the run folder of ``saver``.

    It is validated on the pictures of ``val``, one at a time.  ``resume`` goes on from the saver's checkpoint.
    """
    run, settings = saver.run, config.train
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    in_terminal = sys.stdout.isatty()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        default_root_dir=run,
        max_steps=settings.steps,
        val_check_interval=min(settings.validate_every, settings.steps),
        check_val_every_n_epoch=None,
        limit_val_batches=settings.validate_pictures or 1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every,
        logger=[CSVLogger(run, name=None, version=""), TensorBoardLogger(run, name=None, version="")],
        callbacks=[saver, RichProgressBar() if in_terminal else ProgressLines()],
        enable_progress_bar=in_terminal,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # on its own use of torch, and on this folder and machine
        trainer.fit(
            module,
            batches,
            DataLoader(SplitPictures(val, config.model.backbone.in_channels), batch_size=None),
            ckpt_path=run / saver.checkpoint if resume else None,
            weights_only=True,
        )


def open_run(run: Path, resume: bool, name: str = CHECKPOINT) -> int:
    """Make the run folder, or check that the one there can be continued; returns the step to begin at.

    ``name`` is that of the checkpoint, which says what kind of run it is.
    """
    checkpoint, log = run / name, run / "metrics.csv"
    if not resume:
        if log.exists() or checkpoint.exists():
            raise InputError(f"{run} already holds a run: give another --output, or --resume true to continue it.")
        run.mkdir(parents=True, exist_ok=True)
        return 0
    if not checkpoint.is_file():
        raise InputError(f"{run} has no {name} to resume from: check --output, or leave --resume out.")
    step = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    if log.exists():
        os.replace(log, run / f"metrics-until-{step}.csv")
    return step


class WeightsSaver(Callback):
    """After each validation writes ``last.safetensors``, ``best.safetensors`` when the ``figure`` has not been higher,
    and the checkpoint that a run is resumed from; ``save(path, notes)`` writes the weights."""

    def __init__(
        self, run: Path, figure: str, save: Callable[[Path, dict[str, Any]], None], checkpoint: str = CHECKPOINT
    ) -> None:
        self.run, self.figure, self.save, self.checkpoint = run, figure, save, checkpoint
        self.best, self.began = -1.0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": time.monotonic() - self.began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.began = state_dict["best"], time.monotonic() - state_dict["seconds"]

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        val = {name.removeprefix("val/"): None if value != value else value for name, value in metrics.items()}
        minutes = round((time.monotonic() - self.began) / 60, 1)
        notes = {"step": trainer.global_step, "minutes": minutes, "val": val}
        self.save(self.run / "last.safetensors", notes)
        score = val.get(self.figure) or 0.0
        if score >= self.best:
            self.best = score
            self.save(self.run / "best.safetensors", notes)
        with whole(self.run / self.checkpoint) as beside:
            trainer.save_checkpoint(beside)


class ProgressLines(Callback):
    """A line now and then instead of a progress bar, where the output is a file."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step, steps = trainer.global_step, trainer.max_steps
        if step % trainer.log_every_n_steps == 0 or step == steps:  # type: ignore[attr-defined]
            seconds = time.monotonic() - self.began
            left = timedelta(seconds=round(seconds / (step - self.first) * (steps - step)))
            values = trainer.callback_metrics
            shown = "  ".join(f"{name} {values[name]:.3f}" for name in ("loss", "mask", "box") if name in values)
            print(f"step {step}/{steps}  {shown}  {values['GiB']:.1f} GiB  {left} left", flush=True)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = trainer.callback_metrics
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if name.startswith("val/"))
        print(f"step {trainer.global_step}: {shown}", flush=True)


def _tune(run: Path, split: CocoSplit) -> MaskLab:
    """Tune the score threshold of the best weights on training pictures, spread over the split."""
    model = load_model(run, "cuda" if torch.cuda.is_available() else "cpu")
    stride = max(1, len(split) // TUNING_PICTURES)
    chosen = split.pictures[::stride][:TUNING_PICTURES]
    results: list[dict[str, Any]] = []
    for picture in track(chosen, description="tuning the score threshold", transient=True):
        results += model.predict(picture.path).to_coco(picture.image_id)
    model.score_threshold = tune_score_threshold(
        overlaps(split.ground_truth, results, [picture.image_id for picture in chosen])
    )
    save_model(model, run / "best.safetensors", read_notes(run))
    return model


def required(folder: str | Path | None, option: str) -> Path:
    """The folder as a path; `InputError` naming the ``option`` if there is none."""
    if folder is None:
        raise InputError(f"training needs a folder: give {option} DIR.")
    return Path(folder)
