"""Training step: from a batch to its losses (paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklab.model.backbone import Features
from masklab.model.masklab import MaskLab
from masklab.model.rpn import Proposals, RPNOutput
from masklab.ops.boxes import box_iou, clip, decode, encode
from masklab.structures import Batch
from masklab.training.assign import Assignment, random_subset, sample_anchors, sample_proposals
from masklab.training.losses import box_loss, classification_loss, mask_loss


class TrainingStep(nn.Module):
    """MaskLab's weighted losses of a batch; training minimises ``sum(losses.values())``."""

    def __init__(self, model: MaskLab) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> dict[str, Tensor]:
        """Losses ``rpn_objectness``, ``rpn_box``, ``box_class``, ``box``, ``mask_coarse`` and, for a model with
        refinement, ``mask_refined``.

        Each is a float32 scalar, the mean over the images of the batch, finite and connected to its parameters also
        without objects.  ``generator`` (on the CPU), one for all images or one per image, samples anchors, proposals
        and masks; None uses the global generator.
        """
        generator = generator or torch.default_generator
        generators = [generator] * len(batch.targets) if isinstance(generator, torch.Generator) else generator
        features = self.model.features(batch.images)
        rpn = self.model.rpn(features.conv4)
        proposals = self.model.rpn.propose(rpn, batch.sizes)
        return {
            **self._rpn_losses(rpn, batch, generators),
            **self._box_losses(features, proposals, batch, generators),
            **self._mask_losses(features, batch, generators),
        }

    def _rpn_losses(self, output: RPNOutput, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        config, owners, samples, normalisers, objects = self.model.config.model.rpn, [], [], [], []
        for i, targets in enumerate(batch.targets):
            size = (int(batch.sizes[i, 0]), int(batch.sizes[i, 1]))
            sample = sample_anchors(output.anchors, targets, size, config, generators[i])
            samples.append(sample)
            owners.append(torch.full_like(sample.rows, i))
            normalisers.append(torch.full_like(sample.rows, len(sample.rows) * len(batch.targets)))
            objects.append(targets.boxes[sample.objects[sample.objects >= 0]])
        rows, matched = (torch.cat(parts) for parts in zip(*samples, strict=True))
        owner, normaliser, wanted = torch.cat(owners), torch.cat(normalisers), torch.cat(objects)
        positive = matched >= 0
        objectness = classification_loss(output.objectness[owner, rows], positive.long(), normaliser)
        owner, rows, normaliser = owner[positive], rows[positive], normaliser[positive]
        box = box_loss(output.deltas[owner, rows], encode(wanted, output.anchors[rows]), normaliser)
        return {"rpn_objectness": config.objectness_weight * objectness, "rpn_box": config.box_weight * box}

    def _box_losses(
        self, features: Features, proposals: Proposals, batch: Batch, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        config, head = self.model.config.model.box, self.model.box_head
        boxes, owners, classes, objects, normalisers = [], [], [], [], []
        for i, targets in enumerate(batch.targets):
            candidates = proposals.boxes[i, : proposals.num_valid[i]]
            if config.append_ground_truth:
                candidates = torch.cat([candidates, targets.boxes])
            sample: Assignment = sample_proposals(candidates, targets, config, generators[i])
            box, positive = candidates[sample.rows], sample.objects >= 0
            label = torch.full_like(sample.rows, head.num_classes)
            label[positive] = targets.labels[sample.objects[positive]]
            boxes.append(box)
            owners.append(torch.full_like(sample.rows, i))
            classes.append(label)
            objects.append(targets.boxes[sample.objects[positive]])
            normalisers.append(box.new_full((len(box),), len(box) * len(batch.targets)))
        box, owner, label, normaliser, wanted = (
            torch.cat(parts) for parts in (boxes, owners, classes, normalisers, objects)
        )
        output = self.model.classify(features, self.model.rois(box, owner, batch.images))
        positive = (label < head.num_classes).nonzero().flatten()
        deltas = output.deltas[positive, label[positive]]
        if config.iou_aware_score:
            predicted = clip(decode(deltas.detach(), box[positive]), batch.sizes[owner[positive]])
            share = box_iou(predicted, wanted).diagonal()
            label = F.one_hot(label, head.num_classes + 1).float()
            label[positive] *= share[:, None]
            label[positive, -1] = 1 - share
        return {
            "box_class": config.class_weight * classification_loss(output.classes, label, normaliser),
            "box": config.box_weight * box_loss(deltas, encode(wanted, box[positive]), normaliser[positive]),
        }

    def _mask_losses(
        self, features: Features, batch: Batch, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Masks are trained in annotated boxes (paper, section 4.1), which ``box_jitter`` moves a little."""
        config, model, images = self.model.config.model.mask, self.model, len(batch.targets)
        boxes = torch.cat([t.mask_boxes for t in batch.targets])
        labels = torch.cat([t.labels[t.mask_rows] for t in batch.targets])
        masks = torch.cat([t.masks for t in batch.targets])
        owners = torch.cat([torch.full_like(t.mask_rows, i) for i, t in enumerate(batch.targets)])
        coarse = model.mask_head.coarse_masks(
            model.mask_head(features.conv4, features.conv5), model.rois(boxes, owners, batch.images), labels
        )
        losses = {"mask_coarse": config.coarse_weight * mask_loss(coarse, masks, owners, images)}
        if model.refinement is not None:
            some = torch.cat(
                [
                    random_subset((owners == i).nonzero().flatten(), config.train_refined, generators[i])
                    for i in range(images)
                ]
            )
            rois = model.rois(boxes[some], owners[some], batch.images)
            refined = model.refinement(coarse[some], model.refinement.maps(features), rois)
            losses["mask_refined"] = config.refined_weight * mask_loss(refined, masks[some], owners[some], images)
        return losses
