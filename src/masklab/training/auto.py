"""Configuration fields that are "auto", resolved from the training images and the GPU's memory."""

from __future__ import annotations

import gc
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masklab.config.fields import DEEP_PERCENTILES, resolved
from masklab.config.image import ImageConfig
from masklab.config.nested import flatten
from masklab.config.schema import Config
from masklab.datasets.split import Split
from masklab.datasets.statistics import measure, proposals_for
from masklab.images.intensity import rescale_intensity
from masklab.images.read import channels_and_dtype, read_sample
from masklab.model.build import build_model
from masklab.training.data.loader import InstanceDataset, collate
from masklab.training.gradients import BatchGradients
from masklab.training.optimizer import build_optimizer
from masklab.training.record import refuse_other_settings
from masklab.training.task import InstanceTask
from masklab.utils.errors import InputError
from masklab.utils.files import read_yaml
from masklab.utils.leftout import LeftOut
from masklab.utils.words import counted

_NUM_SAMPLED = 20  # images, evenly spaced over the split
_MIN_STD = 0.01  # of a channel that is almost constant
_MAX_MEMORY_USED = 0.9  # share of the GPU's memory: other images may be larger or have more objects

_log = logging.getLogger(__name__)


def resolve_image_fields(config: Config, split: Split, left: LeftOut | None = None) -> Config:
    """Resolve the fields that depend on the pixels of the training images, and log what they become.

    ``model.backbone.in_channels`` "auto" becomes 3 for grey and colour images.  For others it becomes their number of
    channels, and ``image.mean`` and ``std`` are measured.  If an image has more than 8 bits and neither
    ``image.value_range`` nor ``percentiles`` is set, percentiles become 0.1 and 99.9, as images seldom use the full
    range of 16 bits.  Twenty images evenly spaced over the split are read.

    Raises `InputError` for images that cannot be read, unless ``left`` takes them, and for images that differ in their
    number of channels.
    """
    backbone, rule = config.model.backbone, config.image
    formats: dict[Path, tuple[int, np.dtype[Any]]] = {}
    for image in split.evenly_spaced(_NUM_SAMPLED):
        with nullcontext() if left is None else left.skipping(image.path):
            formats[image.path] = channels_and_dtype(image.path)
    deep = [path for path, (_, dtype) in formats.items() if dtype not in (np.uint8, np.bool_)]
    if deep and rule.value_range is None and rule.percentiles is None:
        rule = rule.model_copy(update={"percentiles": DEEP_PERCENTILES})
        _log.info(f"image.percentiles {list(DEEP_PERCENTILES)}: {deep[0].name} holds {formats[deep[0]][1]}")
    if backbone.in_channels == "auto":
        channels = _common_channels({path: channels for path, (channels, _) in formats.items()})
        backbone = backbone.model_copy(update={"in_channels": channels})
        if channels != 3:
            mean, std = _moments(list(formats), channels, rule)
            rule = rule.model_copy(update={"mean": mean, "std": std})
            _log.info(f"model.backbone.in_channels {channels}, image.mean {mean}, image.std {std}")
    return config.model_copy(update={"image": rule, "model": config.model.model_copy(update={"backbone": backbone})})


def _common_channels(found: dict[Path, int]) -> int:
    """The number of channels of all images; grey ones count as colour."""
    wanted = {path: 3 if channels == 1 else channels for path, channels in found.items()}
    first = next(iter(wanted), None)
    for path, channels in wanted.items():
        if first is not None and channels != wanted[first]:
            raise InputError(
                f"{first} has {found[first]} channels but {path} has {found[path]}: convert one of them, "
                "or set model.backbone.in_channels to 1 or 3."
            )
    return 3 if first is None else wanted[first]


