"""Resizing of images to the network's input size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklab.config.fields import MOST_PIXELS
from masklab.config.image import ImageConfig
from masklab.images.intensity import normalise, rescale_intensity
from masklab.utils.arrays import Pixels
from masklab.utils.errors import InputError
from masklab.utils.types import Size

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", bound="Tensor | NDArray[Any]")


def _network_scale(size: Size, config: ImageConfig) -> float:
    """Factor from an image of ``(height, width)`` to the network's input.

    ``scale`` if it is set; otherwise the shortest side becomes ``min_side``, or the longest ``max_side``
    if it would be longer (the rule of the detector that the paper builds on, its section 4.1).
    """
    if config.scale is not None:
        return config.scale
    scale = config.min_side / min(size)
    return config.max_side / max(size) if max(size) * scale > config.max_side else scale


def network_size(size: Size, config: ImageConfig, factor: float = 1.0) -> Size:
    """``(height, width)`` of the network's input for an image of ``size``, scaled by a further ``factor``."""
    scale = _network_scale(size, config) * factor
    height, width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    if height * width > MOST_PIXELS**2:
        field = "min_side" if config.scale is None else "scale"
        raise InputError(
            f"an image of {size[1]} x {size[0]} pixels becomes {width} x {height} for the network: lower image.{field}, "
            "the scales of the prediction, or the size of the image."
        )
    return height, width


def network_image(image: Pixels, config: ImageConfig, factor: float = 1.0) -> Pixels:
    """The network's input, before padding, of an image (C, H, W) of any depth: rescaled, resized and normalised, float32."""
    size = network_size((image.shape[1], image.shape[2]), config, factor)
    return normalise(resize(rescale_intensity(image, config), size), config)


def resize(value: T, size: Size) -> T:
    """Resize an image ``(C, H, W)``, or a `Geometry` of the training data, to ``size``: bilinear, antialiased when shrinking.

    An image that is a uint8 or float32 array is resized by Pillow, which has torch's filter.
    """
    if isinstance(value, np.ndarray):
        return cast("T", _resize_array(value, size))
    import torch
    from torch.nn.functional import interpolate

    if type(value) is not torch.Tensor:
        from torchvision.transforms.v2 import functional as v2  # of the training data, which know torchvision anyway

        return v2.resize(value, list(size), antialias=True)
    if tuple(value.shape[1:]) == size:
        return value
    native = value.is_floating_point() or (value.dtype == torch.uint8 and value.device.type == "cpu")
    values = (value if native else value.float())[None]
    resized: Any = interpolate(values, size, mode="bilinear", align_corners=False, antialias=True)[0]
    return cast("T", resized if native else resized.round().to(value.dtype))


def _resize_array(values: NDArray[Any], size: Size) -> NDArray[Any]:
    if values.shape[1:] == size:
        return values
    channels = (Image.fromarray(channel).resize(size[::-1], Image.Resampling.BILINEAR) for channel in values)
    return np.stack([np.asarray(channel) for channel in channels])
