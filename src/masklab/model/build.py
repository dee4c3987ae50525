"""Building the network from its configuration."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from masklab.config.model import BoxConfig, MaskConfig, ModelConfig
from masklab.config.schema import Config
from masklab.model.alternatives import FCISHead, MaskRCNNHead
from masklab.model.backbone import Conv5Factory, build_backbone
from masklab.model.box_head import AnyBoxHead, BoxHead, LightBoxHead
from masklab.model.mask_head import MaskLabHead
from masklab.model.masklab import MaskHead, MaskLab
from masklab.model.refinement import Refinement, SharedRefinement
from masklab.model.rpn import RPN
from masklab.structures import ClassTable
from masklab.utils.errors import InputError


def build_model(
    config: Config,
    classes: ClassTable,
    load_pretrained: bool = True,
    segmentation: Mapping[str, Tensor] | None = None,
) -> MaskLab:
    """Build MaskLab as configured, for the classes of a data set.

    ``load_pretrained=False`` leaves pretrained weights out, for weights that are loaded afterwards; ``segmentation``
    is as in `masklab.model.backbone.build_backbone`.  Raises `InputError` for a configuration that cannot be built.
    """
    model, mask, num_classes = config.model, config.model.mask, len(classes)
    if model.num_classes not in (None, num_classes):
        raise InputError(
            f"model.num_classes is {model.num_classes} but the data has {num_classes} categories: leave num_classes out."
        )
    backbone, make_conv5 = build_backbone(model.backbone, load_pretrained, segmentation)
    channels = backbone.channels
    return MaskLab(
        config,
        classes,
        backbone,
        RPN(model.rpn, channels["conv4"], backbone.strides["conv4"]),
        _box_head(model.box, make_conv5, channels["conv4"], num_classes),
        _mask_head(model, make_conv5(mask.dilations), make_conv5.channels, num_classes),
        _refinement(mask, channels),
    )


def _box_head(box: BoxConfig, make_conv5: Conv5Factory, conv4_channels: int, num_classes: int) -> AnyBoxHead:
    if box.head == "light":
        return LightBoxHead(box, make_conv5.channels, num_classes)
    conv5 = make_conv5(box.dilations, dense=True, pretrained=box.from_imagenet)
    return BoxHead(box, conv5, conv4_channels, make_conv5.channels, num_classes)


def _mask_head(model: ModelConfig, conv5: nn.Module, channels: int, num_classes: int) -> MaskHead:
    if model.mask.head == "mask_rcnn":
        return MaskRCNNHead(model.mask.mask_size, conv5, channels, round(256 * model.backbone.width), num_classes)
    if model.mask.head == "fcis":
        return FCISHead(model.mask.mask_size, conv5, channels, num_classes)
    return MaskLabHead(model.mask, conv5, channels, num_classes)


def _refinement(mask: MaskConfig, channels: dict[str, int]) -> Refinement | SharedRefinement | None:
    if not mask.refine_levels:
        return None
    refinement_class = SharedRefinement if mask.refinement == "shared" else Refinement
    return refinement_class(mask.refine_levels, channels, mask.refine_channels)
