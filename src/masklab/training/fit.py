"""A training run: from a configuration and a data folder to a run folder with weights in it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from masklab.config.schema import Config
from masklab.datasets.annotations import ImageRecord
from masklab.datasets.open import open_split
from masklab.datasets.split import Split
from masklab.evaluation.matching import overlaps, tune_score_threshold
from masklab.inference.predictor import Predictor, load
from masklab.training.auto import resolve_auto
from masklab.training.data.loader import ValidationImages, train_loader
from masklab.training.distributed import Processes, Together, launched, launcher
from masklab.training.log import ProgressBar, ProgressLines, RunLog
from masklab.training.memory import resolve_batch_size
from masklab.training.module import BaseModule, TrainingModule
from masklab.training.record import write_record
from masklab.training.resume import CHECKPOINT, Start, WeightsSaver, open_run
from masklab.utils.device import check_precision, default_device
from masklab.utils.errors import InputError
from masklab.utils.progress import track
from masklab.weights.checkpoint import read_notes, save_model
from masklab.weights.segmentation import check_network, initial_model
from masklab.weights.transfer import load_matching, load_start

TUNING_IMAGES = 30


def train(
    config: Config, data: str | Path | None = None, output: str | Path | None = None, resume: bool = False
) -> Predictor:
    """Train a model and return a `Predictor` of its best weights.

    ``data`` is a folder of any format that `masklab.datasets.open.open_split` finds, with the splits ``train`` and,
    to choose the best weights by, ``val``, which is drawn where there is none; the run is written to the folder
    ``output``: ``best.safetensors`` and ``last.safetensors`` (see `masklab.weights.checkpoint`), ``metrics.csv``,
    TensorBoard's events, and what `masklab.training.record.write_record` keeps.  Both default to the
    configuration's ``data`` and ``output``.  Fields that are "auto" are settled from the training split and
    stored settled.  At the end the score threshold of the best
    weights is tuned on training images and stored with them.  ``resume`` continues the run in
    ``output`` from its last checkpoint as if it had never stopped.  A new run begins with the weights that
    ``config.train.start_from`` names, as far as they fit (see `masklab.weights.transfer.load_matching`), and prints what does not.

    Raises `InputError` for data that cannot be used and `BrokenLossError` for a loss that is not finite.
    """
    folder, run = required(data or config.data, "--data"), required(output or config.output, "--output")
    # a checkpoint replaces whatever weights a run began with, and they may be gone by then
    load_pretrained = config.train.start_from is None and not (resume and (run / CHECKPOINT).is_file())
    check_network(config.model, load_pretrained)
    train_split = open_split(folder, "train")
    val_split = open_split(folder, "val", train_split.categories)
    processes = launched(config.train)
    start = open_run(run, resume, processes.first)
    if processes.first:
        print(train_split.summary())
    config = resolve_auto(config, train_split)
    other = load_start(config) if start.checkpoint is None else None
    config = resolve_batch_size(config, train_split, run, start, processes)
    torch.manual_seed(config.train.seed)
    model = initial_model(config, train_split.categories, load_pretrained)
    model = model.to(memory_format=torch.channels_last)
    if other is not None:
        kept = load_matching(model, other)
        if processes.first:
            but = f" but {', '.join(kept)}" if kept else ""
            print(f"train.start_from {config.train.start_from}: all layers are taken over{but}")
    module = TrainingModule(model, val_split)
    saver = WeightsSaver(run, "mask_AP", partial(save_model, module.evaluated), config.train)
    batches = train_loader(train_split, config, start.step, processes.share)
    fit(module, config, saver, batches, {"train": train_split, "val": val_split}, start, processes)
    return _tune(run, train_split) if processes.first else load(run)


def fit(
    module: BaseModule,
    config: Config,
    saver: WeightsSaver,
    batches: DataLoader[Any],
    splits: dict[str, Split],
    start: Start,
    processes: Processes,
) -> None:
    """Run ``batches`` through a module as ``config.train`` says, in the run folder of ``saver``.

    It is validated on the images of ``splits["val"]``, one at a time, each by one of the ``processes``.

    Raises `InputError` for settings that the machine cannot have, and `KeyboardInterrupt` when it is told to stop.
    """
    run, settings, val = saver.run, config.train, splits["val"]
    if not len(val):
        raise InputError(f"{val.json_path} has no images to choose the best weights by: add some, or leave val out.")
    device = default_device().type
    check_precision(settings.precision, device, "train.precision")
    if processes.first:
        write_record(run, config, splits, saver.checkpoint, start.step, processes.total)
    in_terminal = sys.stdout.isatty() and processes.first
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = pl.Trainer(
        accelerator=device,
        devices=processes.devices,
        num_nodes=processes.nodes,
        strategy=Together() if processes.total > 1 else "auto",
        plugins=[
            launcher(),
            *([ScaledGradients("16-mixed", device, module.scaler)] if settings.precision == "fp16" else []),
        ],
        use_distributed_sampler=False,
        default_root_dir=run,
        max_steps=settings.steps,
        val_check_interval=min(settings.validate_every, settings.steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every,
        logger=False,
        callbacks=[
            RunLog(run, settings.log_every),  # before the checkpoint, which is about what is in the log
            saver,
            *([ProgressBar() if in_terminal else ProgressLines()] if processes.first else []),
        ],
        enable_progress_bar=in_terminal,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    if (trainer.global_rank, trainer.world_size) != processes.share:
        raise InputError("this launcher's processes are not understood: start them with torchrun.")
    chosen = range(min(len(val), settings.validate_images or len(val)))[processes.rank :: processes.total]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # on its own use of torch, and on this folder and machine
        try:
            trainer.fit(
                module,
                batches,
                DataLoader(ValidationImages(val, config.model.backbone.channels), sampler=chosen, batch_size=None),
                ckpt_path=start.checkpoint,
                weights_only=True,
            )
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt(
                f"stopped after step {trainer.global_step}: resume {run} to go on from its last checkpoint."
            ) from None


class ScaledGradients(MixedPrecision):
    """Gradients scaled for fp16; where it is computed in is `masklab.utils.device.autocast`'s to say."""

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast(self.device, enabled=False)


def _tune(run: Path, split: Split) -> Predictor:
    """Tune the score threshold of the best weights."""
    predictor = load(run)
    predictor.model.score_threshold = tune_threshold(
        lambda image: predictor.predict(image.path).to_coco(image.image_id), split
    )
    save_model(predictor.model, run / "best.safetensors", read_notes(run))
    return predictor


def tune_threshold(find: Callable[[ImageRecord], list[dict[str, Any]]], split: Split) -> float:
    """The best score threshold on training images, spread over the split; ``find`` gives the COCO results of one."""
    chosen = split.evenly_spaced(TUNING_IMAGES)
    results: list[dict[str, Any]] = []
    for image in track(chosen, "tuning the score threshold"):
        results += find(image)
    return tune_score_threshold(overlaps(split.truth_of(chosen), results))


def required(folder: str | Path | None, option: str) -> Path:
    """The folder as a path; `InputError` naming the ``option`` if there is none."""
    if folder is None:
        raise InputError(f"training needs a folder: give {option} DIR.")
    return Path(folder)
