"""Functions of arrays that take tensors as well, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Pixels = TypeVar("Pixels", "Tensor", "NDArray[Any]")
"""A tensor, or a NumPy array."""


def as_array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    """The values of a tensor on any device, or an array as it is; memory is shared where it can be."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def of_kind(array: NDArray[Any], like: Pixels) -> Pixels:
    """An array as what ``like`` is: itself, or a tensor on its device."""
    if isinstance(like, np.ndarray):
        return cast("Pixels", array)
    import torch

    return cast("Pixels", torch.from_numpy(array).to(like.device))


def dtype_name(values: Tensor | NDArray[Any]) -> str:
    """Such as ``float32``."""
    return str(values.dtype).removeprefix("torch.")
