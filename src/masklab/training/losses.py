"""Losses (paper, section 4.1, and its references [35, 62]).

All are finite for an empty selection and stay connected to the network's parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, classes: Tensor, normaliser: Tensor | float) -> Tensor:
    """Softmax cross entropy of ``logits`` (S, K), summed, each divided by its ``normaliser``.

    ``classes`` are indices (S,) or target probabilities (S, K).
    """
    return (F.cross_entropy(logits, classes, reduction="none") / normaliser).sum()


def box_loss(deltas: Tensor, wanted: Tensor, normaliser: Tensor | float) -> Tensor:
    """Huber loss of box deltas (S, 4) with threshold 1, summed over deltas and boxes, each divided by its ``normaliser``."""
    return (F.huber_loss(deltas, wanted, reduction="none", delta=1.0).sum(dim=1) / normaliser).sum()


def mask_loss(logits: Tensor, masks: Tensor, batch_index: Tensor, num_images: int) -> Tensor:
    """Sigmoid cross entropy of mask logits (M, P, P) against soft masks (M, P, P) in ``[0, 1]``.

    The mean over a mask, then over the masks of an image (``batch_index`` (M,) is the image of each), then over the
    ``num_images`` images of the batch, those without masks included.
    """
    each = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(1, 2))
    share = torch.bincount(batch_index, minlength=num_images).clamp(min=1)[batch_index]
    return (each / share).sum() / num_images
