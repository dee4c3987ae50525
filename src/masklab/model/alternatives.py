"""Mask heads of Mask R-CNN and FCIS, to compare MaskLab's with in the same detector.

Like `masklab.model.mask_head.MaskLabHead`, each computes maps once per image and mask logits per box.
N images, R boxes, K classes, P samples a side.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklab.model.mask_head import logit_layer
from masklab.ops.crop import crop_and_resize
from masklab.ops.crop_channels import crop_channels
from masklab.ops.rois import Rois

PARTS = 7  # FCIS divides a box into 7 x 7 parts


class MaskRCNNHead(nn.Module):
    """He et al., ICCV 2017, Fig. 4 right: crop, four 3 x 3 convolutions, a deconvolution that doubles, class logits.

    A 1 x 1 convolution reduces conv5 to ``width`` channels once per image, as the lateral layers of the feature
    pyramid do in the original.  Masks have ``mask_size`` samples per side, the first and last on the edges of the
    box, like every mask here.  The features have half as many; each lies midway between the two samples that the
    deconvolution computes from it.
    """

    def __init__(self, mask_size: int, conv5: nn.Module, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.mask_size = mask_size
        self.conv5 = conv5
        self.lateral = nn.Conv2d(channels, width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.enlarge = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.classes = logit_layer(width, num_classes)
        for layer in (self.lateral, *self.convs, self.enlarge):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, conv4: Tensor, conv5: Tensor | None = None) -> Tensor:
        """Maps (N, width, H, W)."""
        return self.lateral(self.conv5(conv4) if conv5 is None else conv5)

    def map_layers(self) -> list[nn.Module]:
        """The layers on conv5 that run once per image."""
        return [self.lateral]

    def coarse_masks(self, maps: Tensor, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits (R, P, P), float32, of boxes with the classes ``labels`` (R,)."""
        half = self.mask_size // 2
        hidden = crop_and_resize(maps, self._pair_middles(rois), (half, half))
        for conv in self.convs:
            hidden = F.relu(conv(hidden))
        hidden = F.relu(self.enlarge(hidden)).permute(0, 2, 3, 1).flatten(1, 2)
        # the last 1 x 1 convolution, only the filter of each box's class
        logits = torch.bmm(hidden, self.classes.weight[labels].flatten(1)[:, :, None])[..., 0].float()
        bias = self.classes.bias[labels][:, None]  # type: ignore[index]
        return (logits + bias).unflatten(1, (self.mask_size, self.mask_size))

    def _pair_middles(self, rois: Rois) -> Rois:
        """Boxes whose first and last sample lie midway between the first two and the last two of ``mask_size``."""
        first, last = rois.boxes[:, :2], rois.boxes[:, 2:]
        inset = (last - first) * (0.5 / (self.mask_size - 1))
        return replace(rois, boxes=torch.cat([first + inset, last - inset], dim=1))


class FCISHead(nn.Module):
    """Li et al., CVPR 2017: inside and outside maps for each part of a box and each class.

    The 2 x K x 49 maps come from conv5 by a 1 x 1 convolution, as MaskLab's logits do; channel
    ``(2 * k + side) * 49 + part`` belongs to class ``k`` and side 0 (inside) or 1 (outside).  The original's
    softmax over the two sides is the sigmoid of their difference, which is the mask logit.  The original
    also classifies boxes by these maps; here the detector does.
    """

    table: Tensor

    def __init__(self, mask_size: int, conv5: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv5 = conv5
        self.sides = logit_layer(channels, num_classes * 2 * PARTS**2)
        self.register_buffer("table", part_table(mask_size), persistent=False)

    def forward(self, conv4: Tensor, conv5: Tensor | None = None) -> Tensor:
        """Maps (N, K * 2 * 49, H, W)."""
        return self.sides(self.conv5(conv4) if conv5 is None else conv5)

    def map_layers(self) -> list[nn.Module]:
        """The layers on conv5 that run once per image."""
        return [self.sides]

    def coarse_masks(self, maps: Tensor, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits (R, P, P), float32, of boxes with the classes ``labels`` (R,)."""
        size = (self.table.shape[0], self.table.shape[1])
        channels = labels[:, None, None] * (2 * PARTS**2) + self.table
        inside = crop_channels(maps, rois, size, channels)
        return inside - crop_channels(maps, rois, size, channels + PARTS**2)


def part_table(mask_size: int) -> Tensor:
    """The part of the box that each mask sample lies in: int64 ``(mask_size, mask_size)``, 0 to 48 row by row."""
    part = (2 * torch.arange(mask_size) + 1) * PARTS // (2 * mask_size)
    return part[:, None] * PARTS + part
