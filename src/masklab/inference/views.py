"""Views of an image in test-time augmentation: flipped, transposed and scaled.  Works without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from masklab.utils.errors import InputError
from masklab.utils.types import Size

if TYPE_CHECKING:
    from torch import Tensor

Flips = Literal["none", "horizontal", "both", "turns"]
"""none: the image itself; horizontal: hflip too; both: also vflip, 4 views; turns: also each transposed, 8 views."""

_MIN_SCALE, _MAX_SCALE = 0.25, 4.0


class View(NamedTuple):
    """A view of an image: scaled by ``scale`` times the model's own factor, then transposed, then flipped."""

    scale: float = 1.0
    transposed: bool = False
    hflip: bool = False
    vflip: bool = False

    def show(self, maps: Tensor) -> Tensor:
        """Transpose and flip an image or maps ``(..., H, W)``."""
        return self._flip(maps.transpose(-1, -2) if self.transposed else maps)

    def undo(self, maps: Tensor) -> Tensor:
        """Inverse of `show`."""
        flipped = self._flip(maps)
        return flipped.transpose(-1, -2) if self.transposed else flipped

    def from_image(self, boxes: Tensor, size_of_image: Size, seen: Size) -> Tensor:
        """Boxes ``(R, 4)`` in pixels of an image of ``size_of_image`` (height, width) in pixels of this view of size ``seen``."""
        height, width = seen[::-1] if self.transposed else seen
        boxes = boxes * boxes.new_tensor([width / size_of_image[1], height / size_of_image[0]] * 2)
        return self._mirror(boxes[:, [1, 0, 3, 2]] if self.transposed else boxes, seen)

    def to_image(self, boxes: Tensor, size_of_image: Size, seen: Size) -> Tensor:
        """Inverse of `from_image`."""
        height, width = seen[::-1] if self.transposed else seen
        boxes = self._mirror(boxes, seen)
        boxes = boxes[:, [1, 0, 3, 2]] if self.transposed else boxes
        return boxes * boxes.new_tensor([size_of_image[1] / width, size_of_image[0] / height] * 2)

    def _flip(self, maps: Tensor) -> Tensor:
        axes = [-1] * self.hflip + [-2] * self.vflip
        return maps.flip(axes) if axes else maps

    def _mirror(self, boxes: Tensor, size: Size) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        if self.hflip:
            x1, x2 = size[1] - x2, size[1] - x1
        if self.vflip:
            y1, y2 = size[0] - y2, size[0] - y1
        import torch

        return torch.stack([x1, y1, x2, y2], dim=1)


PLAIN = View()


def all_views(flips: Flips = "none", scales: Sequence[float] = (1.0,)) -> list[View]:
    """The views of each of ``flips`` at each of ``scales``.

    Raises `InputError` for unknown flips, and for scales that are missing, repeated or not within 0.25 to 4.
    """
    if flips not in get_args(Flips):
        raise InputError(f"flips is {flips!r}: give one of {', '.join(get_args(Flips))}.")
    wrong = [scale for scale in scales if not (math.isfinite(scale) and _MIN_SCALE <= scale <= _MAX_SCALE)]
    if wrong:
        raise InputError(
            f"scales holds {wrong[0]:g}: give factors from {_MIN_SCALE} to {_MAX_SCALE:g}; 1 is the model's own scale."
        )
    if not scales or len(set(scales)) < len(scales):
        raise InputError(f"scales is {list(scales)}: give at least one, and each only once.")
    transposed, hflip, vflip = (
        (False, True) if flips in wanted else (False,)
        for wanted in (("turns",), ("horizontal", "both", "turns"), ("both", "turns"))
    )
    return [View(*ways) for ways in product(map(float, scales), transposed, hflip, vflip)]
