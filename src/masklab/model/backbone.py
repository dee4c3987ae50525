"""Shared feature extractor: a timm ResNet at a chosen output stride (paper, sections 3 and 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from masklab.config.model import BackboneConfig
from masklab.model.norms import NORMS
from masklab.model.resnet import PLAIN, PlainResNet
from masklab.ops.fast_conv import replace_convolutions
from masklab.utils.errors import InputError

_RESIDUAL_SCALE = 0.2


class Features(NamedTuple):
    """Feature maps of a batch, each ``(N, C, H / stride, W / stride)``; conv1 is taken before the pooling.

    ``conv5`` is the mask head's, where it has been computed; the backbone ends with conv4.
    """

    conv1: Tensor
    conv2: Tensor
    conv3: Tensor
    conv4: Tensor
    conv5: Tensor | None = None


class Backbone(nn.Module):
    """conv1 to conv4 of a ResNet.

    ``strides`` and ``channels`` map ``conv1`` to ``conv5`` to pixels per cell and number of channels.
    Strides beyond the output stride are replaced by dilations that keep the pretrained function: the dense
    maps, read at every second cell, equal the strided network's.
    """

    def __init__(self, network: nn.Module, output_stride: int) -> None:
        super().__init__()
        stem = (network.get_submodule(name) for name in ("conv1", "bn1", "act1"))
        self.conv1 = nn.Sequential(*stem)
        self.pool = network.get_submodule("maxpool")
        self.conv2, self.conv3, self.conv4 = (_stage(network, i) for i in (1, 2, 3))
        self.channels: dict[str, int] = {"conv1": _first_conv(network).out_channels}
        self.channels |= {f"conv{i + 1}": _width(_stage(network, i)) for i in (1, 2, 3, 4)}
        self.strides = {"conv1": 2, "conv2": 4} | {
            f"conv{i}": min(stride, output_stride) for i, stride in ((3, 8), (4, 16), (5, 32))
        }

    def forward(self, images: Tensor) -> Features:
        """Maps of normalised images ``(N, C, H, W)``."""
        conv1 = self.conv1(images)
        conv2 = self.conv2(self.pool(conv1))
        conv3 = self.conv3(conv2)
        return Features(conv1, conv2, conv3, self.conv4(conv3))


class Conv5Factory:
    """Factory of independent copies of the network's conv5; the model holds two (paper, section 3)."""

    def __init__(self, stage: nn.Sequential, name: str) -> None:
        self._stage, self._name = stage, name
        self.channels = _width(stage)

    def __call__(
        self, dilations: Sequence[int] | None = None, *, dense: bool = False, pretrained: bool = True
    ) -> nn.Sequential:
        """A copy of conv5.

        ``dilations`` holds the dilation of each residual unit (paper, section 4.2, Table 5); None keeps the network's
        own.  ``dense`` removes the stride, for use on crops; None then means 1 everywhere.  ``pretrained=False``
        initialises the weights at random.  Raises `InputError` when the number of dilations is not that of the units.
        """
        conv5 = copy.deepcopy(self._stage)
        if dense and dilations is None:
            dilations = [1] * len(conv5)
        if dilations is not None:
            if len(dilations) != len(conv5):
                raise InputError(
                    f"model.{'box' if dense else 'mask'}.dilations has {len(dilations)} values but conv5 of model.backbone.name "
                    f"{self._name} has {len(conv5)} units: give one per unit, or choose another backbone."
                )
            _set_dilations(conv5, dilations, dense)
        if not pretrained:
            initialise(conv5)
        if dense:
            replace_convolutions(conv5)
        return conv5


def build_backbone(
    config: BackboneConfig, load_pretrained: bool = True, segmentation: Mapping[str, Tensor] | None = None
) -> tuple[Backbone, Conv5Factory]:
    """Build a `Backbone` and the factory of its conv5 with timm, with the weights that the configuration asks for.

    ``segmentation`` holds the tensors of ``config.segmentation_weights`` (see `masklab.weights.segmentation`), which
    take the place of ImageNet's.  ``load_pretrained=False`` is for models whose weights are loaded afterwards.

    Raises `InputError` for a network that is not of the ResNet family and for weights that cannot be loaded, and
    `ValueError` if segmentation weights are configured but not given: random weights are never used instead.
    """
    if load_pretrained and config.segmentation_weights is not None and segmentation is None:
        raise ValueError(
            "give the tensors of segmentation_weights: masklab.weights.segmentation.initial_model reads them"
        )
    if not load_pretrained and config.name in PLAIN:
        network = _plain_network(config)
    else:
        network = _timm_network(config, config.pretrained and load_pretrained and segmentation is None)
    backbone, conv5 = Backbone(network, config.output_stride), _stage(network, 4)
    if segmentation is not None:
        _load_segmentation(segmentation, config, backbone, conv5)
    return backbone, Conv5Factory(conv5, config.name)


def _channels(config: BackboneConfig) -> tuple[int, ...]:
    """Channels of conv2 to conv5, before a bottleneck's expansion."""
    last = config.width if config.conv5_width is None else config.conv5_width
    widths = (config.width, config.width, config.width, last)
    return tuple(max(1, round(channels * width)) for channels, width in zip((64, 128, 256, 512), widths, strict=True))


