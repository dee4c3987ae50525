"""The size at which the network sees an image, and resizing to it."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from masklab.config.image import ImageConfig
from masklab.images.intensity import normalise, rescale_intensity
from masklab.utils.types import Size

T = TypeVar("T", bound=Tensor)


def network_scale(size: Size, config: ImageConfig) -> float:
    """Factor from an image of ``(height, width)`` to the network's input.

    ``scale`` if it is set; otherwise the shortest side becomes ``min_side``, or the longest ``max_side``
    if it would be longer (the rule of the detector that the paper builds on, its section 4.1).
    """
    if config.scale is not None:
        return config.scale
    scale = config.min_side / min(size)
    return config.max_side / max(size) if max(size) * scale > config.max_side else scale


def network_size(size: Size, config: ImageConfig, factor: float = 1.0) -> Size:
    """``(height, width)`` of the network's input for an image of ``size``, ``factor`` times larger."""
    scale = network_scale(size, config) * factor
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def network_image(image: Tensor, config: ImageConfig, factor: float = 1.0) -> Tensor:
    """What the network sees of an image (C, H, W) of any depth, before padding: float32 at its `network_size`."""
    size = network_size((image.shape[1], image.shape[2]), config, factor)
    return normalise(resize(rescale_intensity(image, config), size), config)


def resize(inpt: T, size: Size) -> T:
    """An image ``(C, H, W)`` or a `masklab.training.data.transforms.Geometry` to ``size``, bilinear, with a wider kernel when shrinking."""
    return F.resize(inpt, list(size), antialias=True)
