"""Group norm whose statistics belong to an image and not to the part of it that the network sees.

Group norm takes mean and variance from its input.  Of a tile that is nearly empty they differ from those of the whole
image, and with them what is found.  They are therefore measured once, together over some tiles of the image
(`measure_norms`), and then stay fixed (`with_fixed_norms`).  Norms inside the box head see one crop and stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklab.model.masklab import MaskLab
from masklab.model.norms import FrozenBatchNorm
from masklab.ops.coordinates import padded_size

NormStatistics = dict[str, tuple[Tensor, Tensor]]
"""For each norm that sees whole maps, by its name in the model, the mean and the variance ``(G,)`` of each group."""

_DENSE_PARTS = ("backbone.", "mask_head.")
_DETECTIONS_TO_MEASURE = 100


class FixedNorm(nn.Module):
    """Group norm with given statistics: one scale and one shift for each channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        per_group = norm.num_channels // norm.num_groups
        scale = norm.weight.detach().float() * (variance + norm.eps).rsqrt().repeat_interleave(per_group)
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        shift = norm.bias.detach().float() - mean.repeat_interleave(per_group) * scale
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.addcmul(self.shift.to(maps.dtype), maps, self.scale.to(maps.dtype))


class _MeasuredNorm(nn.Module):
    """Group norm with statistics over all maps of a batch together, which it keeps."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.found: tuple[Tensor, Tensor] | None = None

    def forward(self, maps: Tensor) -> Tensor:
        variance, mean = torch.var_mean(
            maps.float().unflatten(1, (self.norm.num_groups, -1)), (0, 2, 3, 4), correction=0
        )
        self.found = mean, variance
        fixed = FixedNorm(self.norm, mean, variance)
        result: Tensor = fixed(maps)
        return result


def has_norms_to_fix(model: MaskLab) -> bool:
    """Whether some norm of a model takes its statistics from whole maps."""
    return bool(dense_norms(model))


def measure_norms(model: MaskLab, inputs: Tensor) -> NormStatistics:
    """The statistics of a batch of tiles ``(N, C, H, W)`` of one image, as if they were one map.

    ``inputs`` are normalised network inputs; they are padded by their borders.  The statistics are on the CPU.  Each norm sees what the norms before it made with the
    statistics of the whole batch, as it will in `with_fixed_norms`.  Call it without gradients.
    """
    measured = {name: _MeasuredNorm(norm) for name, norm in dense_norms(model).items()}
    sharing = with_parts(model, dict(measured))
    height, width = padded_size((inputs.shape[2], inputs.shape[3]), model.stride)
    inputs = F.pad(inputs, (0, width - inputs.shape[3], 0, height - inputs.shape[2]), mode="replicate")
    sharing.mask_maps(sharing.features(inputs))
    found = {name: norm.found for name, norm in measured.items() if norm.found is not None}
    return {name: (mean.cpu(), variance.cpu()) for name, (mean, variance) in found.items()}


def with_fixed_norms(model: MaskLab, statistics: NormStatistics) -> MaskLab:
    """The model with fixed statistics; it shares all weights with ``model``, which stays as it is."""
    norms = dense_norms(model)
    place = next(model.parameters()).device
    return with_parts(
        model,
        {
            name: FixedNorm(norms[name], mean.to(place), variance.to(place))
            for name, (mean, variance) in statistics.items()
        },
    )


def freeze_norms(model: MaskLab, images: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace every group norm of a model by frozen batch norm, in place, with the mean statistics over ``images``.

    ``images`` are network inputs ``(1, C, H, W)`` and their sizes ``(1, 2)`` as `MaskLab.forward` takes them; groups
    keep one mean and one variance.  The model is close to what it was where images are like these, and is to be
    trained on.  Call it without gradients, in evaluation mode.
    """
    norms = {name: part for name, part in model.named_modules() if isinstance(part, nn.GroupNorm)}
    moments: dict[str, list[Tensor]] = {name: [] for name in norms}

    def measure(name: str, groups: int, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().float().unflatten(1, (groups, -1))
        moments[name].append(torch.stack((values.mean((0, 2, 3, 4)), values.square().mean((0, 2, 3, 4)))))

    hooks = [
        norm.register_forward_pre_hook(
            lambda _, inputs, name=name, groups=norm.num_groups: measure(name, groups, inputs)
        )
        for name, norm in norms.items()
    ]
    for inputs, sizes in images:
        model(inputs, sizes, _DETECTIONS_TO_MEASURE)
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        frozen = FrozenBatchNorm(norm.num_channels, norm.eps)
        mean, square = torch.stack(moments[name]).mean(0).repeat_interleave(norm.num_channels // norm.num_groups, dim=1)
        frozen.load_state_dict(
            {
                **norm.state_dict(),
                "running_mean": mean,
                "running_var": square - mean.square(),
                "num_batches_tracked": torch.tensor(len(moments[name])),
            }
        )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, frozen)


def dense_norms(model: MaskLab) -> dict[str, nn.GroupNorm]:
    """The norms that see whole maps, by their names in the model."""
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.GroupNorm) and name.startswith(_DENSE_PARTS)
    }


def with_parts(model: MaskLab, parts: dict[str, nn.Module]) -> MaskLab:
    """A copy of the model's structure, but not of its tensors, with some parts replaced."""
    tensors = [*model.parameters(), *model.buffers()]
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for name, part in parts.items():
        parent, _, child = name.rpartition(".")
        setattr(made.get_submodule(parent), child, part)
    return made
