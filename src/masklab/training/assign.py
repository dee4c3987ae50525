"""Matching of anchors and proposals to objects, and sampling (paper, section 4.1; its references [35, 62]).

A anchors, R proposals, G annotated objects, S samples.  Nothing here has gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masklab.config.model import BoxConfig, RPNConfig
from masklab.ops.boxes import at_once, box_iou, inside, overlap_share
from masklab.structures import Targets

IGNORED_SHARE = 0.5  # a box with more than this share of its area inside a crowd region is no background


class Assignment(NamedTuple):
    """Sampled ``rows`` (S,), positives first, and the index of the object of each, ``objects`` (S,), -1 for background."""

    rows: Tensor
    objects: Tensor


@torch.no_grad()
def sample_anchors(
    anchors: Tensor, targets: Targets, size: tuple[int, int], config: RPNConfig, generator: torch.Generator
) -> Assignment:
    """Sample the anchors (A, 4) of one image of ``size`` (height, width) that enter the RPN's loss.

    Positive: an IoU of at least ``positive_iou`` with an object, or the highest IoU of all anchors with one.
    Negative: an IoU below ``negative_iou`` with every object.  With ``drop_crossing_anchors``, anchors that cross the
    image's border are left out.
    """
    matched = torch.full((anchors.shape[0],), -1, device=anchors.device)
    negative = torch.ones(anchors.shape[0], dtype=torch.bool, device=anchors.device)
    usable = torch.ones_like(negative)
    if config.drop_crossing_anchors:
        usable = inside(anchors, anchors.new_tensor(size))
    if len(targets.boxes) > 0:
        best, first, forced = torch.full_like(anchors[:, 0], -1.0), 0, []
        for boxes in at_once(targets.boxes, len(anchors)):
            overlap = box_iou(boxes, anchors)  # (G, A), faster than (A, G)
            if config.drop_crossing_anchors:
                overlap.masked_fill_(~usable, -1.0)
            share = overlap.amax(dim=0)
            positive = ((share > best) & (share >= config.positive_iou)).nonzero().flatten()
            matched[positive] = first + overlap[:, positive].argmax(dim=0)
            best = torch.maximum(best, share)
            best_of_object = overlap.amax(dim=1, keepdim=True)
            object_, anchor = ((overlap == best_of_object) & (best_of_object > 0)).nonzero(as_tuple=True)
            forced.append((anchor, first + object_))
            first += len(boxes)
        negative = best < config.negative_iou
        # the best anchor of each object, ties included, is positive whatever its overlap
        for anchor, object_ in forced:
            matched[anchor] = object_
    negative &= overlap_share(anchors, targets.ignored) <= IGNORED_SHARE
    return _balanced_subset((matched >= 0) & usable, negative & usable & (matched < 0), matched, config, generator)


@torch.no_grad()
def sample_proposals(proposals: Tensor, targets: Targets, config: BoxConfig, generator: torch.Generator) -> Assignment:
    """Sample the proposals (R, 4) of one image that enter the box head's loss."""
    matched = torch.full((proposals.shape[0],), -1, device=proposals.device)
    if len(targets.boxes) > 0 and len(proposals) > 0:
        found = [box_iou(some, targets.boxes).max(dim=1) for some in at_once(proposals, len(targets.boxes))]
        best, nearest = (torch.cat(parts) for parts in zip(*found, strict=True))
        matched = torch.where(best >= config.positive_iou, nearest, matched)
    negative = (matched < 0) & (overlap_share(proposals, targets.ignored) <= IGNORED_SHARE)
    return _balanced_subset(matched >= 0, negative, matched, config, generator)


def random_subset(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` of the row numbers ``candidates``, uniformly at random."""
    if candidates.numel() <= count:
        return candidates
    order = torch.randperm(candidates.numel(), generator=generator)[:count]
    return candidates[order.to(candidates.device)]


def _balanced_subset(
    positive: Tensor, negative: Tensor, matched: Tensor, config: RPNConfig | BoxConfig, generator: torch.Generator
) -> Assignment:
    wanted = round(config.samples * config.positive_fraction)
    chosen = random_subset(positive.nonzero().flatten(), wanted, generator)
    rest = random_subset(negative.nonzero().flatten(), config.samples - chosen.numel(), generator)
    return Assignment(torch.cat([chosen, rest]), torch.cat([matched[chosen], torch.full_like(rest, -1)]))
