"""Intensity range of images: rescaling to 0 to 255, normalisation, and 8-bit images to display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.utils.arrays import Pixels, as_array, dtype_name, of_kind
from masklab.utils.errors import InputError
from masklab.utils.types import Size

FULL_RANGE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float32": (0.0, 1.0)}
"""The range of each dtype that an image may have, by its name."""
_ROUNDING = 1e-3  # floats may lie this far outside 0 to 1
_MAX_SAMPLED = 1 << 20  # pixels of an image that its percentiles are computed from
_BLOCKS = 12  # blocks along the longer side of an image that a robust range looks at
_BLOCK_PERCENTILES = (10, 90)
_CHANNEL_SHARE, _NOISE_SPAN = 8, 12
IntensityRange = tuple[list[float], list[float]]
"""For each channel the value that becomes black, and for each channel the value that becomes white."""


def is_grey(image: NDArray[Any]) -> bool:
    """Whether all channels of an image (C, H, W) are equal."""
    return bool(np.array_equal(image[1:], image[:-1]))


def rescale_intensity(
    image: Pixels, config: ImageConfig, range_: IntensityRange | None = None, name: str | Path = "the image"
) -> Pixels:
    """Rescale the values of an image ``(C, H, W)`` uint8, uint16 or float32, a tensor or an array, to 0 (black) to 255 (white).

    The intensity range is ``config.value_range``, or that of ``config.percentiles``, or else the full range of the
    dtype; values outside it become black or white.  uint8 of full range is returned as it is, everything else as
    float32.  Pass ``range_``, the `intensity_range` of the whole image, if ``image`` is a part of one.
    Training, prediction and figures all use this function.

    Raises `InputError` naming the image if floats lie outside 0 to 1 and the configuration sets no range.
    """
    if dtype_name(image) == "uint8" and config.value_range is None and config.percentiles is None:
        return image
    values = as_array(image).astype(np.float32)
    if config.percentiles is not None:
        low, high = range_ or intensity_range(image, config)
    else:
        black, white = config.value_range or FULL_RANGE[dtype_name(image)]
        if config.value_range is None and dtype_name(image) == "float32":
            _check_unit_range(values, name)
        low, high = [black], [white]
    first, last = (np.array(side, np.float32).reshape(-1, 1, 1) for side in (low, high))
    values -= first
    values *= 255 / (last - first)
    # what is no number becomes black: the larger of it and 0 is 0
    return of_kind(np.minimum(np.fmax(values, 0, out=values), 255, out=values), image)


def intensity_range(image: Pixels, config: ImageConfig) -> IntensityRange:
    """The values of each channel of an image ``(C, H, W)`` that become black and white by ``config.percentiles``.

    They are computed from about a million evenly spaced pixels at most; values that are not finite are left out.
    """
    step = sampling_step((image.shape[1], image.shape[2]))
    return sampled_range(as_array(image[:, ::step, ::step]), config)


def sampled_range(sample: NDArray[Any], config: ImageConfig) -> IntensityRange:
    """`intensity_range` of evenly spaced pixels ``(C, h, w)`` of an image."""
    own = sample[:1] if is_grey(sample) else sample
    low, high = channel_percentiles(own, config.percentiles or (0.0, 100.0))
    if config.robust_range:
        low, high = _widened(own, low, high)
    return low * (len(sample) // len(own)), high * (len(sample) // len(own))


def sampling_step(size: Size, most_pixels: int | None = None) -> int:
    """Distance in pixels, down and across, of the pixels sampled from an image of ``size``; a million by default."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / (most_pixels or _MAX_SAMPLED))))


def channel_percentiles(sample: NDArray[Any], percentiles: tuple[float, float]) -> IntensityRange:
    """`intensity_range` of pixels that have been sampled, ``(C, ...)``."""
    low, high = [], []
    for channel in sample.reshape(len(sample), -1):
        finite = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
        black, white = np.percentile(finite, percentiles).tolist() if finite.size else (0.0, 1.0)
        if white <= black:  # nearly all values are equal: take the full range of the rest
            black, white = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        low.append(black)
        high.append(white if white > black else black + 1)
    return low, high


