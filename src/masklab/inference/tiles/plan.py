"""Where the tiles of an image lie, and how much they overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from masklab.config.schema import Config
from masklab.images.resize import network_size
from masklab.utils.types import Box, Size

if TYPE_CHECKING:
    from masklab.structures import TrainingData


class Trained(Protocol):
    """What is known of a model that finds objects: of a network, or of an exported one."""

    @property
    def config(self) -> Config: ...

    @property
    def training_data(self) -> TrainingData | None: ...


TILE = 2048
"""Side of a tile in pixels of the network's input; images of more pixels than such a tile are predicted in tiles."""
_LEAST_OVERLAP = 1 / 16  # of a tile's side
_MOST_OVERLAP = 1 / 3
_LEAST_TILE = 256  # pixels of the network's input: a tile that is full is divided down to it
_MARGIN = 1.25  # of the overlap over the largest object


@dataclass(frozen=True)
class TilePlan:
    """Tiles of an image, in pixels of the image.

    ``scale`` is the factor from the image to the network's input, ``side`` the side of a tile, ``overlap`` what
    neighbours share at least, and ``step`` the distance that their positions are multiples of where they can be.
    """

    size: Size
    scale: float
    side: int
    overlap: int
    step: int

    def tiles(self) -> list[Box]:
        """The tiles row by row; they cover the image, and neighbours share at least the overlap."""
        return tile_boxes((0, 0, self.size[1], self.size[0]), self.side, self.overlap, self.step)

    def divided(self, tile: Box) -> list[Box]:
        """The four overlapping parts of a tile; none if they would be too small."""
        side = (max(tile[2] - tile[0], tile[3] - tile[1]) + self.overlap) // 2 + self.step
        if side * self.scale < _LEAST_TILE or side > 0.9 * max(tile[2] - tile[0], tile[3] - tile[1]):
            return []
        return tile_boxes(tile, side, self.overlap, self.step)

    def around(self, box: Box, least: int = 0) -> Box:
        """The tile, of a side of at least ``least``, in the middle of which a box lies, as far as the image goes."""
        (height, width), side = self.size, max(self.side, least)
        edges = []
        for low, high, length in ((box[0], box[2], width), (box[1], box[3], height)):
            first = min(max(0, (low + high - side) // 2), max(0, length - side))
            edges.append((first - first % self.step, min(first - first % self.step + side, length)))
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def plan_tiles(model: Trained, size: Size) -> TilePlan | None:
    """The tiles for an image of ``size``; None for one that the model takes as a whole.

    A model that was trained at a fixed scale (``image.scale``) takes images of more than 2048 x 2048 pixels of its
    input in tiles of that size.  One that brings every image to one size takes images in tiles whose sides are more
    than twice those of its training images, each tile of the size of these; where the weights do not say which size
    they had, it takes every image as a whole.

    The overlap is 1.25 times the largest object of the training data, or without that knowledge the largest anchor; at
    least a sixteenth and at most a third of a tile.
    """
    config = model.config
    if config.image.scale is not None:
        scale, side = config.image.scale, int(TILE / config.image.scale)
        if size[0] * size[1] <= side * side:
            return None
    else:
        if model.training_data is None:
            return None
        usual = model.training_data.image_size
        if max(size) <= 2 * max(usual):
            return None
        scale, side = network_size(usual, config.image)[0] / usual[0], max(usual)
    largest = largest_object(model, scale)
    overlap = math.ceil(min(max(_MARGIN * largest, _LEAST_OVERLAP * side), _MOST_OVERLAP * side))
    return TilePlan(size, scale, side, overlap, _step(config, scale))


def largest_object(model: Trained, scale: float) -> float:
    """The longest side of an object that the model knows, in pixels of an image of which ``scale`` leads to its input."""
    if model.training_data is not None:
        return model.training_data.largest_object
    return max(float(size) for size in model.config.model.rpn.anchor_sizes) / scale


def tile_boxes(area: Box, side: int, overlap: int, step: int) -> list[Box]:
    """Tiles of ``side`` that cover an area, row by row.

    They are spread evenly, so that the overlap is at least ``overlap`` and all but the last lie at multiples of ``step``.
    """
    x1, y1, x2, y2 = area
    return [
        (x, y, min(x + side, x2), min(y + side, y2))
        for y in _positions(y1, y2, side, overlap, step)
        for x in _positions(x1, x2, side, overlap, step)
    ]


def _positions(first: int, end: int, side: int, overlap: int, step: int) -> list[int]:
    last = end - side
    if last <= first:
        return [first]
    count = math.ceil((last - first) / max(1, side - overlap - step + 1)) + 1
    spread = (first + (last - first) * n / (count - 1) for n in range(count - 1))
    return [*dict.fromkeys(first + int(place - first) // step * step for place in spread), last]


def _step(config: Config, scale: float) -> int:
    """The smallest distance in the image that is a whole number of cells of the network's coarsest map, or 1."""
    stride = config.model.backbone.output_stride
    return next((n for n in range(1, 65) if (n * scale / stride) % 1 == 0), 1)


def sample_boxes(size: Size, side: int, most: int) -> list[Box]:
    """At most ``most`` squares of ``side``, spread evenly over an image."""
    height, width = size
    across = max(1, min(width // side, round((most * width / height) ** 0.5)))
    down = max(1, min(height // side, most // across))
    lefts, tops = (
        [round((length - side) * (n + 0.5) / count) for n in range(count)]
        for length, count in ((width, across), (height, down))
    )
    return [(x, y, x + side, y + side) for y in tops for x in lefts]
