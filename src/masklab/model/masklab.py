"""MaskLab: the network (paper, section 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masklab.config.schema import Config
from masklab.model.alternatives import FCISHead, MaskRCNNHead
from masklab.model.backbone import Backbone, Features
from masklab.model.box_head import AnyBoxHead, BoxDetections, BoxOutput
from masklab.model.mask_head import MaskLabHead
from masklab.model.refinement import Refinement, SharedRefinement
from masklab.model.rpn import RPN
from masklab.ops.rois import Rois
from masklab.structures import ClassTable, Detections, TrainingData

BOXES_AT_ONCE = 256

MaskHead = MaskLabHead | MaskRCNNHead | FCISHead
"""``forward(conv4, conv5)`` computes maps once per image, from a conv5 of its own where none is given; ``coarse_masks(maps, rois, labels)`` computes mask logits (R, P, P)."""


class MaskMaps(NamedTuple):
    """The maps that all masks of a batch are cropped from: those of the mask head and those of the refinement."""

    head: Any
    refinement: list[Tensor]


class MaskLab(nn.Module):
    """Network inputs in, detections with masks out.

    ``forward`` is inference and never sees a target; `masklab.training.step.TrainingStep` is training over the same
    parts, and `masklab.inference.predictor.Predictor` leads from images to results.  ``config``, ``classes``,
    ``score_threshold`` and ``training_data`` are saved with the weights.  ``score_threshold`` is the score from which an
    object counts as found, tuned on training images; None before that, as is ``training_data``.
    """

    def __init__(
        self,
        config: Config,
        classes: ClassTable,
        backbone: Backbone,
        rpn: RPN,
        box_head: AnyBoxHead,
        mask_head: MaskHead,
        refinement: Refinement | SharedRefinement | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.score_threshold: float | None = None
        self.training_data: TrainingData | None = None
        self.backbone = backbone
        self.rpn = rpn
        self.box_head = box_head
        self.mask_head = mask_head
        self.refinement = refinement

    @property
    def stride(self) -> int:
        """Pixels per cell of the coarsest map; inputs are padded to a multiple of it plus one."""
        return self.config.model.backbone.output_stride

    def rois(self, boxes: Tensor, batch_index: Tensor, images: Tensor) -> Rois:
        """Pixel boxes (R, 4) of the padded ``images`` (N, C, H, W) in the coordinates of feature maps."""
        return Rois.from_pixels(boxes, batch_index, (images.shape[-2], images.shape[-1]))

    def forward(
        self, images: Tensor, sizes: Tensor, max_detections: int | None = None, min_score: float = 0.0
    ) -> Detections:
        """Detect and segment.

        ``images`` is ``(N, C, H, W)``, normalised and padded at the bottom and right; ``sizes`` ``(N, 2)``
        is (height, width) before padding.  Returns `Detections` of a score of at least ``min_score``, padded to
        ``max_detections``, by default the configuration's.
        """
        features = self.features(images)
        boxes = self.detect(features, images, sizes, max_detections).above(min_score)
        masks = self.masks(self.mask_maps(features), boxes.boxes, boxes.labels, boxes.num_valid, images)
        return Detections(boxes.boxes, boxes.scores, boxes.labels, masks, boxes.num_valid)

    def features(self, images: Tensor) -> Features:
        """The maps of ``images`` (N, C, H, W) that boxes and masks are made from; with conv5 if the box head reads it."""
        features: Features = self.backbone(images)
        if self.box_head.reads == "conv5":
            features = features._replace(conv5=self.mask_head.conv5(features.conv4))
        return features

    def classify(self, features: Features, rois: Rois) -> BoxOutput:
        """Class logits and box deltas of boxes on the maps that `features` gives."""
        output: BoxOutput = self.box_head(getattr(features, self.box_head.reads), rois)
        return output

    def detect(
        self, features: Features, images: Tensor, sizes: Tensor, max_detections: int | None = None
    ) -> BoxDetections:
        """The boxes of `forward`, without masks: classified proposals after non-maximum suppression."""
        proposals = self.rpn.propose(self.rpn(features.conv4), sizes)
        rois = self.rois(proposals.boxes.flatten(0, 1), _batch_index(proposals.boxes), images)
        return self.box_head.detect(self.classify(features, rois), proposals, sizes, max_detections)

    def mask_maps(self, features: Features) -> MaskMaps:
        """The maps that masks are cropped from, computed once for all boxes."""
        refined = [] if self.refinement is None else self.refinement.maps(features)
        return MaskMaps(self.mask_head(features.conv4, features.conv5), refined)

    def masks(self, maps: MaskMaps, boxes: Tensor, labels: Tensor, num_valid: Tensor, images: Tensor) -> Tensor:
        """Mask probabilities (N, R, P, P) of given boxes (N, R, 4) and labels (N, R); 0 beyond ``num_valid`` (N,).

        Processes 256 boxes at a time to bound the memory.
        """
        wanted = torch.arange(boxes.shape[1], device=boxes.device) < num_valid[:, None]
        if torch.compiler.is_compiling():  # all rows, as their number depends on the image, and then those that count
            image, row = torch.ones_like(wanted).nonzero_static(size=wanted.numel()).unbind(dim=1)
        else:
            image, row = wanted.nonzero(as_tuple=True)
        mask_size = self.config.model.mask.mask_size
        masks = torch.zeros(*boxes.shape[:2], mask_size, mask_size, device=boxes.device)
        for some in zip(image.split(BOXES_AT_ONCE), row.split(BOXES_AT_ONCE), strict=True):
            rois = self.rois(boxes[some], some[0], images)
            mask = self.mask_head.coarse_masks(maps.head, rois, labels[some])
            if self.refinement is not None:
                mask = self.refinement(mask, maps.refinement, rois)
            masks[some] = mask.sigmoid()
        return torch.where(wanted[..., None, None], masks, 0.0) if torch.compiler.is_compiling() else masks


def _batch_index(boxes: Tensor) -> Tensor:
    """The image index of each row of (N, R, 4): (N * R,)."""
    return torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
