"""Label map: one image with a number for each object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks.rle import RLE, bounds, window
from masklab.utils.types import Size


def label_map(masks: Sequence[RLE], scores: NDArray[Any], size: Size) -> NDArray[np.int32]:
    """One ``(H, W)`` int32 image of all objects: 0 is background, 1 the best-scored object, and so on.

    Where objects overlap, the one with the higher score is on top; of equal scores, the earlier.
    """
    labels = np.zeros(size, np.int32)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist()
    for rank in range(len(order), 0, -1):
        mask = masks[order[rank - 1]]
        box = bounds(mask, size)
        if box is not None:
            x1, y1, x2, y2 = box
            labels[y1:y2, x1:x2][window(mask, size, box).view(bool)] = rank
    return labels
