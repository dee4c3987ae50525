"""Detected objects of one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks import label_map, polygons, rle, threshold
from masklab.masks.packed import PackedRLEs
from masklab.masks.rle import RLE
from masklab.results.pixels import ImageReader, PixelSize
from masklab.utils.words import counted

ImageSource = str | Path | NDArray[Any] | ImageReader | None
"""The image that objects were found in: a file, values ``(C, H, W)`` or ``(H, W)``, or a reader of windows."""


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The objects found in one image, best first.

    | name             | shape         | dtype   | meaning                                        |
    |------------------|---------------|---------|------------------------------------------------|
    | ``size``         | ``(2,)``      | int     | the original image's ``(height, width)``       |
    | ``boxes``        | ``(n, 4)``    | float32 | ``xyxy`` in pixels of the original image       |
    | ``scores``       | ``(n,)``      | float32 | class probability                              |
    | ``labels``       | ``(n,)``      | int64   | ``0..K-1``, an index into the two tables below |
    | ``masks``        | ``(n, P, P)`` | float32 | probability of foreground over the box         |
    | ``class_names``  | ``(K,)``      | str     | name of each class                             |
    | ``category_ids`` | ``(K,)``      | int     | the data set's own id of each class            |

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
        return self.take(np.flatnonzero(wanted))

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> Instances:
        """The objects of some rows, in the order that they are given in."""
        kept = np.asarray(rows, np.int64)
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

    def save(
        self,
        path: str | Path,
        format: str | None = None,
        image: ImageSource = None,
        pixel_size: PixelSize | None = None,
    ) -> Path:
        """Write all objects into a file; returns its path.

        The format is that of the suffix: ``.json`` COCO results, ``.tif`` label image, ``.geojson`` QuPath, ``.zip``
        ImageJ's ROI manager, ``.csv`` measurements, ``.txt`` YOLO, ``.png`` overlay, ``.parquet`` table of masks; or ``format``
        names it.  An overlay needs the ``image``, and the table of measurements has intensities only with it: a file,
        values ``(C, H, W)``, or an object with ``size`` and ``read(box)`` (see `masklab.results.pixels`).  ``pixel_size`` is
        in micrometres, one number or (height, width); it is read from a file that says it.

        Raises `InputError` for an unknown format, an image of another size and a package that is not installed.
        """
        from masklab.results.save import save

        return save(self, path, format, image, pixel_size)

    def measurements(self, image: ImageSource = None, pixel_size: PixelSize | None = None) -> dict[str, NDArray[Any]]:
        """Shape, place and intensities of the objects as columns ``(n,)`` by name (see `masklab.results.measurements`).

        ``image`` and ``pixel_size`` are those of `save`.  ``pandas.DataFrame(...)`` makes a table of it.  Raises
        `InputError` where scikit-image is not installed (``pip install "masklab[results]"``).
        """
        from masklab.results.measurements import measure
        from masklab.results.pixels import as_pixel_size
        from masklab.results.save import opened_image

        with opened_image(image, self.size) as (reader, known_size):
            return measure(self, reader, as_pixel_size(pixel_size) or known_size)

    def to_supervision(self) -> Any:
        """A ``supervision.Detections``, whose masks are a ``CompactMask``: run lengths, not images of full size.

        Raises `InputError` where supervision 0.28 or later is not installed.
        """
        from masklab.results.other_tools import to_supervision

        return to_supervision(self)

    def to_napari(self, pixel_size: PixelSize | None = None, boxes: bool = False) -> list[tuple[Any, Any, str]]:
        """Layers for napari, each as (data, options, type): the label map, with class and score of each label.

        ``boxes`` adds a layer of rectangles; ``pixel_size`` in micrometres is the layers' scale.  napari need not be
        installed; ``viewer.add_layer(napari.layers.Layer.create(*layer))`` adds one.
        """
        from masklab.results.other_tools import to_napari
        from masklab.results.pixels import as_pixel_size

        return to_napari(self, as_pixel_size(pixel_size), boxes)

    def to_fiftyone(self) -> Any:
        """A ``fiftyone.Detections`` with a mask over each object's tight box; objects without pixels are left out.

        Raises `InputError` where fiftyone is not installed.
        """
        from masklab.results.other_tools import to_fiftyone

        return to_fiftyone(self)


def _some(masks: Sequence[RLE] | None, rows: list[int]) -> Sequence[RLE] | None:
    if masks is None:
        return None
    return masks.take(rows) if isinstance(masks, PackedRLEs) else [masks[row] for row in rows]