def _moments(paths: list[Path], channels: int, rule: ImageConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the images, whose intensities are rescaled to 0 to 1."""
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for path in paths:
        values = (
            rescale_intensity(torch.from_numpy(read_sample(path, channels)), rule, name=path).double().flatten(1) / 255
        )
        sums += torch.stack((values.mean(dim=1), values.square().mean(dim=1)))
    mean, square = sums / len(paths)
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=_MIN_STD)
    return [round(m, 4) for m in mean.tolist()], [round(s, 4) for s in std.tolist()]


def resolve_auto(config: Config, split: Split) -> Config:
    """Replace "auto" in the configuration by numbers measured on the training split, and log them.

    Fields that depend on the pixels alone are resolved by `resolve_image_fields`, ``train.batch_size`` by
    `resolve_batch_size`.  ``model.rpn.anchor_sizes`` and ``model.box.max_detections`` are those of `Statistics`;
    ``model.rpn.proposals_test`` is twice the detections, at least 300, and ``pre_nms_test`` is raised to at least
    twice that.  Raises `InputError` when anchors are to be measured on a split without objects.
    """
    config = resolve_image_fields(config, split)
    rpn, box = config.model.rpn, config.model.box
    if "auto" not in (rpn.anchor_sizes, rpn.proposals_test, box.max_detections):
        return config
    statistics = measure(split, config.image)
    if rpn.anchor_sizes == "auto":
        if statistics.anchor_sizes is None:
            raise InputError(
                f"model.rpn.anchor_sizes is auto but {split.json_path} holds no objects to take them from: "
                "give a list of sides in pixels."
            )
        rpn = rpn.model_copy(update={"anchor_sizes": statistics.anchor_sizes})
        _log.info(
            f"model.rpn.anchor_sizes {statistics.anchor_sizes} from the sizes of {counted(len(statistics.sides), 'object')}"
        )
    if box.max_detections == "auto":
        box = box.model_copy(update={"max_detections": statistics.max_detections})
        _log.info(
            f"model.box.max_detections {box.max_detections}: the fullest image has {counted(statistics.per_image.max(initial=0), 'object')}"
        )
    if rpn.proposals_test == "auto":
        proposals = proposals_for(resolved(box.max_detections, "model.box.max_detections"))
        before = max(rpn.pre_nms_test, 2 * proposals)
        rpn = rpn.model_copy(update={"proposals_test": proposals, "pre_nms_test": before})
        _log.info(f"model.rpn.proposals_test {proposals}, model.rpn.pre_nms_test {before}")
    return config.model_copy(update={"model": config.model.model_copy(update={"rpn": rpn, "box": box})})


def resolve_batch_size(config: Config, split: Split, resumed: Path | None, num_processes: int) -> Config:
    """Replace ``train.batch_size`` "auto" by the largest power of two of images that the GPU has memory for.

    It is found by doubling; a ``resumed`` run folder keeps the number that it was started with.  Raises `InputError`
    where there is not exactly one GPU to measure.
    """
    if config.train.batch_size != "auto":
        return config
    if resumed is not None:
        refuse_other_settings(resumed, config)
        written = resumed / "config.yaml"
        return _with_batch_size(config, flatten(read_yaml(written, written))["train.batch_size"])
    if not torch.cuda.is_available() or num_processes > 1:
        where = "several processes share it" if num_processes > 1 else "there is no CUDA GPU to measure"
        raise InputError(f"train.batch_size is auto but {where}: give a number.")
    size = 1
    while 2 * size <= len(split) and fits(_with_batch_size(config, 2 * size), split):
        size *= 2
    _log.info(f"train.batch_size: {size}")
    return _with_batch_size(config, size)


def fits(config: Config, split: Split) -> bool:
    """Whether two training steps on the largest images leave a tenth of the GPU's memory free."""
    torch.cuda.reset_peak_memory_stats()
    try:
        try_steps(config, split, torch.device("cuda"))
        total: int = torch.cuda.get_device_properties("cuda").total_memory
        return torch.cuda.max_memory_reserved() <= _MAX_MEMORY_USED * total
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def try_steps(config: Config, split: Split, device: torch.device) -> None:
    """Two training steps of a new model on the largest images: the first allocates the optimiser's state."""
    size: Any = config.train.batch_size
    largest = sorted(range(len(split)), key=lambda index: -split.images[index].size[0] * split.images[index].size[1])
    dataset, model = InstanceDataset(split, config), config.model
    samples = [dataset[index] for index in largest[:size]]
    batch = collate(samples, model.backbone.output_stride).to(device)
    network = build_model(config, split.categories, load_pretrained=False).to(device).train()
    gradients, optimizer = BatchGradients(InstanceTask(network, split), device), build_optimizer(network, config.train)
    for _ in range(2):
        optimizer.zero_grad()
        gradients.add(batch)
        optimizer.step()
    gradients.close()


def _with_batch_size(config: Config, size: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})
