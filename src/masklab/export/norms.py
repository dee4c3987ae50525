"""Group norms whose statistics an exported network shows and takes, for images that are predicted in tiles.

See `masklab.model.fixed_norm`: the tiles of an image share statistics that are measured over some of them together.
N images, C channels, G groups of one norm, T groups of all norms together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from masklab.runtime.sessions import GIVEN, TOGETHER


@dataclass
class NormTable:
    """What the norms of one call share: the ``mode``, ``given`` statistics (2, T), and those that are ``found``."""

    mode: Tensor | None = None
    given: Tensor | None = None
    found: list[Tensor] = field(default_factory=list)


class OpenNorm(nn.Module):
    """Group norm whose statistics are those of `NormTable`; its groups are ``first`` and the following in it."""

    def __init__(self, norm: nn.GroupNorm, first: int, table: NormTable) -> None:
        super().__init__()
        self.norm, self.first, self.table = norm, first, table

    def forward(self, maps: Tensor) -> Tensor:
        norm, table = self.norm, self.table
        if table.mode is None or table.given is None:
            plain: Tensor = norm(maps)
            return plain
        groups = norm.num_groups
        values = maps.float().unflatten(1, (groups, -1)).flatten(2)
        mean, square = values.mean(dim=2), values.square().mean(dim=2)
        mean_of_all, square_of_all = mean.mean(dim=0), square.mean(dim=0)
        table.found.append(torch.stack([mean_of_all, square_of_all - mean_of_all.square()]))
        given = table.given[:, self.first : self.first + groups]
        together = table.mode == TOGETHER
        mean = torch.where(together, mean_of_all, mean)
        variance = torch.where(together, square_of_all, square) - mean.square()
        mean, variance = torch.where(table.mode == GIVEN, given[:, None], torch.stack([mean, variance])).unbind()
        scale = (variance.clamp(min=0) + norm.eps).rsqrt()
        per_group = norm.num_channels // groups
        factor = scale.repeat_interleave(per_group, dim=1) * norm.weight
        shift = norm.bias - mean.repeat_interleave(per_group, dim=1) * factor
        return maps * factor[:, :, None, None] + shift[:, :, None, None]
