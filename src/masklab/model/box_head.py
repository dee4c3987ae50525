"""Box head with its own conv5, and its detections (paper, section 3; reference [35]).

N images, R boxes, K classes, P samples per side.  Background is the last class inside the head and never in its detections.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklab.config.fields import resolved
from masklab.config.model import BoxConfig
from masklab.model.rpn import Proposals
from masklab.ops.boxes import clip, decode
from masklab.ops.crop import crop_and_resize
from masklab.ops.deformable import deformable_crop_and_resize
from masklab.ops.nms import soft_nms
from masklab.ops.rois import Rois
from masklab.ops.suppression import batched_nms


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


class BoxHead(nn.Module):
    """Crop of conv4, maximum over 2 x 2, conv5, mean, and two linear layers.

    With ``config.deformable`` there are two crops.  The first, after the maximum and flattened in the order channel,
    row, column, goes through the linear layer ``offsets``, whose outputs are the (y, x) offsets of the sub-boxes, row
    by row; the second crop is taken from the displaced sub-boxes (paper, section 3, Fig. 5 and 8).  The layer is
    initialised with zeros, so that ``grid`` begins as the plain crop.
    """

    def __init__(
        self, config: BoxConfig, conv5: nn.Module, conv4_channels: int, channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.max_detections = resolved(config.max_detections, "model.box.max_detections")
        self.conv5 = conv5
        self.classes = nn.Linear(channels, num_classes + 1)
        self.deltas = nn.Linear(channels, 4 * num_classes)
        for layer in (self.classes, self.deltas):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.offsets: nn.Linear | None = None
        if config.deformable:
            sub_boxes = (config.roi_size // 2) ** 2
            self.offsets = nn.Linear(conv4_channels * sub_boxes, 2 * sub_boxes)
            nn.init.zeros_(self.offsets.weight)
            nn.init.zeros_(self.offsets.bias)

    def forward(self, conv4: Tensor, rois: Rois) -> BoxOutput:
        pooled = self.conv5(self._crop(conv4, rois)).mean(dim=(2, 3))
        return BoxOutput(self.classes(pooled).float(), self.deltas(pooled).float().unflatten(1, (self.num_classes, 4)))

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

    def _plain_crop(self, conv4: Tensor, rois: Rois) -> Tensor:
        return F.max_pool2d(crop_and_resize(conv4, rois, (self.config.roi_size, self.config.roi_size)), 2)

    def _offsets(self, crop: Tensor) -> Tensor | None:
        if self.offsets is None:
            return None
        half = self.config.roi_size // 2
        with torch.autocast(crop.device.type, enabled=False):  # positions need float32
            offsets: Tensor = self.offsets(crop.flatten(1).float())
        return offsets.view(-1, half, half, 2) * self.config.deformable_scale

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
        found = []
        for box, score, want in zip(boxes, scores, wanted, strict=True):
            row, label = want.nonzero(as_tuple=True)
            box, score = box[row, label], score[row, label]
            keep = batched_nms(box, score, label, config.nms_iou)
            if config.soft_nms is not None:
                score[keep] = soft_nms(box[keep], score[keep], label[keep], config.soft_nms)
                keep = keep[score[keep].argsort(descending=True, stable=True)]
                keep = keep[score[keep] > config.score_threshold]
            keep = keep[:most]
            found.append((box[keep], score[keep], label[keep]))
        padding = [most - box.shape[0] for box, _, _ in found]
        return BoxDetections(
            torch.stack([F.pad(box, (0, 0, 0, p)) for (box, _, _), p in zip(found, padding, strict=True)]),
            torch.stack([F.pad(score, (0, p)) for (_, score, _), p in zip(found, padding, strict=True)]),
            torch.stack([F.pad(label, (0, p)) for (_, _, label), p in zip(found, padding, strict=True)]),
            torch.tensor([box.shape[0] for box, _, _ in found], device=boxes.device),
        )
