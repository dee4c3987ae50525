"""Annotated objects of one image, in flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks import rle

MIN_AREA = 1.0  # pixels of the network's input: smaller objects are not trained on
MIN_SIDE = 2.0


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image, in its own pixels.

    ==============  ===========  =======  ======================================================
    name            shape        dtype    meaning
    ==============  ===========  =======  ======================================================
    ``boxes``       ``(G, 4)``   float32  ``xyxy``, tight around each mask
    ``labels``      ``(G,)``     int64    ``0..K-1``
    ``areas``       ``(G,)``     int64    pixels of each mask
    ``rle_ends``    ``(G,)``     int64    where each mask's run lengths end in ``flat_rle``
    ``flat_rle``    ``(sum,)``   int32    the run lengths of all masks, one after the other
    ``ignored``     ``(I, 4)``   float32  crowd regions
    ==============  ===========  =======  ======================================================

    ``size`` is the image's ``(height, width)``; ``crowds`` has the run lengths of each crowd region's mask, or
    None where only its box is known.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    areas: NDArray[np.int64]
    rle_ends: NDArray[np.int64]
    flat_rle: NDArray[Any]
    ignored: NDArray[np.float32]
    crowds: tuple[NDArray[np.int64] | None, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bytes(self) -> int:
        """Memory that the arrays take, roughly."""
        return 1000 + self.flat_rle.nbytes + 50 * len(self) + sum(c.nbytes for c in self.crowds if c is not None)

    def rle(self, row: int) -> NDArray[np.int64]:
        """Run lengths of one object's mask, int64."""
        start = self.rle_ends[row - 1] if row else 0
        return self.flat_rle[start : self.rle_ends[row]].astype(np.int64)

    @classmethod
    def build(
        cls,
        size: tuple[int, int],
        masks: list[NDArray[np.int64]],
        labels: list[int],
        ignored: list[tuple[float, ...]] | None = None,
        crowds: list[NDArray[np.int64] | None] | None = None,
    ) -> Objects:
        """From run lengths, each with at least one pixel, and labels; ``crowds`` are the masks of ``ignored`` or None."""
        boxes = [rle.bounds(runs, size) for runs in masks]
        flat = np.concatenate(masks) if masks else np.zeros(0, np.int64)
        return cls(
            size=size,
            boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
            labels=np.asarray(labels, np.int64),
            areas=np.asarray([rle.area(runs) for runs in masks], np.int64),
            rle_ends=np.cumsum([len(runs) for runs in masks], dtype=np.int64),
            flat_rle=flat.astype(np.int32 if size[0] * size[1] < 2**31 else np.int64),
            ignored=np.asarray(ignored or [], np.float32).reshape(-1, 4),
            crowds=tuple(crowds or [None] * len(ignored or [])),
        )
