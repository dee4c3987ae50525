"""Box classifier on a conv5 of its own (paper, section 3; reference [35]), and the detections it ends in.

N pictures, R boxes, K classes, P samples a side.  Background is the last class inside, and never leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from masklab.config import BoxConfig
from masklab.model.rpn import Proposals
from masklab.ops.boxes import clip, decode
from masklab.ops.crop import Rois, crop_and_resize


class BoxOutput(NamedTuple):
    """``classes`` logits (R, K + 1), background last, and box ``codes`` (R, K, 4) of each class."""

    classes: Tensor
    codes: Tensor


class BoxDetections(NamedTuple):
    """Padded boxes (N, R, 4), scores (N, R), labels (N, R), best first, and how many of them are ``real`` (N,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    real: Tensor


class BoxClassifier(nn.Module):
    """Crop of conv4, maximum over 2 x 2, conv5, mean, and two linear layers."""

    def __init__(self, config: BoxConfig, conv5: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.conv5 = conv5
        self.classes = nn.Linear(channels, num_classes + 1)
        self.codes = nn.Linear(channels, 4 * num_classes)
        for layer in (self.classes, self.codes):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, conv4: Tensor, rois: Rois) -> BoxOutput:
        crop = F.max_pool2d(crop_and_resize(conv4, rois, (self.config.crop, self.config.crop)), 2)
        pooled = self.conv5(crop).mean(dim=(2, 3))
        return BoxOutput(self.classes(pooled).float(), self.codes(pooled).float().unflatten(1, (self.num_classes, 4)))

    @torch.no_grad()
    def detect(self, output: BoxOutput, proposals: Proposals, sizes: Tensor) -> BoxDetections:
        """Decode, clip to ``sizes`` (N, 2), suppress within each class, and keep the best ``max_detections``."""
        config, (pictures, count, _) = self.config, proposals.boxes.shape
        scores = output.classes.softmax(dim=-1)[:, :-1].view(pictures, count, -1)
        boxes = decode(output.codes.view(pictures, count, -1, 4), proposals.boxes[:, :, None])
        boxes = clip(boxes, sizes[:, None, None, :])
        real = torch.arange(count, device=scores.device) < proposals.real[:, None]
        sides = boxes[..., 2:] - boxes[..., :2]
        wanted = (scores > config.score_threshold) & real[..., None] & (sides > 0).all(dim=-1)
        found = []
        for box, score, want in zip(boxes, scores, wanted, strict=True):
            row, label = want.nonzero(as_tuple=True)
            box, score = box[row, label], score[row, label]
            keep = batched_nms(box, score, label, config.nms_iou)[: config.max_detections]
            found.append((box[keep], score[keep], label[keep]))
        padding = [config.max_detections - box.shape[0] for box, _, _ in found]
        return BoxDetections(
            torch.stack([F.pad(box, (0, 0, 0, p)) for (box, _, _), p in zip(found, padding, strict=True)]),
            torch.stack([F.pad(score, (0, p)) for (_, score, _), p in zip(found, padding, strict=True)]),
            torch.stack([F.pad(label, (0, p)) for (_, _, label), p in zip(found, padding, strict=True)]),
            torch.tensor([box.shape[0] for box, _, _ in found], device=boxes.device),
        )
