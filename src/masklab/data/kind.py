"""What kind of pictures a split holds: their channels and their depth, for what a recipe leaves to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from masklab.config import Config, PictureConfig
from masklab.data.coco import CocoSplit
from masklab.errors import InputError
from masklab.pictures import brightness, picture_kind, read_sample

LOOKED_AT = 20  # pictures, spread over the split
DEEP_PERCENTILES = (0.1, 99.9)
LEAST_STD = 0.01  # of a channel that is almost the same everywhere


def resolve_pictures(config: Config, split: CocoSplit) -> Config:
    """Settle what the configuration leaves to the training pictures, and print it.

    ``model.backbone.in_channels`` "auto" becomes 3 for grey and colour pictures, and otherwise the pictures' own
    number, of which ``pictures.mean`` and ``std`` are then measured.  Where a picture has more than 8 bits and neither
    ``pictures.value_range`` nor ``percentiles`` is set, percentiles become 0.1 and 99.9: the full range of 16 bits is
    seldom used.  Twenty pictures spread over the split are looked at.

    Raises `InputError` for pictures that cannot be read, or of which two have different numbers of channels.
    """
    backbone, rule = config.model.backbone, config.pictures
    paths = [picture.path for picture in split.spread(LOOKED_AT)]
    kinds = {path: picture_kind(path) for path in paths}
    deep = [path for path, (_, dtype) in kinds.items() if dtype not in (np.uint8, np.bool_)]
    if deep and rule.value_range is None and rule.percentiles is None:
        rule = rule.model_copy(update={"percentiles": DEEP_PERCENTILES})
        print(f"pictures.percentiles {list(DEEP_PERCENTILES)}: {deep[0].name} holds {kinds[deep[0]][1]}")
    if backbone.in_channels == "auto":
        channels = _common_channels({path: channels for path, (channels, _) in kinds.items()})
        backbone = backbone.model_copy(update={"in_channels": channels})
        if channels != 3:
            mean, std = _moments(paths, channels, rule)
            rule = rule.model_copy(update={"mean": mean, "std": std})
            print(f"model.backbone.in_channels {channels}, pictures.mean {mean}, pictures.std {std}")
    return config.model_copy(update={"pictures": rule, "model": config.model.model_copy(update={"backbone": backbone})})


def _common_channels(found: dict[Path, int]) -> int:
    """The number of channels of all pictures; grey ones are shown to a network of 3."""
    wanted = {path: 3 if channels == 1 else channels for path, channels in found.items()}
    first = next(iter(wanted), None)
    for path, channels in wanted.items():
        if first is not None and channels != wanted[first]:
            raise InputError(
                f"{first} has {found[first]} channels but {path} has {found[path]}: convert one of them, "
                "or set model.backbone.in_channels to 1 or 3."
            )
    return 3 if first is None else wanted[first]


def _moments(paths: list[Path], channels: int, rule: PictureConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the pictures, of brightness 0 to 1."""
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for path in paths:
        values = brightness(torch.from_numpy(read_sample(path, channels)), rule, name=path).double().flatten(1) / 255
        sums += torch.stack((values.mean(dim=1), values.square().mean(dim=1)))
    mean, square = sums / len(paths)
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST_STD)
    return [round(m, 4) for m in mean.tolist()], [round(s, 4) for s in std.tolist()]
