"""Detected objects of one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks import label_map, polygons, rle, threshold
from masklab.masks.packed import PackedRLEs
from masklab.masks.rle import RLE
from masklab.utils.words import counted


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The objects found in one image, best first.

    ================  ==============  =========  ==================================================
    name              shape           dtype      meaning
    ================  ==============  =========  ==================================================
    ``size``          ``(2,)``        int        the original image's ``(height, width)``
    ``boxes``         ``(n, 4)``      float32    ``xyxy`` in pixels of the original image
    ``scores``        ``(n,)``        float32    class probability
    ``labels``        ``(n,)``        int64      ``0..K-1``, an index into the two tables below
    ``masks``         ``(n, P, P)``   float32    probability of foreground over the box
    ``class_names``   ``(K,)``        str        name of each class
    ``category_ids``  ``(K,)``        int        the data set's own id of each class
    ================  ==============  =========  ==================================================

    The foreground of an object is where its mask, resized to the image's pixels, is above 0.5.  It is computed once,
    when it is first needed, and kept as run lengths.  Of an image that was predicted in tiles these are there from the
    start, and ``masks`` is empty, ``(n, 0, 0)``.  Raises `ValueError` when the arrays do not fit together.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.float32]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    _rle: Sequence[RLE] | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        shapes = (self.boxes.shape, self.scores.shape, self.labels.shape, self.masks.shape[:1])
        if shapes != ((n, 4), (n,), (n,), (n,)) or self.masks.ndim != 3:
            raise ValueError(
                f"boxes, scores, labels and masks have shapes {shapes}: give one row per object in each, and masks (n, P, P)."
            )
        if len(self.class_names) != len(self.category_ids):
            raise ValueError(f"{len(self.class_names)} class names but {len(self.category_ids)} category ids")
        if n and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(
                f"labels are from {self.labels.min()} to {self.labels.max()}: give 0 to {len(self.class_names) - 1}."
            )

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.size
        counts = Counter(self.class_names[label] for label in self.labels.tolist()).most_common()
        classes = ", ".join(f"{count} {name}" for name, count in counts[:4]) + (", ..." if len(counts) > 4 else "")
        scores = f", scores {self.scores.min():.2f}..{self.scores.max():.2f}" if len(self) else ""
        return f"Instances({counted(len(self), 'object')}{': ' if classes else ''}{classes}{scores}; image {height} x {width})"

    def above(self, score: float) -> Instances:
        """The objects whose score is at least ``score``."""
        return self._rows(self.scores >= score)

    def of_labels(self, labels: Iterable[int]) -> Instances:
        """The objects of some classes."""
        return self._rows(np.isin(self.labels, list(labels)))

    def _rows(self, wanted: NDArray[np.bool_]) -> Instances:
        kept = np.flatnonzero(wanted)
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            masks=self.masks[kept],
            _rle=_some(self._rle, kept.tolist()),
        )

    @property
    def rle(self) -> Sequence[RLE]:
        """Run lengths of every mask in the original image (see `masklab.masks.rle`)."""
        if self._rle is None:
            encoded = threshold.encode_masks(self.masks, self.boxes, self.size)
            object.__setattr__(self, "_rle", encoded)  # a cache, so the dataclass stays frozen to its users
            return encoded
        return self._rle

    def rles(self) -> list[dict[str, Any]]:
        """COCO's ``{"size": [height, width], "counts": str}``, one per object."""
        if isinstance(self.rle, PackedRLEs):  # the strings themselves
            return [{"size": [*self.size], "counts": counts.decode("ascii")} for counts in self.rle.strings]
        return rle.rle_to_coco(self.rle, self.size)

    def polygons(self) -> list[list[polygons.Polygon]]:
        """For each object its polygons: a list of rings, the outer one first, then its holes.

        A ring is an ``(m, 2)`` int64 array of corners ``(x, y)`` in pixels, along the pixels' edges.
        """
        return [polygons.rle_to_polygons(each, self.size) for each in self.rle]

    def label_map(self) -> NDArray[np.int32]:
        """``(H, W)`` int32: 0 is background, 1 the best-scored object, and so on; the better one on top."""
        return label_map.label_map(self.rle, self.scores, self.size)

    def mask(self, n: int) -> NDArray[np.bool_]:
        """Object ``n`` as a full ``(H, W)`` bool image."""
        height, width = self.size
        return rle.window(self.rle[n], self.size, (0, 0, width, height)).view(bool)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of a COCO results file: plain numbers and strings, ready for ``json.dumps``.

        ``category_id`` is the data set's own; ``bbox`` is ``[x, y, width, height]`` in pixels.
        """
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).tolist()
        rows = zip(self.labels.tolist(), boxes, self.scores.tolist(), self.rles(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": int(self.category_ids[label]),
                "bbox": box,
                "score": score,
                "segmentation": segmentation,
            }
            for label, box, score, segmentation in rows
        ]


def _some(masks: Sequence[RLE] | None, rows: list[int]) -> Sequence[RLE] | None:
    if masks is None:
        return None
    return masks.take(rows) if isinstance(masks, PackedRLEs) else [masks[row] for row in rows]
