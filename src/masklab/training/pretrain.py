"""Pretraining on semantic segmentation (paper, section 4.2 and Table 6, "Seg").

N images, K classes, background the last of K + 1, H x W pixels.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masklab.config.schema import Config
from masklab.datasets.coco import CocoSplit
from masklab.datasets.open import open_split
from masklab.images.resize import network_image
from masklab.model.backbone import SEGMENTATION_FORMAT
from masklab.model.segmentation import SegmentationNetwork, build_segmentation, save_segmentation
from masklab.model.tensors import read_tensors
from masklab.ops.crop import crop_and_resize
from masklab.ops.rois import Rois
from masklab.training.auto import resolve_image_fields
from masklab.training.data.loader import pad_images
from masklab.training.data.semantic import IGNORED, MOST_CLASSES, SemanticBatch, rasterize, semantic_loader
from masklab.training.distributed import all_reduce_sum, launched
from masklab.training.fit import fit, required
from masklab.training.module import BaseModule
from masklab.training.resume import WeightsSaver, open_run
from masklab.utils.device import autocast
from masklab.utils.errors import InputError

CHECKPOINT = "pretrain.ckpt"
VALUES_AT_ONCE = 1 << 24  # logits at the image's own size that are held at a time


def pretrain(
    config: Config, data: str | Path | None = None, output: str | Path | None = None, resume: bool = False
) -> Path:
    """Train a configuration's backbone and conv5 to name the class of each pixel; returns the best weights' file.

    ``data`` is a data set folder with the splits ``train`` and ``val``, whose objects are painted into maps of
    classes (`masklab.training.data.semantic.paint`).  The run is written to the folder ``output`` as `masklab.training.fit.train`
    does; ``best.safetensors`` has the highest mean IoU on ``val`` and is what
    ``model.backbone.segmentation_weights`` names.  The sections ``images`` and ``train`` of the configuration
    apply as they stand; of ``model``, the backbone and ``mask.dilations``.

    Raises `InputError` for data that cannot be used and `BrokenLossError` for a loss that is not finite.
    """
    folder, run = required(data or config.data, "--data"), required(output or config.output, "--output")
    if config.train.start_from is not None:
        raise InputError(
            f"train.start_from is {config.train.start_from} but pretraining starts from ImageNet's weights or none: leave it out."
        )
    train_split = open_split(folder, "train")
    classes = train_split.categories
    if len(classes) > MOST_CLASSES:
        raise InputError(
            f"{train_split.json_path} has {len(classes)} categories but pretraining takes at most {MOST_CLASSES}: merge some."
        )
    val_split = open_split(folder, "val", classes)
    processes = launched(config.train)
    start = open_run(run, resume, processes.first, CHECKPOINT)
    if processes.first:
        print(train_split.summary())
    config = resolve_image_fields(config, train_split)
    torch.manual_seed(config.train.seed)
    network = build_segmentation(config.model, len(classes), start.checkpoint is None).to(
        memory_format=torch.channels_last
    )
    module = PretrainModule(network, config, val_split)

    def save(path: Path, notes: dict[str, Any]) -> None:
        save_segmentation(module.evaluated, config.model.backbone, classes, path, notes | {"IoU": module.class_iou})

    saver = WeightsSaver(run, "mean_IoU", save, config.train, CHECKPOINT)
    batches = semantic_loader(train_split, config, start.step, processes.share)
    fit(module, config, saver, batches, {"train": train_split, "val": val_split}, start, processes)
    best = run / "best.safetensors"
    if processes.first:
        _report(best)
    return best


class PretrainModule(BaseModule):
    """Trains a `SegmentationNetwork` and validates by IoU on ``val``, at each image's own size.

    The loss of a batch in parts, or of several processes, is the mean of theirs, whatever each knows of its pixels.
    """

    def __init__(self, network: SegmentationNetwork, config: Config, val: CocoSplit) -> None:
        super().__init__(network, config.train)
        self.network, self.config, self.val = network, config, val
        self.class_iou: dict[str, float | None] = {}
        self.counts: Tensor | None = None

    def trained(self) -> SegmentationNetwork:
        return self.network

    def losses(self, batch: SemanticBatch, first: int) -> dict[str, Tensor]:
        logits = self.network(batch.images.contiguous(memory_format=torch.channels_last))
        return {"segmentation": pixel_loss(logits, batch.labels)}

    def validation_step(self, batch: tuple[Tensor, int], number: int) -> None:
        image, index = batch
        classes = len(self.val.categories)
        wanted = torch.from_numpy(rasterize(self.val.objects(index), classes)).to(self.device)
        counts = confusion(label_map(self.evaluated, image, self.config), wanted, classes + 1)
        self.counts = counts if self.counts is None else self.counts + counts

    def on_validation_epoch_end(self) -> None:
        size = len(self.val.categories) + 1
        counts = torch.zeros(size, size, dtype=torch.long, device=self.device) if self.counts is None else self.counts
        self.counts = None
        iou, accuracy = segmentation_scores(all_reduce_sum(counts).cpu())
        for name, value in zip((*self.val.categories.names, "background"), iou.tolist(), strict=True):
            self.class_iou[name] = None if math.isnan(value) else round(value, 4)
            self.log(f"IoU/{name}", value)
        self.log("val/mean_IoU", iou.nanmean().item(), prog_bar=True)
        self.log("val/pixel_accuracy", float(accuracy))


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy of logits (N, K + 1, h, w) against maps (N, H, W) uint8: the mean over known pixels.

    The logits are brought to the pixels, cell ``i`` to pixel ``stride * i``; ``H`` and ``W`` are a multiple of
    the stride plus 1.  A batch in which nothing is known costs 0.
    """
    dense = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
    total = F.cross_entropy(dense, labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


@torch.inference_mode()
def label_map(network: SegmentationNetwork, image: Tensor, config: Config) -> Tensor:
    """The likeliest class (H, W) int64 of every pixel of an image (C, H, W), at the image's own size.

    ``network`` is in evaluation mode.  Logits are sampled some rows at a time, so that memory does not grow
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
        box = torch.tensor([[0.5, top + 0.5, width - 0.5, bottom - 0.5]], device=device) * scale
        rois = Rois.from_pixels(
            box, torch.zeros(1, dtype=torch.long, device=device), (images.shape[2], images.shape[3])
        )
        strips.append(crop_and_resize(logits, rois, (bottom - top, width))[0].argmax(dim=0))
    return torch.cat(strips)


def confusion(found: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many pixels of each class (row) were given each class (column): (classes, classes) int64; 255 is left out."""
    known = labels != IGNORED
    pairs = labels[known].long() * classes + found[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def segmentation_scores(counts: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of each class, float64, NaN for one neither there nor found, and the share of pixels that are right."""
    right = counts.diagonal().double()
    return right / (counts.sum(dim=0) + counts.sum(dim=1) - right), right.sum() / counts.sum()


def _report(path: Path) -> None:
    notes = json.loads(read_tensors(path, (SEGMENTATION_FORMAT,), "pretrain")[0]["notes"])
    for name, value in notes["IoU"].items():
        print(f"  {name:20} {'-' if value is None else f'{value:.3f}'}")
    figures = ", ".join(
        f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'}" for name, value in notes["val"].items()
    )
    print(f"{path}: {figures} on val at step {notes['step']}; name it as --model.backbone.segmentation_weights")
