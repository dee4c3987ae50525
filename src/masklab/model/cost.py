"""Parameters and multiply-adds of a model, part by part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from masklab.config.schema import Config
from masklab.model.backbone import Features
from masklab.model.box_head import LightBoxHead
from masklab.model.build import build_model
from masklab.model.mask_head import MaskLabHead
from masklab.ops.rois import Rois
from masklab.structures import ClassTable


class PartCost(NamedTuple):
    """``parameters``, and ``macs``: multiply-adds of convolutions and matrix products for one image."""

    parameters: int
    macs: float


def model_cost(config: Config, num_classes: int, size: tuple[int, int]) -> dict[str, PartCost]:
    """Cost of one prediction, by part, with as many proposals and detections as the configuration allows.

    ``size`` is (height, width) of the network's input and is not padded here; the input of an image is padded to a
    multiple of the stride plus one.  Nothing is computed: the model is on the meta device.
    """
    classes = ClassTable(tuple(range(num_classes)), tuple(map(str, range(num_classes))))
    with torch.device("meta"):
        model = build_model(config, classes, load_pretrained=False).eval()
        inputs = torch.empty(1, config.model.backbone.channels, *size)
    backbone, box_head, mask_head = model.backbone, model.box_head, model.mask_head
    proposals, detections = model.rpn.proposals_test, box_head.max_detections
    half = config.model.box.roi_size // 2
    with torch.no_grad():
        features: Features = backbone(inputs)
        conv5 = mask_head.conv5(features.conv4)
        crops = torch.empty(proposals, features.conv4.shape[1], half, half, device="meta")
        pooled = torch.empty(proposals, box_head.classes.in_features, device="meta")
        parts: dict[str, list[tuple[nn.Module, Tensor]]] = {
            "conv1-conv3": [
                (backbone.conv1, inputs),
                (backbone.conv2, backbone.pool(features.conv1)),
                (backbone.conv3, features.conv2),
            ],
            "conv4": [(backbone.conv4, features.conv3)],
            "mask conv5": [(mask_head.conv5, features.conv4)],
            "mask maps": [(layer, conv5) for layer in mask_head.map_layers()],
            "region proposal network": [(model.rpn, features.conv4)],
        }
        linear: list[tuple[nn.Module, Tensor]] = [(box_head.classes, pooled), (box_head.deltas, pooled)]
        if isinstance(box_head, LightBoxHead):
            parts["box head maps"] = [(box_head.thin, conv5)]
            linear.insert(0, (box_head.hidden, torch.empty(proposals, box_head.hidden.in_features, device="meta")))
        else:
            parts["box head conv5"] = [(box_head.conv5, crops)]
        parts["box head linear"] = linear
        if box_head.offsets is not None:
            parts["deformable crop offsets"] = [(box_head.offsets, crops.flatten(1))]
        costs = {name: _cost(modules) for name, modules in parts.items()}
        images = torch.zeros(detections, dtype=torch.long, device="meta")
        rois, maps = Rois(torch.empty(detections, 4, device="meta"), images), mask_head(features.conv4)
        with FlopCounterMode(display=False) as counter:
            coarse = mask_head.coarse_masks(maps, rois, images)
        own = _parameters(mask_head) - sum(costs[name].parameters for name in ("mask conv5", "mask maps"))
        # the 1 x 1 convolution computed as a weighted sum: one multiply-add per sample and logit
        summed = mask_head.coarse.weight.numel() * coarse.numel() if isinstance(mask_head, MaskLabHead) else 0
        costs["coarse masks"] = PartCost(own, counter.get_total_flops() / 2 + summed)
        if model.refinement is not None:
            with FlopCounterMode(display=False) as counter:
                model.refinement(coarse, model.refinement.maps(features), rois)
            costs["refinement"] = PartCost(_parameters(model.refinement), counter.get_total_flops() / 2)
    costs["total"] = PartCost(_parameters(model), sum(cost.macs for cost in costs.values()))
    return costs


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _cost(modules: list[tuple[nn.Module, Tensor]]) -> PartCost:
    with FlopCounterMode(display=False) as counter:
        for module, values in modules:
            module(values)
    return PartCost(sum(_parameters(module) for module, _ in modules), counter.get_total_flops() / 2)
