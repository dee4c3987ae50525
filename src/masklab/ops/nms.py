"""Non-maximum suppression (NMS) and Soft-NMS, of any number of boxes: no part holds or compares all pairs.

R boxes; the pairs that overlap are found by `masklab.ops.box_index`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklab.ops.box_index import BoxIndex
from masklab.ops.overlaps import columns_of, iou_of_pairs
from masklab.ops.suppression import nms
from masklab.utils.types import Integers

_BLOCK = {"cpu": 1024, "cuda": 16384}  # boxes that torchvision compares with each other
_STORED = 1 << 22  # pairs whose factors Soft-NMS holds, at least
_STORED_EACH = 64  # and for each box
_LEAST_ROWS = 16  # boxes whose pairs are found together
_GROUP = 256  # boxes of which the best is kept in mind


def nms_top_k(boxes: Tensor, scores: Tensor, iou: float, count: int) -> Tensor:
    """Rows of the first ``count`` boxes that remain of ``boxes`` (R, 4) after non-maximum suppression at ``iou``.

    ``scores`` (R,) must be in descending order; so is the result.  Only boxes of a higher score suppress a box, so
    rows are processed in blocks of ``2 * count`` until enough remain.
    """
    if 2 * count > _block(boxes):
        return _first(boxes, iou, count)
    kept, processed = torch.zeros(0, dtype=torch.long, device=boxes.device), 0
    while len(kept) < count and processed < len(boxes):
        block = torch.arange(processed, min(processed + 2 * count, len(boxes)), device=boxes.device)
        rows = torch.cat([kept, block])
        kept, processed = rows[nms(boxes[rows], scores[rows], iou)], processed + len(block)
    return kept[:count]


def nms_by_label(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Rows of ``boxes`` (R, 4) that remain after non-maximum suppression at ``iou`` within each of ``labels`` (R,).

    The rows are in descending order of ``scores`` (R,), of equal ones the earlier first.  Boxes are compared as they
    are, so that the result for a label does not depend on the others.
    """
    order = scores.argsort(descending=True, stable=True)
    counts = labels.unique(return_counts=True)[1].tolist()
    by_label = labels[order].argsort(stable=True)
    own = boxes
    if len(counts) > 1:  # many small pieces, for which calls on a GPU cost more than the way to the CPU
        order, by_label, own = order.cpu(), by_label.cpu(), boxes.cpu()
    kept = [some[_first(own[order[some]], iou)] for some in by_label.split(counts)]
    return order[torch.cat(kept).sort().values].to(boxes.device) if kept else order


def _block(boxes: Tensor) -> int:
    return _BLOCK.get(boxes.device.type, _BLOCK["cpu"])


