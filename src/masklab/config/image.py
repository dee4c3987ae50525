"""Configuration of how an image becomes the network's input, and of its augmentation."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from masklab.config.fields import MOST_PIXELS, Above0, Section

_Factor = Annotated[float, Field(gt=0, le=64)]


class AugmentConfig(Section):
    """Augmentation of training images."""

    horizontal_flip: bool = True
    """Flip left to right with probability one half."""
    vertical_flip: bool = False
    """Flip top to bottom with probability one half."""
    quarter_turns: bool = False
    """Rotate by 0, 90, 180 or 270 degrees, with equal probability."""
    min_sides: list[Annotated[int, Field(ge=1, le=MOST_PIXELS)]] | None = Field(None, min_length=1, max_length=1000)
    """Random scale ("RS" in the paper): values of min_side to choose from at random, each with a max_side of 1.5 times as much; null uses min_side and max_side below image."""
    scale_jitter: tuple[_Factor, _Factor] | None = None
    """Range of a further random scale factor, log-uniform between these two numbers; null has none."""
    crop_size: int | None = Field(None, ge=16, le=MOST_PIXELS)
    """Side of a random square crop in pixels of the network's input; null uses whole images."""
    crop_on_object: float = Field(0.0, ge=0, le=1)
    """Probability that a crop is placed on an object chosen at random; other crops lie anywhere."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Brightness jitter b: a random factor from 1 - b to 1 + b."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Contrast jitter c: a random factor from 1 - c to 1 + c."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Saturation jitter s: a random factor from 1 - s to 1 + s."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Hue jitter h: a random shift from -h to h, in turns of the colour circle."""
    invert: float = Field(0.0, ge=0, le=1)
    """Probability of inverting the intensities."""
    aspect_jitter: _Factor | None = Field(None, ge=1)
    """Largest factor by which images are stretched, either way; areas are kept. null stretches nothing."""
    gamma: float = Field(0.0, ge=0, le=4)
    """Gamma jitter g: intensities to the power of a random exponent, log-uniform from e^-g to e^g."""
    stains: float = Field(0.0, ge=0, lt=1)
    """Stain jitter s: colour images on a light ground are separated into haematoxylin, eosin and DAB, and each is multiplied by a random factor from 1 - s to 1 + s."""
    grey: float = Field(0.0, ge=0, le=1)
    """Probability of turning a colour image into a grey one, by random weights of its channels."""
    tint: float = Field(0.0, ge=0, le=1)
    """Probability of giving a grey image a random colour, as false-colour fluorescence has."""
    illumination: float = Field(0.0, ge=0, lt=1)
    """Uneven illumination: the largest share by which one side of an image loses intensity."""
    blur: float = Field(0.0, ge=0, le=64)
    """Largest standard deviation of a Gaussian blur, in pixels of the network's input; every other image is blurred."""
    sharpen: float = Field(0.0, ge=0, le=8)
    """Largest factor by which fine detail is strengthened, in half of the images that are not blurred."""
    noise: float = Field(0.0, ge=0, le=1)
    """Largest standard deviation of Gaussian noise, as a share of the intensity range; every other image gets some."""

    @model_validator(mode="after")
    def _scales(self) -> AugmentConfig:
        if self.scale_jitter is not None and self.scale_jitter[0] > self.scale_jitter[1]:
            raise ValueError(
                f"scale_jitter is {list(self.scale_jitter)} but must be two factors above 0, the smaller one first"
            )
        return self


class ImageConfig(Section):
    """Image preprocessing."""

    scale: _Factor | None = None
    """Fixed scale factor from the image to the network's input; null uses min_side and max_side."""
    min_side: int = Field(600, ge=1, le=MOST_PIXELS)
    """Length of the shorter side of the network's input, in pixels."""
    max_side: int = Field(1024, ge=1, le=MOST_PIXELS)
    """Maximum length of the longer side, in pixels; it takes precedence over min_side."""
    value_range: tuple[float, float] | None = None
    """Intensity range of the images that is mapped to 0..1, such as [0, 4095]; null is the full range of 8-bit or 16-bit images and 0 to 1 of floating-point images, unless percentiles is set."""
    percentiles: tuple[float, float] | None = None
    """Percentiles of each channel of each image that are mapped to 0..1, such as [0.1, 99.9], in place of value_range. If neither is set and the training images have more than 8 bits, training sets these."""
    robust_range: bool = False
    """Widen the range of percentiles where it would leave out objects on mostly empty ground or stretch noise alone, such as in an empty image or an unused colour channel."""
    mean: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = Field([0.485, 0.456, 0.406], max_length=4096)
    """Mean of each channel, with intensities scaled to 0..1."""
    std: list[Above0] = Field([0.229, 0.224, 0.225], max_length=4096)
    """Standard deviation of each channel, with intensities scaled to 0..1."""
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ImageConfig:
        if self.min_side > self.max_side:
            raise ValueError(
                f"min_side is {self.min_side} but must not be above max_side, {self.max_side}: change one of them"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel in both")
        if self.value_range is not None and self.percentiles is not None:
            raise ValueError("value_range and percentiles are both set: set one of them to null")
        if self.value_range is not None and not -math.inf < self.value_range[0] < self.value_range[1] < math.inf:
            raise ValueError(f"value_range is {list(self.value_range)} but must be two numbers, the smaller one first")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(
                f"percentiles is {list(self.percentiles)} but must be two from 0 to 100, the smaller one first"
            )
        if self.scale is not None and self.augment.min_sides is not None:
            raise ValueError(
                f"scale is {self.scale} but augment.min_sides chooses the scale in training: set one of them to null"
            )
        return self
