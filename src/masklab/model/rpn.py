"""Region proposal network (paper, section 4.1; its references [62] and [35]).

N images, A anchors per cell, H x W cells, L = H * W * A anchors, R proposals.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from masklab.config.fields import resolved
from masklab.config.model import RPNConfig
from masklab.ops.boxes import clip, decode, inside
from masklab.ops.coordinates import cell_positions
from masklab.ops.fixed_shapes import first_boxes


class RPNOutput(NamedTuple):
    """``objectness``: logits (N, L, 2), background first; ``deltas``: box deltas (N, L, 4); ``anchors`` (L, 4) in pixels."""

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor


class Proposals(NamedTuple):
    """``boxes`` (N, R, 4) in pixels, best first; rows from ``num_valid`` (N,) on are padding."""

    boxes: Tensor
    num_valid: Tensor


def truncated_normal_(weight: Tensor) -> Tensor:
    """Fill a tensor with values of a normal distribution of deviation 0.01, none beyond twice that.

    Unlike torch's own function, it lets a `TorchFunctionMode` decide, as torch's other initialisers do.
    """
    if has_torch_function_unary(weight):
        result: Tensor = handle_torch_function(truncated_normal_, (weight,), weight)
        return result
    return nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)


class RPN(nn.Module):
    """Scores and refines anchors on conv4."""

    def __init__(self, config: RPNConfig, in_channels: int, stride: int) -> None:
        super().__init__()
        self.config, self.stride = config, stride
        self.anchor_sizes = resolved(config.anchor_sizes, "model.rpn.anchor_sizes")
        self.proposals_test = resolved(config.proposals_test, "model.rpn.proposals_test")
        self.anchors_per_cell = len(self.anchor_sizes) * len(config.anchor_ratios)
        self.conv = nn.Conv2d(in_channels, config.channels, 3, padding=config.dilation, dilation=config.dilation)
        self.objectness = nn.Conv2d(config.channels, 2 * self.anchors_per_cell, 1)
        self.deltas = nn.Conv2d(config.channels, 4 * self.anchors_per_cell, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            truncated_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, conv4: Tensor) -> RPNOutput:
        hidden = F.relu6(self.conv(conv4))
        objectness = self.objectness(hidden).float().permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 2))
        deltas = self.deltas(hidden).float().permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        return RPNOutput(objectness, deltas, self.anchors(conv4.shape[-2], conv4.shape[-1], conv4.device))

    def anchors(self, height: int, width: int, device: torch.device) -> Tensor:
        """Anchors (height * width * A, 4), row by row, cell by cell, ratios within sizes."""
        sizes = torch.tensor(self.anchor_sizes, device=device)[:, None]
        root = torch.tensor(self.config.anchor_ratios, device=device).sqrt()[None, :]
        half = torch.stack([(sizes * root).flatten(), (sizes / root).flatten()], dim=-1) / 2
        shape = torch.cat([-half, half], dim=-1)
        y, x = cell_positions(height, self.stride, device), cell_positions(width, self.stride, device)
        centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
        centre = torch.stack([centre_x, centre_y, centre_x, centre_y], dim=-1)
        return (centre[:, :, None, :] + shape).reshape(-1, 4)

    @torch.no_grad()
    def propose(self, output: RPNOutput, sizes: Tensor) -> Proposals:
        """The best boxes of each image after non-maximum suppression, clipped to its ``sizes`` (N, 2).

        There are as many rows as the image with the most proposals has, and at least one.  At test, anchors of an
        objectness of ``score_threshold`` or less are dropped first.
        With ``drop_crossing_anchors``, anchors that cross the border are dropped in training and clipped before
        decoding at test, as in the paper's reference [35].
        """
        config = self.config
        before = config.pre_nms_train if self.training else config.pre_nms_test
        keep = config.proposals_train if self.training else self.proposals_test
        least = -math.inf
        if config.score_threshold > 0 and not self.training:
            # the objectness is the sigmoid of the difference of the logits
            least = math.log(config.score_threshold / (1 - config.score_threshold))
        scores = output.objectness[..., 1] - output.objectness[..., 0]
        if config.drop_crossing_anchors and self.training:
            scores = scores.masked_fill(~inside(output.anchors, sizes[:, None, :]), -math.inf)
        scores, order = scores.topk(min(before, scores.shape[1]), dim=1)
        deltas = output.deltas.gather(1, order[..., None].expand(-1, -1, 4))
        anchors = output.anchors[order]
        if config.drop_crossing_anchors and not self.training:
            anchors = clip(anchors, sizes[:, None, :])
        boxes = clip(decode(deltas, anchors), sizes[:, None, :])
        padded, num_valid = first_boxes(boxes, scores, least, config.nms_iou, keep)
        if not torch.compiler.is_compiling():  # a compiled graph keeps its shapes
            padded = padded[:, : max(1, int(num_valid.max()))]
        return Proposals(padded, num_valid)
