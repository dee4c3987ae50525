"""Network of semantic pretraining: MaskLab's backbone and conv5 with a layer of class logits."""

from __future__ import annotations

from torch import Tensor, nn

from masklab.config.model import ModelConfig
from masklab.model.backbone import Backbone, build_backbone, trained_norm


class SegmentationNetwork(nn.Module):
    """conv1 to conv5 and a 1 x 1 convolution to K + 1 logits, background last (paper, section 4.2, "Seg")."""

    def __init__(self, backbone: Backbone, conv5: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.conv5 = conv5
        self.logits = nn.Conv2d(channels, num_classes + 1, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K + 1, H / stride, W / stride), float32, of normalised images (N, C, H, W)."""
        logits: Tensor = self.logits(self.conv5(self.backbone(images).conv4))
        return logits.float()


def build_segmentation(config: ModelConfig, num_classes: int, load_pretrained: bool = True) -> SegmentationNetwork:
    """Build the network of a configuration, with the dilations of MaskLab's own conv5.

    Batch norm is trained where MaskLab freezes it.  ``segmentation_weights``, which this network is trained to
    replace, are ignored: it starts from ImageNet's weights if ``load_pretrained``.  Raises `InputError` as
    `build_backbone` does.
    """
    changes = {"norm": trained_norm(config.backbone.norm), "segmentation_weights": None}
    trainable = config.backbone.model_copy(update=changes)
    backbone, make_conv5 = build_backbone(trainable, load_pretrained)
    return SegmentationNetwork(backbone, make_conv5(config.mask.dilations), make_conv5.channels, num_classes)
