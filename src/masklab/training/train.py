"""Training of an instance segmentation model: from a data folder to a run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from masklab.config.schema import Config
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.open import open_split
from masklab.datasets.source import Data
from masklab.datasets.split import Split
from masklab.datasets.statistics import training_data
from masklab.evaluation.matching import overlaps, tune_score_threshold
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor, load
from masklab.model.fixed_norm import freeze_norms
from masklab.model.masklab import MaskLab
from masklab.training.auto import resolve_auto, resolve_batch_size, resolve_image_fields
from masklab.training.clock import with_plan_of
from masklab.training.data.loader import train_loader
from masklab.training.distributed import build_fabric
from masklab.training.judge import judge_data
from masklab.training.loop import fit
from masklab.training.resume import CHECKPOINT, data_and_run, open_run
from masklab.training.task import InstanceTask
from masklab.utils.progress import track
from masklab.utils.words import counted
from masklab.weights.checkpoint import save_model
from masklab.weights.facts import read_notes
from masklab.weights.segmentation import check_network, initial_model
from masklab.weights.transfer import load_matching, load_start, norms_to_freeze

_NORM_IMAGES, _NORM_SIDE = 64, 256  # images, and pixels of a side, that frozen norms take their statistics from

_log = logging.getLogger(__name__)


def train(
    config: Config, data: Data | None = None, output: str | Path | None = None, resume: bool = False
) -> Predictor:
    """Train a model and return a `Predictor` of the best weights.

    ``data`` is a data set of any layout that `masklab.datasets.open.open_split` reads, with a split ``train`` and, to
    choose the best weights by, ``val``, which is split off where there is none.  The run is written to the folder
    ``output``: ``best.safetensors`` and ``last.safetensors`` (see `masklab.weights.checkpoint`), ``metrics.csv``,
    TensorBoard's events, and the files of `masklab.training.record.write_record`.  Both default to the
    configuration's ``data`` and ``output``.  Fields that are "auto" are resolved from the training split and stored
    resolved.  At the end the score threshold of the best weights is tuned on training images and stored with them.

    ``resume`` continues the run in ``output`` from its last checkpoint as if it had never stopped.  A new run starts
    from the weights that ``config.train.start_from`` names, as far as they fit (see
    `masklab.weights.transfer.load_matching`), and logs which layers do not.

    Before the first step the data are judged as a whole (see `masklab.training.judge.judge_data`).  Raises `InputError`
    for data that cannot be used and for a folder that another process trains in, `BrokenLossError` for a loss that is
    not finite, and `MachineError` for a full disk and other refusals of the machine.
    """
    source, run = data_and_run(config, data, output)
    # a checkpoint replaces the weights that a run started from, which may be gone by then
    load_pretrained = config.train.start_from is None and not (resume and (run / CHECKPOINT).is_file())
    check_network(config.model, load_pretrained)
    train_split = open_split(source, "train")
    val_split = open_split(source, "val", train_split.categories)
    fabric = build_fabric(config.train)
    with open_run(run, resume, fabric.is_global_zero) as start:
        if fabric.is_global_zero:
            _log.info(train_split.summary())
        config = resolve_image_fields(config, train_split)
        if start.checkpoint is None:
            judge_data(train_split, val_split, config.image, fabric.is_global_zero)
        config = resolve_auto(config, train_split)
        other = load_start(config) if start.checkpoint is None else None
        config = resolve_batch_size(config, train_split, None if start.checkpoint is None else run, fabric.world_size)
        if start.checkpoint is not None:
            config = with_plan_of(run, config)
        torch.manual_seed(config.train.seed)
        model = initial_model(config, train_split.categories, load_pretrained)
        model = model.to(memory_format=torch.channels_last)
        model.training_data = training_data(train_split, config)
        if other is not None:
            if norms_to_freeze(other, config):
                _freeze_norms(other, train_split)
            kept = load_matching(model, other)
            if fabric.is_global_zero:
                but = f" but {', '.join(kept)}" if kept else ""
                _log.info(f"train.start_from {config.train.start_from}: weights loaded for all layers{but}")
        if start.step >= config.train.steps and fabric.is_global_zero:
            _log.info(f"{run} has all of {counted(config.train.steps, 'step')} already")
        batches = train_loader(train_split, config, start.step, (fabric.global_rank, fabric.world_size))
        fit(fabric, InstanceTask(model, val_split), batches, train_split, run, start)
        return _tune(run, train_split) if fabric.is_global_zero else load(run)


def _freeze_norms(start: MaskLab, split: Split) -> None:
    """Freeze the group norms of a model with the statistics of training images, or of the middle of large ones."""
    predictor, side = Predictor(start, PredictionOptions(precision="float32")), _NORM_SIDE
    inputs = []
    for index in split.evenly_spaced_indices(_NORM_IMAGES):
        values = torch.from_numpy(split.read(index, start.config.model.backbone.channels))
        top, left = (max(0, (length - side) // 2) for length in values.shape[1:])
        inputs.append(predictor.network_input(values[:, top : top + side, left : left + side]))
    with predictor.inference():
        freeze_norms(start, inputs)


def _tune(run: Path, split: Split) -> Predictor:
    """Tune the score threshold of a run's best weights and store it with them."""
    best = run / "best.safetensors"
    predictor, notes = load(run), read_notes(run)
    _log.info(
        f"tuning the score threshold of the best weights on {min(InstanceTask.tuned_images, len(split))} training images"
    )
    channels = predictor.config.model.backbone.channels

    def predict(image: ImageRecord) -> list[dict[str, Any]]:
        return predictor.predict(split.read(split.images.index(image), channels)).to_coco(image.image_id)

    predictor.model.score_threshold = tune_threshold(predict, split)
    save_model(predictor.model, best, notes)
    figure = notes.get("val", {}).get(InstanceTask.figure)
    reached = "" if figure is None else f", {InstanceTask.figure} {figure:.3f} on val at step {notes['step']}"
    _log.info(f"{best}: score threshold {predictor.threshold:.2f}{reached}; name {run} as the model of other verbs")
    return predictor


def tune_threshold(predict: Callable[[ImageRecord], list[dict[str, Any]]], split: Split) -> float:
    """The best score threshold on images evenly spaced over a split; ``predict`` gives an image's COCO results."""
    chosen = split.evenly_spaced(InstanceTask.tuned_images)
    results: list[dict[str, Any]] = []
    for image in track(chosen, "tuning the score threshold"):
        results += predict(image)
    return tune_score_threshold(overlaps(split.truth_of(chosen), results))
