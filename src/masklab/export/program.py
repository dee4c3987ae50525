"""What every export begins with: inputs to trace a network with, and which of their sides may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from masklab.export.network import ExportedNetwork
from masklab.runtime.sessions import INPUTS, OWN

NORM_INPUTS = INPUTS[2:]
_CELLS = (13, 17)  # of the coarsest map: two numbers that no size inside the network has


class PlainOutputs(nn.Module):
    """A network whose outputs are a plain tuple, as files of ``torch.export`` need them."""

    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(
        self, images: Tensor, sizes: Tensor, norm_mode: Tensor | None = None, norm_statistics: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return tuple(self.network(images, sizes, norm_mode, norm_statistics))


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
