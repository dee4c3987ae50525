"""Fields of the configuration that are "auto", resolved from the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from masklab.config.fields import resolved
from masklab.config.image import ImageConfig
from masklab.config.schema import Config
from masklab.datasets.split import Split
from masklab.datasets.statistics import measure, proposals_for
from masklab.images.intensity import rescale_intensity
from masklab.images.read import channels_and_dtype, read_sample
from masklab.utils.errors import InputError

LOOKED_AT = 20  # images, spread over the split
DEEP_PERCENTILES = (0.1, 99.9)
LEAST_STD = 0.01  # of a channel that is almost the same everywhere


def resolve_image_fields(config: Config, split: Split) -> Config:
    """Settle what the configuration leaves to the training images, and print it.

    ``model.backbone.in_channels`` "auto" becomes 3 for grey and colour images, and otherwise the images' own
    number, of which ``image.mean`` and ``std`` are then measured.  Where an image has more than 8 bits and neither
    ``image.value_range`` nor ``percentiles`` is set, percentiles become 0.1 and 99.9: the full range of 16 bits is
    seldom used.  Twenty images spread over the split are looked at.

    Raises `InputError` for images that cannot be read, or of which two have different numbers of channels.
    """
    backbone, rule = config.model.backbone, config.image
    paths = [image.path for image in split.evenly_spaced(LOOKED_AT)]
    formats = {path: channels_and_dtype(path) for path in paths}
    deep = [path for path, (_, dtype) in formats.items() if dtype not in (np.uint8, np.bool_)]
    if deep and rule.value_range is None and rule.percentiles is None:
        rule = rule.model_copy(update={"percentiles": DEEP_PERCENTILES})
        print(f"image.percentiles {list(DEEP_PERCENTILES)}: {deep[0].name} holds {formats[deep[0]][1]}")
    if backbone.in_channels == "auto":
        channels = _common_channels({path: channels for path, (channels, _) in formats.items()})
        backbone = backbone.model_copy(update={"in_channels": channels})
        if channels != 3:
            mean, std = _moments(paths, channels, rule)
            rule = rule.model_copy(update={"mean": mean, "std": std})
            print(f"model.backbone.in_channels {channels}, image.mean {mean}, image.std {std}")
    return config.model_copy(update={"image": rule, "model": config.model.model_copy(update={"backbone": backbone})})


def _common_channels(found: dict[Path, int]) -> int:
    """The number of channels of all images; grey ones are shown to a network of 3."""
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
    """Mean and standard deviation of each channel over the images, of brightness 0 to 1."""
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for path in paths:
        values = (
            rescale_intensity(torch.from_numpy(read_sample(path, channels)), rule, name=path).double().flatten(1) / 255
        )
        sums += torch.stack((values.mean(dim=1), values.square().mean(dim=1)))
    mean, square = sums / len(paths)
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST_STD)
    return [round(m, 4) for m in mean.tolist()], [round(s, 4) for s in std.tolist()]


def resolve_auto(config: Config, split: Split) -> Config:
    """Put numbers where the configuration says "auto", taken from the training split, and print them.

    What concerns the images alone is settled by `resolve_image_fields`.
    ``model.rpn.anchor_sizes`` and ``model.box.max_detections`` are those of `Statistics`; ``model.rpn.proposals_test``
    is twice the detections, at least 300, and ``pre_nms_test`` is raised to twice that where it is lower.  Raises
    `InputError` when anchors are to be taken from a split without objects.
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
        print(f"model.rpn.anchor_sizes {statistics.anchor_sizes} from the sizes of {len(statistics.sides)} objects")
    if box.max_detections == "auto":
        box = box.model_copy(update={"max_detections": statistics.max_detections})
        print(
            f"model.box.max_detections {box.max_detections}: the fullest image has {statistics.per_image.max(initial=0)} objects"
        )
    if rpn.proposals_test == "auto":
        proposals = proposals_for(resolved(box.max_detections, "model.box.max_detections"))
        before = max(rpn.pre_nms_test, 2 * proposals)
        rpn = rpn.model_copy(update={"proposals_test": proposals, "pre_nms_test": before})
        print(f"model.rpn.proposals_test {proposals}, model.rpn.pre_nms_test {before}")
    return config.model_copy(update={"model": config.model.model_copy(update={"rpn": rpn, "box": box})})
