"""Intensities that an image uses, compared with those that a model expects."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.images.intensity import FULL_RANGE, channel_percentiles, sampling_step
from masklab.utils.arrays import as_array, dtype_name

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

STRETCH = (0.1, 99.9)
"""Percentiles that `stretched` maps to black and white."""
_LEAST_USED = 1 / 12
"""Share of the expected range below which an image is dim: 8 bits of fluorescence seldom use less than a tenth, and 12 bits
in a file of 16 use a sixteenth."""
_MOST_USED = 4
"""Multiple of the expected range beyond which an image is bright."""
_SAMPLED = 1 << 16  # pixels of an image that are looked at
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


class _Example(NamedTuple):
    name: str
    used: tuple[float, float]
    expected: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"{self.name} has values from {self.used[0]:g} to {self.used[1]:g}, "
            f"and {self.expected[0]:g} to {self.expected[1]:g} is expected"
        )


class IntensityCheck:
    """Count of the images whose intensities are far from what a model expects, for one warning on all of them.

    An image is dim if it uses less than a twelfth of the range that becomes black to white, and bright if it reaches
    beyond four times that range.  Images of one value, and models that take percentiles, give no reason to warn.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._images = 0
        self._found: dict[str, list[_Example]] = {}

    def add(self, image: Tensor | NDArray[Any], name: str | Path) -> None:
        """Look at an image ``(C, H, W)`` uint8, uint16 or float32."""
        self._images += 1
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

    def join(self, other: IntensityCheck) -> None:
        """Count the images of another check, such as that of another process, as well."""
        self._images += other._images
        for kind, examples in other._found.items():
            self._found.setdefault(kind, []).extend(examples)

    def messages(self) -> list[str]:
        """One sentence for each kind of image that was found."""
        return [
            f"{len(examples)} of {self._images} images {kind} ({examples[0]}): objects may be missed; stretch each image "
            'with --intensity percentiles, in Python PredictionOptions(intensity="percentiles").'
            for kind, examples in self._found.items()
        ]

    def warn(self) -> bool:
        """Log the messages; returns whether there are any."""
        for message in self.messages():
            _log.warning("%s", message)
        return bool(self._found)


def _used(image: Tensor | NDArray[Any]) -> tuple[float, float]:
    """The range of an image's finite values without the outermost; of about 65,000 pixels."""
    step = max(1, math.ceil(math.sqrt(image.shape[1] * image.shape[2] / _SAMPLED)))
    values = as_array(image[:, ::step, ::step]).reshape(-1)
    finite = values[np.isfinite(values)] if values.dtype == np.float32 else values
    low, high = np.percentile(finite, _USED).tolist() if finite.size else (0.0, 0.0)
    return low, high
