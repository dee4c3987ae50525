"""Configuration of the network: backbone, region proposals, box head and mask head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from masklab.config.fields import Above0, Count, Section
from masklab.utils.types import Auto


class BackboneConfig(Section):
    name: str = "resnet101"
    """Any network of timm's ResNet family: resnet18 ... resnet152, resnext, wide_resnet, with or without a weights tag."""
    pretrained: bool = True
    """Start from timm's ImageNet weights for ``name``; false starts from random weights."""
    weights: Path | None = None
    """A local file with the ImageNet weights of ``name``, for machines that are offline."""
    segmentation_weights: Path | None = None
    """A file that `masklab pretrain` wrote, in place of the ImageNet weights: conv1 to conv4 and both copies of conv5 start from it ("Seg" in the paper)."""
    output_stride: Literal[8, 16, 32] = 8
    """Pixels per cell of the last feature map; 8 is the paper's."""
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    """Frozen batch norm (paper), trainable batch norm, or group norm (for training from scratch)."""
    width: float = Field(1.0, gt=0, le=2)
    """Factor on the channels of conv2 to conv5; other than 1 only from random weights."""
    in_channels: Count | Auto = "auto"
    """Channels of an image; auto is 3 for grey and colour images and else the training images' own number, of which mean and std are then measured."""

    @property
    def channels(self) -> int:
        """The channels that the network takes: 3 for auto, until training has seen images of another number."""
        return 3 if self.in_channels == "auto" else self.in_channels

    @model_validator(mode="after")
    def _weights_fit(self) -> BackboneConfig:
        if self.width != 1 and self.pretrained:
            raise ValueError(
                f"width is {self.width} but pretrained is true, and ImageNet weights are of width 1: "
                "set pretrained to false or width to 1"
            )
        if self.norm == "group" and self.pretrained and self.segmentation_weights is None:
            raise ValueError(
                "norm is group but pretrained is true, and ImageNet weights come with batch norm: "
                "set pretrained to false or norm to batch or frozen_batch"
            )
        if self.weights is not None and not self.pretrained:
            raise ValueError(
                f"weights is {self.weights} but pretrained is false: set pretrained to true or weights to null"
            )
        return self


class RPNConfig(Section):
    anchor_sizes: Annotated[list[Above0], Field(min_length=1)] | Auto = Field([64.0, 128.0, 256.0, 512.0])
    """Side of the square anchor at each scale, in pixels of the network's input; auto takes them from the training objects."""
    anchor_ratios: list[Above0] = Field([0.5, 1.0, 2.0], min_length=1)
    """Width over height of the anchors at each scale."""
    channels: int = Field(512, ge=1)
    """Channels of the 3 x 3 convolution."""
    dilation: int = Field(2, ge=1)
    """Atrous rate of the 3 x 3 convolution."""
    positive_iou: float = Field(0.7, ge=0, le=1)
    """An anchor with at least this overlap with an object is positive; so is the best anchor of each object."""
    negative_iou: float = Field(0.3, ge=0, le=1)
    """An anchor below this overlap with every object is negative."""
    samples: int = Field(256, ge=1)
    """Anchors an image that enter the loss."""
    positive_fraction: float = Field(0.5, ge=0, le=1)
    """At most this share of the samples is positive."""
    drop_crossing_anchors: bool = True
    """Anchors that cross the image's border neither learn nor propose in training, and are clipped to the image at test."""
    nms_iou: float = Field(0.7, ge=0, le=1)
    """Overlap above which the weaker of two proposals is dropped."""
    pre_nms_train: int = Field(12000, ge=1)
    """Best anchors an image that enter non-maximum suppression in training."""
    pre_nms_test: int = Field(6000, ge=1)
    """The same at test."""
    proposals_train: int = Field(300, ge=1)
    """Proposals an image kept in training."""
    proposals_test: Count | Auto = 300
    """Proposals an image kept at test; auto is twice box.max_detections, at least 300, and raises pre_nms_test with it."""
    objectness_weight: float = Field(1.0, ge=0)
    """Weight of the objectness loss."""
    box_weight: float = Field(2.0, ge=0)
    """Weight of the anchor box loss."""

    @model_validator(mode="after")
    def _ordered(self) -> RPNConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou is {self.negative_iou} but must not be above positive_iou, {self.positive_iou}"
            )
        return self


