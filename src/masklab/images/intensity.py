"""Intensity: which numbers of an image are black and white, and its normalisation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklab.config.image import ImageConfig
from masklab.utils.errors import InputError
from masklab.utils.types import Size

FULL_RANGE = {torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0), torch.float32: (0.0, 1.0)}
SLACK = 1e-3  # beyond 0 and 1, where rounding may have left a float
SAMPLE = 1 << 20  # pixels of an image that its percentiles are taken from, at most
IntensityRange = tuple[list[float], list[float]]
"""For each channel, the number that becomes black and the one that becomes white."""


def is_grey(image: NDArray[Any]) -> bool:
    """Whether all channels of an image (C, H, W) are equal."""
    return bool(np.array_equal(image[1:], image[:-1]))


def rescale_intensity(
    image: Tensor, config: ImageConfig, range_: IntensityRange | None = None, name: str | Path = "the image"
) -> Tensor:
    """The numbers of an image ``(C, H, W)`` uint8, uint16 or float32 as brightness from 0, black, to 255, white.

    ``config.value_range`` or ``config.percentiles`` say which numbers are black and white, or else the whole range
    of the type does; numbers beyond become black or white.  uint8 stays as it is where its whole range counts, and
    everything else becomes float32.  ``range_`` are the `intensity_range` of the image that this one is a part of.
    Training, prediction and figures all come through here.

    Raises `InputError` naming the image for floats beyond 0 to 1 of which the configuration does not say more.
    """
    if image.dtype == torch.uint8 and config.value_range is None and config.percentiles is None:
        return image
    values = image.to(torch.float32, copy=True)
    if config.percentiles is not None:
        low, high = range_ or intensity_range(image, config.percentiles)
    else:
        black, white = config.value_range or FULL_RANGE[image.dtype]
        if config.value_range is None and image.dtype == torch.float32:
            _check_unit_range(image, name)
        low, high = [black], [white]
    first, last = (torch.tensor(side, device=values.device).view(-1, 1, 1) for side in (low, high))
    return values.sub_(first).mul_(255 / (last - first)).nan_to_num_(0, 255, 0).clamp_(0, 255)


def intensity_range(image: Tensor, percentiles: tuple[float, float]) -> IntensityRange:
    """The numbers at two percentiles of each channel of an image ``(C, H, W)``.

    About a million pixels at most are looked at, evenly spread; those that are not finite are left out.
    """
    step = sampling_step((image.shape[1], image.shape[2]))
    return channel_percentiles(image[:, ::step, ::step].cpu().numpy(), percentiles)


def sampling_step(size: Size) -> int:
    """Every how many pixels, down and across, an image of a size is looked at."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / SAMPLE)))


def channel_percentiles(sample: NDArray[Any], percentiles: tuple[float, float]) -> IntensityRange:
    low, high = [], []
    for channel in sample.reshape(len(sample), -1):
        finite = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
        black, white = np.percentile(finite, percentiles).tolist() if finite.size else (0.0, 1.0)
        if white <= black:  # almost all the same: what little there is counts
            black, white = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        low.append(black)
        high.append(white if white > black else black + 1)
    return low, high


def _check_unit_range(image: Tensor, name: str | Path) -> None:
    least, most = image.nan_to_num(0).aminmax()
    if least < -SLACK or most > 1 + SLACK:
        raise InputError(
            f"{name} holds numbers from {least:g} to {most:g} where floats from 0 to 1 are expected: scale them, "
            "or train with image.value_range or image.percentiles."
        )


def displayed(values: NDArray[Any], config: ImageConfig, name: str | Path = "the image") -> NDArray[np.uint8]:
    """An image ``(C, H, W)`` of any depth as ``(3, H, W)`` uint8 to look at: its first three channels, or the first as grey.

    Raises `InputError` as `rescale_intensity` does.
    """
    shown = rescale_intensity(torch.from_numpy(values), config, name=name)
    shown = shown[:3] if len(shown) >= 3 else shown[:1].expand(3, -1, -1)
    return (shown if shown.dtype == torch.uint8 else shown.round().to(torch.uint8)).numpy()


def normalise(image: Tensor, config: ImageConfig) -> Tensor:
    """``(C, H, W)`` of `rescale_intensity` 0 to 255 to float32 of mean 0 and deviation 1, by the configured mean and std."""
    mean = torch.tensor(config.mean, device=image.device).view(-1, 1, 1) * 255
    std = torch.tensor(config.std, device=image.device).view(-1, 1, 1) * 255
    return image.to(torch.float32, copy=True).sub_(mean).div_(std)
