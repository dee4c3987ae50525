"""Images and boxes as callers give them, checked and turned into arrays or tensors.  Images need no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklab.images.intensity import FULL_RANGE
from masklab.images.read import from_pillow, read_image
from masklab.images.reader import ArrayReader, ImageReader, open_reader
from masklab.utils.arrays import dtype_name
from masklab.utils.errors import InputError
from masklab.utils.memory import available_memory
from masklab.utils.types import Size
from masklab.utils.words import counted

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor | ImageReader"
"""A file, a Pillow image of any mode, uint8, uint16 or float32 values ``(C, H, W)``, or an image that is open."""

_LEAST_BYTES = 100  # for each pixel of a network's input: of a ResNet-18, the smallest


def is_reader(image: ImageLike) -> TypeGuard[ImageReader]:
    """Whether an image is open already, to read windows of it."""
    return not isinstance(image, (str, Path, Image.Image, np.ndarray)) and hasattr(image, "overview")


def is_tensor(image: ImageLike) -> TypeGuard[Tensor]:
    """Whether an image is a tensor of torch."""
    return hasattr(image, "detach")


@contextmanager
def opened(image: ImageLike, channels: int) -> Iterator[ImageReader]:
    """An image as a reader of windows; only a file, or a folder of OME-Zarr, has a ``path``.  Errors as of `as_tensor`."""
    if is_reader(image):
        yield image
    elif isinstance(image, (str, Path)):
        with open_reader(image, channels) as reader:
            yield reader
    else:
        yield ArrayReader(as_pixels(image, channels))


def read_whole(image: ImageReader) -> np.ndarray:
    """All pixels ``(C, H, W)`` of an image that is open."""
    height, width = image.size
    return image.read((0, 0, width, height))


def check_boxes(
    boxes: np.ndarray | Tensor,
    labels: np.ndarray | Tensor | None,
    scores: np.ndarray | Tensor | None,
    num_classes: int,
    size: Size,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``(n, 4)`` clipped to an image of ``size``, labels ``(n,)`` and scores ``(n,)``, as tensors of the CPU.

    Without ``labels`` they are 0, for a model of one class; without ``scores`` 1.  Raises `InputError` unless each
    box has an area in the image, one of ``num_classes`` classes and a score from 0 to 1.
    """
    import torch

    from masklab.ops.boxes import clip

    corners = _as_floats(boxes, "boxes")
    if corners.numel() == 0:
        corners = corners.reshape(0, 4)
    if corners.dim() != 2 or corners.shape[1] != 4:
        raise InputError(
            f"boxes have shape {tuple(corners.shape)}: give (n, 4), x1, y1, x2, y2 in pixels of the image."
        )
    if labels is None and num_classes > 1:
        raise InputError(f"labels are missing and the model finds {num_classes} classes: give one per box.")
    count = len(corners)
    classes = torch.zeros(count) if labels is None else _as_floats(labels, "labels")
    probabilities = torch.ones(count) if scores is None else _as_floats(scores, "scores")
    for name, found in (("labels", classes), ("scores", probabilities)):
        if found.shape != (count,):
            raise InputError(
                f"boxes and {name} differ: {counted(count, 'box', 'boxes')} but {name} of shape {tuple(found.shape)}: give one per box."
            )
    if count and not (classes.min() >= 0 and classes.max() < num_classes and bool((classes == classes.floor()).all())):
        raise InputError(
            f"labels are from {classes.min():g} to {classes.max():g}: give whole numbers from 0 to {num_classes - 1}."
        )
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise InputError(
            f"scores are from {probabilities.min():g} to {probabilities.max():g}: give probabilities from 0 to 1."
        )
    clipped = clip(corners, torch.tensor(size))
    for what, fine, advice in (
        ("", corners.isfinite().all(dim=1) & (corners[:, 2:] > corners[:, :2]).all(dim=1), "x1 < x2 and y1 < y2"),
        (
            f", outside the image of {size[1]} x {size[0]} pixels",
            (clipped[:, 2:] > clipped[:, :2]).all(dim=1),
            "pixels of it",
        ),
    ):
        if not bool(fine.all()):
            row = int((~fine).nonzero()[0])
            raise InputError(f"box {row} is {corners[row].tolist()}{what}: give x1, y1, x2, y2 with {advice}.")
    return clipped, classes.long(), probabilities


def _as_floats(values: np.ndarray | Tensor, name: str) -> Tensor:
    import torch

    try:
        found = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values, np.float64))
    except (TypeError, ValueError):
        raise InputError(f"{name} are no array of numbers: give a NumPy array or a tensor.") from None
    return found.detach().to("cpu", torch.float32)


def check_room(size: Size, device_type: str = "cpu") -> None:
    """Raise `InputError` if a network's input of ``(height, width)`` takes more memory than a CPU has for it.

    The system would end the whole process, and with it the images that follow.
    """
    free = available_memory() if device_type == "cpu" else None
    needed = size[0] * size[1] * _LEAST_BYTES
    if free is not None and needed > free:
        raise InputError(
            f"an input of {size[1]} x {size[0]} pixels takes at least {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            "free: cut the image into tiles or shrink it."
        )


def as_pixels(image: ImageLike, channels: int) -> NDArray[Any]:
    """An image as an array ``(channels, H, W)``, uint8, uint16 or float32; `InputError` for what is no such image."""
    if isinstance(image, Image.Image):
        image = from_pillow(image, channels)
    elif isinstance(image, (str, Path)):
        image = read_image(image, channels)
    elif is_reader(image):
        image = read_whole(image)
    elif is_tensor(image):
        image = _checked(image, channels).cpu().numpy()
    array = np.asarray(image)
    if array.dtype.kind not in "uif":
        raise InputError(f"an image cannot be {type(image).__name__} of {array.dtype}: give an array or a file name.")
    # NumPy arrays may have negative strides or a foreign byte order
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    checked: NDArray[Any] = _checked(array, channels)
    return checked


def as_tensor(image: ImageLike, channels: int) -> Tensor:
    """`as_pixels` as a tensor; one that is given stays on its device."""
    import torch

    if is_tensor(image):
        given: Tensor = _checked(image, channels)
        return given
    array = np.ascontiguousarray(as_pixels(image, channels))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _checked(values: Any, channels: int) -> Any:
    """An array or a tensor with as many channels as the model takes; grey is repeated for three."""
    if len(values.shape) == 3 and values.shape[0] == 1 and channels == 3:
        values = values.expand(3, -1, -1) if is_tensor(values) else np.repeat(values, 3, axis=0)
    shape = tuple(values.shape)
    if dtype_name(values) not in FULL_RANGE or len(shape) != 3 or shape[0] != channels or 0 in shape:
        last = len(shape) == 3 and shape[2] == channels
        advice = "move its channels to the front" if last else "convert it or give its file name"
        raise InputError(
            f"an image must be uint8, uint16 or float32 of shape ({channels}, height, width), "
            f"not {dtype_name(values)} of shape {shape}: {advice}."
        )
    return values
