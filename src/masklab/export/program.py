"""What every export begins with: inputs to trace a network with, and which of their sides may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from masklab.export.network import ExportedNetwork
from masklab.runtime.sessions import INPUTS, OWN

NORM_INPUTS = INPUTS[2:]
_CELLS = (13, 17)  # of the coarsest map: two numbers that no size inside the network has


def example_inputs(network: ExportedNetwork, images: int = 2) -> tuple[Tensor, ...]:
    """Inputs of one or two images of different sizes, as `ExportedNetwork.forward` takes them."""
    model = network.model
    height, width = (cells * model.stride + 1 for cells in _CELLS)
    shape = (images, model.config.model.backbone.channels, height, width)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[height, width], [height - 5, width - 3]])[:images]
    if not network.groups:
        return values, sizes
    return values, sizes, torch.tensor(OWN), torch.zeros(2, network.groups)


def moving_sides(inputs: int, batch: bool = True) -> tuple[Any, ...]:
    """The sides of the inputs that may change: height and width of the images and, with ``batch``, their number."""
    moving = torch.export.Dim.DYNAMIC
    number = {0: moving} if batch else {}
    return (number | {2: moving, 3: moving}, number, None, None)[:inputs]