def _plain_network(config: BackboneConfig) -> nn.Module:
    return PlainResNet(config.name, config.channels, _channels(config), config.output_stride, NORMS[config.norm])


def _timm_network(config: BackboneConfig, pretrained: bool) -> nn.Module:
    """A network of timm's with ImageNet's weights or random ones; `InputError` for one that cannot be used."""
    import timm
    from timm.layers import BlurPool2d
    from timm.models.resnet import ResNet

    arguments: dict[str, Any] = {"in_chans": config.channels, "norm_layer": NORMS[config.norm]}
    if config.width != 1 or config.conv5_width is not None:
        arguments["channels"] = _channels(config)
    if pretrained and config.weights is not None:
        arguments["pretrained_cfg_overlay"] = {"file": str(config.weights)}
    # a frozen norm that starts at zero would stay there and silence its block
    arguments["zero_init_last"] = config.norm != "frozen_batch"
    if not timm.is_model(config.name):
        raise InputError(
            f"model.backbone.name: timm knows no network {config.name}; use one such as resnet50, resnet101.tv_in1k or resnext50_32x4d."
        )
    try:
        network = timm.create_model(config.name, pretrained=pretrained, output_stride=config.output_stride, **arguments)
    except Exception as error:
        if not pretrained:
            raise InputError(
                f"model.backbone.name: {config.name} cannot be built ({_first_line(error)}); use a ResNet."
            ) from error
        raise InputError(
            f"model.backbone: the ImageNet weights of {config.name} could not be loaded ({_first_line(error)}); go online, "
            f"or give a local file as model.backbone.weights, or set model.backbone.pretrained to false to start from random weights."
        ) from error
    if not isinstance(network, ResNet):
        raise InputError(
            f"model.backbone.name: {config.name} is not of the ResNet family; use resnet18 ... resnet152, resnext or wide_resnet."
        )
    if any(isinstance(part, (nn.AvgPool2d, BlurPool2d)) for part in network.modules()):
        raise InputError(
            f"model.backbone.name: {config.name} averages where it strides, which no dilation can imitate; "
            "use a network without a d or aa variant, such as resnet50."
        )
    if not pretrained and config.norm == "frozen_batch":
        _scale_residual(network)
    return network


def trained_norm(norm: str) -> str:
    """The norm to train with where ``norm`` is used afterwards: frozen batch norm is trained as batch norm."""
    return "batch" if norm == "frozen_batch" else norm


def backbone_facts(config: BackboneConfig) -> dict[str, Any]:
    """The facts in which two backbones must agree to share weights; output stride and dilations may differ."""
    return {
        "name": config.name.split(".")[0],
        "norm": trained_norm(config.norm),
        "width": config.width,
        "in_channels": config.channels,
    }


def _load_segmentation(
    tensors: Mapping[str, Tensor], config: BackboneConfig, backbone: Backbone, conv5: nn.Sequential
) -> None:
    """Load pretrained tensors into conv1 to conv4 and conv5."""
    lower = {name: tensor for name, tensor in tensors.items() if not name.startswith("conv5.")}
    upper = {name.removeprefix("conv5."): tensors[name] for name in tensors.keys() - lower.keys()}
    try:
        backbone.load_state_dict(lower)
        conv5.load_state_dict(upper)
    except RuntimeError as error:
        raise InputError(
            f"{config.segmentation_weights}: its tensors do not fit its header ({_first_line(error)}): use the file as it was written."
        ) from None


def _scale_residual(network: nn.Module) -> None:
    """Scale down each unit's residual branch, for random weights under frozen norms: activations would double per unit."""
    for unit in network.modules():
        if _is_plain(unit):
            last = unit.get_submodule("bn3" if hasattr(unit, "bn3") else "bn2")
            nn.init.constant_(last.get_parameter("weight"), _RESIDUAL_SCALE)


def initialise(module: nn.Module) -> None:
    """He-normal convolutions and identity norms, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()


def _is_plain(unit: nn.Module) -> bool:
    """Whether a module is a residual unit of a plain ResNet, timm's or our own."""
    return type(unit).__name__ in ("BasicBlock", "Bottleneck")


def _stage(network: nn.Module, number: int) -> nn.Sequential:
    stage: nn.Sequential = getattr(network, f"layer{number}")
    return stage


def _first_conv(network: nn.Module) -> nn.Conv2d:
    return [part for part in network.get_submodule("conv1").modules() if isinstance(part, nn.Conv2d)][-1]


def _width(stage: nn.Sequential) -> int:
    return [part for part in stage[-1].modules() if isinstance(part, nn.Conv2d)][-1].out_channels


def _set_dilations(stage: nn.Sequential, dilations: Sequence[int], dense: bool) -> None:
    for unit, dilation in zip(stage, dilations, strict=True):
        if not _is_plain(unit):
            raise InputError(
                f"model.backbone.name: units of type {type(unit).__name__} have no dilations; use a plain ResNet."
            )
        for part in unit.modules():
            if isinstance(part, nn.Conv2d):
                if part.kernel_size == (3, 3):
                    part.dilation = part.padding = (dilation, dilation)
                if dense:
                    part.stride = (1, 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
