"""Prediction of an image of any size, tile by tile."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from masklab.config.image import ImageConfig
from masklab.images.exposure import InputCheck
from masklab.images.intensity import IntensityRange
from masklab.images.reader import ImageReader
from masklab.images.rescaled import ImageIntensities
from masklab.inference.tiles.merge import TileObjects, bounds_of, merge
from masklab.inference.tiles.plan import TilePlan, sample_boxes
from masklab.inference.tiles.store import KnownTiles, TileStore
from masklab.masks.packed import PackedRLEs
from masklab.masks.threshold import encode_masks
from masklab.ops.box_index import BoxIndex
from masklab.results.instances import Instances
from masklab.structures import ClassTable
from masklab.utils.memory import release_freed
from masklab.utils.progress import track
from masklab.utils.types import Box, Integers, Size

if TYPE_CHECKING:
    from masklab.inference.finder import ObjectFinder

_log = logging.getLogger(__name__)

_SAMPLES = 16  # parts of an image that the statistics of norms come from
_SAMPLE = 512  # side of one in pixels of the network's input
_FULL = (0.0, 255.0)
_ROUNDS = 4  # of looking for cut objects in tiles around what is seen of them


@dataclass(frozen=True)
class ImageFacts:
    """What belongs to an image and is the same for all of its tiles, wherever they are predicted.

    ``rule`` says how intensities are rescaled, ``intensities`` which of them become black and white where the rule takes
    percentiles, and ``statistics`` are those of norms (see `ObjectFinder.measure_norms`).
    """

    rule: ImageConfig
    intensities: IntensityRange | None
    statistics: Any


def image_facts(predictor: ObjectFinder, image: ImageReader, plan: TilePlan) -> ImageFacts:
    """Find what belongs to an image; raises `InputError` as `ImageIntensities` does."""
    intensities = ImageIntensities(image, predictor.image_config)
    statistics = _statistics(predictor, plan, intensities, _tile_config(predictor, plan, intensities))
    return ImageFacts(intensities.rule, intensities.range, statistics)


def predict_tiles(
    predictor: ObjectFinder,
    image: ImageReader,
    plan: TilePlan,
    store: TileStore | None = None,
    check: InputCheck | None = None,
) -> Instances:
    """The objects of an image, found tile by tile; best first, in pixels of the image.

    What belongs to the image is found first and is the same for all tiles: the range of intensities, and the statistics
    of norms.  A tile with as many objects as a model may find is divided into four, so an image may have any number.
    Objects that are cut by an edge of each tile that sees them are looked for again, in a tile around them.  What is
    found in a tile goes to ``store``, and is taken from there where it is known.  ``check`` looks at the image and at what
    is found.

    The ``masks`` of the result are empty ``(n, 0, 0)``: the run lengths are kept alone, compressed.
    """
    name = image.path or "the image"
    if check is not None and predictor.options.intensity == "model":
        check.add_overview(image, name)
    merged = find_in_tiles(TileFinder(predictor, image, plan, store), plan, predictor.threshold)
    warn_of_cut(merged.cut, plan)
    found = joined(predictor.classes, merged.parts, plan.size)
    if check is not None:
        check.add_boxes(found.above(predictor.threshold).boxes, found.size, name)
    return found


class MergedTiles(NamedTuple):
    """The objects of an image as far as they are known.

    ``parts`` are the objects, by the tile in which each was found; ``cut`` of them are cut by an edge of each tile that
    sees them, and ``again`` are the tiles around these, in which they may be seen whole.
    """

    parts: list[TileObjects]
    cut: int
    again: list[Box]


def find_in_tiles(finder: TileFinder, plan: TilePlan, threshold: float) -> MergedTiles:
    """Find the objects of all tiles and merge them, with those that are looked for again."""
    found = [part for tile in track(plan.tiles(), "tiles") for part in finder.tile(tile)]
    merged = _merge_tiles(plan, found, threshold)
    for _ in range(_ROUNDS):  # each sees more of an object than the one before
        if not merged.again:
            break
        found += [part for tile in merged.again for part in finder.tile(tile)]
        merged = _merge_tiles(plan, found, threshold)
    return merged


def _merge_tiles(plan: TilePlan, found: Sequence[TileObjects], threshold: float) -> MergedTiles:
    kept, cut = merge(found, plan.size, threshold)
    seen = {part.tile for part in found}
    again = [tile for tile in _tiles_around(plan, found, cut, threshold) if tile not in seen]
    count = sum(int((part.scores[rows] >= threshold).sum()) for part, rows in zip(found, cut, strict=True))
    rows = [np.concatenate(pair) for pair in zip(kept, cut, strict=True)]
    return MergedTiles([part.rows(some) for part, some in zip(found, rows, strict=True)], count, again)


def warn_of_cut(count: int, plan: TilePlan, name: str = "") -> None:
    """Log that objects are larger than a tile, if there are any; ``name`` is the image's, where others are predicted too."""
    if count:
        _log.warning(
            "%s%s larger than a tile of %d pixels and cut at its edges: predict the image at a lower resolution.",
            f"{name}: " if name else "",
            "1 object is" if count == 1 else f"{count} objects are",
            plan.side,
        )


