"""Augmentation of images, and the geometry that maps their pixels to the source image.

Functions of ``torchvision.transforms.v2`` transform an image together with a `Geometry`, for which kernels are
registered here.  Objects are not transformed: their targets are made afterwards from their RLE masks and the
geometry (`masklab.training.data.targets.make_targets`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from masklab.config.image import AugmentConfig, ImageConfig
from masklab.images.intensity import is_grey
from masklab.images.resize import network_size, resize
from masklab.utils.errors import InputError
from masklab.utils.types import Box, Doubles, Size

T = TypeVar("T", bound=Tensor)

_MAX_ASPECT = 1.5  # of the paper's 800 x 1200, kept at every scale sampled
_ADJUST = {
    "saturation": (F.adjust_saturation, 1.0),
    "hue": (F.adjust_hue, 0.0),
    "brightness": (F.adjust_brightness, 1.0),
    "contrast": (F.adjust_contrast, 1.0),
}
"""torchvision's functions for colour, each with its neutral factor."""
_COLOURS = ("saturation", "hue")


class Geometry(tv_tensors.TVTensor):
    """Affine map from the pixels of a transformed image to its source.

    A 3 x 3 float64 matrix that maps a position ``(x, y, 1)`` in the output to one in the source, both in pixels
    (`masklab.ops.coordinates`); ``canvas_size`` and ``source_size`` are the output's and the source's
    ``(height, width)``.  Flips, quarter turns, resizing and cropping are supported; any other transform that moves
    pixels raises `TypeError`.
    """

    canvas_size: Size
    source_size: Size

    def __new__(cls, matrix: Any, canvas_size: Size, source_size: Size) -> Geometry:
        geometry = torch.as_tensor(matrix, dtype=torch.float64).as_subclass(cls)
        geometry.canvas_size = (int(canvas_size[0]), int(canvas_size[1]))
        geometry.source_size = (int(source_size[0]), int(source_size[1]))
        return geometry

    @classmethod
    def identity(cls, size: Size) -> Geometry:
        """The geometry of an image of ``(height, width)`` that is not transformed."""
        return cls(np.eye(3), size, size)

    def after(self, step: Any, canvas_size: Any) -> Geometry:
        """The geometry after one more step; the matrix ``step`` maps the step's output to its input."""
        return Geometry(self.matrix() @ np.asarray(step, np.float64), tuple(canvas_size), self.source_size)

    def matrix(self) -> Doubles:
        """The 3 x 3 matrix from output to source."""
        return self.as_subclass(Tensor).numpy()

    def axes_to_source(self, xs: Doubles, ys: Doubles) -> tuple[Doubles, Doubles, bool]:
        """Output columns and rows to source x and source y, and whether a quarter turn swapped them.

        If it did, source x depends on ``ys`` and source y on ``xs``.
        """
        (xx, xy, x0), (yx, yy, y0), _ = self.matrix()
        if xx:
            return xx * xs + x0, yy * ys + y0, False
        return xy * ys + x0, yx * xs + y0, True

    def boxes_to_output(self, boxes: NDArray[Any]) -> Doubles:
        """Boxes ``(N, 4)`` xyxy in the source to the output, clipped to it."""
        inverse = np.linalg.inv(self.matrix())
        corners = boxes.astype(np.float64).reshape(-1, 2, 2) @ inverse[:2, :2].T + inverse[:2, 2]
        height, width = self.canvas_size
        return _rounded(np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)).clip(
            0, (width, height, width, height)
        )

    def view(self) -> Doubles:
        """The visible part of the source, as a box ``(4,)`` xyxy inside the source."""
        height, width = self.canvas_size
        corners = np.array([[0, 0, 1], [width, height, 1]]) @ self.matrix().T[:, :2]
        high, wide = self.source_size
        return _rounded(np.concatenate((corners.min(axis=0), corners.max(axis=0)))).clip(0, (wide, high, wide, high))

    def magnification(self) -> float:
        """Output pixels per source pixel, by area."""
        return 1 / float(abs(np.linalg.det(self.matrix()[:2, :2])))


def _rounded(values: Doubles) -> Doubles:
    """Values with those within a millionth of an integer rounded to it, as matrix products are not exact."""
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) < 1e-6, nearest, values)


@v2.functional.register_kernel(F.horizontal_flip, Geometry)
def _horizontal_flip(geometry: Geometry) -> Geometry:
    return geometry.after([[-1, 0, geometry.canvas_size[1]], [0, 1, 0], [0, 0, 1]], geometry.canvas_size)


@v2.functional.register_kernel(F.vertical_flip, Geometry)
def _vertical_flip(geometry: Geometry) -> Geometry:
    return geometry.after([[1, 0, 0], [0, -1, geometry.canvas_size[0]], [0, 0, 1]], geometry.canvas_size)


