"""Direction pooling: the fixed table of the channel that each position inside a box reads (paper, Fig. 3 and 6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from masklab.utils.types import DistanceMetric

_ROUNDING = 1e-6  # multiples of 45 degrees must fall on one side of their boundary, whatever atan2 rounds to


def direction_table(
    mask_size: int,
    directions: int = 8,
    bins: int = 1,
    metric: DistanceMetric = "linf",
    start_degrees: float = 0.0,
) -> Tensor:
    """Channel that each sample of a ``mask_size x mask_size`` grid reads: int64 ``(mask_size, mask_size)``.

    ``k`` is the direction from the sample to the box's centre, counted counter-clockwise from
    ``start_degrees`` (0 is to the right), and ``b`` the bin of the distance between the two; the sample reads
    channel ``b * directions + k``.  Distances are relative to the box: the bins are equally wide from the centre to
    the border (``linf``, squares), to the middle of a side (``l2_side``) or to a corner (``l2_corner``).  The centre
    reads channel 0.
    """
    half = (mask_size - 1) / 2
    position = (torch.arange(mask_size, dtype=torch.float64) - half) / half
    u, v = position[None, :].expand(mask_size, mask_size), -position[:, None].expand(mask_size, mask_size)
    degrees = torch.rad2deg(torch.atan2(-v, -u))
    sector = torch.floor(torch.remainder(degrees - start_degrees + _ROUNDING, 360.0) / (360.0 / directions))
    distance = _distance(u, v, metric)
    ring = torch.floor(bins * distance + _ROUNDING).clamp(max=bins - 1)
    table = (ring * directions + sector.clamp(max=directions - 1)).long()
    table[distance == 0] = 0
    return table


def _distance(u: Tensor, v: Tensor, metric: DistanceMetric) -> Tensor:
    if metric == "linf":
        return torch.maximum(u.abs(), v.abs())
    euclidean = torch.hypot(u, v)
    return euclidean if metric == "l2_side" else euclidean / math.sqrt(2)
