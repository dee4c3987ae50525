"""MaskLab as one graph: normalised images in, boxes, scores, labels and masks out, on images of any size.

The trained parts of `masklab.model.masklab.MaskLab` run as they are; what is written anew is what lies between them,
because a graph cannot hold loops over images or tensors that are padded by what was found.  Proposals and detections
of all images stand in one list here, each with the number of its image.

N images, C channels, H x W pixels, A anchors, S proposals, D detections, K classes, P samples per side of a mask,
T groups of all norms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from masklab.export.norms import NormTable, OpenNorm
from masklab.model.fixed_norm import dense_norms, with_parts
from masklab.model.masklab import MaskLab
from masklab.ops.boxes import clip, decode
from masklab.ops.operators import hard_nms, soft_nms
from masklab.ops.rois import Rois

_ALL = 1 << 20  # more boxes than a class of an image has


class Found(NamedTuple):
    """What an exported network returns: the detections of all images, those of an image together and best first.

    ``boxes`` (D, 4) ``xyxy`` in pixels of the network's input, ``scores`` (D,), ``labels`` (D,) int64 in ``0..K-1``,
    ``masks`` (D, P, P) probabilities over the boxes, ``image`` (D,) int64 the image of each in the batch, and ``statistics`` (2, T) the
    mean and variance of each group of the norms over the batch, where the network has norms that show them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    image: Tensor
    statistics: Tensor


class ExportedNetwork(nn.Module):
    """A model in evaluation mode and float32, as it is exported; shares all weights with ``model``.

    With ``open_norms``, group norms that see whole maps show their statistics and take given ones (see
    `masklab.export.norms`): the network then has two inputs more.  ``groups`` is the number T of their groups.
    """

    def __init__(self, model: MaskLab, open_norms: bool = True) -> None:
        super().__init__()
        self.table = NormTable()
        norms = dense_norms(model) if open_norms else {}
        parts: dict[str, nn.Module] = {}
        self.groups = 0
        for name, norm in norms.items():
            parts[name] = OpenNorm(norm, self.groups, self.table)
            self.groups += norm.num_groups
        self.model = with_parts(model, parts)
        self.eval()

    def forward(
        self, images: Tensor, sizes: Tensor, norm_mode: Tensor | None = None, norm_statistics: Tensor | None = None
    ) -> Found:
        """Detect and segment.

        ``images`` is ``(N, C, H, W)`` float32, normalised and padded at the bottom and right to sides of a multiple of the
        model's stride and 1 more; ``sizes`` ``(N, 2)`` int64 is (height, width) before padding.  ``norm_mode`` is one of
        the modes of `masklab.export.norms`, and ``norm_statistics`` ``(2, T)`` what it takes.
        """
        self.table.mode, self.table.given, self.table.found = norm_mode, norm_statistics, []
        model = self.model
        features = model.features(images)
        proposals, owners = self._propose(features.conv4, sizes)
        rois = self._rois(proposals, owners, images)
        output = model.classify(features, rois)
        deltas, classes = output.deltas, output.classes
        boxes, scores, labels, rows = self._detect(deltas, classes, proposals, owners, sizes)
        maps = model.mask_maps(features)
        found = self._rois(boxes, rows, images)
        masks = model.mask_head.coarse_masks(maps.head, found, labels)
        if model.refinement is not None:
            masks = model.refinement(masks, maps.refinement, found)
        statistics = torch.cat(self.table.found, dim=1) if self.table.found else boxes.new_zeros(2, 0)
        return Found(boxes, scores, labels, masks.sigmoid(), rows, statistics)

    def _rois(self, boxes: Tensor, owners: Tensor, images: Tensor) -> Rois:
        return Rois.from_pixels(boxes, owners, (images.shape[-2], images.shape[-1]))

    def _propose(self, conv4: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Proposals (S, 4) of all images, as `RPN.propose` finds them, and the image of each (S,)."""
        rpn = self.model.rpn
        config, output = rpn.config, rpn(conv4)
        scores = output.objectness[..., 1] - output.objectness[..., 0]
        best, order = scores.topk(torch.sym_min(config.pre_nms_test, scores.shape[1]), dim=1)
        anchors = output.anchors[order]
        if config.drop_crossing_anchors:
            anchors = clip(anchors, sizes[:, None, :])
        deltas = output.deltas.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = clip(decode(deltas, anchors), sizes[:, None, :])
        # they are in order already: falling numbers as scores keep it, whatever a runtime does with equal ones
        falling = torch.arange(order.shape[1], 0, -1, dtype=boxes.dtype, device=boxes.device).expand(order.shape)
        if config.score_threshold > 0:
            likely = best > math.log(config.score_threshold / (1 - config.score_threshold))
            falling = torch.where(likely, falling, -1.0)
        kept = hard_nms(boxes, falling, config.nms_iou, 0.0, rpn.proposals_test)
        owners, rows = kept.unbind(dim=1)
        return boxes[owners, rows], owners

    def _detect(
        self, deltas: Tensor, classes: Tensor, proposals: Tensor, owners: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (D, 4), scores, labels and images (D,) as `BoxHead.detect` finds them in its output for the proposals."""
        head, images = self.model.box_head, sizes.shape[0]
        config, count = head.config, head.num_classes
        boxes = clip(decode(deltas, proposals[:, None]), sizes[owners][:, None])
        scores = classes.softmax(dim=-1)[:, :-1]
        scores = torch.where((boxes[..., 2:] > boxes[..., :2]).all(dim=-1), scores, -1.0)
        # a group is a class of an image; it holds the boxes of the other images too, with a score that is left out
        own = torch.arange(images, device=boxes.device)[:, None, None] == owners
        in_groups = torch.where(own, scores.t(), -1.0).flatten(0, 1)
        repeated = boxes.transpose(0, 1).expand(images, -1, -1, -1).flatten(0, 1)
        kept = hard_nms(repeated, in_groups, config.nms_iou, config.score_threshold, _ALL)
        groups, rows = kept.unbind(dim=1)
        found, probability = repeated[groups, rows], in_groups[groups, rows]
        if config.soft_nms is not None:
            probability = soft_nms(found, probability, groups, config.soft_nms, config.score_threshold)
        return self._best(found, probability, groups, images, count)

    def _best(
        self, boxes: Tensor, scores: Tensor, groups: Tensor, images: int, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best detections of each image above the threshold, as many as the model may find."""
        head = self.model.box_head
        owners = groups // count
        own = torch.arange(images, device=boxes.device)[:, None] == owners
        ranked = torch.where(own, scores, -1.0)
        best = ranked.topk(torch.sym_min(head.max_detections, scores.shape[0]), dim=1)
        image, place = (best.values > head.config.score_threshold).nonzero().unbind(dim=1)
        rows = best.indices[image, place]
        return boxes[rows], scores[rows], groups[rows] % count, image
