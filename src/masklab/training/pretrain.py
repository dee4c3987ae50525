"""Pretraining on semantic segmentation (paper, section 4.2 and Table 6, "Seg").

N images, K classes, background the last of K + 1, H x W pixels.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masklab.config.schema import Config
from masklab.datasets.open import open_split
from masklab.datasets.source import Data
from masklab.images.resize import network_image
from masklab.model.segmentation import SegmentationNetwork, build_segmentation
from masklab.ops.coordinates import pixel_positions
from masklab.ops.crop import crop_and_resize
from masklab.ops.rois import Rois
from masklab.training.auto import resolve_image_fields
from masklab.training.clock import with_plan_of
from masklab.training.data.loader import pad_images
from masklab.training.data.semantic import IGNORED, MOST_CLASSES, SemanticBatch, rasterize, semantic_loader
from masklab.training.distributed import all_reduce_sum, build_fabric
from masklab.training.judge import judge_data
from masklab.training.loop import fit
from masklab.training.resume import data_and_run, open_run
from masklab.training.task import Task
from masklab.utils.device import autocast
from masklab.utils.errors import InputError
from masklab.weights.segmentation import SEGMENTATION_FORMAT, save_segmentation
from masklab.weights.tensors import read_tensors

CHECKPOINT = "pretrain.ckpt"
VALUES_AT_ONCE = 1 << 24  # logits at the image's own size that are held in memory at a time

_log = logging.getLogger(__name__)


def pretrain(config: Config, data: Data | None = None, output: str | Path | None = None, resume: bool = False) -> Path:
    """Train a configuration's backbone and conv5 to classify each pixel; returns the file of the best weights.

    ``data`` is a data set folder with the splits ``train`` and ``val``, whose objects are rasterized to class maps
    (`masklab.training.data.semantic.rasterize`).  The run is written to the folder ``output`` as by
    `masklab.training.train.train`; ``best.safetensors`` has the highest mean IoU on ``val`` and is the file to name as
    ``model.backbone.segmentation_weights``.  The sections ``image`` and ``train`` of the configuration apply
    unchanged; of ``model``, the backbone and ``mask.dilations``.

    Raises `InputError`, `BrokenLossError` and `MachineError` as `masklab.training.train.train` does.
    """
    source, run = data_and_run(config, data, output)
    if config.train.start_from is not None:
        raise InputError(
            f"train.start_from is {config.train.start_from} but pretraining starts from ImageNet's weights or none: leave it out."
        )
    train_split = open_split(source, "train")
    classes = train_split.categories
    if len(classes) > MOST_CLASSES:
        raise InputError(
            f"{train_split.json_path} has {len(classes)} categories but pretraining takes at most {MOST_CLASSES}: merge some."
        )
    val_split = open_split(source, "val", classes)
    fabric = build_fabric(config.train)
    with open_run(run, resume, fabric.is_global_zero, CHECKPOINT) as start:
        if fabric.is_global_zero:
            _log.info(train_split.summary())
        config = resolve_image_fields(config, train_split)
        if start.checkpoint is None:
            judge_data(train_split, val_split, config.image, fabric.is_global_zero)
        if start.checkpoint is not None:
            config = with_plan_of(run, config)
        torch.manual_seed(config.train.seed)
        network = build_segmentation(config.model, len(classes), start.checkpoint is None).to(
            memory_format=torch.channels_last
        )
        batches = semantic_loader(train_split, config, start.step, (fabric.global_rank, fabric.world_size))
        fit(fabric, SegmentationTask(network, config, val_split), batches, train_split, run, start, CHECKPOINT)
        best = run / "best.safetensors"
        if fabric.is_global_zero:
            _report(best)
    return best


class SegmentationTask(Task):
    """A `SegmentationNetwork`, validated by IoU at each image's own size.

    The loss of a batch in parts, or of several processes, is the mean of theirs, whatever each knows of its pixels.
    """

    figure = "mean_IoU"

    def losses(self, batch: SemanticBatch, first: int) -> dict[str, Tensor]:
        logits = self.network(batch.images.contiguous(memory_format=torch.channels_last))
        return {"segmentation": pixel_loss(logits, batch.labels)}

    def validate(self, network: SegmentationNetwork, indices: Sequence[int]) -> dict[str, float]:
        names = (*self.val.categories.names, "background")
        device = next(network.parameters()).device
        counts = torch.zeros(len(names), len(names), dtype=torch.long, device=device)
        for index in indices:
            image = torch.from_numpy(self.val.read(index, self.config.model.backbone.channels))
            wanted = torch.from_numpy(rasterize(self.val.objects(index), len(names) - 1)).to(device)
            counts += confusion(class_map(network, image, self.config), wanted, len(names))
        iou, accuracy = segmentation_scores(all_reduce_sum(counts).cpu())
        self.class_iou = dict(zip(names, iou.tolist(), strict=True))
        return {
            **{f"IoU/{name}": value for name, value in self.class_iou.items()},
            "val/mean_IoU": iou.nanmean().item(),
            "val/pixel_accuracy": float(accuracy),
        }

    def save(self, network: SegmentationNetwork, path: Path, notes: dict[str, Any]) -> None:
        iou = {name: None if math.isnan(value) else round(value, 4) for name, value in self.class_iou.items()}
        save_segmentation(network, self.config.model.backbone, self.val.categories, path, notes | {"IoU": iou})


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy of logits (N, K + 1, h, w) against maps (N, H, W) uint8: the mean over known pixels.

    ``H`` and ``W`` are a multiple of the stride plus 1.  The loss of a batch without known pixels is 0.
    """
    # the outermost cells lie on the outermost pixels (`masklab.ops.coordinates`)
    dense = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
    total = F.cross_entropy(dense, labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


@torch.inference_mode()
def class_map(network: SegmentationNetwork, image: Tensor, config: Config) -> Tensor:
    """The most probable class (H, W) int64 of every pixel of an image (C, H, W), at the image's own size.

    ``network`` must be in evaluation mode.  Logits are interpolated some rows at a time, so that memory does not grow
    with the number of classes.
    """
    _, height, width = image.shape
    device = next(network.parameters()).device
    resized = network_image(image, config.image)
    images, _ = pad_images([resized], config.model.backbone.output_stride)
    with autocast(device, config.train.precision):
        logits = network(images.to(device, memory_format=torch.channels_last))
    scale = torch.tensor([resized.shape[2] / width, resized.shape[1] / height] * 2, device=device)
    step = max(1, VALUES_AT_ONCE // (width * logits.shape[1]))
    strips = []
    for top in range(0, height, step):
        bottom = min(top + step, height)
        # samples lie on a box's edges: here the centres of the strip's outermost pixels
        box = pixel_positions(torch.tensor([[0, top, width - 1, bottom - 1]], device=device)) * scale
        rois = Rois.from_pixels(
            box, torch.zeros(1, dtype=torch.long, device=device), (images.shape[2], images.shape[3])
        )
        strips.append(crop_and_resize(logits, rois, (bottom - top, width))[0].argmax(dim=0))
    return torch.cat(strips)


def confusion(found: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Number of pixels of each class (row) predicted as each class (column), (classes, classes) int64, without label 255."""
    known = labels != IGNORED
    pairs = labels[known].long() * classes + found[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def segmentation_scores(counts: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of each class (classes,) float64, NaN for one neither annotated nor predicted, and pixel accuracy."""
    right = counts.diagonal().double()
    return right / (counts.sum(dim=0) + counts.sum(dim=1) - right), right.sum() / counts.sum()


def _report(path: Path) -> None:
    notes = json.loads(read_tensors(path, (SEGMENTATION_FORMAT,), "pretrain")[0]["notes"])
    for name, value in notes["IoU"].items():
        _log.info(f"  {name:20} {'-' if value is None else f'{value:.3f}'}")
    figures = ", ".join(
        f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'}" for name, value in notes["val"].items()
    )
    _log.info(f"{path}: {figures} on val at step {notes['step']}; name it as --model.backbone.segmentation_weights")
