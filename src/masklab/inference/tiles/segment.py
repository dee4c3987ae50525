"""Masks of given boxes in an image of any size."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, cast

import numpy as np

from masklab.images.reader import ImageReader
from masklab.images.rescaled import ImageIntensities
from masklab.inference.tiles.merge import depth_in
from masklab.inference.tiles.plan import TilePlan
from masklab.inference.tiles.predict import tile_predictor
from masklab.masks.packed import PackedRLEs
from masklab.masks.threshold import encode_masks
from masklab.ops.box_index import BoxIndex
from masklab.results.instances import Instances
from masklab.utils.memory import release_freed
from masklab.utils.progress import track
from masklab.utils.types import Box, Floats, Integers

if TYPE_CHECKING:
    from masklab.inference.predictor import Predictor

_AROUND = 1.25  # side of a tile for a box that no tile holds, over that of the box


def segment_tiles(
    predictor: Predictor, image: ImageReader, plan: TilePlan, boxes: Floats, labels: Integers, scores: Floats
) -> Instances:
    """Masks of boxes ``(n, 4)``, each in the tile in which it lies deepest; run lengths alone are kept, in their order.

    A box that no tile holds gets a tile of its own, around it.
    """
    intensities = ImageIntensities(image, predictor.image_config)
    on_tiles = cast("Predictor", tile_predictor(predictor, plan, intensities))
    masks = [b""] * len(boxes)
    for tile, rows in track(_assigned(plan, boxes).items(), "tiles"):
        release_freed()
        offset = np.array([*tile[:2], *tile[:2]], np.float32)
        found = on_tiles.segment(intensities.read(tile), boxes[rows] - offset, labels[rows], scores[rows])
        packed = PackedRLEs.of(encode_masks(found.masks, found.boxes + offset, plan.size))
        for row, text in zip(rows.tolist(), packed.strings, strict=True):
            masks[row] = text
    return Instances(
        size=plan.size,
        boxes=boxes,
        scores=scores,
        labels=labels,
        masks=np.zeros((len(boxes), 0, 0), np.float32),
        class_names=predictor.classes.names,
        category_ids=predictor.classes.ids,
        _rle=PackedRLEs(masks),
    )


def _assigned(plan: TilePlan, boxes: Floats) -> dict[Box, Integers]:
    """The rows of the boxes that each tile is to be asked for, tiles without boxes left out."""
    tiles = plan.tiles()
    places = np.array(tiles, np.int64)
    whole = np.concatenate((np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])), axis=1).astype(np.int64)
    best, depth = np.zeros(len(boxes), np.int64), np.full(len(boxes), -1)
    for part in BoxIndex(places).pairs(whole):
        depths = depth_in(places[part.others], whole[part.rows], plan.size)
        order = np.lexsort((part.others, -depths, part.rows))
        rows, first = np.unique(part.rows[order], return_index=True)
        best[rows], depth[rows] = part.others[order[first]], depths[order[first]]
    held = np.flatnonzero(depth >= 0)
    found: defaultdict[Box, list[int]] = defaultdict(list)
    for row in held[np.argsort(best[held], kind="stable")].tolist():
        found[tiles[best[row]]].append(row)
    for row in np.flatnonzero(depth < 0).tolist():
        x1, y1, x2, y2 = whole[row].tolist()
        found[plan.around((x1, y1, x2, y2), int(_AROUND * max(x2 - x1, y2 - y1)))].append(row)
    return {tile: np.array(rows, np.int64) for tile, rows in found.items()}
