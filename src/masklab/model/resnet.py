"""The plain ResNets, for weights that are loaded afterwards.

timm builds every backbone that training starts from.  Importing it takes longer than importing torch, because all its
networks and torchvision come along; a saved model of a plain ResNet is built here instead, layer for layer the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_STEM = 64  # channels of conv1


class BasicBlock(nn.Module):
    """Residual unit of two 3 x 3 convolutions; ``downsample`` fits the input to the output where they differ."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        channels: int,
        stride: int,
        dilations: tuple[int, int],
        norm: Callable[[int], nn.Module],
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        first, dilation = dilations
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, first, first, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn2 = norm(channels)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        inner = self.bn2(self.conv2(inner))
        return _joined(inner, maps, self.downsample)


class Bottleneck(nn.Module):
    """Residual unit of a 3 x 3 convolution between two of 1 x 1, the second with four times the channels."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        channels: int,
        stride: int,
        dilations: tuple[int, int],
        norm: Callable[[int], nn.Module],
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        first, outputs = dilations[0], self.expansion * channels
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, first, first, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        inner = self.bn3(self.conv3(inner))
        return _joined(inner, maps, self.downsample)


def _joined(inner: Tensor, maps: Tensor, downsample: nn.Module | None) -> Tensor:
    """What a unit computed from its input ``maps``, added to them.

    The shortcut comes last, as in timm: gradients are summed in the order of the operations, to the last bit.
    """
    return F.relu(inner.add_(maps if downsample is None else downsample(maps)), inplace=True)


PLAIN: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Type and number of the residual units of conv2 to conv5, by name."""


class PlainResNet(nn.Module):
    """One of `PLAIN`, with timm's names and order of layers but no classifier.

    ``channels`` are those of conv2 to conv5, before a bottleneck's expansion.  Strides beyond ``output_stride`` are
    replaced by dilations, as in `masklab.model.backbone.Backbone`.  Its weights are those that torch gives any layer.
    """

    def __init__(
        self, name: str, in_chans: int, channels: Sequence[int], output_stride: int, norm_layer: Callable[..., Any]
    ) -> None:
        super().__init__()
        unit, counts = PLAIN[name]
        self.conv1 = nn.Conv2d(in_chans, _STEM, 7, 2, 3, bias=False)
        self.bn1 = norm_layer(_STEM)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, reached, dilation = _STEM, 4, 1
        for number, (width, count) in enumerate(zip(channels, counts, strict=True), 1):
            before, stride, outputs = dilation, 1 if number == 1 else 2, unit.expansion * width
            if reached >= output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            downsample = None
            if stride != 1 or inputs != outputs:
                downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm_layer(outputs))
            units = [unit(inputs, width, stride, (before, dilation), norm_layer, downsample)]
            units += [unit(outputs, width, 1, (dilation, dilation), norm_layer, None) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*units))
            inputs = outputs