class BoxConfig(Section):
    roi_size: int = Field(14, ge=2, multiple_of=2)
    """Samples a side of the crop; a 2 x 2 maximum follows."""
    dilations: list[Count] | None = None
    """Atrous rates of the box head's conv5, one a unit; null means 1 everywhere."""
    from_imagenet: bool = True
    """Start the box head's conv5 from the backbone's weights, ImageNet's or segmentation_weights' ("BC" in the paper); false draws it anew in either case."""
    deformable: Literal["grid", "cell"] | None = None
    """Deformable crop ("DC" in the paper): each 2 x 2 sub-box moves by a learned offset; grid starts from the plain crop's samples, cell from 7 x 7 equal cells; null is the plain crop."""
    deformable_scale: float = Field(0.1, gt=0)
    """An offset of 1 moves a sub-box by this share of the box's side."""
    deformable_lr_factor: float = Field(0.01, ge=0)
    """Factor on the learning rate of the layer that predicts the offsets."""
    samples: int = Field(64, ge=1)
    """Proposals an image that enter the loss."""
    positive_fraction: float = Field(0.25, ge=0, le=1)
    """At most this share of the samples is positive."""
    positive_iou: float = Field(0.5, ge=0, le=1)
    """A proposal with at least this overlap with an object is positive, any other is background."""
    append_ground_truth: bool = False
    """Add the annotated boxes to the proposals in training."""
    iou_aware_score: bool = False
    """Train a positive's class probability towards the IoU of its predicted box with its object, so that scores also rank boxes by how well they fit; false is towards 1 (paper)."""
    class_weight: float = Field(1.0, ge=0)
    """Weight of the classification loss."""
    box_weight: float = Field(2.0, ge=0)
    """Weight of the box loss."""
    score_threshold: float = Field(0.001, ge=0, le=1)
    """Detections at or below this class probability are dropped."""
    nms_iou: float = Field(0.6, ge=0, le=1)
    """Overlap above which the weaker of two detections of one class is dropped."""
    soft_nms: float | None = Field(None, gt=0)
    """Sigma of Soft-NMS: of what nms_iou leaves, each detection multiplies the scores of the weaker ones of its class by exp(-IoU^2 / sigma); null leaves them (paper)."""
    max_detections: Count | Auto = 100
    """Detections an image; auto is one and a half times the most objects of a training image, at least 100."""


class MaskConfig(Section):
    head: Literal["masklab", "mask_rcnn", "fcis"] = "masklab"
    """The paper's mask head, or one to compare it with in the same detector: Mask R-CNN's head, or FCIS's inside and outside maps."""
    mask_size: int = Field(41, ge=3)
    """Samples a side of the mask; Mask R-CNN's head makes 28 of a crop of 14."""
    semantic: bool = True
    """Use the semantic logits."""
    direction: bool = True
    """Use the direction logits."""
    directions: int = Field(8, ge=2)
    """Number of directions."""
    distance_bins: int = Field(4, ge=1)
    """Number of distance bins in each direction."""
    distance_metric: Literal["linf", "l2_side", "l2_corner"] = "linf"
    """Distance from the box's centre: squares, circles by half the side, circles by half the diagonal."""
    start_degrees: float = 0.0
    """Where the first direction begins."""
    dilations: list[Count] | None = None
    """Atrous rates of the conv5 that semantic and direction logits share; null keeps the pretrained function."""
    refine_levels: list[Literal["conv1", "conv2", "conv3"]] = Field(["conv1", "conv2"])
    """Feature maps that refine the coarse mask; an empty list switches refinement off."""
    refinement: Literal["paper", "shared"] = "paper"
    """Refinement by 5 x 5 convolutions for each object (paper), or by maps that are made once an image and shared by its objects, with at most 16 channels for each."""
    refine_channels: int = Field(64, ge=1)
    """Filters of each of the three 5 x 5 refinement convolutions; a shared refinement makes as many maps an image."""
    coarse_weight: float = Field(1.0, ge=0)
    """Weight of the coarse mask loss."""
    refined_weight: float = Field(1.0, ge=0)
    """Weight of the refined mask loss."""
    train_masks: int = Field(100, ge=1)
    """Annotated objects an image whose masks are trained on, drawn at random when there are more."""
    train_refined: int = Field(100, ge=1)
    """The same for the refined masks, which cost more."""
    box_jitter: float = Field(0.0, ge=0, lt=0.5)
    """In training, each side of a box that a mask is trained in moves by up to this share of the box, in or out; 0 trains in the annotated boxes alone (paper)."""

    @model_validator(mode="after")
    def _something_to_see(self) -> MaskConfig:
        if not (self.semantic or self.direction):
            raise ValueError("semantic and direction are both false, so there is no mask to predict: set one of them")
        return self

    @model_validator(mode="after")
    def _parts_of_one_head(self) -> MaskConfig:
        if self.head != "masklab" and self.refine_levels:
            raise ValueError(
                f"head {self.head} has no refinement but refine_levels is not empty: set refine_levels to []"
            )
        if self.head == "mask_rcnn" and self.mask_size % 2:
            raise ValueError(f"head mask_rcnn doubles its crop but mask_size is {self.mask_size}: set mask_size to 28")
        return self


class ModelConfig(Section):
    num_classes: int | None = Field(None, ge=1)
    """Foreground classes; null takes them from the training data."""
    backbone: BackboneConfig = BackboneConfig()
    rpn: RPNConfig = RPNConfig()
    box: BoxConfig = BoxConfig()
    mask: MaskConfig = MaskConfig()