@v2.functional.register_kernel(F.crop, Geometry)
def _crop(geometry: Geometry, top: int, left: int, height: int, width: int) -> Geometry:
    return geometry.after([[1, 0, left], [0, 1, top], [0, 0, 1]], (height, width))


@v2.functional.register_kernel(F.resize, Geometry)
def _resize(geometry: Geometry, size: Any, *_: Any, max_size: int | None = None, **__: Any) -> Geometry:
    old = geometry.canvas_size
    _, new = F.resize_bounding_boxes(torch.zeros(1, 4), old, size, max_size=max_size)
    return geometry.after(np.diag([old[1] / new[1], old[0] / new[0], 1]), new)


def _refuse(geometry: Geometry, *_: Any, **__: Any) -> Geometry:
    raise TypeError("a Geometry supports flips, quarter turns, resize and crop only; leave this transform out")


for _functional in (
    F.affine,
    F.rotate,
    F.perspective,
    F.elastic,
    F.pad,
    F.resized_crop,
    F.center_crop,
    F.five_crop,
    F.ten_crop,
):
    v2.functional.register_kernel(_functional, Geometry)(_refuse)


def quarter_turn(value: Any, turns: int) -> Any:
    """Rotate an image ``(..., H, W)`` or a `Geometry` counter-clockwise by ``turns`` times 90 degrees."""
    if not isinstance(value, Geometry):
        rotated = torch.rot90(value, turns, (-2, -1))
        return tv_tensors.wrap(rotated, like=value) if isinstance(value, tv_tensors.TVTensor) else rotated
    for _ in range(turns % 4):
        height, width = value.canvas_size
        value = value.after([[0, -1, width], [1, 0, 0], [0, 0, 1]], (width, height))
    return value


class Window(NamedTuple):
    """The part of an image in a training sample: ``box`` xyxy, None for all of it, and the size that it is resized to."""

    box: Box | None
    target: Size


def crop_to_box(value: T, box: Box) -> T:
    """Crop an image ``(C, H, W)`` or a `Geometry` to a box of whole pixels."""
    x1, y1, x2, y2 = box
    return F.crop(value, y1, x1, y2 - y1, x2 - x1)


def augment_window(
    image: Tensor, geometry: Geometry, target: Size, change: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Geometry]:
    """Resize the image of a window to ``target``, then flip, rotate and recolour it at random.

    Raises `InputError` for colour changes that need 3 channels if the image has another number.
    """
    image, geometry = resize(image, target), resize(geometry, target)
    if change.horizontal_flip and rng.random() < 0.5:
        image, geometry = F.horizontal_flip(image), F.horizontal_flip(geometry)
    if change.vertical_flip and rng.random() < 0.5:
        image, geometry = F.vertical_flip(image), F.vertical_flip(geometry)
    if change.quarter_turns:
        turns = int(rng.integers(4))
        image, geometry = quarter_turn(image, turns), quarter_turn(geometry, turns)
    return _recolour(image, change, rng), geometry


def sample_window(source: Size, config: ImageConfig, rng: np.random.Generator) -> Window:
    """Sample scale, jitter and crop for an image of ``(height, width)``, which need not be read yet."""
    factor = 1.0
    if config.augment.min_sides is not None:
        side = int(rng.choice(config.augment.min_sides))
        config = config.model_copy(update={"min_side": side, "max_side": round(_MAX_ASPECT * side)})
    if config.augment.scale_jitter is not None:
        low, high = np.log(config.augment.scale_jitter)
        factor = float(np.exp(rng.uniform(low, high)))
    target = network_size(source, config, factor)
    if config.augment.crop_size is None:
        return Window(None, target)
    wanted = (min(target[0], config.augment.crop_size), min(target[1], config.augment.crop_size))
    height, width = (max(1, round(s * w / t)) for s, w, t in zip(source, wanted, target, strict=True))
    top, left = int(rng.integers(source[0] - height + 1)), int(rng.integers(source[1] - width + 1))
    return Window((left, top, left + width, top + height), wanted)


def _recolour(image: Tensor, change: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Random changes of saturation, hue, brightness and contrast, and inversion, of values 0 to 255, uint8 or float32.

    With other than 1 or 3 channels, each channel is changed as a grey image, all in the same way.  Saturation and
    hue do not change a grey image.
    """
    is_uint8, channels = image.dtype == torch.uint8, image.shape[0]
    if channels != 3 and any(getattr(change, name) for name in _COLOURS):
        raise InputError(f"image.augment.saturation and hue need images of 3 channels, not {channels}; set both to 0.")
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
