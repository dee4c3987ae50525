"""Regions of interest: boxes on the feature maps of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from masklab.utils.types import CoordMode


@dataclass(frozen=True)
class Rois:
    """Boxes on the feature maps of a batch.

    ``boxes`` is ``(R, 4)`` ``xyxy`` in units in which 0 and 1 are the centres of a map's first and last
    cell; ``batch_index`` ``(R,)`` int64 says which image each lies in; ``slack`` (x, y), in the same
    units, is how far beyond the map a sample still reads its border.
    """

    boxes: Tensor
    batch_index: Tensor
    slack: tuple[float, float] = (1e-6, 1e-6)

    @classmethod
    def from_pixels(cls, boxes: Tensor, batch_index: Tensor, size: tuple[int, int], mode: CoordMode = "exact") -> Rois:
        """Boxes ``(R, 4)`` in pixels of a network input of ``size`` (height, width), padding included.

        ``exact``: cell ``i`` of a map of stride ``s`` lies on pixel ``s * i``, which holds for every
        level when height and width are ``8 k + 1`` (or 16, 32).  A box on the image's border is half
        a pixel beyond the centre of the border's pixels: the slack covers it.  ``tf``: boxes are divided
        by height and width, as TensorFlow's library does, which drifts by up to a cell.
        """
        height, width = size
        scale = boxes.new_tensor([width, height, width, height])
        if mode == "tf":
            return cls(boxes / scale, batch_index)
        return cls((boxes - 0.5) / (scale - 1), batch_index, (0.51 / (width - 1), 0.51 / (height - 1)))

    def __len__(self) -> int:
        """Number of boxes."""
        return self.boxes.shape[0]
