"""Inspection: one image with the features, maps and detections that a model computes for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from masklab.images.intensity import displayed
from masklab.inference.predictor import Predictor
from masklab.model.backbone import Features
from masklab.model.mask_head import MaskLabHead, MaskLogits
from masklab.model.masklab import MaskLab
from masklab.ops.coordinates import PIXEL_CENTRE
from masklab.ops.crop_channels import crop_channels
from masklab.ops.rois import Rois
from masklab.plots import colour_maps, sheets
from masklab.results.instances import Instances
from masklab.utils.types import Bytes, Floats, Size


@dataclass(frozen=True)
class Inspection:
    """One image with what a model computes for it.

    ``image`` is ``(H, W, 3)`` RGB; ``detections`` are all of them and ``found`` those of at least ``score``, the
    predictor's threshold; ``size`` is (height, width) of the network's input before padding and ``inputs``
    ``(1, C, h, w)`` the input after.
    """

    predictor: Predictor
    name: str
    image: Bytes
    score: float
    detections: Instances
    found: Instances
    size: Size
    inputs: Tensor
    features: Features
    maps: Any  # the mask head's maps of the whole image

    @classmethod
    def of(
        cls, predictor: Predictor, name: str, values: NDArray[Any], detections: Instances | None = None
    ) -> Inspection:
        """Run the model on an image ``(C, H, W)`` of any depth; its ``detections`` are found unless they are given."""
        if detections is None:
            detections = Predictor(predictor.model, predictor.options, in_tiles=False).predict(values)
        with predictor.inference():
            inputs, size = predictor.network_input(torch.as_tensor(values))
            features = predictor.model.features(inputs)
            maps = predictor.model.mask_head(features.conv4, features.conv5)
        height, width = size[0].tolist()
        score = predictor.threshold
        found = detections.above(score)
        return cls(
            predictor,
            name,
            as_rgb(values, predictor),
            score,
            detections,
            found,
            (height, width),
            inputs,
            features,
            maps,
        )

    @property
    def model(self) -> MaskLab:
        """The predictor's network."""
        return self.predictor.model

    def logits(self, name: str) -> Tensor | None:
        """The ``semantic`` or ``direction`` logits, ``(1, channels, h, w)``; None if the model has none."""
        return getattr(self.maps, name) if isinstance(self.maps, MaskLogits) else None

    def reason_missing(self, name: str) -> str:
        """The reason why the model has no ``semantic`` or ``direction`` logits."""
        head = self.model.config.model.mask.head
        field = f"model.mask.{name} is false" if head == "masklab" else f"model.mask.head is {head}"
        return f"this model has no {name} logits ({field})."

    def rois(self, boxes: NDArray[np.float32]) -> Rois:
        """Boxes ``(R, 4)`` in the image's pixels, on the feature maps."""
        scale = np.array([self.size[1] / self.image.shape[1], self.size[0] / self.image.shape[0]] * 2)
        pixels = torch.as_tensor(boxes * scale, dtype=torch.float32, device=self.inputs.device)
        return self.model.rois(pixels, torch.zeros(len(boxes), dtype=torch.long, device=pixels.device), self.inputs)

    def channel(self, maps: Tensor, channel: int, size: Size) -> Floats:
        """One channel of a map at the pixels of the image, shown at ``size``: float32 of that size."""
        height, width = self.image.shape[:2]
        x, y = PIXEL_CENTRE * width / size[1], PIXEL_CENTRE * height / size[0]  # of the first shown pixel
        rois = self.rois(np.array([[x, y, width - x, height - y]], np.float32))
        values: Floats = crop_channels(maps, rois, size, torch.tensor([channel], device=maps.device))[0].cpu().numpy()
        return values

    def shown(self, size: Size) -> Bytes:
        """The image at ``size``."""
        return sheets.scaled(self.image, size)

    def fitted_size(self, height: int, width: int) -> Size:
        """The size at which the image is shown in a space of ``height`` x ``width`` pixels."""
        return sheets.shown_size((self.image.shape[0], self.image.shape[1]), (height, width))

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """The table of direction pooling, ``(P, P)``; only for models with direction logits."""
        assert isinstance(self.model.mask_head, MaskLabHead)
        table: NDArray[np.int64] = self.model.mask_head.table.cpu().numpy()
        return table

    @property
    def table_colours(self) -> Bytes:
        """The colour of the direction that each sample of a box reads, ``(P, P, 3)``."""
        count = self.model.config.model.mask.directions
        return colour_maps.direction_colours(count)[self.table % count]

    def pooled(self, maps: Tensor, n: int) -> Floats:
        """Direction logits of object ``n`` after direction pooling, ``(P, P)``."""
        table = torch.as_tensor(self.table, device=maps.device)
        rois, size = self.rois(self.found.boxes[n : n + 1]), (len(table), len(table))
        pooled: Floats = crop_channels(maps, rois, size, table)[0].cpu().numpy()
        return pooled

    def describe(self, n: int) -> list[str]:
        """Class, score, size and place of object ``n``, a line each."""
        x1, y1, x2, y2 = self.found.boxes[n].tolist()
        name = self.found.class_names[int(self.found.labels[n])]
        return [
            name,
            f"score {self.found.scores[n]:.2f}",
            f"{x2 - x1:.0f} x {y2 - y1:.0f} px",
            f"at {x1:.0f}, {y1:.0f}",
        ]

    def summary(self) -> str:
        """How many objects of each class were found, for a caption."""
        if not len(self.found):
            best = (
                f"; the best of {len(self.detections)} has {self.detections.scores.max():.2f}"
                if len(self.detections)
                else ""
            )
            return f"No detection has a score of {self.score:.2f} or more{best}"
        counts = Counter(self.found.class_names[label] for label in self.found.labels.tolist()).most_common()
        classes = ", ".join(f"{count} {name}" for name, count in counts)
        return f"Score of {self.score:.2f} or more: {classes}"


def as_rgb(values: NDArray[Any], predictor: Predictor) -> Bytes:
    """An image ``(C, H, W)`` of any depth and number of channels as ``(H, W, 3)`` uint8, as the predictor rescales it."""
    return np.ascontiguousarray(displayed(values, predictor.image_config(torch.from_numpy(values))).transpose(1, 2, 0))


def draw_boxes(image: Image.Image, boxes: NDArray[np.float32]) -> None:
    """Draw boxes ``(R, 4)`` in the pixels of ``image``, white with a black edge."""
    draw = ImageDraw.Draw(image)
    for x1, y1, x2, y2 in boxes.tolist():
        draw.rectangle((x1 - 1, y1 - 1, max(x2, x1), max(y2, y1)), outline="black")
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline="white")
