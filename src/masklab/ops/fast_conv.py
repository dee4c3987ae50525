"""A 3 x 3 convolution whose weights' gradient is nine matrix products: faster on a CPU for many small maps.

R maps, C and O channels, H x W cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CropConv2d(nn.Conv2d):
    """A convolution over crops; the same function as `nn.Conv2d`, which it takes over as it stands.

    Where a 3 x 3 convolution of stride 1 without groups or bias is trained on a CPU, its backward pass takes the
    gradient of the weights as products over all cells of all crops, one for each weight's place
    (``benchmarks/training.py`` measures it).
    """

    @classmethod
    def load_matching(cls, module: nn.Module) -> None:
        """Turn every plain convolution inside ``module`` into one of these, weights and all."""
        for part in module.modules():
            if type(part) is nn.Conv2d:
                part.__class__ = cls

    def forward(self, input: Tensor) -> Tensor:
        plain = (self.kernel_size, self.stride, self.dilation, self.padding) == ((3, 3), (1, 1), (1, 1), (1, 1))
        if not (plain and self.groups == 1 and self.bias is None and input.device.type == "cpu"):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        result: Tensor = _CropConv.apply(input, weight)
        return result


class _CropConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return F.conv2d(maps, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (maps, weight) = gradients, ctx.saved_tensors
        for_maps = F.conv_transpose2d(gradient, weight, padding=1) if ctx.needs_input_grad[0] else None
        return for_maps, _weight_gradient(maps, gradient) if ctx.needs_input_grad[1] else None


def _weight_gradient(maps: Tensor, gradient: Tensor) -> Tensor:
    """(O, C, 3, 3) from maps (R, C, H, W) and the gradient (R, O, H, W) of what came out: one product a place.

    All nine places in one product would need a copy of nine times the maps, which costs more than the product.  The
    result lies in memory as weights that are channels last.
    """
    (height, width), channels = maps.shape[2:], maps.shape[1]
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    wanted = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1]).t()
    products = [
        wanted @ padded[:, y : y + height, x : x + width].reshape(-1, channels) for y in range(3) for x in range(3)
    ]
    return torch.stack(products, dim=1).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
