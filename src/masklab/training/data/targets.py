"""Training targets of one image: boxes and masks of its objects after augmentation.

Masks are kept as run lengths: a target is sampled from the pixels around its object, never from a full image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from masklab.datasets.objects import MIN_AREA, MIN_SIDE, Objects
from masklab.masks import rle
from masklab.ops.coordinates import pixel_indices, pixel_positions, sample_positions
from masklab.structures import Targets
from masklab.training.data.transforms import Geometry
from masklab.utils.types import Doubles, Size


def make_targets(
    objects: Objects,
    geometry: Geometry,
    mask_size: int,
    max_masks: int,
    rng: np.random.Generator,
    box_jitter: float = 0.0,
) -> Targets:
    """The training targets of one image after its transforms (paper, sections 4.1 and 4.2, "Mask crop size").

    ``geometry`` maps the transformed image to its source.  An object is the part of its mask inside the image;
    it is dropped when that part is under 1 pixel or its tight box has a side under 2.  ``max_masks`` objects, sampled
    with ``rng``, get a ``mask_size x mask_size`` soft mask: the mask sampled bilinearly on a grid over the box, the
    first and last samples on the box's edges, each clipped to the image's outermost pixel centres
    (`masklab.ops.coordinates`).  ``box_jitter`` moves the four sides of a mask's box, each by up to this share of its
    width or height.

    Masks are in random order, so that the first few of them are a random sample.
    """
    boxes, kept = visible_boxes(objects, geometry)
    chosen = rng.permutation(len(kept))[:max_masks]
    mask_boxes = boxes[chosen] if box_jitter == 0 else _jitter(boxes[chosen], geometry.canvas_size, box_jitter, rng)
    places = _sample_places(mask_boxes, geometry.canvas_size, mask_size)
    masks = _sample_masks(objects, kept[chosen], geometry, places, mask_size)
    ignored = geometry.boxes_to_output(objects.ignored)
    ignored = ignored[(ignored[:, 2:] > ignored[:, :2]).all(axis=1)]
    return Targets(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.from_numpy(objects.labels[kept]),
        masks=torch.from_numpy(masks),
        mask_boxes=torch.from_numpy(mask_boxes.astype(np.float32)),
        mask_rows=torch.from_numpy(chosen.astype(np.int64)),
        ignored=torch.from_numpy(ignored.astype(np.float32)),
    )


def _jitter(boxes: Doubles, size: Size, share: float, rng: np.random.Generator) -> Doubles:
    """Boxes (M, 4) with each side moved at random by up to ``share`` of the box, clipped to an image of ``size``."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    height, width = size
    return (boxes + sides * rng.uniform(-share, share, boxes.shape)).clip(0, (width, height, width, height))


def visible_boxes(objects: Objects, geometry: Geometry) -> tuple[Doubles, NDArray[np.int64]]:
    """Tight boxes in output pixels of the objects that remain, ``(G', 4)``, and their rows ``(G',)``."""
    view = geometry.view()
    boxes = objects.boxes.astype(np.float64)
    areas = objects.areas.astype(np.float64)
    clipped = _intersect(boxes, view)
    for row in np.flatnonzero((clipped != boxes).any(axis=1)):
        clipped[row], areas[row] = _cut(objects, int(row), clipped[row], view)
    mapped = geometry.boxes_to_output(clipped)
    big = (mapped[:, 2:] - mapped[:, :2] >= MIN_SIDE).all(axis=1)
    big &= areas * geometry.magnification() >= MIN_AREA
    return mapped[big], np.flatnonzero(big)


def _cut(objects: Objects, row: int, box: Doubles, view: Doubles) -> tuple[Doubles, float]:
    """Tight box and area of the part of a mask inside ``view``; ``box`` contains that part."""
    if (box[2:] <= box[:2]).any():
        return np.zeros(4), 0.0
    left, top = np.floor(box[:2]).astype(int).tolist()
    right, bottom = np.ceil(box[2:]).astype(int).tolist()
    bits = rle.window(objects.rle(row), objects.size, (left, top, right, bottom))
    xs, ys = np.flatnonzero(bits.any(axis=0)), np.flatnonzero(bits.any(axis=1))
    if len(xs) == 0:
        return np.zeros(4), 0.0
    tight = np.array([left + xs[0], top + ys[0], left + xs[-1] + 1, top + ys[-1] + 1], np.float64)
    return _intersect(tight, view), float(bits.sum())


def _intersect(boxes: Doubles, view: Doubles) -> Doubles:
    return np.concatenate((np.maximum(boxes[..., :2], view[:2]), np.minimum(boxes[..., 2:], view[2:])), axis=-1)


def _sample_places(boxes: Doubles, size: Size, mask_size: int) -> Doubles:
    """Positions, x then y, at which each box is sampled, clipped to pixel centres: ``(2, M, mask_size)``."""
    x1, y1, x2, y2 = torch.from_numpy(boxes).unbind(dim=1)
    x, y = sample_positions(x1, x2, mask_size).numpy(), sample_positions(y1, y2, mask_size).numpy()
    return np.stack([_clip_to_centres(x, size[1]), _clip_to_centres(y, size[0])])


def _clip_to_centres(positions: Doubles, side: int) -> Doubles:
    return pixel_positions(np.clip(pixel_indices(positions), 0, side - 1))


def _sample_masks(
    objects: Objects, rows: NDArray[np.int64], geometry: Geometry, places: Doubles, mask_size: int
) -> NDArray[np.float32]:
    """Sample each mask on its grid of positions (2, M, mask_size) in the output: ``(M, mask_size, mask_size)``."""
    masks = np.zeros((len(rows), mask_size, mask_size), np.float32)
    across, down, transposed = geometry.axes_to_source(places[0], places[1])
    height, width = objects.size
    across, down = pixel_indices(across).clip(0, width - 1), pixel_indices(down).clip(0, height - 1)
    for k, row in enumerate(rows.tolist()):
        sampled = _bilinear(objects.rle(row), objects.size, across[k], down[k])
        masks[k] = sampled.T if transposed else sampled
    return masks


def _bilinear(runs: NDArray[np.int64], size: Size, xs: Doubles, ys: Doubles) -> NDArray[np.float32]:
    """Bilinear samples of a mask at source pixel indices ``ys`` x ``xs``; only the pixels around them are decoded."""
    columns, rows = np.floor(xs).astype(np.int64), np.floor(ys).astype(np.int64)
    left, top = int(columns.min()), int(rows.min())
    bits = rle.window(runs, size, (left, top, int(columns.max()) + 2, int(rows.max()) + 2)).astype(np.float32)
    fx, fy = (xs - columns).astype(np.float32), (ys - rows).astype(np.float32)[:, None]
    columns, rows = columns - left, rows - top
    lines = bits.take(rows, axis=0)
    lines += (bits.take(rows + 1, axis=0) - lines) * fy
    sampled = lines.take(columns, axis=1)
    return np.asarray(sampled + (lines.take(columns + 1, axis=1) - sampled) * fx, np.float32)
