"""Networks without initial values, for weights that are loaded into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_RANDOM = (Tensor.normal_, Tensor.uniform_)
_INITIALISERS = ("torch.nn.init", "masklab.model.rpn")  # modules of functions that fill a tensor, their first argument


class Uninitialised(TorchFunctionMode):
    """A context in which layers are built without drawing their initial weights.

    Memory is reserved but not touched, so that a network of any size costs little.  All weights must be loaded
    afterwards.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _RANDOM or getattr(func, "__module__", None) in _INITIALISERS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
