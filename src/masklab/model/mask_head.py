"""Mask head: semantic and direction logits, and the coarse mask of a box (paper, sections 3 and 4.1, Fig. 2 and 3).

N images, R boxes, K classes, D directions, B distance bins, P samples per side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from masklab.config.model import MaskConfig
from masklab.ops.crop_channels import crop_channels
from masklab.ops.direction import direction_table
from masklab.ops.rois import Rois


class MaskLogits(NamedTuple):
    """``semantic`` (N, K, H, W) and ``direction`` (N, D * B, H, W), None for one that is switched off."""

    semantic: Tensor | None
    direction: Tensor | None


class MaskLabHead(nn.Module):
    """MaskLab's mask head.

    A conv5 and two 1 x 1 convolutions run once per image.  Each box then reads one semantic channel and, by direction
    pooling, one direction channel per sample, and a 1 x 1 convolution combines the two.
    """

    table: Tensor

    def __init__(self, config: MaskConfig, conv5: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.conv5 = conv5
        self.semantic = logit_layer(channels, num_classes) if config.semantic else None
        self.direction = logit_layer(channels, config.directions * config.distance_bins) if config.direction else None
        weights = [0.5] * config.semantic + [1.0] * config.direction
        self.coarse = nn.Conv2d(len(weights), 1, 1)
        with torch.no_grad():
            self.coarse.weight.copy_(torch.tensor(weights).view(1, -1, 1, 1))
            self.coarse.bias.zero_()  # type: ignore[union-attr]
        table = direction_table(
            config.mask_size, config.directions, config.distance_bins, config.distance_metric, config.start_degrees
        )
        self.register_buffer("table", table, persistent=False)

    def forward(self, conv4: Tensor, conv5: Tensor | None = None) -> MaskLogits:
        """The logits; ``conv5`` is the output of this head's conv5 on ``conv4`` where it is known already."""
        conv5 = self.conv5(conv4) if conv5 is None else conv5
        return MaskLogits(
            self.semantic(conv5) if self.semantic is not None else None,
            self.direction(conv5) if self.direction is not None else None,
        )

    def map_layers(self) -> list[nn.Module]:
        """The layers on conv5 that run once per image."""
        return [layer for layer in (self.semantic, self.direction) if layer is not None]

    def coarse_masks(self, logits: MaskLogits, rois: Rois, labels: Tensor) -> Tensor:
        """Coarse mask logits (R, P, P), float32, of boxes with the classes ``labels`` (R,)."""
        size = (self.config.mask_size, self.config.mask_size)
        crops = []
        if logits.semantic is not None:
            crops.append(crop_channels(logits.semantic, rois, size, labels))
        if logits.direction is not None:
            crops.append(crop_channels(logits.direction, rois, size, self.table))
        # the 1 x 1 convolution over one or two values, as a weighted sum in float32
        weight = self.coarse.weight.view(-1).float()
        total = self.coarse.bias.float() + crops[0] * weight[0]  # type: ignore[union-attr]
        return total if len(crops) == 1 else torch.addcmul(total, crops[1], weight[1])


def logit_layer(channels: int, outputs: int) -> nn.Conv2d:
    """A 1 x 1 convolution whose initial logits are small."""
    layer = nn.Conv2d(channels, outputs, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
