"""Overlaps of those pairs of boxes that share an area, without the matrix of all pairs.

R and S boxes, P pairs.  The bits are those of `masklab.ops.boxes.box_iou`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklab.ops.box_index import BoxIndex
from masklab.utils.types import Integers

_Real = TypeVar("_Real", bound=np.floating[Any])


def best_overlaps(
    boxes: Tensor, labels: Tensor | None, others: Tensor, other_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The largest IoU of each of ``boxes`` (R, 4) with one of ``others`` (S, 4) of its label, and that one's row: (R,) each.

    Of equal IoUs it is the first.  0 and row 0 where there is none.  ``labels`` (R,) and ``other_labels`` (S,) are
    whole numbers; None means one for all.  Runs on the CPU.
    """
    columns, other_columns = columns_of(boxes), columns_of(others)
    own, other = (None if given is None else given.cpu().numpy() for given in (labels, other_labels))
    best, row = np.zeros(len(boxes), columns.dtype), np.zeros(len(boxes), np.int64)
    for part in BoxIndex(other_columns.T, other).pairs(columns.T, own):
        shares = iou_of_pairs(columns, part.rows, other_columns, part.others)
        order = np.lexsort((part.others, -shares, part.rows))
        rows, first = np.unique(part.rows[order], return_index=True)
        best[rows], row[rows] = shares[order[first]], part.others[order[first]]
    return torch.from_numpy(best).to(boxes.device), torch.from_numpy(row).to(boxes.device)


def columns_of(boxes: Tensor) -> NDArray[Any]:
    """The coordinates of boxes (R, 4) one after the other, (4, R), from which single boxes are read faster."""
    return np.ascontiguousarray(boxes.detach().cpu().numpy().T)


def iou_of_pairs(
    columns: NDArray[_Real], rows: Integers, others: NDArray[_Real], other_rows: Integers
) -> NDArray[_Real]:
    """Intersection over union (P,) of pairs that share an area, of boxes given as `columns_of` gives them."""
    left, top, right, bottom = (column.take(rows) for column in columns)
    other_left, other_top, other_right, other_bottom = (column.take(other_rows) for column in others)
    shared = np.minimum(right, other_right) - np.maximum(left, other_left)
    shared *= np.minimum(bottom, other_bottom) - np.maximum(top, other_top)
    areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    result: NDArray[_Real] = shared / (areas - shared)
    return result
