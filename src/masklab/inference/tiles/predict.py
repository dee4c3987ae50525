"""Prediction of an image of any size, tile by tile."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from masklab.config.image import ImageConfig
from masklab.images.reader import ImageReader
from masklab.images.rescaled import ImageIntensities
from masklab.images.resize import network_image
from masklab.inference.tiles.merge import TileObjects, bounds_of, merge
from masklab.inference.tiles.plan import TilePlan, sample_boxes
from masklab.inference.tiles.store import TileStore
from masklab.masks.packed import PackedRLEs
from masklab.masks.threshold import encode_masks
from masklab.model.fixed_norm import NormStatistics, has_norms_to_fix, measure_norms, with_fixed_norms
from masklab.ops.coordinates import padded_size
from masklab.results.instances import Instances
from masklab.utils.progress import track
from masklab.utils.types import Box, Integers, Size

if TYPE_CHECKING:
    from masklab.inference.predictor import Predictor

_log = logging.getLogger(__name__)

_SAMPLES = 16  # parts of an image that the statistics of norms come from
_SAMPLE = 512  # side of one in pixels of the network's input
_FULL = (0.0, 255.0)
_ROUNDS = 4  # of looking for cut objects in tiles around what is seen of them


def predict_tiles(
    predictor: Predictor, image: ImageReader, plan: TilePlan, store: TileStore | None = None
) -> Instances:
    """The objects of an image, found tile by tile; best first, in pixels of the image.

    What belongs to the image is found first and is the same for all tiles: the range of intensities, and the statistics
    of norms.  A tile with as many objects as a model may find is divided into four, so an image may have any number.
    Objects that are cut by an edge of each tile that sees them are looked for again, in a tile around them.  What is
    found in a tile goes to ``store``, and is taken from there where it is known.

    The ``masks`` of the result are empty ``(n, 0, 0)``: the run lengths are kept alone, compressed.
    """
    finder = _Finder(predictor, image, plan, store)
    found = [part for tile in track(plan.tiles(), "tiles") for part in finder.tile(tile)]
    kept, cut = merge(found, plan.size, predictor.threshold)
    for _ in range(_ROUNDS):  # each sees more of an object than the one before
        seen = {part.tile for part in found}
        again = [tile for tile in _tiles_around(plan, found, cut, predictor.threshold) if tile not in seen]
        if not again:
            break
        found += [part for tile in again for part in finder.tile(tile)]
        kept, cut = merge(found, plan.size, predictor.threshold)
    remaining = sum(
        int((part.scores[rows] >= predictor.threshold).sum()) for part, rows in zip(found, cut, strict=True)
    )
    if remaining:
        _log.warning(
            "%s larger than a tile of %d pixels and cut at its edges: predict the image at a lower resolution.",
            "1 object is" if remaining == 1 else f"{remaining} objects are",
            plan.side,
        )
    rows = [np.concatenate(pair) for pair in zip(kept, cut, strict=True)]
    return _joined(predictor, [part.rows(some) for part, some in zip(found, rows, strict=True)], plan.size)


class _Finder:
    """The objects of the tiles of one image."""

    def __init__(self, predictor: Predictor, image: ImageReader, plan: TilePlan, store: TileStore | None) -> None:
        self._predictor, self._image, self._plan, self._store = predictor, image, plan, store
        self._on_tiles: tuple[Predictor, ImageIntensities] | None = None

    def tile(self, tile: Box) -> list[TileObjects]:
        """What is found in a tile, or in the parts into which it is divided."""
        found = None if self._store is None else self._store.get(tile)
        if found is None:
            found = self._find(tile)
            if self._store is not None:
                self._store.put(tile, found)
        return found

    def _find(self, tile: Box) -> list[TileObjects]:
        if self._on_tiles is None:  # not before it is needed: all tiles may be known
            intensities = ImageIntensities(self._image, self._predictor.image_config)
            self._on_tiles = tile_predictor(self._predictor, self._plan, intensities), intensities
        predictor, intensities = self._on_tiles
        instances = predictor.predict(intensities.read(tile))
        full = int((instances.scores >= predictor.threshold).sum()) >= predictor.max_detections
        if full and (parts := self._plan.divided(tile)):
            return [found for part in parts for found in self._find(part)]
        boxes = instances.boxes + np.array([*tile[:2], *tile[:2]], np.float32)
        masks = encode_masks(instances.masks, boxes, self._plan.size)
        bounds = bounds_of(masks, self._plan.size)
        found = TileObjects(tile, boxes, instances.scores, instances.labels, bounds, PackedRLEs.of(masks))
        return [found.rows(np.flatnonzero(bounds[:, 2] > bounds[:, 0]))]


def tile_predictor(predictor: Predictor, plan: TilePlan, intensities: ImageIntensities) -> Predictor:
    """A predictor for tiles whose intensities are rescaled already, with the image's own statistics of norms."""
    from masklab.inference.predictor import Predictor

    some = intensities.read((0, 0, 1, 1))
    fixed: dict[str, Any] = {
        "scale": plan.scale,
        "percentiles": None,
        "value_range": _FULL if some.is_floating_point() else None,
    }
    own = predictor.config.image.model_copy(update=fixed)
    statistics = {}
    if has_norms_to_fix(predictor.model):
        statistics = _statistics(predictor, plan, intensities, own)
    model = with_fixed_norms(predictor.model, statistics)
    model.config = predictor.config.model_copy(update={"image": own})
    options = replace(predictor.options, intensity="model", score_threshold=predictor.threshold)
    return Predictor(model, options, in_tiles=False)


