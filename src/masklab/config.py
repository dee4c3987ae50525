"""The configuration: every number of the model, the data and the training has its one home here.

The defaults are the paper's (Chen et al., CVPR 2018) or, where the paper is silent, the choice that
``docs/paper.md`` explains.  A recipe is a YAML file with the few fields that differ.
"""

from __future__ import annotations

import math
import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from masklab.errors import InputError

Positive = Field(gt=0)
Auto = Literal["auto"]
Precision = Literal["auto", "bf16", "fp16", "float32"]
Count = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
T = TypeVar("T")

VAL_FRACTION = 0.2  # of the pictures are held out as val where a data set does not say which


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True, frozen=True)


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
    """Channels of a picture; auto is 3 for grey and colour pictures and else the training pictures' own number, of which mean and std are then measured."""

    @property
    def channels(self) -> int:
        """The channels that the network takes: 3 for auto, until training has seen pictures of another number."""
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
    anchor_sizes: Annotated[list[Above0], Field(min_length=1)] | Auto = [64.0, 128.0, 256.0, 512.0]
    """Side of the square anchor at each scale, in pixels of the network's input; auto takes them from the training objects."""
    anchor_ratios: list[Above0] = Field([0.5, 1.0, 2.0], min_length=1)
    """Width over height of the anchors at each scale."""
    channels: int = Field(512, ge=1)
    """Channels of the 3 x 3 convolution."""
    rate: int = Field(2, ge=1)
    """Atrous rate of the 3 x 3 convolution."""
    positive_iou: float = Field(0.7, ge=0, le=1)
    """An anchor with at least this overlap with an object is positive; so is the best anchor of each object."""
    negative_iou: float = Field(0.3, ge=0, le=1)
    """An anchor below this overlap with every object is negative."""
    samples: int = Field(256, ge=1)
    """Anchors a picture that enter the loss."""
    positive_fraction: float = Field(0.5, ge=0, le=1)
    """At most this share of the samples is positive."""
    drop_crossing_anchors: bool = True
    """Anchors that cross the picture's border neither learn nor propose in training, and are clipped to the picture at test."""
    nms_iou: float = Field(0.7, ge=0, le=1)
    """Overlap above which the weaker of two proposals is dropped."""
    pre_nms_train: int = Field(12000, ge=1)
    """Best anchors a picture that enter non-maximum suppression in training."""
    pre_nms_test: int = Field(6000, ge=1)
    """The same at test."""
    proposals_train: int = Field(300, ge=1)
    """Proposals a picture kept in training."""
    proposals_test: Count | Auto = 300
    """Proposals a picture kept at test; auto is twice box.max_detections, at least 300, and raises pre_nms_test with it."""
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
    crop: int = Field(14, ge=2, multiple_of=2)
    """Samples a side of the crop; a 2 x 2 maximum follows."""
    rates: list[Count] | None = None
    """Atrous rates of the box classifier's conv5, one a unit; null means 1 everywhere."""
    from_imagenet: bool = True
    """Start the box classifier's conv5 from the backbone's weights, ImageNet's or segmentation_weights' ("BC" in the paper); false draws it anew in either case."""
    deformable: Literal["grid", "cell"] | None = None
    """Deformable crop ("DC" in the paper): each 2 x 2 sub-box moves by a learned offset; grid starts from the plain crop's samples, cell from 7 x 7 equal cells; null is the plain crop."""
    deformable_scale: float = Field(0.1, gt=0)
    """An offset of 1 moves a sub-box by this share of the box's side."""
    deformable_rate: float = Field(0.01, ge=0)
    """Factor on the learning rate of the layer that predicts the offsets."""
    samples: int = Field(64, ge=1)
    """Proposals a picture that enter the loss."""
    positive_fraction: float = Field(0.25, ge=0, le=1)
    """At most this share of the samples is positive."""
    positive_iou: float = Field(0.5, ge=0, le=1)
    """A proposal with at least this overlap with an object is positive, any other is background."""
    append_ground_truth: bool = False
    """Add the annotated boxes to the proposals in training."""
    quality: bool = False
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
    """Detections a picture; auto is one and a half times the most objects of a training picture, at least 100."""


