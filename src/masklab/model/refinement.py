"""Refinement of the coarse mask by features of lower layers (paper, section 3, Fig. 4 and Table 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklab.model.backbone import Features
from masklab.ops.crop import Rois, crop_and_resize


class Refinement(nn.Module):
    """Three 5 x 5 convolutions and a 1 x 1 predictor over the coarse logit and the crops of ``levels``."""

    def __init__(self, levels: Sequence[str], level_channels: dict[str, int], channels: int) -> None:
        super().__init__()
        self.levels = list(levels)
        inputs = 1 + sum(level_channels[level] for level in levels)
        self.convs = nn.ModuleList(nn.Conv2d(inputs if i == 0 else channels, channels, 5, padding=2) for i in range(3))
        self.predict = nn.Conv2d(channels, 1, 1)
        for layer in (*self.convs, self.predict):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, coarse: Tensor, features: Features, rois: Rois) -> Tensor:
        """Refined mask logits (R, P, P), float32, from coarse ones (R, P, P); gradients reach both inputs."""
        size = (coarse.shape[1], coarse.shape[2])
        crops = [crop_and_resize(getattr(features, level), rois, size) for level in self.levels]
        # joined as (R, P, P, C), the crops' own memory, which the convolutions want
        rows = [coarse[..., None].to(crops[0].dtype), *(crop.permute(0, 2, 3, 1) for crop in crops)]
        hidden = torch.cat(rows, dim=-1).permute(0, 3, 1, 2)
        for conv in self.convs:
            hidden = F.relu(conv(hidden))
        return self.predict(hidden)[:, 0].float()
