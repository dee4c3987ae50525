"""Training targets of one image: boxes and masks of its objects after augmentation.

Masks stay run lengths: a target is sampled from the few pixels around its object, never from an image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from masklab.datasets.objects import MIN_AREA, MIN_SIDE, Objects
from masklab.masks import rle
from masklab.structures import Targets
from masklab.training.data.transforms import Geometry
from masklab.utils.types import Size

Floats = NDArray[np.float64]


def make_targets(
    objects: Objects,
    geometry: Geometry,
    mask_size: int,
    max_masks: int,
    rng: np.random.Generator,
    coord_mode: Literal["exact", "tf"] = "exact",
    input_size: Size | None = None,
    box_jitter: float = 0.0,
) -> Targets:
    """The training targets of one image after its transforms (paper, sections 4.1 and 4.2, "Mask crop size").

    ``geometry`` says where the image went.  An object is what is left of its mask inside the image;
    it is dropped when that is under 1 pixel or its tight box has a side under 2.  ``max_masks`` objects,
    drawn by ``rng``, carry a ``mask_size x mask_size`` soft mask: the mask sampled bilinearly at the box's grid of
    places, first and last on its edges, each held inside the image.  With y from 0 to H over the
    network's input, ``coord_mode`` "exact" samples at index ``y - 0.5``, "tf" at ``y / H * (H - 1)`` where
    ``H`` is that of ``input_size``, the ``(height, width)`` after padding (by default the image's).
    ``box_jitter`` moves the four sides of a mask's box, each by up to this share of its width or height.

    Masks come in random order, so that any first few of them are a fair draw.
    """
    boxes, kept = visible_boxes(objects, geometry)
    chosen = rng.permutation(len(kept))[:max_masks]
    mask_boxes = boxes[chosen] if box_jitter == 0 else _jitter(boxes[chosen], geometry.canvas_size, box_jitter, rng)
    places = _sample_indices(mask_boxes, geometry.canvas_size, mask_size, coord_mode, input_size)
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


def _jitter(boxes: Floats, size: Size, share: float, rng: np.random.Generator) -> Floats:
    """Boxes (M, 4) with each side moved by up to ``share`` of the box, inside an image of ``size``."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    height, width = size
    return (boxes + sides * rng.uniform(-share, share, boxes.shape)).clip(0, (width, height, width, height))


def visible_boxes(objects: Objects, geometry: Geometry) -> tuple[Floats, NDArray[np.int64]]:
    """Tight boxes in output pixels of the objects that are left, ``(G', 4)``, and their rows ``(G',)``."""
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


def _cut(objects: Objects, row: int, box: Floats, view: Floats) -> tuple[Floats, float]:
    """Tight box and area of the part of a mask inside ``view``, of which ``box`` is a loose bound."""
    if (box[2:] <= box[:2]).any():
        return np.zeros(4), 0.0
    left, top = np.floor(box[:2]).astype(int).tolist()
    right, bottom = np.ceil(box[2:]).astype(int).tolist()
    bits = rle.window(objects.runs(row), objects.size, (left, top, right, bottom))
    xs, ys = np.flatnonzero(bits.any(axis=0)), np.flatnonzero(bits.any(axis=1))
    if len(xs) == 0:
        return np.zeros(4), 0.0
    tight = np.array([left + xs[0], top + ys[0], left + xs[-1] + 1, top + ys[-1] + 1], np.float64)
    return _intersect(tight, view), float(bits.sum())


def _intersect(boxes: Floats, view: Floats) -> Floats:
    return np.concatenate((np.maximum(boxes[..., :2], view[:2]), np.minimum(boxes[..., 2:], view[2:])), axis=-1)


def _sample_indices(boxes: Floats, size: Size, mask_size: int, coord_mode: str, input_size: Size | None) -> Floats:
    """Pixel indices, x then y, at which each box is sampled: ``(2, M, mask_size)``."""
    steps = np.linspace(0, 1, mask_size)
    extents = np.array(size[::-1], np.float64).reshape(2, 1, 1)
    corner, opposite = boxes[:, :2].T[:, :, None], boxes[:, 2:].T[:, :, None]
    edges = corner + (opposite - corner) * steps
    if coord_mode == "exact":
        indices = edges - 0.5
    else:
        whole = np.array((input_size or size)[::-1], np.float64).reshape(2, 1, 1)
        indices = edges / whole * (whole - 1)
    return np.clip(indices, 0, extents - 1)


def _sample_masks(
    objects: Objects, rows: NDArray[np.int64], geometry: Geometry, indices: Floats, mask_size: int
) -> NDArray[np.float32]:
    """Sample each mask on its grid of output pixel indices: ``(M, mask_size, mask_size)``."""
    masks = np.zeros((len(rows), mask_size, mask_size), np.float32)
    across, down, transposed = geometry.axes_to_source(indices[0] + 0.5, indices[1] + 0.5)
    height, width = objects.size
    across, down = np.clip(across - 0.5, 0, width - 1), np.clip(down - 0.5, 0, height - 1)
    for k, row in enumerate(rows.tolist()):
        sampled = _bilinear(objects.runs(row), objects.size, across[k], down[k])
        masks[k] = sampled.T if transposed else sampled
    return masks


def _bilinear(runs: NDArray[np.int64], size: Size, xs: Floats, ys: Floats) -> NDArray[np.float32]:
    """A mask at source pixel indices ``ys`` x ``xs``, decoding only the pixels between them."""
    columns, rows = np.floor(xs).astype(np.int64), np.floor(ys).astype(np.int64)
    left, top = int(columns.min()), int(rows.min())
    bits = rle.window(runs, size, (left, top, int(columns.max()) + 2, int(rows.max()) + 2)).astype(np.float32)
    fx, fy = (xs - columns).astype(np.float32), (ys - rows).astype(np.float32)[:, None]
    columns, rows = columns - left, rows - top
    lines = bits.take(rows, axis=0)
    lines += (bits.take(rows + 1, axis=0) - lines) * fy
    sampled = lines.take(columns, axis=1)
    return np.asarray(sampled + (lines.take(columns + 1, axis=1) - sampled) * fx, np.float32)
