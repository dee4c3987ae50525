"""Weights of a backbone pretrained on semantic segmentation, and the model that training starts from.

A file holds conv1 to conv5; ``model.backbone.segmentation_weights`` names it (paper, section 4.2, "Seg").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masklab.config.model import BackboneConfig, ModelConfig
from masklab.config.schema import Config
from masklab.model.backbone import backbone_facts, build_backbone
from masklab.model.build import build_model
from masklab.model.masklab import MaskLab
from masklab.model.segmentation import SegmentationNetwork
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.weights.header import header_value
from masklab.weights.tensors import read_tensors, write_tensors

SEGMENTATION_FORMAT = "masklab segmentation 1"


def initial_model(config: Config, classes: ClassTable, load_pretrained: bool = True) -> MaskLab:
    """Build MaskLab with the weights that training starts from: ``segmentation_weights``, or else ImageNet's.

    ``load_pretrained=False`` leaves both out, for weights that are loaded afterwards.  Raises `InputError` for a
    configuration that cannot be built and for weights that cannot be loaded.
    """
    return build_model(config, classes, load_pretrained, _read_segmentation(config.model.backbone, load_pretrained))


def check_network(model: ModelConfig, load_pretrained: bool = True) -> None:
    """Raise `InputError` for a backbone, dilations and segmentation weights that do not fit together.

    Nothing is computed; ``load_pretrained=False`` leaves the weights unchecked.
    """
    config = model.backbone
    with torch.device("meta"):
        make_conv5 = build_backbone(config, load_pretrained=False)[1]
    make_conv5(model.mask.dilations)
    make_conv5(model.box.dilations, dense=True)
    _read_segmentation(config, load_pretrained)


def _read_segmentation(config: BackboneConfig, load_pretrained: bool = True) -> dict[str, Tensor] | None:
    """The tensors of ``config.segmentation_weights``; None where it names no file or ``load_pretrained`` is false.

    Raises `InputError` for a file that is missing, damaged or made for another backbone.
    """
    path = config.segmentation_weights if load_pretrained else None
    if path is None:
        return None
    if not path.is_file():
        raise InputError(
            f"model.backbone.segmentation_weights: there is no file {path}; give one that `masklab pretrain` wrote."
        )
    header, tensors = read_tensors(path, (SEGMENTATION_FORMAT,), "pretrain")
    theirs = header_value(header, "backbone", dict, path)
    for field, value in backbone_facts(config).items():
        if theirs.get(field) != value:
            raise InputError(
                f"model.backbone.{field} is {getattr(config, field)} but model.backbone.segmentation_weights, {path}, was "
                f"pretrained with {theirs.get(field)}: pretrain with this recipe, or change model.backbone.{field}."
            )
    return tensors


def save_segmentation(
    network: SegmentationNetwork,
    config: BackboneConfig,
    classes: ClassTable,
    path: str | Path,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write conv1 to conv5, without the logits, as a file that ``model.backbone.segmentation_weights`` can name.

    The header holds the facts that a model's backbone must share (``backbone``), the ``classes`` of the training and
    ``notes``: how the weights were trained and what they scored.
    """
    header = {
        "format": SEGMENTATION_FORMAT,
        "backbone": json.dumps(backbone_facts(config)),
        "classes": json.dumps({"ids": classes.ids, "names": classes.names}),
        "notes": json.dumps(notes or {}),
    }
    conv5 = {f"conv5.{name}": tensor for name, tensor in network.conv5.state_dict().items()}
    write_tensors(path, network.backbone.state_dict() | conv5, header)
