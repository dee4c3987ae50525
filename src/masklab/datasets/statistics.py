"""How many objects a split holds and how large they are, and the anchors and caps that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masklab.config.image import ImageConfig
from masklab.datasets.objects import MIN_SIDE
from masklab.datasets.split import Split
from masklab.images.resize import network_size

COVERED = (0.02, 0.98)  # quantiles of the objects' sides that the anchors cover
HEADROOM = 1.5  # detections for each object of the fullest image
LEAST_DETECTIONS, LEAST_PROPOSALS = 100, 300
PROPOSALS_A_DETECTION = 2


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
        """Sides of square anchors, each twice the one before, for the middle 96 % of the objects; None without objects.

        An anchor stands for sides up to a factor of the root of 2 smaller and larger, so the fewest that cover the
        range from the 2nd to the 98th percentile are taken, centred on it on a logarithmic scale.  Objects that
        training drops as too small do not count.
        """
        sides = self.sides[self.sides >= MIN_SIDE]
        if not sides.size:
            return None
        low, high = np.log2(np.quantile(sides, COVERED)).tolist()
        count = max(1, math.ceil(high - low - 1e-9))
        first = (low + high - count + 1) / 2
        return [float(round(2 ** (first + k))) for k in range(count)]

    @property
    def max_detections(self) -> int:
        """One and a half times the objects of the fullest image, at least 100."""
        return max(LEAST_DETECTIONS, math.ceil(HEADROOM * self.per_image.max(initial=0)))


def measure(split: Split, config: ImageConfig) -> Statistics:
    """Measure every object of a split at the scale at which ``config`` shows images to the network, unaugmented."""
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


def proposals_for(max_detections: int) -> int:
    """Proposals at test for so many detections."""
    return max(LEAST_PROPOSALS, PROPOSALS_A_DETECTION * max_detections)
