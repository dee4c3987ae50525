"""Augmentation of what pixels look like: colour, intensity, stains, sharpness and noise.

Nothing here moves a pixel; see `masklab.training.data.transforms` for what does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from masklab.config.image import AugmentConfig
from masklab.images.intensity import is_grey
from masklab.utils.errors import InputError

_ADJUST = {
    "saturation": (F.adjust_saturation, 1.0),
    "hue": (F.adjust_hue, 0.0),
    "brightness": (F.adjust_brightness, 1.0),
    "contrast": (F.adjust_contrast, 1.0),
}
"""torchvision's functions for colour, each with its neutral factor."""
_COLOURS = ("saturation", "hue")
_STAINING = ("stains", "grey", "tint")
_OTHER = ("gamma", "illumination", "blur", "sharpen", "noise")
_LIGHT = 0.5  # mean intensity above which a colour image counts as one on a light ground, such as stained tissue
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density in red, green and blue of haematoxylin, eosin and DAB (Ruifrok and Johnston, 2001)."""
_KERNEL = 3  # standard deviations on either side that a blur reaches
_DETAIL = 1.0  # pixels: standard deviation of the blur whose difference is strengthened by sharpening


def change_appearance(image: Tensor, change: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Random changes of colour and intensity, then of everything else that the configuration names.

    ``image`` is ``(C, H, W)``, 0 to 255, uint8 or float32; so is the result, float32 where more than colour, brightness,
    contrast and inversion are changed.  Raises `InputError` for changes of colour if the image has other than 3
    channels.
    """
    of_colour = [name for name in (*_COLOURS, *_STAINING) if getattr(change, name)]
    if of_colour and image.shape[0] != 3:
        raise InputError(
            f"image.augment.{' and '.join(of_colour)} {'needs' if len(of_colour) == 1 else 'need'} images of 3 channels, "
            f"not {image.shape[0]}; set {'it' if len(of_colour) == 1 else 'each'} to 0."
        )
    if set(of_colour) & set(_STAINING):
        image = _change_stains(image.float() / 255, change, rng) * 255
    image = _recolour(image, change, rng)
    if any(getattr(change, name) for name in _OTHER):
        image = _degrade(image.float() / 255, change, rng).clamp_(0, 1) * 255
    return image


def _recolour(image: Tensor, change: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Random changes of saturation, hue, brightness and contrast, and inversion, of values 0 to 255, uint8 or float32.

    With other than 1 or 3 channels, each channel is changed as a grey image, all in the same way.  Saturation and
    hue do not change a grey image.
    """
    is_uint8, channels = image.dtype == torch.uint8, image.shape[0]
    grey = is_grey(image.numpy())
    values = image if is_uint8 else image / 255
    values = values if channels in (1, 3) else values[:, None]
    for name, (adjust, neutral) in _ADJUST.items():
        reach = getattr(change, name)
        if reach:
            factor = rng.uniform(neutral - reach, neutral + reach)
            values = values if grey and name in _COLOURS else adjust(values, factor)
    if change.invert and rng.random() < change.invert:
        values = F.invert(values)
    values = values.view_as(image)
    return values if is_uint8 else values * 255


def _change_stains(image: Tensor, change: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Stains in other amounts, colour to grey, or grey to one colour, of an image (3, H, W) of values 0 to 1."""
    if is_grey(image.numpy()):
        return image * _weights(rng) if rng.random() < change.tint else image
    if change.stains and float(image.mean()) > _LIGHT:
        image = _remix(image, rng.uniform(1 - change.stains, 1 + change.stains, 3))
    if rng.random() < change.grey:
        weights = torch.from_numpy(rng.dirichlet(np.ones(3))).float()
        image = (image * weights[:, None, None]).sum(dim=0, keepdim=True).expand(3, -1, -1).contiguous()
    return image


def _weights(rng: np.random.Generator) -> Tensor:
    """A random colour (3, 1, 1) whose strongest channel is 1; every other time one channel alone is left."""
    colour = rng.random(3)
    colour = (colour == colour.max()) * 1.0 if rng.random() < 0.5 else colour / colour.max()
    return torch.from_numpy(colour).float()[:, None, None]


def _remix(image: Tensor, factors: Any) -> Tensor:
    """The image (3, H, W), 0 to 1, with the amounts of its three stains at each pixel multiplied by ``factors`` (3,)."""
    stains = torch.tensor(_STAINS, dtype=torch.float64)
    mixing = torch.linalg.inv(stains) @ torch.diag(torch.as_tensor(factors, dtype=torch.float64)) @ stains
    density = -torch.log(image.clamp(min=1 / 255))  # amounts of stain add up in optical density
    return torch.exp(-torch.einsum("chw,cd->dhw", density, mixing.float()))


def _degrade(image: Tensor, change: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Gamma, uneven illumination, blur or sharpening, and noise, of an image (C, H, W) of values 0 to 1."""
    if change.gamma:
        image = image.clamp(min=0) ** math.exp(rng.uniform(-change.gamma, change.gamma))
    if change.illumination:
        image = image * _shading((image.shape[1], image.shape[2]), change.illumination, rng)
    blurred = rng.random() < 0.5
    if blurred and change.blur:
        image = _blur(image, rng.uniform(0, change.blur))
    elif not blurred and change.sharpen and rng.random() < 0.5:
        image = image + (image - _blur(image, _DETAIL)) * rng.uniform(0, change.sharpen)
    if change.noise and rng.random() < 0.5:
        image = image + torch.from_numpy(
            rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, change.noise))
        )
    return image


def _shading(size: tuple[int, int], most: float, rng: np.random.Generator) -> Tensor:
    """Factors (H, W) that fall from 1 in a random direction, by a random share of at most ``most``."""
    angle, loss = rng.uniform(0, 2 * math.pi), rng.uniform(0, most)
    down, across = (torch.linspace(-0.5, 0.5, side) for side in size)
    ramp = down[:, None] * math.sin(angle) + across * math.cos(angle)
    reach = (abs(math.sin(angle)) + abs(math.cos(angle))) / 2
    return 1 - loss * (ramp / reach + 1) / 2


def _blur(image: Tensor, sigma: float) -> Tensor:
    if sigma < 0.1:  # narrower than a pixel sees
        return image
    reach = min(math.ceil(_KERNEL * sigma), (min(image.shape[1:]) - 1))
    return F.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2) if reach > 0 else image
