"""Regions of ImageJ and Fiji: a zip file for the ROI manager, one region for each object.

An object in one piece without holes is a traced outline, as ImageJ's wand makes it; others, and objects farther than
16 bits reach, are composite regions, whose outlines ImageJ fills by the even-odd rule.  A region is called by the object's
number in the label image, its class and its score; its group is its class.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import roifile
from numpy.typing import NDArray

from masklab.masks.label_map import ranks
from masklab.masks.polygons import Polygon, rle_to_polygons
from masklab.results.formats.base import Format, Result

if TYPE_CHECKING:
    from masklab.results.instances import Instances

_FARTHEST = 2**15 - 1  # pixels, of 16 bits with a sign
_MOST_CORNERS = 2**16 - 1  # of an outline with corners of 16 bits
_MOST_GROUPS = 255
_MOVE, _LINE, _CLOSE = 0, 1, 4  # ImageJ's words for a path
_NAME_LETTERS = 60


def _write(path: Path, result: Result) -> None:
    """Objects without a pixel are left out.  The same objects give the same bytes, so members have no time of their own."""
    with zipfile.ZipFile(path, "w") as archive:
        for region in _regions(result.instances):
            member = zipfile.ZipInfo(f"{region.name}.roi")
            archive.writestr(member, region.tobytes(), zipfile.ZIP_DEFLATED)


def _regions(found: Instances) -> Iterator[roifile.ImagejRoi]:
    numbers = ranks(found.scores).tolist()
    digits = max(4, len(str(len(found))))
    rows = zip(found.rle, numbers, found.scores.tolist(), found.labels.tolist(), strict=True)
    for mask, number, score, label in rows:
        parts = rle_to_polygons(mask, found.size)
        if parts:
            region = _outline(parts) if _is_simple(parts) else _composite(parts)
            region.name = f"{number:0{digits}d} {_printable(found.class_names[label])} {score:.3f}"
            region.group = label + 1 if label < _MOST_GROUPS else 0
            yield region


def _is_simple(parts: list[Polygon]) -> bool:
    ring = parts[0][0]
    return len(parts) == len(parts[0]) == 1 and ring.max() <= _FARTHEST and len(ring) <= _MOST_CORNERS


def _edges(corners: NDArray[np.int64]) -> dict[str, Any]:
    """The rectangle around corners ``(m, 2)``, as a region names its edges."""
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return {"left": left, "top": top, "right": right, "bottom": bottom}


def _outline(parts: list[Polygon]) -> roifile.ImagejRoi:
    corners = parts[0][0]
    return roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.TRACED,
        **_edges(corners),
        n_coordinates=len(corners),
        integer_coordinates=(corners - corners.min(axis=0)).astype(np.int32),
    )


def _composite(parts: list[Polygon]) -> roifile.ImagejRoi:
    path = np.concatenate([_path(ring) for polygon in parts for ring in polygon])
    corners = np.concatenate([polygon[0] for polygon in parts]).clip(max=_FARTHEST)
    return roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT,
        **_edges(corners),
        shape_roi_size=len(path),
        multi_coordinates=path,
    )


def _path(ring: NDArray[np.int64]) -> NDArray[np.float32]:
    """Move to the first corner, lines to the others, close."""
    words = np.full((len(ring), 3), _LINE, np.float32)
    words[0, 0] = _MOVE
    words[:, 1:] = ring
    return np.append(words.ravel(), np.float32(_CLOSE))


def _printable(name: str) -> str:
    """A class name that can be part of a file's name inside an archive, on any system, in letters of 16 bits."""
    return "".join(c if c.isprintable() and c <= "\uffff" and c not in '/\\:*?"<>|' else "_" for c in name)[
        :_NAME_LETTERS
    ]


ROIS = Format(
    "rois",
    ".zip",
    "NAME.zip: regions for the ROI manager of ImageJ and Fiji",
    _write,
    (".zip",),
    media_type="application/zip",
)
