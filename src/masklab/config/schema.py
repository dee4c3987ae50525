"""Configuration of a run: model, images, training and folders, with the check of values from files and the command line.

The defaults are the paper's (Chen et al., CVPR 2018) or, where the paper is silent, the choice that
``docs/paper.md`` explains.  A recipe is a YAML file with the few fields that differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from masklab.config.fields import Section
from masklab.config.image import ImageConfig
from masklab.config.model import ModelConfig
from masklab.config.train import TrainConfig
from masklab.config.words import field_error
from masklab.utils.errors import InputError

_MOST_ANCHORS = 2**28  # of one image: 4 GiB of boxes


DATA_AND_OUTPUT = ("data", "annotations", "images", "layout", "split_components", "output")
"""The fields of a `Config` that name what a run reads and writes, which is of no use on another machine."""


class Config(Section):
    """Configuration of a run."""

    model: ModelConfig = ModelConfig()
    """The network."""
    image: ImageConfig = ImageConfig()
    """Image preprocessing and augmentation."""
    train: TrainConfig = TrainConfig()
    """Training."""
    data: Path | None = None
    """Data set: a folder, whose layout is recognised, or a COCO file beside its images."""
    layout: str | None = None
    """Name of the layout of data, where its folder fits more than one."""
    annotations: Path | list[Path] | None = None
    """COCO files to read in place of data, such as train.json and val.json."""
    images: Path | list[Path] | None = None
    """Folders of the images of annotations."""
    split_components: bool = False
    """Read each connected piece of a mask as an object, where masks hold one value for many objects."""
    output: Path | None = None
    """Run folder, for weights and logs."""

    @model_validator(mode="after")
    def _agree(self) -> Config:
        channels = self.model.backbone.channels
        if len(self.image.mean) != channels:
            raise ValueError(
                f"image.mean has {len(self.image.mean)} values but model.backbone.in_channels is {self.model.backbone.in_channels}"
                f"{' (3)' if self.model.backbone.in_channels == 'auto' else ''}: give one mean and std per channel, or leave in_channels auto"
            )
        sizes, ratios = self.model.rpn.anchor_sizes, self.model.rpn.anchor_ratios
        cells = (self.image.max_side // 8) ** 2
        if sizes != "auto" and len(sizes) * len(ratios) * cells > _MOST_ANCHORS:
            raise ValueError(
                f"model.rpn.anchor_sizes has {len(sizes)} values, model.rpn.anchor_ratios {len(ratios)} and image.max_side is "
                f"{self.image.max_side}, which together make {len(sizes) * len(ratios) * cells} anchors an image: "
                f"keep them below {_MOST_ANCHORS}"
            )
        for field in ("saturation", "hue"):
            if channels != 3 and getattr(self.image.augment, field):
                raise ValueError(
                    f"image.augment.{field} changes colours but model.backbone.in_channels is {channels}: set it to 0"
                )
        return self


def validate(values: dict[str, Any], source: str) -> Config:
    """Build a `Config` from nested values; `InputError` names ``source``, the field at fault and its value."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {field_error(Config, error.errors()[0], values)}.") from None
