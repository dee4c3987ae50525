"""Refinement of the coarse mask by features of lower layers (paper, section 3, Fig. 4; section 4.2, Table 4).

Both classes compute ``maps`` once per image and refine each box from crops of them.  R boxes, P samples per side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklab.model.backbone import Features
from masklab.ops.crop import crop_and_resize
from masklab.ops.rois import Rois

_FILTERS = 16  # per box
_DILATIONS = (1, 2, 4, 8, 1)


class Refinement(nn.Module):
    """The paper's refinement: three 5 x 5 convolutions and a 1 x 1 predictor over the coarse logit and the crops of ``levels``."""

    def __init__(self, levels: Sequence[str], level_channels: dict[str, int], channels: int) -> None:
        super().__init__()
        self.levels = list(levels)
        inputs = 1 + sum(level_channels[level] for level in levels)
        self.convs = nn.ModuleList(nn.Conv2d(inputs if i == 0 else channels, channels, 5, padding=2) for i in range(3))
        self.predict = nn.Conv2d(channels, 1, 1)
        _initialise([*self.convs, self.predict])

    def maps(self, features: Features) -> list[Tensor]:
        """The maps that boxes are cropped from: the levels themselves."""
        return [getattr(features, level) for level in self.levels]

    def forward(self, coarse: Tensor, maps: list[Tensor], rois: Rois) -> Tensor:
        """Refined mask logits (R, P, P), float32, from coarse ones (R, P, P); gradients reach both inputs."""
        hidden = _join(coarse, maps, rois)
        for conv in self.convs:
            hidden = F.relu_(conv(hidden))
        return self.predict(hidden)[:, 0].float()


class SharedRefinement(nn.Module):
    """A cheaper refinement than the paper's: the wide convolutions run once per image, each box has 16 channels.

    Once per image, a 1 x 1 convolution reduces each level to ``channels`` maps; these are summed on the grid of the
    finest level, and a 3 x 3 convolution reduces the sum to 16 maps.  For each box, five 3 x 3 convolutions of 16
    filters run over the crop of these maps and the coarse logit; their dilations 1, 2, 4, 8, 1 let every sample see
    most of the box.  The result is added to the coarse logit, so that training begins near the coarse mask.
    """

    def __init__(self, levels: Sequence[str], level_channels: dict[str, int], channels: int) -> None:
        super().__init__()
        filters = min(channels, _FILTERS)
        self.levels = sorted(levels)  # the finest first
        self.reduce = nn.ModuleList(nn.Conv2d(level_channels[level], channels, 1) for level in self.levels)
        self.mix = nn.Conv2d(channels, filters, 3, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(filters + (i == 0), filters, 3, padding=dilation, dilation=dilation)
            for i, dilation in enumerate(_DILATIONS)
        )
        self.predict = nn.Conv2d(filters, 1, 1)
        _initialise([*self.reduce, self.mix, *self.convs, self.predict])
        nn.init.normal_(self.predict.weight, std=0.01)

    def maps(self, features: Features) -> list[Tensor]:
        """The maps that all boxes of an image share, (N, 16, H, W) on the finest level's grid."""
        total, *others = (
            layer(getattr(features, level)) for layer, level in zip(self.reduce, self.levels, strict=True)
        )
        for other in others:
            # the first and last cells of all levels have the same positions (`masklab.ops.coordinates`)
            total += F.interpolate(other, total.shape[-2:], mode="bilinear", align_corners=True)
        return [self.mix(F.relu_(total))]

    def forward(self, coarse: Tensor, maps: list[Tensor], rois: Rois) -> Tensor:
        """Refined mask logits (R, P, P), float32, from coarse ones (R, P, P); gradients reach both inputs."""
        hidden = _join(coarse, maps, rois)
        for conv in self.convs:
            hidden = F.relu_(conv(hidden))
        return coarse + self.predict(hidden)[:, 0].float()


def _join(coarse: Tensor, maps: list[Tensor], rois: Rois) -> Tensor:
    """The coarse logit and a crop of each map, concatenated: (R, 1 + C, P, P)."""
    size = (coarse.shape[1], coarse.shape[2])
    crops = [crop_and_resize(features, rois, size) for features in maps]
    # concatenated as (R, P, P, C), the memory format of the crops, which the convolutions need
    rows = [coarse[..., None].to(crops[0].dtype), *(crop.permute(0, 2, 3, 1) for crop in crops)]
    return torch.cat(rows, dim=-1).permute(0, 3, 1, 2)


def _initialise(layers: list[nn.Module]) -> None:
    for layer in layers:
        assert isinstance(layer, nn.Conv2d)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
