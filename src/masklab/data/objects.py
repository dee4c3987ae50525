"""The annotated objects of one picture, and the training targets made from them.

Masks stay run lengths: a target is sampled from the few pixels around its object, never from a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from masklab.data.transforms import Geometry
from masklab.ops import rle
from masklab.structures import Targets

Size = tuple[int, int]
Floats = NDArray[np.float64]

SMALLEST_AREA = 1.0  # pixels of the network's input
SMALLEST_SIDE = 2.0


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one picture, in its own pixels.

    ==============  ===========  =======  ======================================================
    name            shape        dtype    meaning
    ==============  ===========  =======  ======================================================
    ``boxes``       ``(G, 4)``   float32  ``xyxy``, tight around each mask
    ``labels``      ``(G,)``     int64    ``0..K-1``
    ``areas``       ``(G,)``     int64    pixels of each mask
    ``run_ends``    ``(G,)``     int64    where each mask's run lengths end in ``flat_runs``
    ``flat_runs``   ``(sum,)``   int32    the run lengths of all masks, one after the other
    ``ignored``     ``(I, 4)``   float32  crowd regions
    ==============  ===========  =======  ======================================================

    ``size`` is the picture's ``(height, width)``; ``crowds`` has the run lengths of each crowd region's mask, or
    None where only its box is known.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    areas: NDArray[np.int64]
    run_ends: NDArray[np.int64]
    flat_runs: NDArray[Any]
    ignored: NDArray[np.float32]
    crowds: tuple[NDArray[np.int64] | None, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def runs(self, row: int) -> NDArray[np.int64]:
        """Run lengths of one object's mask, int64."""
        start = self.run_ends[row - 1] if row else 0
        return self.flat_runs[start : self.run_ends[row]].astype(np.int64)

    @classmethod
    def build(
        cls,
        size: tuple[int, int],
        masks: list[NDArray[np.int64]],
        labels: list[int],
        ignored: list[tuple[float, ...]] | None = None,
        crowds: list[NDArray[np.int64] | None] | None = None,
    ) -> Objects:
        """From run lengths, none of them empty, and labels; ``crowds`` are the masks of ``ignored``, where known."""
        boxes = [rle.bounds(runs, size) for runs in masks]
        flat = np.concatenate(masks) if masks else np.zeros(0, np.int64)
        return cls(
            size=size,
            boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
            labels=np.asarray(labels, np.int64),
            areas=np.asarray([rle.area(runs) for runs in masks], np.int64),
            run_ends=np.cumsum([len(runs) for runs in masks], dtype=np.int64),
            flat_runs=flat.astype(np.int32 if size[0] * size[1] < 2**31 else np.int64),
            ignored=np.asarray(ignored or [], np.float32).reshape(-1, 4),
            crowds=tuple(crowds or [None] * len(ignored or [])),
        )


def make_targets(
    objects: Objects,
    geometry: Geometry,
    crop: int,
    max_masks: int,
    rng: np.random.Generator,
    coord_mode: Literal["exact", "tf"] = "exact",
    input_size: Size | None = None,
    box_jitter: float = 0.0,
) -> Targets:
    """The training targets of one picture after its transforms (paper, sections 4.1 and 4.2, "Mask crop size").

    ``geometry`` says where the picture went.  An object is what is left of its mask inside the picture;
    it is dropped when that is under 1 pixel or its tight box has a side under 2.  ``max_masks`` objects,
    drawn by ``rng``, carry a ``crop x crop`` soft mask: the mask sampled bilinearly at the box's grid of
    places, first and last on its edges, each held inside the picture.  With y from 0 to H over the
    network's input, ``coord_mode`` "exact" samples at index ``y - 0.5``, "tf" at ``y / H * (H - 1)`` where
    ``H`` is that of ``input_size``, the ``(height, width)`` after padding (by default the picture's).
    ``box_jitter`` moves the four sides of a mask's box, each by up to this share of its width or height.

    Masks come in random order, so that any first few of them are a fair draw.
    """
    boxes, kept = visible_boxes(objects, geometry)
    chosen = rng.permutation(len(kept))[:max_masks]
    mask_boxes = boxes[chosen] if box_jitter == 0 else _jitter(boxes[chosen], geometry.canvas_size, box_jitter, rng)
    places = _sample_indices(mask_boxes, geometry.canvas_size, crop, coord_mode, input_size)
    masks = _sample_masks(objects, kept[chosen], geometry, places, crop)
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
    """Boxes (M, 4) with each side moved by up to ``share`` of the box, inside a picture of ``size``."""
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
    big = (mapped[:, 2:] - mapped[:, :2] >= SMALLEST_SIDE).all(axis=1)
    big &= areas * geometry.magnification() >= SMALLEST_AREA
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


def _sample_indices(boxes: Floats, size: Size, crop: int, coord_mode: str, input_size: Size | None) -> Floats:
    """Pixel indices, x then y, at which each box is sampled: ``(2, M, crop)``."""
    steps = np.linspace(0, 1, crop)
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
    objects: Objects, rows: NDArray[np.int64], geometry: Geometry, indices: Floats, crop: int
) -> NDArray[np.float32]:
    """Sample each mask on its grid of output pixel indices: ``(M, crop, crop)``."""
    masks = np.zeros((len(rows), crop, crop), np.float32)
    across, down, turned = geometry.axes_to_source(indices[0] + 0.5, indices[1] + 0.5)
    height, width = objects.size
    across, down = np.clip(across - 0.5, 0, width - 1), np.clip(down - 0.5, 0, height - 1)
    for k, row in enumerate(rows.tolist()):
        sampled = _bilinear(objects.runs(row), objects.size, across[k], down[k])
        masks[k] = sampled.T if turned else sampled
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
