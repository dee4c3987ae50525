"""Images and what is found in them, compared with what a model expects: intensities, colour, contrast, sizes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.images.intensity import (
    FULL_RANGE,
    channel_percentiles,
    is_grey,
    noise_of,
    rescale_intensity,
    sampling_step,
)
from masklab.structures import Looks, TrainingData
from masklab.utils.arrays import as_array, dtype_name
from masklab.utils.types import Box, Size

if TYPE_CHECKING:
    from torch import Tensor

    from masklab.images.reader import ImageReader

_log = logging.getLogger(__name__)

STRETCH = (0.1, 99.9)
"""Percentiles that `stretched` maps to black and white."""
_LEAST_USED = 1 / 12
"""Share of the expected range below which an image is dim: 8 bits of fluorescence seldom use less than a tenth, and 12 bits
in a file of 16 use a sixteenth."""
_MOST_USED = 4
"""Multiple of the expected range beyond which an image is bright."""
_SAMPLED = 1 << 16  # pixels of an image that are looked at
_MIDDLE, _MIDDLE_GREY = 1024, 127.5
_CONTRAST = (1.0, 99.8)
_LEAST_CONTRAST = 0.01  # quantile of the training images
_RARE = 0.01  # share of the training images below which a model does not know a kind
_USED = (0.01, 99.99)  # percentiles of the values between which an image's range is: a dead or a hot pixel is none


def stretched(image: Tensor | NDArray[Any], config: ImageConfig) -> ImageConfig:
    """The configuration with the range of an image ``(C, H, W)`` of any dtype that its percentiles 0.1 and 99.9 span.

    All channels have one range, so that colours stay.  A configuration that has percentiles already stays as it is.
    """
    if config.percentiles is not None:
        return config
    step = sampling_step((image.shape[1], image.shape[2]))
    low, high = channel_percentiles(as_array(image[:, ::step, ::step]).reshape(1, -1), STRETCH)
    return config.model_copy(update={"value_range": (low[0], high[0])})


class Appearance(NamedTuple):
    """How an image looks: whether it is nearly ``grey``, whether its ground is ``light``, and its ``contrast``.

    The ground is light if the median of what the network is given is above the middle of its range.  Contrast is the
    range from the 1st to the 99.8th percentile, in standard deviations of the noise between neighbouring pixels, and
    infinite for an image of one value.
    """

    grey: bool
    light: bool
    contrast: float


def appearance_of(image: Tensor | NDArray[Any], config: ImageConfig) -> Appearance:
    """The appearance of an image ``(C, H, W)`` of any dtype, or of its middle if it is large."""
    values = as_array(image)
    x1, y1, x2, y2 = middle((values.shape[1], values.shape[2]))
    part = values[:, y1:y2, x1:x2]
    grey = _nearly_grey(part)
    step = math.ceil(part[0].size / _SAMPLED)
    part = part[: 1 if grey else None, ::step]  # whole rows, for the noise between neighbours
    finite = np.nan_to_num(part) if part.dtype == np.float32 else part
    low, high = channel_percentiles(finite, _CONTRAST)
    spans = [
        (above - below) / noise_of(own)
        for own, below, above in zip(finite, low, high, strict=True)
        if own.min() < own.max()
    ]
    has_range = config.percentiles or config.value_range or finite.dtype != np.float32
    rule = config if has_range else stretched(finite, config)
    light = float(np.median(as_array(rescale_intensity(finite, rule)))) > _MIDDLE_GREY
    return Appearance(grey, light, max(spans, default=math.inf))


def _nearly_grey(part: NDArray[Any]) -> bool:
    """Whether the channels (C, h, w) differ by less than a fiftieth of the range, as those of a grey image kept as JPEG do."""
    if is_grey(part):
        return True
    values = np.nan_to_num(part.astype(np.float32))
    return bool((values.max(axis=0) - values.min(axis=0)).mean() < np.ptp(values) / 50 or np.ptp(values) == 0)


def middle(size: Size) -> Box:
    """The middle of an image of ``size``, 1,024 pixels a side at most, as a box xyxy."""
    top, left = (max(0, side - _MIDDLE) // 2 for side in size)
    return left, top, min(left + _MIDDLE, size[1]), min(top + _MIDDLE, size[0])


def looks_of(images: Iterable[Appearance]) -> Looks | None:
    """What a training set of such images looks like; None without images."""
    rows = list(images)
    if not rows:
        return None
    grey, light, contrasts = zip(*rows, strict=True)
    return Looks(float(np.mean(grey)), float(np.mean(light)), float(np.quantile(contrasts, _LEAST_CONTRAST)))


class _Example(NamedTuple):
    name: str
    used: tuple[float, float]
    expected: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"{self.name} has values from {self.used[0]:g} to {self.used[1]:g}, "
            f"and {self.expected[0]:g} to {self.expected[1]:g} is expected"
        )


class InputCheck:
    """Count of the images that are far from what a model expects, for one warning on all of a kind.

    An image is dim if it uses less than a twelfth of the range that becomes black to white, and bright if it reaches
    beyond four times that range.  Images of one value, and models that take percentiles, give no reason to warn of this.

    With ``known``, what the model was trained on, an image is also strange if it is grey, of colour, on a light or on a dark
    ground as hardly an image of the training was, even after its augmentation; if it has less than half of their least
    contrast; or if half of the objects found in it are smaller or larger than those of the training.
    """

    def __init__(self, config: ImageConfig, known: TrainingData | None = None) -> None:
        self._config, self._known = config, known
        self._images = 0
        self._found: dict[str, list[_Example]] = {}
        self._strange: dict[str, list[str]] = {}

    def add(self, image: Tensor | NDArray[Any], name: str | Path, is_sampled: bool = False) -> None:
        """Look at an image ``(C, H, W)`` uint8, uint16 or float32, or at evenly spaced pixels of one."""
        self._images += 1
        if self._known is not None and self._known.looks is not None:
            look = appearance_of(image, self._config)
            if is_sampled:  # pixels that lie apart differ by more than their noise
                look = look._replace(contrast=math.inf)
            for kind in self._unlike(look, self._known.looks):
                self._strange.setdefault(kind, []).append(str(name))
        if self._config.percentiles is not None:
            return
        black, white = self._config.value_range or FULL_RANGE[dtype_name(image)]
        low, high = _used(image)
        span = white - black
        if low == high:
            return
        if min(high, white) - max(low, black) < span * _LEAST_USED:
            kind = "use less than a twelfth of the intensity range that the model expects"
        elif high > black + _MOST_USED * span or low < white - _MOST_USED * span:
            kind = "reach far beyond the intensity range that the model expects"
        else:
            return
        self._found.setdefault(kind, []).append(_Example(str(name), (low, high), (black, white)))

    def add_overview(self, image: ImageReader, name: str | Path) -> None:
        """Look at an image that is open, at about a million of its pixels."""
        values = image.overview()
        self.add(values, name, is_sampled=values.shape[1:] != image.size)

    def add_boxes(self, boxes: NDArray[Any], size: Size, name: str | Path) -> None:
        """Look at the boxes ``(n, 4)`` xyxy of what was found in an image of ``size``, in its pixels."""
        if self._known is None or not len(boxes):
            return
        # a model with one input size sees objects as large as the image is
        factor = 1.0 if self._config.scale is not None else max(size) / max(self._known.image_size)
        low, high = self._known.smallest_object * factor, self._known.largest_object * factor
        side = float(np.median(np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1))))
        if side < low or side > high:
            kind = f"hold objects of a size that the model does not know ({low:.3g} to {high:.3g} pixels are those of its training)"
            self._strange.setdefault(kind, []).append(f"{name}: {side:.3g} pixels")

    def _unlike(self, look: Appearance, known: Looks) -> Iterator[str]:
        """How an image differs from those of the training."""
        augment = self._config.augment
        if look.grey and known.grey < _RARE and not augment.grey:
            yield "are grey, and the model was trained on colour images"
        if not look.grey and known.grey > 1 - _RARE and not augment.tint:
            yield "are of colour, and the model was trained on grey images"
        if look.light and known.light < _RARE and not augment.invert:
            yield "have a light ground, and the model was trained on images with a dark one"
        if not look.light and known.light > 1 - _RARE and not augment.invert:
            yield "have a dark ground, and the model was trained on images with a light one"
        if look.contrast < known.contrast / 2:
            yield "have less than half of the contrast that the model knows, over their noise"

    def of(self, name: str | Path) -> InputCheck:
        """This check for an image whose name is known, whatever its callers call it."""
        return _Named(self, name)

    def join(self, other: InputCheck) -> None:
        """Count the images of another check, such as that of another process, as well."""
        self._images += other._images
        for kind, examples in other._found.items():
            self._found.setdefault(kind, []).extend(examples)
        for kind, names in other._strange.items():
            self._strange.setdefault(kind, []).extend(names)

    def messages(self) -> list[str]:
        """One sentence for each kind of image that was found."""
        return [
            f"{len(examples)} of {self._images} images {kind} ({examples[0]}): objects may be missed; stretch each image "
            'with --intensity percentiles, in Python PredictionOptions(intensity="percentiles").'
            for kind, examples in self._found.items()
        ] + [
            f"{len(names)} of {self._images} images {kind} (such as {names[0]}): look at the results before you trust them; "
            "rescale such images, or train on some of them."
            for kind, names in self._strange.items()
        ]

    def warn(self) -> bool:
        """Log the messages; returns whether there are any."""
        for message in self.messages():
            _log.warning("%s", message)
        return bool(self._found or self._strange)


class _Named(InputCheck):
    """A check that hands on what it is told of one image, under the image's name."""

    def __init__(self, all_images: InputCheck, name: str | Path) -> None:
        self._all, self._name = all_images, name

    def add(self, image: Tensor | NDArray[Any], name: str | Path, is_sampled: bool = False) -> None:
        self._all.add(image, self._name, is_sampled)

    def add_boxes(self, boxes: NDArray[Any], size: Size, name: str | Path) -> None:
        self._all.add_boxes(boxes, size, self._name)


def _used(image: Tensor | NDArray[Any]) -> tuple[float, float]:
    """The range of an image's finite values without the outermost; of about 65,000 pixels."""
    step = max(1, math.ceil(math.sqrt(image.shape[1] * image.shape[2] / _SAMPLED)))
    values = as_array(image[:, ::step, ::step]).reshape(-1)
    finite = values[np.isfinite(values)] if values.dtype == np.float32 else values
    low, high = np.percentile(finite, _USED).tolist() if finite.size else (0.0, 0.0)
    return low, high
