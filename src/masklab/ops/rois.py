"""Regions of interest: boxes on the feature maps of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from masklab.ops.coordinates import boxes_on_maps
from masklab.utils.types import Size


@dataclass(frozen=True)
class Rois:
    """Boxes on the feature maps of a batch.

    ``boxes`` is ``(R, 4)`` ``xyxy`` in units in which 0 and 1 are the centres of a map's first and last
    cell; ``batch_index`` ``(R,)`` int64 is the image of each box; ``margin`` (x, y), in the same units, is
    how far outside the map a sample still reads the map's border.
    """

    boxes: Tensor
    batch_index: Tensor
    margin: tuple[float, float] = (1e-6, 1e-6)

    @classmethod
    def from_pixels(cls, boxes: Tensor, batch_index: Tensor, size: Size) -> Rois:
        """Boxes ``(R, 4)`` in pixels of a network input of ``size`` (height, width), padding included.

        A box on the image's border lies half a pixel beyond the outermost cells: the margin covers it.
        """
        on_maps, margin = boxes_on_maps(boxes, size)
        return cls(on_maps, batch_index, margin)

    def __len__(self) -> int:
        """Number of boxes."""
        return self.boxes.shape[0]
