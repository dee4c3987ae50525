"""How many objects a split holds and how large they are, and the anchors and caps that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masklab.config import Config, PictureConfig, settled
from masklab.data.coco import CocoSplit
from masklab.data.kind import resolve_pictures
from masklab.data.objects import SMALLEST_SIDE
from masklab.errors import InputError
from masklab.pictures import network_size

COVERED = (0.02, 0.98)  # quantiles of the objects' sides that the anchors cover
HEADROOM = 1.5  # detections for each object of the fullest picture
LEAST_DETECTIONS, LEAST_PROPOSALS = 100, 300
PROPOSALS_A_DETECTION = 2


@dataclass(frozen=True)
class Statistics:
    """Sizes and counts of the objects of one split, crowd regions left out.

    ==============  ==========  =======  =========================================================
    name            shape       dtype    meaning
    ==============  ==========  =======  =========================================================
    ``sides``       ``(G,)``    float64  root of each box's area, in pixels of the network's input
    ``per_image``   ``(N,)``    int64    objects of each picture
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
        sides = self.sides[self.sides >= SMALLEST_SIDE]
        if not sides.size:
            return None
        low, high = np.log2(np.quantile(sides, COVERED)).tolist()
        count = max(1, math.ceil(high - low - 1e-9))
        first = (low + high - count + 1) / 2
        return [float(round(2 ** (first + k))) for k in range(count)]

    @property
    def max_detections(self) -> int:
        """One and a half times the objects of the fullest picture, at least 100."""
        return max(LEAST_DETECTIONS, math.ceil(HEADROOM * self.per_image.max(initial=0)))


def measure(split: CocoSplit, config: PictureConfig) -> Statistics:
    """Measure every object of a split at the scale at which ``config`` shows pictures to the network, unaugmented."""
    sides = [np.zeros(0)]
    per_image = np.zeros(len(split), np.int64)
    per_class = np.zeros(len(split.categories), np.int64)
    for index, picture in enumerate(split.pictures):
        objects = split.objects(index)
        height, width = network_size(picture.size, config)
        scale = np.array([width / picture.size[1], height / picture.size[0]])
        boxes = objects.boxes.astype(np.float64)
        sides.append(np.sqrt(((boxes[:, 2:] - boxes[:, :2]) * scale).prod(axis=1)))
        per_image[index] = len(objects)
        per_class += np.bincount(objects.labels, minlength=len(per_class))
    return Statistics(np.concatenate(sides), per_image, per_class)


def proposals_for(max_detections: int) -> int:
    """Proposals at test for so many detections."""
    return max(LEAST_PROPOSALS, PROPOSALS_A_DETECTION * max_detections)


def resolve_auto(config: Config, split: CocoSplit) -> Config:
    """Put numbers where the configuration says "auto", taken from the training split, and print them.

    What concerns the pictures alone is settled by `resolve_pictures`.
    ``model.rpn.anchor_sizes`` and ``model.box.max_detections`` are those of `Statistics`; ``model.rpn.proposals_test``
    is twice the detections, at least 300, and ``pre_nms_test`` is raised to twice that where it is lower.  Raises
    `InputError` when anchors are to be taken from a split without objects.
    """
    config = resolve_pictures(config, split)
    rpn, box = config.model.rpn, config.model.box
    if "auto" not in (rpn.anchor_sizes, rpn.proposals_test, box.max_detections):
        return config
    statistics = measure(split, config.pictures)
    if rpn.anchor_sizes == "auto":
        if statistics.anchor_sizes is None:
            raise InputError(
                f"model.rpn.anchor_sizes is auto but {split.json_path} holds no objects to take them from: "
                "give a list of sides in pixels."
            )
        rpn = rpn.model_copy(update={"anchor_sizes": statistics.anchor_sizes})
        print(f"model.rpn.anchor_sizes {statistics.anchor_sizes} from the sizes of {len(statistics.sides)} objects")
    if box.max_detections == "auto":
        box = box.model_copy(update={"max_detections": statistics.max_detections})
        print(
            f"model.box.max_detections {box.max_detections}: the fullest picture has {statistics.per_image.max(initial=0)} objects"
        )
    if rpn.proposals_test == "auto":
        proposals = proposals_for(settled(box.max_detections, "model.box.max_detections"))
        before = max(rpn.pre_nms_test, 2 * proposals)
        rpn = rpn.model_copy(update={"proposals_test": proposals, "pre_nms_test": before})
        print(f"model.rpn.proposals_test {proposals}, model.rpn.pre_nms_test {before}")
    return config.model_copy(update={"model": config.model.model_copy(update={"rpn": rpn, "box": box})})
