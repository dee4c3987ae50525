"""Windows of an image whose intensities are rescaled by the range of the whole image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.images.intensity import IntensityRange, as_shown, intensity_range, rescale_intensity
from masklab.images.reader import ImageReader
from masklab.utils.types import Box, Size


class ImageIntensities:
    """The intensities of an image that is read window by window; percentiles are those of its overview.

    ``rule`` says how they are rescaled; ``rule_of`` makes it from the overview ``(C, h, w)``.  ``range`` is what becomes
    black and white where the rule takes percentiles.  Raises `InputError`
    as `rescale_intensity` does.
    """

    def __init__(self, image: ImageReader, rule_of: Callable[[NDArray[Any]], ImageConfig]) -> None:
        self._image, self._name = image, image.path or "the image"
        overview = image.overview()
        self.rule = rule_of(overview)
        self.range: IntensityRange | None = None
        if self.rule.percentiles is not None:
            self.range = intensity_range(overview, self.rule)
        rescale_intensity(overview, self.rule, self.range, self._name)  # refused before anything is made of it

    @classmethod
    def known(cls, image: ImageReader, rule: ImageConfig, range: IntensityRange | None) -> ImageIntensities:
        """Those whose ``rule`` and ``range`` were found before, so that the image's overview is not read again."""
        intensities = cls.__new__(cls)
        intensities._image, intensities._name = image, image.path or "the image"
        intensities.rule, intensities.range = rule, range
        return intensities

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self._image.size

    def read(self, box: Box) -> NDArray[Any]:
        """The values ``(C, h, w)`` inside a box, 0 to 255: uint8 as they are, or float32."""
        values = np.ascontiguousarray(self._image.read(box))
        return rescale_intensity(values, self.rule, self.range, self._name)

    def shown(self) -> ShownImage:
        """The image as it is displayed."""
        return ShownImage(self)


class ShownImage:
    """An image of which windows ``(3, h, w)`` uint8 are read, to display."""

    def __init__(self, intensities: ImageIntensities) -> None:
        self._intensities, self.size = intensities, intensities.size

    def read(self, box: Box) -> NDArray[np.uint8]:
        """The pixels inside a box."""
        return as_shown(self._intensities.read(box))
