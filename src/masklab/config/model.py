"""Configuration of the network: backbone, region proposals, box head and mask head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from masklab.config.fields import Above0, Count, Dilation, Section
from masklab.utils.types import Auto, DistanceMetric, SubBoxes


class BackboneConfig(Section):
    """Backbone."""

    name: str = "resnet101"
    """Any network of timm's ResNet family: resnet18 ... resnet152, resnext, wide_resnet, with or without a weights tag."""
    pretrained: bool = True
    """Start from timm's ImageNet weights of ``name``; false starts from random weights."""
    weights: Path | None = None
    """Local file with the ImageNet weights of ``name``, for machines without internet access."""
    segmentation_weights: Path | None = None
    """File that `masklab pretrain` wrote, in place of the ImageNet weights: initialises conv1 to conv4 and both copies of conv5 ("Seg" in the paper)."""
    output_stride: Literal[8, 16, 32] = 8
    """Stride of the last feature map, in input pixels; the paper uses 8."""
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    """Frozen batch norm (paper), trainable batch norm, or group norm, which needs no large batches but makes what is found depend on the surroundings of an object."""
    width: float = Field(1.0, gt=0, le=2)
    """Factor on the number of channels of conv2 to conv5; values other than 1 need random weights."""
    conv5_width: float | None = Field(None, gt=0, le=2)
    """Factor on the number of channels of conv5 alone, in place of width; values other than null need random weights."""
    in_channels: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    """Channels of the input images; auto is 3 for grey and colour images, and otherwise the number of channels of the training images, whose mean and std are then measured."""

    @property
    def channels(self) -> int:
        """Number of input channels; 3 for auto, until training has resolved it from the images."""
        return 3 if self.in_channels == "auto" else self.in_channels

    @model_validator(mode="after")
    def _weights_fit(self) -> BackboneConfig:
        if self.width != 1 and self.pretrained:
            raise ValueError(
                f"width is {self.width} but pretrained is true, and ImageNet weights are of width 1: "
                "set pretrained to false or width to 1"
            )
        if self.conv5_width is not None and self.pretrained:
            raise ValueError(
                f"conv5_width is {self.conv5_width} but pretrained is true, and ImageNet weights are of width 1: "
                "set pretrained to false or conv5_width to null"
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
    """Region proposal network (the paper's section 4.1)."""

    anchor_sizes: Annotated[list[Above0], Field(min_length=1, max_length=64)] | Auto = Field(
        [64.0, 128.0, 256.0, 512.0]
    )
    """Side of the square anchor at each scale, in pixels of the network's input; auto derives them from the training objects."""
    anchor_ratios: list[Above0] = Field([0.5, 1.0, 2.0], min_length=1, max_length=64)
    """Aspect ratios (width / height) of the anchors at each scale."""
    channels: int = Field(512, ge=1, le=16_384)
    """Output channels of the 3 x 3 convolution."""
    dilation: Dilation = 2
    """Dilation of the 3 x 3 convolution."""
    positive_iou: float = Field(0.7, ge=0, le=1)
    """An anchor with at least this IoU with an object is positive; so is the anchor of highest IoU of each object."""
    negative_iou: float = Field(0.3, ge=0, le=1)
    """An anchor below this IoU with every object is negative."""
    samples: Count = 256
    """Anchors sampled per image for the loss."""
    positive_fraction: float = Field(0.5, ge=0, le=1)
    """Maximum fraction of positives among the samples."""
    drop_crossing_anchors: bool = True
    """Ignore anchors that cross the image border in training; in prediction they are clipped to the image."""
    nms_iou: float = Field(0.7, ge=0, le=1)
    """IoU threshold of non-maximum suppression of the proposals."""
    pre_nms_train: int = Field(12000, ge=1, le=1_000_000)
    """Highest-scoring anchors per image that enter non-maximum suppression in training."""
    pre_nms_test: int = Field(6000, ge=1, le=1_000_000)
    """Highest-scoring anchors per image that enter non-maximum suppression in prediction."""
    proposals_train: Count = 300
    """Maximum number of proposals per image in training."""
    proposals_test: Count | Auto = 300
    """Maximum number of proposals per image in prediction; auto is twice box.max_detections, at least 300, and raises pre_nms_test accordingly."""
    score_threshold: float = Field(0.0, ge=0, lt=1)
    """Proposals of this objectness or less are dropped in prediction, so that an image has only as many as it asks for; 0 keeps all (paper)."""
    objectness_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the objectness loss."""
    box_weight: float = Field(2.0, ge=0, le=1e6)
    """Weight of the box loss of the anchors."""

    @model_validator(mode="after")
    def _ordered(self) -> RPNConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou is {self.negative_iou} but must not be above positive_iou, {self.positive_iou}"
            )
        return self


class BoxConfig(Section):
    """Box head."""

    head: Literal["conv5", "light"] = "conv5"
    """Box head: conv5 runs a conv5 of its own on the crop of each proposal (paper); light runs one hidden layer on a crop of thin maps of the mask head's conv5, for a small part of the work."""
    light_maps: int = Field(64, ge=1, le=4096)
    """Thin maps that head light reduces conv5 to."""
    light_hidden: int = Field(256, ge=1, le=65_536)
    """Outputs of the hidden layer of head light."""
    roi_size: int = Field(14, ge=2, le=256, multiple_of=2)
    """Samples per side of the RoI crop, before 2 x 2 max pooling."""
    dilations: list[Dilation] | None = Field(None, max_length=64)
    """Dilation of each unit of the box head's conv5; null is 1 everywhere."""
    from_imagenet: bool = True
    """Initialise the box head's conv5 from the backbone's weights, of ImageNet or of segmentation_weights ("BC" in the paper); false initialises it at random."""
    deformable: SubBoxes | None = None
    """Deformable crop ("DC" in the paper), which shifts each 2 x 2 sub-box by a learned offset: grid starts from the sampling grid of the plain crop, cell from 7 x 7 equal cells; null is the plain crop."""
    deformable_scale: float = Field(0.1, gt=0, le=100)
    """An offset of 1 shifts a sub-box by this fraction of the box's side."""
    deformable_lr_factor: float = Field(0.01, ge=0, le=1e6)
    """Factor on the learning rate of the layer that predicts the offsets."""
    samples: Count = 64
    """Proposals sampled per image for the loss."""
    positive_fraction: float = Field(0.25, ge=0, le=1)
    """Maximum fraction of positives among the samples."""
    positive_iou: float = Field(0.5, ge=0, le=1)
    """A proposal with at least this IoU with an object is positive, any other is background."""
    append_ground_truth: bool = False
    """Add the ground-truth boxes to the proposals in training."""
    iou_aware_score: bool = False
    """IoU-aware score: the target of a positive's class probability is the IoU of its predicted box with its object, so that scores also rank boxes by localisation; false uses 1 (paper)."""
    class_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the classification loss."""
    box_weight: float = Field(2.0, ge=0, le=1e6)
    """Weight of the box loss."""
    score_threshold: float = Field(0.001, ge=0, le=1)
    """Detections of this class probability or less are dropped."""
    nms_iou: float = Field(0.6, ge=0, le=1)
    """IoU threshold of non-maximum suppression of the detections of a class."""
    soft_nms: float | None = Field(None, gt=0, le=1e6)
    """Sigma of Gaussian Soft-NMS, applied after nms_iou: each detection multiplies the scores of lower-scoring ones of its class by exp(-IoU^2 / sigma); null switches it off (paper)."""
    max_detections: Count | Auto = 100
    """Maximum number of detections per image; auto is 1.5 times the largest number of objects in a training image, at least 100."""

    @model_validator(mode="after")
    def _fits_head(self) -> BoxConfig:
        for field in ("dilations", "deformable"):
            if self.head == "light" and getattr(self, field) is not None:
                raise ValueError(f"head light has no {field} but {field} is set: set {field} to null or head to conv5")
        return self


class MaskConfig(Section):
    """Mask head."""

    head: Literal["masklab", "mask_rcnn", "fcis"] = "masklab"
    """Mask head: the paper's, or for comparison in the same detector that of Mask R-CNN or the inside and outside maps of FCIS."""
    mask_size: int = Field(41, ge=3, le=2048)
    """Samples per side of the mask; the head of Mask R-CNN upsamples a crop of half this size, 14 to 28 in its paper."""
    semantic: bool = True
    """Use the semantic logits."""
    direction: bool = True
    """Use the direction logits."""
    directions: int = Field(8, ge=2, le=360)
    """Number of directions."""
    distance_bins: int = Field(4, ge=1, le=100)
    """Number of distance bins in each direction."""
    distance_metric: DistanceMetric = "linf"
    """Metric of the distance from the box centre: maximum norm (squares), or Euclidean in units of half the side or of half the diagonal (circles)."""
    start_degrees: float = Field(0.0, ge=-360, le=360)
    """Angle at which the first direction begins, in degrees."""
    dilations: list[Dilation] | None = Field(None, max_length=64)
    """Dilation of each unit of the conv5 that semantic and direction logits share; null takes the dilations that keep the pretrained network's function at the output stride."""
    refine_levels: list[Literal["conv1", "conv2", "conv3"]] = Field(["conv1", "conv2"], max_length=3)
    """Feature maps used to refine the coarse mask; an empty list switches refinement off."""
    refinement: Literal["paper", "shared"] = "paper"
    """Refinement by 5 x 5 convolutions per object (paper), or by feature maps that are computed once per image and shared by its objects, with at most 16 channels per object."""
    refine_channels: int = Field(64, ge=1, le=4096)
    """Filters of each of the three 5 x 5 refinement convolutions; for shared refinement, the number of shared feature maps."""
    coarse_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the coarse mask loss."""
    refined_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the refined mask loss."""
    train_masks: Count = 100
    """Maximum number of objects per image whose masks are trained, sampled at random."""
    train_refined: Count = 100
    """Maximum number of objects per image whose refined masks are trained."""
    box_jitter: float = Field(0.0, ge=0, lt=0.5)
    """Jitter of the boxes in which masks are trained: each side is shifted in or out by up to this fraction of the box; 0 uses the ground-truth boxes (paper)."""

    @model_validator(mode="after")
    def _has_logits(self) -> MaskConfig:
        if not (self.semantic or self.direction):
            raise ValueError("semantic and direction are both false, so there is no mask to predict: set one of them")
        return self

    @model_validator(mode="after")
    def _check_head_fields(self) -> MaskConfig:
        if self.head != "masklab" and self.refine_levels:
            raise ValueError(
                f"head {self.head} has no refinement but refine_levels is not empty: set refine_levels to []"
            )
        if self.head == "mask_rcnn" and self.mask_size % 2:
            raise ValueError(f"head mask_rcnn doubles its crop but mask_size is {self.mask_size}: set mask_size to 28")
        return self


class ModelConfig(Section):
    """Network."""

    num_classes: int | None = Field(None, ge=1, le=100_000)
    """Number of foreground classes; null takes it from the training data."""
    backbone: BackboneConfig = BackboneConfig()
    rpn: RPNConfig = RPNConfig()
    box: BoxConfig = BoxConfig()
    mask: MaskConfig = MaskConfig()

    @model_validator(mode="after")
    def _affordable(self) -> ModelConfig:
        """Refuse values that are possible one by one, but whose product is memory that no machine has."""
        masks = "max_detections" if _number(self.box.max_detections) >= self.mask.train_masks else "train_masks"
        crops = "proposals_test" if _number(self.rpn.proposals_test) >= self.box.samples else "samples"
        fields = {"max_detections": "box", "train_masks": "mask", "proposals_test": "rpn", "samples": "box"}
        for count, side, most in ((masks, ("mask", "mask_size"), 2**32), (crops, ("box", "roi_size"), 2**25)):
            number, samples = getattr(getattr(self, fields[count]), count), getattr(getattr(self, side[0]), side[1])
            if _number(number) * samples**2 > most:
                raise ValueError(
                    f"{fields[count]}.{count} is {number} and {'.'.join(side)} is {samples}, which together take more "
                    f"memory than there is: keep {count} times {side[1]} squared below {most}"
                )
        return self


def _number(value: int | Auto) -> int:
    return 0 if value == "auto" else value
