"""Label map: one image with a number for each object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks.rle import RLE, bounds, window
from masklab.ops.box_index import BoxIndex
from masklab.utils.types import Size


def label_map(masks: Sequence[RLE], scores: NDArray[Any], size: Size) -> NDArray[np.int32]:
    """One ``(H, W)`` int32 image of all objects: 0 is background, 1 the best-scored object, and so on.

    Where objects overlap, the one with the higher score is on top; of equal scores, the earlier.
    """
    labels = np.zeros(size, np.int32)
    LabelPainter(masks, scores, size).paint(labels, (0, 0))
    return labels


def ranks(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The number of each object in a label map, ``(n,)``, from 1 for the best; of equal scores, the earlier is better."""
    numbers = np.empty(len(scores), np.int64)
    numbers[np.argsort(-np.asarray(scores, np.float64), kind="stable")] = np.arange(1, len(scores) + 1)
    return numbers


class LabelPainter:
    """A label map of which any part is painted, so that the whole need not fit into memory."""

    def __init__(self, masks: Sequence[RLE], scores: NDArray[Any], size: Size) -> None:
        self.masks, self.size, self.numbers = masks, size, ranks(scores)
        boxes = [bounds(mask, size) or (0, 0, 0, 0) for mask in masks]
        self._boxes = np.array(boxes, np.int64).reshape(-1, 4)
        self._index = BoxIndex(self._boxes)

    def paint(self, part: NDArray[Any], origin: tuple[int, int]) -> None:
        """Write the numbers of objects into ``part`` ``(h, w)``, integers that are 0, whose top left pixel is at (x, y)."""
        left, top = origin
        right, bottom = left + part.shape[1], top + part.shape[0]
        rows = np.concatenate([found.others for found in self._index.pairs((left, top, right, bottom))])
        for row in rows[np.argsort(-self.numbers[rows])].tolist():
            box = self._boxes[row]
            x1, y1 = np.maximum(box[:2], (left, top)).tolist()
            x2, y2 = np.minimum(box[2:], (right, bottom)).tolist()
            seen = window(self.masks[row], self.size, (x1, y1, x2, y2)).view(bool)
            part[y1 - top : y2 - top, x1 - left : x2 - left][seen] = self.numbers[row]