class MaskConfig(Section):
    head: Literal["masklab", "mask_rcnn", "fcis"] = "masklab"
    """The paper's mask branch, or one to compare it with in the same detector: Mask R-CNN's head, or FCIS's inside and outside maps."""
    crop: int = Field(41, ge=3)
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
    rates: list[Count] | None = None
    """Atrous rates of the conv5 that semantic and direction logits share; null keeps the pretrained function."""
    refine_levels: list[Literal["conv1", "conv2", "conv3"]] = ["conv1", "conv2"]
    """Feature maps that refine the coarse mask; an empty list switches refinement off."""
    refinement: Literal["paper", "shared"] = "paper"
    """Refinement by 5 x 5 convolutions for each object (paper), or by maps that are made once a picture and shared by its objects, with at most 16 channels for each."""
    refine_channels: int = Field(64, ge=1)
    """Filters of each of the three 5 x 5 refinement convolutions; a shared refinement makes as many maps a picture."""
    coarse_weight: float = Field(1.0, ge=0)
    """Weight of the coarse mask loss."""
    refined_weight: float = Field(1.0, ge=0)
    """Weight of the refined mask loss."""
    train_masks: int = Field(100, ge=1)
    """Annotated objects a picture whose masks are trained on, drawn at random when there are more."""
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
        if self.head == "mask_rcnn" and self.crop % 2:
            raise ValueError(f"head mask_rcnn doubles its crop but crop is {self.crop}: set crop to 28")
        return self


class ModelConfig(Section):
    num_classes: int | None = Field(None, ge=1)
    """Foreground classes; null takes them from the training data."""
    coord_mode: Literal["exact", "tf"] = "exact"
    """Where a feature cell lies in the picture: its true place, or TensorFlow's corner-aligned one."""
    backbone: BackboneConfig = BackboneConfig()
    rpn: RPNConfig = RPNConfig()
    box: BoxConfig = BoxConfig()
    mask: MaskConfig = MaskConfig()


class AugmentConfig(Section):
    horizontal_flip: bool = True
    """Mirror left and right with probability one half."""
    vertical_flip: bool = False
    """Mirror top and bottom with probability one half."""
    quarter_turns: bool = False
    """Turn by 0, 90, 180 or 270 degrees."""
    min_sides: list[int] | None = None
    """Shortest sides to draw from, each with a longest side of 1.5 times as much ("RS" in the paper); null takes min_side and max_side."""
    scale_jitter: tuple[float, float] | None = None
    """Further factor on the scale, drawn log-uniformly between these two."""
    crop: int | None = Field(None, ge=16)
    """Side of a random square crop in pixels of the network's input; null uses whole pictures."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Factor on the brightness, drawn from 1 - b to 1 + b."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Factor on the contrast, drawn from 1 - c to 1 + c."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Factor on the saturation, drawn from 1 - s to 1 + s."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Turn of the hue, drawn from -h to h."""
    invert: float = Field(0.0, ge=0, le=1)
    """Probability of turning the picture into its negative."""

    @model_validator(mode="after")
    def _scales(self) -> AugmentConfig:
        if self.min_sides is not None and (not self.min_sides or min(self.min_sides) < 1):
            raise ValueError("min_sides must list sides of at least 1 pixel: name some, or set it to null")
        if self.scale_jitter is not None and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(
                f"scale_jitter is {list(self.scale_jitter)} but must be two factors above 0, the smaller one first"
            )
        return self


