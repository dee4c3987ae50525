"""Convolution over crops: a 3 x 3 convolution with a faster gradient of its weights on a CPU.

R maps, C and O channels, H x W cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CropConv2d(nn.Conv2d):
    """The same function as `nn.Conv2d`, for many small maps.

    For a 3 x 3 convolution of stride 1 and dilation 1 without groups or bias on a CPU, the backward pass computes the
    gradient of the weights as nine matrix products over all cells of all crops, one for each position in the kernel
    (measured by ``benchmarks/training.py``).
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> CropConv2d:
        """A convolution with the settings and the very parameters of ``conv``."""
        settings = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        made = cls(*settings, conv.groups, conv.bias is not None, conv.padding_mode, device="meta")  # type: ignore[arg-type]
        made.weight, made.bias = conv.weight, conv.bias
        return made

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


def replace_convolutions(module: nn.Module) -> None:
    """Replace every plain `nn.Conv2d` inside ``module`` by a `CropConv2d` with the same parameters."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d:
                setattr(parent, name, CropConv2d.of(child))


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
    """Gradient (O, C, 3, 3) of the weights from maps (R, C, H, W) and the gradient (R, O, H, W) of the output.

    One product for each of the nine positions in the kernel: a single one would need nine copies of the maps, which
    costs more than the product.  The result is in channels-last memory.
    """
    (height, width), channels = maps.shape[2:], maps.shape[1]
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    wanted = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1]).t()
    products = [
        wanted @ padded[:, y : y + height, x : x + width].reshape(-1, channels) for y in range(3) for x in range(3)
    ]
    return torch.stack(products, dim=1).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
