"""Results as the objects of other Python tools, which are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from masklab.masks import rle
from masklab.masks.label_map import ranks
from masklab.utils.errors import InputError

if TYPE_CHECKING:
    from masklab.results.instances import Instances

_NAPARI_EDGE = 0.5  # pixels: napari's first pixel has its centre at 0


def to_supervision(found: Instances) -> Any:
    """`Instances.to_supervision`."""
    supervision = _imported("supervision")
    compact = _imported("supervision.detection.compact_mask", "supervision>=0.28").CompactMask
    boxes = [rle.bounds(mask, found.size) or (0, 0, 0, 0) for mask in found.rle]
    inclusive = np.array(boxes, np.int64).reshape(-1, 4) - (0, 0, 1, 1)  # its last pixel; nothing for no pixels
    names = np.array(found.class_names, object)[found.labels].astype(str)
    return supervision.Detections(
        xyxy=found.boxes.copy(),
        mask=compact.from_coco_rle(found.rles(), inclusive, found.size),
        confidence=found.scores.copy(),
        class_id=found.labels.astype(int),
        data={"class_name": names},
    )


def to_napari(found: Instances, pixel_size: tuple[float, float] | None, boxes: bool) -> list[tuple[Any, Any, str]]:
    """`Instances.to_napari`."""
    order = np.argsort(ranks(found.scores))
    names = [found.class_names[label] for label in found.labels[order].tolist()]
    features = {
        "index": np.arange(len(found) + 1),
        "class": np.array(["background", *names], object),
        "score": np.concatenate(([np.nan], found.scores[order])),
    }
    scale = {} if pixel_size is None else {"scale": pixel_size}
    layers: list[tuple[Any, Any, str]] = [
        (found.label_map(), {"name": "objects", "features": features, **scale}, "labels")
    ]
    if boxes:
        x1, y1, x2, y2 = (found.boxes[order] - _NAPARI_EDGE).T
        corners = np.stack(((y1, x1), (y1, x2), (y2, x2), (y2, x1)), axis=0).transpose(2, 0, 1)
        rest = {name: values[1:] for name, values in features.items()}
        shapes = {"name": "boxes", "shape_type": "rectangle", "face_color": "transparent", "features": rest, **scale}
        layers.append((corners, shapes, "shapes"))
    return layers


def to_fiftyone(found: Instances) -> Any:
    """`Instances.to_fiftyone`."""
    fiftyone = _imported("fiftyone")
    height, width = found.size
    detections = []
    for mask, score, label in zip(found.rle, found.scores.tolist(), found.labels.tolist(), strict=True):
        box = rle.bounds(mask, found.size)
        if box is not None:
            x1, y1, x2, y2 = box
            detections.append(
                fiftyone.Detection(
                    label=found.class_names[label],
                    bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
                    mask=rle.window(mask, found.size, box).view(bool),
                    confidence=score,
                )
            )
    return fiftyone.Detections(detections=detections)


def _imported(module: str, package: str | None = None) -> Any:
    """A library that masklab does not need itself; `InputError` where it is missing or too old."""
    try:
        return import_module(module)
    except ImportError:
        wanted = package or module
        raise InputError(f'this needs {wanted}, which is not installed: pip install "{wanted}".') from None
