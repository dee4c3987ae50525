"""Statistics of the objects of a split, and the anchors and numbers of detections that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masklab.config.fields import MOST_COUNTED
from masklab.config.image import ImageConfig
from masklab.config.schema import Config
from masklab.datasets.objects import MIN_SIDE
from masklab.datasets.split import Split
from masklab.images.exposure import appearance_of, looks_of, middle
from masklab.images.resize import network_size
from masklab.masks import rle
from masklab.ops.box_index import BoxIndex
from masklab.structures import TrainingData

_COVERED = (0.02, 0.98)  # quantiles of the objects' sides that the anchors cover
_DETECTIONS_PER_OBJECT = 1.5  # of the image with the most objects
_MIN_DETECTIONS, _MIN_PROPOSALS = 100, 300
_PROPOSALS_PER_DETECTION = 2
_SIZED_IMAGES, _SEEN_IMAGES = 500, 60
SHARED = 0.2  # of an object, inside the box of another of its class
_SMALLEST = 0.01  # quantile of the objects' shorter sides


@dataclass(frozen=True)
class Statistics:
    """Sizes and counts of the objects of one split, crowd regions left out.

    ==============  ==========  =======  =========================================================
    name            shape       dtype    meaning
    ==============  ==========  =======  =========================================================
    ``sides``       ``(G,)``    float64  root of each box's area, in pixels of the network's input
    ``per_image``   ``(N,)``    int64    objects of each image
    ``per_class``   ``(K,)``    int64    objects of each class
    ==============  ==========  =======  =========================================================
    """

    sides: NDArray[np.float64]
    per_image: NDArray[np.int64]
    per_class: NDArray[np.int64]

    @property
    def anchor_sizes(self) -> list[float] | None:
        """Sides of square anchors, each twice the previous, for the middle 96 % of the objects; None without objects.

        An anchor covers sides from 1 / sqrt(2) to sqrt(2) times its own.  The smallest number of anchors is taken that
        covers the range from the 2nd to the 98th percentile, centred on it on a logarithmic scale.  Objects that
        training leaves out as too small do not count.
        """
        sides = self.sides[self.sides >= MIN_SIDE]
        if not sides.size:
            return None
        low, high = np.log2(np.quantile(sides, _COVERED)).tolist()
        count = max(1, math.ceil(high - low - 1e-9))
        first = (low + high - count + 1) / 2
        return [float(round(2 ** (first + k))) for k in range(count)]

    @property
    def max_detections(self) -> int:
        """1.5 times the largest number of objects of an image, at least 100 and at most what the configuration takes."""
        wanted = math.ceil(_DETECTIONS_PER_OBJECT * self.per_image.max(initial=0))
        return min(max(_MIN_DETECTIONS, wanted), MOST_COUNTED)


def measure(split: Split, config: ImageConfig) -> Statistics:
    """Measure every object of a split in pixels of the network's input under ``config``, without augmentation."""
    sides = [np.zeros(0)]
    per_image = np.zeros(len(split), np.int64)
    per_class = np.zeros(len(split.categories), np.int64)
    for index, image in enumerate(split.images):
        objects = split.objects(index)
        height, width = network_size(image.size, config)
        scale = np.array([width / image.size[1], height / image.size[0]])
        boxes = objects.boxes.astype(np.float64)
        sides.append(np.sqrt(((boxes[:, 2:] - boxes[:, :2]) * scale).prod(axis=1)))
        per_image[index] = len(objects)
        per_class += np.bincount(objects.labels, minlength=len(per_class))
    return Statistics(np.concatenate(sides), per_image, per_class)


def training_data(split: Split, config: Config) -> TrainingData | None:
    """The sizes of images and objects of a split, from at most 500 images evenly spaced; None without objects.

    How images look is measured on at most 60 of them, in their middles.
    """
    rows = split.evenly_spaced_indices(_SIZED_IMAGES)
    sides = [split.objects(row).boxes for row in rows]
    boxes = np.concatenate(sides) if sides else np.zeros((0, 4), np.float32)
    if not len(boxes):
        return None
    lengths = boxes[:, 2:] - boxes[:, :2]
    height, width = np.median([split.images[row].size for row in rows], axis=0).round().astype(int).tolist()
    smallest = float(np.quantile(lengths.min(axis=1), _SMALLEST))
    channels, looks = config.model.backbone.channels, []
    for row in split.evenly_spaced_indices(_SEEN_IMAGES):
        values = split.read(row, channels, middle(split.images[row].size))
        looks.append(appearance_of(values, config.image))
    return TrainingData((height, width), smallest, float(lengths.max()), looks_of(looks))


def shared_boxes(split: Split) -> float | None:
    """The share of boxes that hold at least a fifth of another object of the same class, of its visible pixels.

    In these a map of classes alone does not say which pixels are the object's.  Measured on at most 500 images evenly
    spaced; None without objects.
    """
    shared, boxes = 0, 0
    for row in split.evenly_spaced_indices(_SIZED_IMAGES):
        objects = split.objects(row)
        holding = np.zeros(len(objects), bool)
        for part in BoxIndex(objects.boxes, objects.labels).pairs(objects.boxes, objects.labels):
            for box, other in zip(part.rows.tolist(), part.others.tolist(), strict=True):
                if box != other and not holding[box]:
                    x1, y1, x2, y2 = objects.boxes[box].astype(int).tolist()
                    inside = rle.window(objects.rle(other), objects.size, (x1, y1, x2, y2)).sum()
                    holding[box] = inside >= SHARED * objects.areas[other]
        shared, boxes = shared + int(holding.sum()), boxes + len(objects)
    return shared / boxes if boxes else None


def proposals_for(max_detections: int) -> int:
    """Number of proposals at test for ``max_detections``, at most what the configuration takes."""
    return min(max(_MIN_PROPOSALS, _PROPOSALS_PER_DETECTION * max_detections), MOST_COUNTED)