def noise_of(channel: NDArray[Any]) -> float:
    """Standard deviation of the noise of a channel (h, w), from the median difference of neighbouring pixels.

    At least a hundredth of the smallest step between two values, as values that are rounded can differ by nothing.
    """
    steps = np.abs(np.diff(channel.astype(np.float32), axis=1)).ravel()
    if not steps.size or not steps.any():
        return 1e-2
    return max(float(np.median(steps)), float(steps[steps > 0].min()) / 100) / (0.6745 * math.sqrt(2))


def _widened(sample: NDArray[Any], low: list[float], high: list[float]) -> IntensityRange:
    """The range of each channel of ``sample`` (C, h, w), widened where it leaves out objects or holds noise alone.

    What a tenth of the darkest and of the brightest block of the image reaches stays inside, so that objects on mostly
    empty ground are kept.  No range is narrower than an eighth of the widest channel's, nor than 12 standard
    deviations of the noise between neighbouring pixels.  Lone hot or dead pixels change nothing.
    """
    noise = []
    for k, channel in enumerate(sample):
        values = channel.astype(np.float32)
        finite = np.isfinite(values)
        if not finite.all():
            values[~finite] = np.median(values[finite]) if finite.any() else 0
        dark, bright = np.percentile(_blocks(values), _BLOCK_PERCENTILES, axis=1)
        low[k], high[k] = min(low[k], float(dark.min())), max(high[k], float(bright.max()))
        noise.append(noise_of(values))
    widest = max(above - below for below, above in zip(low, high, strict=True))
    least = [max(widest / _CHANNEL_SHARE, _NOISE_SPAN * own) for own in noise]
    return low, [max(above, below + span) for below, above, span in zip(low, high, least, strict=True)]


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The square blocks of a channel (h, w), mirrored at its end to whole ones: (blocks, pixels)."""
    height, width = values.shape
    side = max(1, min(height, width, math.ceil(max(height, width) / _BLOCKS)))
    whole = np.pad(values, ((0, -height % side), (0, -width % side)), "symmetric")
    down, across = whole.shape[0] // side, whole.shape[1] // side
    return whole.reshape(down, side, across, side).swapaxes(1, 2).reshape(down * across, -1)


def _check_unit_range(values: NDArray[np.float32], name: str | Path) -> None:
    numbers = np.nan_to_num(values)
    least, most = numbers.min(), numbers.max()
    if least < -_ROUNDING or most > 1 + _ROUNDING:
        raise InputError(
            f"{name} holds numbers from {least:g} to {most:g} where floats from 0 to 1 are expected: scale them, "
            "predict with --intensity percentiles, or train with image.value_range or image.percentiles."
        )


def displayed(
    values: NDArray[Any], config: ImageConfig, name: str | Path = "the image", range_: IntensityRange | None = None
) -> NDArray[np.uint8]:
    """An image ``(C, H, W)`` of any depth as ``(3, H, W)`` uint8 to display: the first three channels, or the first as grey.

    Pass ``range_`` for a part of an image, and expect `InputError`, as for `rescale_intensity`.
    """
    return as_shown(rescale_intensity(values, config, range_, name))


def as_shown(rescaled: NDArray[Any]) -> NDArray[np.uint8]:
    """What `rescale_intensity` returns as ``(3, H, W)`` uint8: the first three channels, or the first as grey."""
    shown = rescaled[:3] if len(rescaled) >= 3 else np.repeat(rescaled[:1], 3, axis=0)
    return shown if shown.dtype == np.uint8 else shown.round().astype(np.uint8)


def normalise(image: Pixels, config: ImageConfig) -> Pixels:
    """Normalise an image ``(C, H, W)`` of values 0 to 255 by the configured mean and std, to float32."""
    mean, std = (np.array(side, np.float32).reshape(-1, 1, 1) * 255 for side in (config.mean, config.std))
    values = as_array(image).astype(np.float32)
    values -= mean
    values /= std
    return of_kind(values, image)
