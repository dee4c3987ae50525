"""Pictures for the page: tiles of an image as it is displayed, and the maps that masks are made of as layers over it."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklab.images.reader import ImageReader, open_reader
from masklab.images.rescaled import ImageIntensities, ShownImage
from masklab.inference.finder import ObjectFinder
from masklab.results.instances import Instances
from masklab.serve.refusals import Refusal
from masklab.utils.types import Box, Size

if TYPE_CHECKING:
    from masklab.inference.predictor import Predictor

TILE = 512
"""Side of a tile in pixels of the screen."""
LAYERS = ("semantic", "direction")
_LAYER_SIDE = 1024  # pixels of the longer side of a layer
_LEGEND_SIDE = 300


class OpenImage:
    """The image that was looked at last, which stays open for the next tile.  For one thread."""

    def __init__(self, finder: ObjectFinder) -> None:
        self._finder, self._files = finder, ExitStack()
        self._path: Path | None = None
        self._reader: ImageReader | None = None
        self._shown: ShownImage | None = None

    def reader(self, path: Path) -> ImageReader:
        """The image at ``path`` as the model takes it; errors as of `open_reader`."""
        if self._path != path or self._reader is None:
            self.close()
            channels = self._finder.config.model.backbone.channels
            self._reader, self._path = self._files.enter_context(open_reader(path, channels, alone=True)), path
        return self._reader

    def shown(self, path: Path) -> ShownImage:
        """The image at ``path`` as it is displayed; errors as of `open_reader`."""
        reader = self.reader(path)
        self._shown = self._shown or ImageIntensities(reader, self._finder.image_config).shown()
        return self._shown

    def close(self) -> None:
        """Close the image, if one is open."""
        self._path = self._reader = self._shown = None
        self._files.close()


def tile(image: ShownImage, step: int, column: int, row: int) -> bytes:
    """A tile as PNG: a pixel is the mean of ``step`` x ``step`` of the image, ``column`` and ``row`` count tiles from the
    upper left; `Refusal` where there is none."""
    height, width = image.size
    side = TILE * step
    if step > 1 and step >= 2 * max(1, max(image.size) // TILE):
        raise Refusal(404, f"there are no tiles of step {step} of this image: ask for a smaller step.")
    left, top = column * side, row * side
    if left >= width or top >= height:
        raise Refusal(404, "there is no tile at this place: the image ends before it.")
    values = image.read((left, top, min(left + side, width), min(top + side, height)))
    picture = Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))
    return png(picture.reduce(step) if step > 1 else picture)


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG, compressed quickly."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def layers_of(finder: ObjectFinder) -> tuple[Predictor | None, str]:
    """The predictor whose maps can be drawn, or None and the reason why there are none."""
    if not hasattr(finder, "model"):
        return None, "an exported model gives its objects alone: serve the weights to see its maps."
    from masklab.model.mask_head import MaskLabHead

    predictor: Any = finder
    if not isinstance(predictor.model.mask_head, MaskLabHead):
        return None, f"the mask head {predictor.config.model.mask.head} has no such maps."
    return predictor, ""


def layer(finder: ObjectFinder, image: ImageReader, name: str, label: int, box: Box | None) -> bytes:
    """The ``semantic`` logits of a class or the strongest ``direction`` at each pixel, over a box of the image, or all
    of it, as PNG.

    Raises `Refusal` for a model without such maps and for a box that is not inside the image or is too large.
    """
    predictor, reason = layers_of(finder)
    if predictor is None:
        raise Refusal(404, reason)
    x1, y1, x2, y2 = box = box or (0, 0, image.size[1], image.size[0])
    if not 0 <= label < len(finder.classes):
        raise Refusal(422, f"there is no class {label}: classes are counted from 0 to {len(finder.classes) - 1}.")
    if not (0 <= x1 < x2 <= image.size[1] and 0 <= y1 < y2 <= image.size[0]):
        raise Refusal(422, f"the box is not inside the image of {image.size[1]} x {image.size[0]} pixels.")
    size = (y2 - y1, x2 - x1)
    if predictor.tile_plan(size) is not None:
        raise Refusal(422, "the model cannot see as large a part of an image at once: zoom in to see its maps.")
    return png(_drawn(predictor, np.ascontiguousarray(image.read(box)), name, label, _fitted(size)))


def _fitted(size: Size) -> Size:
    scale = min(1.0, _LAYER_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _drawn(predictor: Predictor, values: NDArray[Any], name: str, label: int, size: Size) -> Image.Image:
    from masklab.plots import colour_maps
    from masklab.plots.inspection import Inspection
    from masklab.plots.logit_maps import strongest_directions

    inspection = Inspection.of(predictor, "", values, _nothing(predictor))
    maps = inspection.logits(name)
    if maps is None:
        raise Refusal(404, inspection.reason_missing(name))
    if name == "direction":
        return strongest_directions(inspection, maps, size)[0]
    channel = inspection.channel(maps, label, size)
    return Image.fromarray(colour_maps.heat(channel, *colour_maps.round_limits(channel)))


def _nothing(predictor: Predictor) -> Instances:
    """No objects: maps need none."""
    empty = np.zeros(0, np.float32)
    boxes, masks = empty.reshape(0, 4), empty.reshape(0, 0, 0)
    names, ids = predictor.classes.names, predictor.classes.ids
    return Instances((1, 1), boxes, empty, empty.astype(np.int64), masks, names, ids)


def direction_legend(finder: ObjectFinder) -> bytes:
    """The colours of the directions as PNG; `Refusal` where the model has none."""
    predictor, reason = layers_of(finder)
    if predictor is None or not predictor.config.model.mask.direction:
        raise Refusal(404, reason or "this model has no direction logits.")
    from masklab.plots.colour_maps import direction_wheel

    mask = predictor.config.model.mask
    head: Any = predictor.model.mask_head
    return png(direction_wheel(head.table.cpu().numpy(), mask.directions, mask.start_degrees, _LEGEND_SIDE))
