"""YOLO segmentation as Ultralytics saves predictions with confidence: ``class x1 y1 x2 y2 ... confidence``, x and y from 0 to 1.

Parts and holes of an object are joined into one outline by lines without width, as in a data set that masklab converts to
YOLO.  Training wants lines without the last number, the confidence.
"""

from __future__ import annotations

from pathlib import Path

from masklab.masks.polygons import rle_to_polygons
from masklab.masks.yolo_line import yolo_line
from masklab.results.formats.base import Format, Result


def _write(path: Path, result: Result) -> None:
    """Objects without a pixel are left out."""
    found = result.instances
    with open(path, "w", encoding="ascii") as file:
        for mask, score, label in zip(found.rle, found.scores.tolist(), found.labels.tolist(), strict=True):
            parts = rle_to_polygons(mask, found.size)
            if parts:
                file.write(f"{yolo_line(label, parts, found.size)} {score:.6g}\n")


YOLO = Format(
    "yolo",
    ".txt",
    "NAME.txt: class number, outline and score in YOLO's format",
    _write,
    (".txt",),
    media_type="text/plain",
)
