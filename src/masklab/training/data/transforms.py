"""Augmentation of images, and the geometry that maps their pixels to the source image.

Functions of ``torchvision.transforms.v2`` transform an image together with a `Geometry`, for which kernels are
registered here.  Objects are not transformed: their targets are made afterwards from their RLE masks and the
geometry (`masklab.training.data.targets.make_targets`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from masklab.config.image import AugmentConfig, ImageConfig
from masklab.images.resize import network_size, resize
from masklab.training.data.appearance import change_appearance
from masklab.utils.types import Box, Doubles, Size

T = TypeVar("T", bound=Tensor)

_MAX_ASPECT = 1.5  # of the paper's 800 x 1200, kept at every scale sampled


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
    return change_appearance(image, change, rng), geometry


def sample_window(
    source: Size, config: ImageConfig, rng: np.random.Generator, boxes: NDArray[Any] | None = None
) -> Window:
    """Sample scale, stretch and crop for an image of ``(height, width)``, which need not be read yet.

    ``boxes`` ``(N, 4)`` xyxy are those of its objects, for crops on one of them.
    """
    factor = 1.0
    if config.augment.min_sides is not None:
        side = int(rng.choice(config.augment.min_sides))
        config = config.model_copy(update={"min_side": side, "max_side": round(_MAX_ASPECT * side)})
    if config.augment.scale_jitter is not None:
        low, high = np.log(config.augment.scale_jitter)
        factor = float(np.exp(rng.uniform(low, high)))
    target = network_size(source, config, factor)
    if config.augment.aspect_jitter is not None:
        stretch = math.exp(rng.uniform(-0.5, 0.5) * math.log(config.augment.aspect_jitter))
        target = max(1, round(target[0] * stretch)), max(1, round(target[1] / stretch))
    if config.augment.crop_size is None:
        return Window(None, target)
    wanted = (min(target[0], config.augment.crop_size), min(target[1], config.augment.crop_size))
    height, width = (max(1, round(s * w / t)) for s, w, t in zip(source, wanted, target, strict=True))
    top, left = int(rng.integers(source[0] - height + 1)), int(rng.integers(source[1] - width + 1))
    if boxes is not None and len(boxes) and rng.random() < config.augment.crop_on_object:
        x1, y1, x2, y2 = boxes[rng.integers(len(boxes))].tolist()
        # the object's centre lies anywhere in the crop
        top = int(np.clip((y1 + y2) / 2 - rng.random() * height, 0, source[0] - height))
        left = int(np.clip((x1 + x2) / 2 - rng.random() * width, 0, source[1] - width))
    return Window((left, top, left + width, top + height), wanted)