class PictureConfig(Section):
    scale: float | None = Field(None, gt=0)
    """Fixed factor from the picture to the network's input; null uses min_side and max_side."""
    min_side: int = Field(600, ge=1)
    """Shortest side of the network's input."""
    max_side: int = Field(1024, ge=1)
    """Longest side of the network's input, which wins over min_side."""
    value_range: tuple[float, float] | None = None
    """Numbers in a picture that become 0 and 1, such as [0, 4095]; null is the whole range of 8 or 16 bits, and 0 to 1 of floats, unless percentiles are set."""
    percentiles: tuple[float, float] | None = None
    """Percentiles of each channel of each picture that become 0 and 1, such as [0.1, 99.9], in place of value_range; training sets these two where pictures of more than 8 bits are given neither."""
    mean: list[float] = [0.485, 0.456, 0.406]
    """Mean of each channel, of pictures scaled to 0..1."""
    std: list[Above0] = [0.229, 0.224, 0.225]
    """Standard deviation of each channel, of pictures scaled to 0..1."""
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _consistent(self) -> PictureConfig:
        if self.min_side > self.max_side:
            raise ValueError(
                f"min_side is {self.min_side} but must not be above max_side, {self.max_side}: change one of them"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one a channel in both")
        if self.value_range is not None and self.percentiles is not None:
            raise ValueError("value_range and percentiles are both set: set one of them to null")
        if self.value_range is not None and not -math.inf < self.value_range[0] < self.value_range[1] < math.inf:
            raise ValueError(f"value_range is {list(self.value_range)} but must be two numbers, the smaller one first")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(
                f"percentiles is {list(self.percentiles)} but must be two from 0 to 100, the smaller one first"
            )
        if self.scale is not None and self.augment.min_sides is not None:
            raise ValueError(
                f"scale is {self.scale} but augment.min_sides draws the scale in training: set one of them to null"
            )
        return self


class TrainConfig(Section):
    start_from: Path | None = None
    """A trained model to go on from, in place of all other weights: a run folder, a weights file, or nuclei, which comes with masklab; layers that it lacks, or that are of other classes, start anew and are named."""
    steps: int = Field(1_500_000, ge=1)
    """Optimiser steps in all."""
    batch_size: Count | Auto = 1
    """Pictures a step, those of all processes together; auto takes the largest power of two that a GPU has memory for."""
    repeat_colour: int = Field(1, ge=1)
    """How often a round through the training pictures shows those that are not grey, for data in which they are the few."""
    accumulate: int = Field(1, ge=1)
    """Parts that a process works its pictures of a step off in, one after another, to need less memory; their gradients add up."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum (paper) or AdamW."""
    learning_rate: float = Field(3e-4, gt=0)
    """Learning rate after warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, on weights of two or more dimensions."""
    schedule: Literal["step", "linear", "cosine"] = "step"
    """How the learning rate falls: by 10 at each milestone, linearly to zero, or as a half cosine to zero."""
    milestones: list[float] = [0.6, 0.8]
    """Shares of the steps at which the step schedule divides the learning rate by 10."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from near zero."""
    clip_norm: float | None = Field(10.0, gt=0)
    """Largest norm of the gradient; null does not clip."""
    clip_by: Literal["parameter", "global"] = "parameter"
    """Clip each parameter's gradient (paper's library) or all of them together."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running average of the weights, such as 0.999, which is then what is validated and saved; null has none."""
    precision: Precision = "auto"
    """Number format of the convolutions, in training and in prediction; auto takes bf16 where the hardware has it; fp16 is for GPUs, with scaled gradients."""
    validate_every: int = Field(5000, ge=1)
    """Steps between two validations."""
    validate_pictures: int | None = Field(None, ge=1)
    """Validate on at most this many pictures during training; null uses all."""
    patience: int | None = Field(None, ge=1)
    """Stop early after this many validations in a row below the best one; null trains all steps."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between two files to resume from; each validation writes one too."""
    log_every: int = Field(20, ge=1)
    """Steps between two lines of the log."""
    threads: int = Field(2, ge=1)
    """On a CPU, parts of the batch that are worked on at once."""
    workers: int = Field(2, ge=0)
    """Processes that load pictures, for each that trains."""
    devices: int = Field(1, ge=1)
    """GPUs of a machine to train on, or processes on a CPU; torchrun's own count wins."""
    nodes: int = Field(1, ge=1)
    """Machines to train on; torchrun's own count wins."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything that is drawn at random."""


class Config(Section):
    model: ModelConfig = ModelConfig()
    """The network."""
    pictures: PictureConfig = PictureConfig()
    """How pictures become the network's input."""
    train: TrainConfig = TrainConfig()
    """How the network is trained."""
    data: Path | None = None
    """Folder of the data set, with the splits train and val."""
    output: Path | None = None
    """Folder of the run, for weights and logs."""

    @model_validator(mode="after")
    def _agree(self) -> Config:
        channels = self.model.backbone.channels
        if len(self.pictures.mean) != channels:
            raise ValueError(
                f"pictures.mean has {len(self.pictures.mean)} values but model.backbone.in_channels is {self.model.backbone.in_channels}"
                f"{' (3)' if self.model.backbone.in_channels == 'auto' else ''}: give one mean and std a channel, or leave in_channels auto"
            )
        for field in ("saturation", "hue"):
            if channels != 3 and getattr(self.pictures.augment, field):
                raise ValueError(
                    f"pictures.augment.{field} changes colours but model.backbone.in_channels is {channels}: set it to 0"
                )
        return self


def settled(value: T | Auto, field: str) -> T:
    """The value of a field that may be "auto", once training has put a number there; `InputError` before."""
    if value == "auto":
        raise InputError(
            f"{field} is auto, which only `masklab train` can settle, from the training pictures: give a value instead."
        )
    return value


def recipe_names() -> list[str]:
    """The recipes that come with the package, those of the paper's tables included."""
    return sorted(_packaged())


def load_recipe(recipe: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a recipe and check it.

    ``recipe`` is the name of one that comes with the package or the path of a YAML file; a line
    ``base: NAME`` in it names the recipe that it changes.  ``overrides`` is a nested dictionary of
    fields that win over the recipe.  Raises `InputError` for an unknown recipe, field or value.
    """
    return validate(merge(_resolve(str(recipe), ()), overrides or {}), f"recipe {recipe}")


def validate(values: dict[str, Any], source: str) -> Config:
    """Build a `Config` from nested values; `InputError` names ``source`` and the field at fault."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # where a field may be of two kinds, pydantic adds the kind, such as constrained-int
        field = ".".join(part for part in map(str, first["loc"]) if part.isidentifier() or part.isdigit())
        if first["type"] == "extra_forbidden":
            parent = ".".join(str(part) for part in first["loc"][:-1])
            hint = f"no such field; `masklab train --help` lists the fields{' of ' + parent if parent else ''}"
        else:
            given = first["input"]
            hint = first["msg"].removeprefix("Value error, ") + (
                f", not {given!r}" if isinstance(given, (str, int, float)) else ""
            )
        raise InputError(f"{source}: {field + ': ' if field else ''}{hint}.") from None


class RecipeFile(NamedTuple):
    """One recipe as it stands in its file: what it is, the recipe it changes, its fields, and the paper's figures."""

    description: str
    base: str | None
    changes: dict[str, Any]
    paper: dict[str, Any]


def read_recipe(recipe: str) -> RecipeFile:
    """Read one recipe without its base; ``recipe`` is as in `load_recipe`, and so is what is raised."""
    packaged = _packaged()
    is_file = Path(recipe).suffix in (".yaml", ".yml") and os.path.isfile(recipe)
    if recipe not in packaged and not is_file:
        raise InputError(
            f"there is no recipe {recipe}: use one of {common_recipes()}, one of the paper's tables "
            "(`masklab recipes` lists them), or the path of a YAML file."
        )
    values = read_yaml(packaged.get(recipe, Path(recipe)), f"recipe {recipe}") or {}
    if not isinstance(values, dict):
        raise InputError(
            f"recipe {recipe} must be a mapping of fields, such as `train: {{steps: 100}}`: correct the file."
        )
    description, base = values.pop("description", ""), values.pop("base", None)
    paper = values.pop("paper", {})
    if not isinstance(description, str) or not isinstance(base or "", str) or not isinstance(paper, dict):
        raise InputError(f"recipe {recipe}: description and base must be text and paper a mapping: correct the file.")
    return RecipeFile(description, base, values, paper)


def read_yaml(file: Any, name: str | Path) -> Any:
    """What a YAML file holds; `InputError` calls it ``name`` where it cannot be read."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be read ({reason}): correct the file.") from None


def common_recipes() -> str:
    """The names of the packaged recipes that are not rows of the paper's tables, as a sentence has them."""
    return ", ".join(sorted(_packaged("recipes")))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of fields laid over one another; ``over`` wins."""
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _resolve(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a recipe laid over those of its bases."""
    if recipe in seen:
        raise InputError(
            f"recipe {recipe} is its own base ({' -> '.join((*seen, recipe))}): remove one of the base lines."
        )
    _, base, changes, _ = read_recipe(recipe)
    return changes if base is None else merge(_resolve(base, (*seen, recipe)), changes)


def _packaged(*folders: str) -> dict[str, Any]:
    """The files of the packaged recipes by name, of some folders or of both."""
    package = resources.files("masklab")
    files = [file for folder in folders or ("recipes", "recipes/paper") for file in (package / folder).iterdir()]
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}
