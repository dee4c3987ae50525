"""Box heads, and their detections: the paper's with its own conv5 (section 3; reference [35]), and a light one.

N images, R boxes, K classes, P samples per side.  Background is the last class inside the head and never in its detections.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklab.config.fields import resolved
from masklab.config.model import BoxConfig
from masklab.model.rpn import Proposals
from masklab.ops.boxes import clip, decode
from masklab.ops.crop import crop_and_resize, max_pool_2x2
from masklab.ops.deformable import deformable_crop_and_resize
from masklab.ops.fixed_shapes import class_boxes
from masklab.ops.rois import Rois


class BoxOutput(NamedTuple):
    """``classes``: logits (R, K + 1), background last; ``deltas``: box deltas (R, K, 4), one set per class."""

    classes: Tensor
    deltas: Tensor


class BoxDetections(NamedTuple):
    """Boxes (N, R, 4), scores (N, R) and labels (N, R), best first; rows from ``num_valid`` (N,) on are padding."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    num_valid: Tensor

    def above(self, score: float) -> BoxDetections:
        """Those of at least ``score``: the others become padding, whose values do not count."""
        return self._replace(num_valid=torch.minimum(self.num_valid, (self.scores >= score).sum(dim=1)))


class BoxHeadBase(nn.Module):
    """What box heads share: two linear layers on a vector for each box, and the detections that come of their output.

    ``reads`` names the feature map that ``forward`` crops boxes from.
    """

    reads: ClassVar[Literal["conv4", "conv5"]]

    def __init__(self, config: BoxConfig, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.max_detections = resolved(config.max_detections, "model.box.max_detections")
        self.classes = nn.Linear(channels, num_classes + 1)
        self.deltas = nn.Linear(channels, 4 * num_classes)
        for layer in (self.classes, self.deltas):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.offsets: nn.Linear | None = None

    def forward(self, features: Tensor, rois: Rois) -> BoxOutput:
        """Classes and deltas of boxes on the map ``features`` (N, C, H, W) that ``reads`` names."""
        pooled = self.pooled(features, rois)
        return BoxOutput(self.classes(pooled).float(), self.deltas(pooled).float().unflatten(1, (self.num_classes, 4)))

    def pooled(self, features: Tensor, rois: Rois) -> Tensor:
        """A vector for each box: (R, channels)."""
        raise NotImplementedError

    def _plain_crop(self, features: Tensor, rois: Rois) -> Tensor:
        """The maximum over each 2 x 2 samples of a crop: (R, C, P / 2, P / 2)."""
        return max_pool_2x2(crop_and_resize(features, rois, (self.config.roi_size, self.config.roi_size)))

    @torch.no_grad()
    def detect(
        self, output: BoxOutput, proposals: Proposals, sizes: Tensor, max_detections: int | None = None
    ) -> BoxDetections:
        """Decode, clip to ``sizes`` (N, 2), suppress within each class, hard and then soft, and keep the best.

        Keeps at most ``max_detections``, by default the configuration's, and pads the result to as many.
        """
        most = self.max_detections if max_detections is None else max_detections
        config, (images, count, _) = self.config, proposals.boxes.shape
        scores = output.classes.softmax(dim=-1)[:, :-1].view(images, count, -1)
        boxes = decode(output.deltas.view(images, count, -1, 4), proposals.boxes[:, :, None])
        boxes = clip(boxes, sizes[:, None, None, :])
        num_valid = torch.arange(count, device=scores.device) < proposals.num_valid[:, None]
        sides = boxes[..., 2:] - boxes[..., :2]
        wanted = (scores > config.score_threshold) & num_valid[..., None] & (sides > 0).all(dim=-1)
        return BoxDetections(
            *class_boxes(boxes, scores, wanted, config.nms_iou, config.soft_nms, config.score_threshold, most)
        )


class BoxHead(BoxHeadBase):
    """Crop of conv4, maximum over 2 x 2, conv5, mean, and two linear layers.

    With ``config.deformable`` there are two crops.  The first, after the maximum and flattened in the order channel,
    row, column, goes through the linear layer ``offsets``, whose outputs are the (y, x) offsets of the sub-boxes, row
    by row; the second crop is taken from the displaced sub-boxes (paper, section 3, Fig. 5 and 8).  The layer is
    initialised with zeros, so that ``grid`` begins as the plain crop.
    """

    reads = "conv4"

    def __init__(
        self, config: BoxConfig, conv5: nn.Module, conv4_channels: int, channels: int, num_classes: int
    ) -> None:
        super().__init__(config, channels, num_classes)
        self.conv5 = conv5
        if config.deformable:
            sub_boxes = (config.roi_size // 2) ** 2
            self.offsets = nn.Linear(conv4_channels * sub_boxes, 2 * sub_boxes)
            nn.init.zeros_(self.offsets.weight)
            nn.init.zeros_(self.offsets.bias)

    def pooled(self, features: Tensor, rois: Rois) -> Tensor:
        """The mean of conv5 over each crop: (R, channels)."""
        pooled: Tensor = self.conv5(self._crop(features, rois)).mean(dim=(2, 3))
        return pooled

    def _crop(self, conv4: Tensor, rois: Rois) -> Tensor:
        """The input of conv5 (R, C, P / 2, P / 2): the maximum over each 2 x 2 samples, or over each displaced sub-box."""
        crop = self._plain_crop(conv4, rois)
        offsets = self._offsets(crop)
        if offsets is None or self.config.deformable is None:
            return crop
        return F.max_pool2d(deformable_crop_and_resize(conv4, rois, offsets, self.config.deformable), 2)

    def predict_offsets(self, conv4: Tensor, rois: Rois) -> Tensor | None:
        """Offsets of the sub-boxes (R, P / 2, P / 2, 2), (y, x) as fractions of the box; None without a deformable crop."""
        return self._offsets(self._plain_crop(conv4, rois))

    def _offsets(self, crop: Tensor) -> Tensor | None:
        if self.offsets is None:
            return None
        half = self.config.roi_size // 2
        with torch.autocast(crop.device.type, enabled=False):  # positions need float32
            offsets: Tensor = self.offsets(crop.flatten(1).float())
        return offsets.view(-1, half, half, 2) * self.config.deformable_scale


class LightBoxHead(BoxHeadBase):
    """Crops of thin maps, a hidden layer, and two linear layers, as in Light-Head R-CNN (Li et al., 2017).

    A 1 x 1 convolution reduces conv5 of the mask head, which runs once per image, to ``config.light_maps`` maps.  The
    maximum over 2 x 2 samples of their crop goes through one linear layer of ``config.light_hidden`` outputs.  For a box
    this is a few hundred times less work than a conv5 of its own.
    """

    reads = "conv5"

    def __init__(self, config: BoxConfig, conv5_channels: int, num_classes: int) -> None:
        super().__init__(config, config.light_hidden, num_classes)
        self.thin = nn.Conv2d(conv5_channels, config.light_maps, 1)
        self.hidden = nn.Linear(config.light_maps * (config.roi_size // 2) ** 2, config.light_hidden)
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        nn.init.zeros_(self.hidden.bias)

    def pooled(self, features: Tensor, rois: Rois) -> Tensor:
        """The hidden layer's outputs: (R, light_hidden)."""
        crop = self._plain_crop(self.thin(features), rois)
        # flattened in the order row, column, channel, in which the crop lies in memory
        return F.relu(self.hidden(crop.permute(0, 2, 3, 1).flatten(1)))


AnyBoxHead = BoxHead | LightBoxHead
"""A box head: ``forward(features, rois)`` on the map that its ``reads`` names."""