def _first(boxes: Tensor, iou: float, count: int | None = None) -> Tensor:
    """Rows of the first ``count``, or all, of ``boxes`` (R, 4), the best first, that remain after suppression at ``iou``.

    In blocks: boxes of a block that remain suppress those of later blocks that overlap them.
    """
    block, most = _block(boxes), len(boxes) if count is None else count
    falling = torch.arange(block, 0, -1, dtype=boxes.dtype, device=boxes.device)
    if len(boxes) <= block:
        return nms(boxes, falling[: len(boxes)], iou)[:most]
    columns, gone = columns_of(boxes), np.zeros(len(boxes), bool)
    index = BoxIndex(columns.T)
    kept: list[Tensor] = []
    for begin in range(0, len(boxes), block):
        rows = torch.from_numpy(begin + np.flatnonzero(~gone[begin : begin + block])).to(boxes.device)
        kept.append(rows[nms(boxes[rows], falling[: len(rows)], iou)])
        if sum(map(len, kept)) >= most:
            break
        new = kept[-1].cpu().numpy()
        for part in index.pairs(columns.T[new]):
            later = (part.others >= begin + block) & ~gone[part.others]
            one, two = new[part.rows[later]], part.others[later]
            gone[two[iou_of_pairs(columns, one, columns, two) > np.float64(iou)]] = True
    return torch.cat(kept)[:most]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Scores (R,) after Soft-NMS (Bodla et al., ICCV 2017; not in the paper), in the order given.

    ``boxes`` (R, 4), ``scores`` (R,) and ``labels`` (R,) are in any order.  Boxes are taken from the best score down,
    of equal ones the earlier first; each multiplies the scores of the remaining boxes of its label by
    ``exp(-IoU^2 / sigma)``.  Only boxes that overlap are looked at.  Runs on the CPU; memory grows with R, and time with
    the number of pairs that overlap.
    """
    left = _Remaining(scores.detach().cpu().numpy())
    factors = _Factors(columns_of(boxes), labels.cpu().numpy(), sigma)
    result = np.empty_like(left.scores)
    for _ in range(len(result)):
        best = left.best()
        result[best] = left.scores[best]
        others, shares = factors.of(best, left.scores)
        left.scores[others] *= shares
        left.scores[best] = -np.inf
    return torch.from_numpy(result).to(scores.device)


class _Remaining:
    """Scores that only fall, of which the best is asked for; ``tops`` is not below the best score of each group."""

    def __init__(self, scores: NDArray[Any]) -> None:
        groups = -(-len(scores) // _GROUP)
        padded = np.full((groups, _GROUP), -np.inf, scores.dtype)
        self.scores = padded.ravel()[: len(scores)]
        self.scores[:] = scores
        self.tops = padded.max(axis=1)

    def best(self) -> int:
        """The row of the best score, of equal ones the first."""
        while True:
            group = int(self.tops.argmax())
            row = group * _GROUP + int(self.scores[group * _GROUP : (group + 1) * _GROUP].argmax())
            if self.scores[row] == self.tops[group]:
                return row
            self.tops[group] = self.scores[row]


class _Factors:
    """The factors of Soft-NMS for the boxes that overlap a box.

    They are found for many boxes at a time, the best first, as far as they fit into memory.  Where nearly all boxes
    overlap, fewer are found at a time, so that few are found in vain.
    """

    def __init__(self, columns: NDArray[Any], labels: Integers, sigma: float) -> None:
        self._columns, self._labels, self._sigma = columns, labels, sigma
        self._index = BoxIndex(columns.T, labels)
        self._known: dict[int, tuple[Integers, NDArray[Any]]] = {}
        self._stored, self._most = 0, max(_STORED, _STORED_EACH * len(labels))
        self._limit, self._taken = len(labels), 0

    def of(self, row: int, scores: NDArray[Any]) -> tuple[Integers, NDArray[Any]]:
        """The boxes that overlap box ``row``, itself among them, and their factors; ``scores`` say which are next."""
        if row not in self._known:
            self._find(scores)
            self._limit, self._taken = max(_LEAST_ROWS, 2 * self._taken), 0
        self._taken += 1
        return self._known.pop(row)

    def _find(self, scores: NDArray[Any]) -> None:
        if self._stored > self._most:
            self._known.clear()
            self._stored = 0
        rows = np.argsort(-scores, kind="stable")[: self._limit]
        rows = rows[[row not in self._known for row in rows.tolist()]]
        for first, end, places, others in self._index.pairs(self._columns.T[rows], self._labels[rows]):
            shares = torch.from_numpy(iou_of_pairs(self._columns, rows.take(places), self._columns, others))
            factors = (-shares.square() / self._sigma).exp().clamp(min=torch.finfo(shares.dtype).tiny).numpy()
            cuts = np.searchsorted(places, np.arange(first, end + 1)).tolist()
            for row, start, stop in zip(rows[first:end].tolist(), cuts[:-1], cuts[1:], strict=True):
                self._known[row] = others[start:stop], factors[start:stop]
            self._stored += len(others)
            if self._stored > self._most:
                break