def _statistics(
    predictor: Predictor, plan: TilePlan, intensities: ImageIntensities, config: ImageConfig
) -> NormStatistics:
    """The statistics of norms over parts of an image, spread evenly over it."""
    side = min(int(_SAMPLE / plan.scale), *plan.size)
    some = sample_boxes(plan.size, side, _SAMPLES)
    inputs = torch.stack([network_image(intensities.read(box), config) for box in some])
    height, width = padded_size((inputs.shape[2], inputs.shape[3]), predictor.model.stride)
    inputs = F.pad(inputs, (0, width - inputs.shape[3], 0, height - inputs.shape[2]), mode="replicate")
    with predictor.inference():
        return measure_norms(predictor.model, inputs.to(predictor.device, memory_format=torch.channels_last))


def _tiles_around(plan: TilePlan, found: Sequence[TileObjects], cut: Sequence[Integers], threshold: float) -> list[Box]:
    """Tiles around the cut objects of a score of at least ``threshold``, one for neighbours together."""
    bounds = np.concatenate(
        [part.bounds[rows[part.scores[rows] >= threshold]] for part, rows in zip(found, cut, strict=True)]
    )
    tiles: list[Box] = []
    while len(bounds):
        x1, y1, x2, y2 = bounds[0].tolist()
        tile = plan.around((x1, y1, x2, y2))
        tiles.append(tile)
        quarter = plan.side // 4
        inner = np.array(tile) + np.array([quarter, quarter, -quarter, -quarter])
        served = (bounds[:, :2] >= inner[:2]).all(axis=1) & (bounds[:, 2:] <= inner[2:]).all(axis=1)
        served[0] = True
        bounds = bounds[~served]
    return tiles


def _joined(predictor: Predictor, parts: Sequence[TileObjects], size: Size) -> Instances:
    """The objects of all tiles as those of the image, best first."""
    scores = np.concatenate([part.scores for part in parts])
    order = np.argsort(-scores, kind="stable")
    return Instances(
        size=size,
        boxes=np.concatenate([part.boxes for part in parts])[order],
        scores=scores[order],
        labels=np.concatenate([part.labels for part in parts])[order],
        masks=np.zeros((len(order), 0, 0), np.float32),
        class_names=predictor.classes.names,
        category_ids=predictor.classes.ids,
        _rle=PackedRLEs.joined(part.masks for part in parts).take(order.tolist()),
    )