class TileFinder:
    """Finds the objects of the tiles of one image.

    ``store`` keeps what is found; ``facts`` are those of `image_facts`, which are found where they are not given.
    """

    def __init__(
        self,
        predictor: ObjectFinder,
        image: ImageReader,
        plan: TilePlan,
        store: TileStore | KnownTiles | None = None,
        facts: ImageFacts | None = None,
    ) -> None:
        self._predictor, self._image, self._plan, self._store = predictor, image, plan, store
        self._facts = facts
        self._on_tiles: tuple[ObjectFinder, ImageIntensities] | None = None

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
            self._on_tiles = self._prepare()
        predictor, intensities = self._on_tiles
        release_freed()
        unsaid = InputCheck(predictor.config.image)  # a tile of empty ground is no dim image
        instances = predictor.predict(intensities.read(tile), check=unsaid)
        full = int((instances.scores >= predictor.threshold).sum()) >= predictor.max_detections
        if full and (parts := self._plan.divided(tile)):
            return [found for part in parts for found in self._find(part)]
        boxes = instances.boxes + np.array([*tile[:2], *tile[:2]], np.float32)
        masks = encode_masks(instances.masks, boxes, self._plan.size)
        bounds = bounds_of(masks, self._plan.size)
        found = TileObjects(tile, boxes, instances.scores, instances.labels, bounds, PackedRLEs.of(masks))
        return [found.rows(np.flatnonzero(bounds[:, 2] > bounds[:, 0]))]

    def _prepare(self) -> tuple[ObjectFinder, ImageIntensities]:
        facts = self._facts
        if facts is None:
            intensities = ImageIntensities(self._image, self._predictor.image_config)
        else:
            intensities = ImageIntensities.known(self._image, facts.rule, facts.intensities)
        statistics = None if facts is None else facts.statistics
        return tile_predictor(self._predictor, self._plan, intensities, statistics), intensities


def tile_predictor(
    predictor: ObjectFinder, plan: TilePlan, intensities: ImageIntensities, statistics: Any = None
) -> ObjectFinder:
    """A predictor for tiles whose intensities are rescaled already, with the image's own statistics of norms."""
    own = _tile_config(predictor, plan, intensities)
    if statistics is None:
        statistics = _statistics(predictor, plan, intensities, own)
    config = predictor.config.model_copy(update={"image": own})
    options = replace(predictor.options, intensity="model", score_threshold=predictor.threshold)
    return predictor.on_tiles(config, options, statistics)


def _tile_config(predictor: ObjectFinder, plan: TilePlan, intensities: ImageIntensities) -> ImageConfig:
    """How tiles become the network's input."""
    some = intensities.read((0, 0, 1, 1))
    fixed: dict[str, Any] = {
        "scale": plan.scale,
        "percentiles": None,
        "value_range": _FULL if some.dtype.kind == "f" else None,
    }
    return predictor.config.image.model_copy(update=fixed)


def _statistics(predictor: ObjectFinder, plan: TilePlan, intensities: ImageIntensities, config: ImageConfig) -> Any:
    """The statistics of norms over parts of an image, spread evenly over it; none where no norm has any."""
    if not predictor.has_norms:
        return {}
    side = min(int(_SAMPLE / plan.scale), *plan.size)
    some = sample_boxes(plan.size, side, _SAMPLES)
    return predictor.measure_norms([intensities.read(box) for box in some], config)


def _tiles_around(plan: TilePlan, found: Sequence[TileObjects], cut: Sequence[Integers], threshold: float) -> list[Box]:
    """Tiles around the cut objects of a score of at least ``threshold``, one for neighbours together."""
    bounds = np.concatenate(
        [part.bounds[rows[part.scores[rows] >= threshold]] for part, rows in zip(found, cut, strict=True)]
    )
    tiles: list[Box] = []
    index, served = BoxIndex(bounds), np.zeros(len(bounds), bool)
    for row, (x1, y1, x2, y2) in enumerate(bounds.tolist()):
        if served[row]:
            continue
        tile = plan.around((x1, y1, x2, y2))
        tiles.append(tile)
        quarter = plan.side // 4
        inner = np.array(tile) + np.array([quarter, quarter, -quarter, -quarter])
        for part in index.pairs(inner):
            near = bounds[part.others]
            inside = (near[:, :2] >= inner[:2]).all(axis=1) & (near[:, 2:] <= inner[2:]).all(axis=1)
            served[part.others[inside]] = True
    return tiles


def joined(classes: ClassTable, parts: Sequence[TileObjects], size: Size) -> Instances:
    """The objects of all tiles as those of the image, best first."""
    scores = np.concatenate([part.scores for part in parts])
    order = np.argsort(-scores, kind="stable")
    return Instances(
        size=size,
        boxes=np.concatenate([part.boxes for part in parts])[order],
        scores=scores[order],
        labels=np.concatenate([part.labels for part in parts])[order],
        masks=np.zeros((len(order), 0, 0), np.float32),
        class_names=classes.names,
        category_ids=classes.ids,
        _rle=PackedRLEs.joined(part.masks for part in parts).take(order.tolist()),
    )
