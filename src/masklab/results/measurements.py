"""Measurements of objects by scikit-image, each on its own window of the image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from masklab.masks import rle
from masklab.masks.label_map import ranks
from masklab.results.pixels import ImageReader
from masklab.utils.errors import InputError
from masklab.utils.types import Box, Doubles, Integers

if TYPE_CHECKING:
    from masklab.results.instances import Instances

_CANVAS = 1 << 20  # pixels of objects that are measured at a time
_SHAPE = (
    "area",
    "perimeter",
    "axis_major_length",
    "axis_minor_length",
    "eccentricity",
    "solidity",
    "orientation",
)
_LENGTHS = ("perimeter", "axis_major_length", "axis_minor_length")
_VALUES = ("mean", "min", "max", "sum")


def measure(
    instances: Instances, image: ImageReader | None = None, pixel_size: tuple[float, float] | None = None
) -> dict[str, NDArray[Any]]:
    """A table of the objects as columns ``(n,)`` by name, in the order of the objects.

    =========================  ==================================================================================
    column                     meaning
    =========================  ==================================================================================
    ``label``                  number of the object in the label image of these objects, 1 for the best
    ``class``, ``score``       its class's name, and its score
    ``x1 y1 x2 y2``            its box in pixels, as the model gives it
    ``area``                   pixels
    ``perimeter``              pixels, as scikit-image estimates it
    ``axis_major_length``,     pixels, axes of the ellipse with the same second moments
    ``axis_minor_length``
    ``eccentricity``           of that ellipse, 0 for a circle
    ``solidity``               share of the convex hull that the object fills
    ``orientation``            radians, from the vertical to the major axis, counter-clockwise
    ``centroid_x centroid_y``  pixels from the left and the top edge of the image; the first pixel's centre is 0.5
    ``nearest_neighbour``      pixels from its centroid to the nearest other
    ``touches_border``         whether it reaches the edge of the image
    ``channel_1_mean`` ...     mean, min, max and sum of the image's own values inside it, for each channel
    =========================  ==================================================================================

    With a ``pixel_size`` (height, width) in micrometres there are ``area_um2``, and the lengths and positions with
    ``_um``.  Of pixels that are not square, ``perimeter_um`` is NaN, as scikit-image has no estimate for them.  Numbers that an object
    has not are NaN: the shape of an object without pixels, the neighbour of the only one.

    Overlapping objects are measured whole.  Memory does not grow with the image.  Raises `InputError` where
    scikit-image is not installed.
    """
    boxes = [rle.bounds(mask, instances.size) for mask in instances.rle]
    table: dict[str, NDArray[Any]] = {
        "label": ranks(instances.scores),
        "class": np.array(instances.class_names, object)[instances.labels],
        "score": instances.scores,
        **dict(zip(("x1", "y1", "x2", "y2"), instances.boxes.T, strict=True)),
    }
    shapes = _shapes(instances, boxes, None)
    centroids = np.stack((shapes.pop("centroid_x"), shapes.pop("centroid_y")), axis=1)
    table |= shapes
    table["area"] = np.array([rle.area(mask) for mask in instances.rle], np.int64)
    table |= {"centroid_x": centroids[:, 0], "centroid_y": centroids[:, 1]}
    table["nearest_neighbour"] = _nearest(centroids)
    height, width = instances.size
    table["touches_border"] = np.array(
        [box is not None and (min(box[:2]) == 0 or box[2] == width or box[3] == height) for box in boxes], bool
    )
    if pixel_size is not None:
        table |= _micrometres(instances, boxes, table, pixel_size)
    return table | ({} if image is None else _intensities(instances, boxes, image))


def _micrometres(
    instances: Instances, boxes: list[Box | None], table: dict[str, NDArray[Any]], pixel_size: tuple[float, float]
) -> dict[str, NDArray[Any]]:
    height, width = pixel_size
    found = {"area_um2": table["area"] * (height * width)}
    if height == width:
        found |= {f"{name}_um": table[name] * width for name in _LENGTHS}
    else:
        shapes = _shapes(instances, boxes, pixel_size)
        found |= {f"{name}_um": shapes[name] for name in _LENGTHS}
    centroids = np.stack((table["centroid_x"] * width, table["centroid_y"] * height), axis=1)
    found |= {"centroid_x_um": centroids[:, 0], "centroid_y_um": centroids[:, 1]}
    return found | {"nearest_neighbour_um": _nearest(centroids)}


def _shapes(
    instances: Instances, boxes: list[Box | None], spacing: tuple[float, float] | None
) -> dict[str, NDArray[Any]]:
    """The columns of `_SHAPE` and the centroids, of many objects by one call: side by side on a canvas, they keep their shape."""
    try:
        from skimage.measure import regionprops_table
    except ImportError:
        raise InputError(
            'measurements need scikit-image, which is not installed: pip install "masklab[results]".'
        ) from None
    names = [name for name in _SHAPE if spacing is None or name != "perimeter"]
    found = {name: np.full(len(boxes), np.nan) for name in (*_SHAPE, "centroid_x", "centroid_y")}
    for rows, lefts, canvas in _canvases(instances, boxes):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # objects of few pixels have no hull or axes
            table = regionprops_table(canvas, properties=(*names, "centroid"), spacing=spacing or (1, 1))
        for name in names:
            found[name][rows] = table[name]
        corners = np.array([boxes[row] for row in rows.tolist()])[:, :2]
        found["centroid_x"][rows] = table["centroid-1"] - lefts + corners[:, 0] + 0.5
        found["centroid_y"][rows] = table["centroid-0"] + corners[:, 1] + 0.5
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}


def _canvases(instances: Instances, boxes: list[Box | None]) -> Iterator[tuple[Integers, Integers, NDArray[Any]]]:
    """Label images of some objects side by side, from 1 on; the rows of the objects, and where each begins."""
    sides = {row: (box[3] - box[1], box[2] - box[0]) for row, box in enumerate(boxes) if box is not None}
    waiting: list[int] = []
    width = 0
    for row in sorted(sides, key=lambda row: sides[row]):  # neighbours on a canvas are about equally high
        tall, wide = sides[row]
        if waiting and tall * (width + wide) > _CANVAS:
            yield _canvas(instances, boxes, waiting)
            waiting, width = [], 0
        waiting.append(row)
        width += wide
    if waiting:
        yield _canvas(instances, boxes, waiting)


def _canvas(instances: Instances, boxes: list[Box | None], rows: list[int]) -> tuple[Integers, Integers, NDArray[Any]]:
    windows = [rle.window(instances.rle[row], instances.size, boxes[row] or (0, 0, 0, 0)) for row in rows]
    ends = np.cumsum([window.shape[1] for window in windows])
    lefts = ends - [window.shape[1] for window in windows]
    canvas = np.zeros((max(len(window) for window in windows), int(ends[-1])), np.min_scalar_type(len(rows)))
    for number, (left, window) in enumerate(zip(lefts.tolist(), windows, strict=True), 1):
        canvas[: len(window), left : left + window.shape[1]] = window * canvas.dtype.type(number)
    return np.array(rows), lefts, canvas


def _nearest(centroids: Doubles) -> Doubles:
    """The distance of each point ``(n, 2)`` to the nearest other; NaN where there is no other or no point."""
    from scipy.spatial import KDTree

    distances = np.full(len(centroids), np.nan)
    known = np.flatnonzero(np.isfinite(centroids).all(axis=1))
    if len(known) > 1:
        # a tree of points that lie on one another would have to look through all of them
        places, owner, count = np.unique(centroids[known], axis=0, return_inverse=True, return_counts=True)
        apart = KDTree(places).query(places, k=2)[0][:, 1]
        distances[known] = np.where(count > 1, 0.0, apart)[owner.ravel()]
    return distances


def _intensities(instances: Instances, boxes: list[Box | None], image: ImageReader) -> dict[str, Doubles]:
    """Statistics of the values inside each object, of which one window at a time is read."""
    channels = len(image.read((0, 0, 1, 1)))
    found = np.full((len(boxes), channels, len(_VALUES)), np.nan)
    for row, box in enumerate(boxes):
        if box is not None:
            seen = rle.window(instances.rle[row], instances.size, box).view(bool)
            values = image.read(box)[:, seen]
            sums = values.sum(axis=1, dtype=np.float64)
            found[row] = np.stack((sums / values.shape[1], values.min(axis=1), values.max(axis=1), sums), axis=1)
    return {
        f"channel_{channel + 1}_{name}": found[:, channel, k]
        for channel in range(channels)
        for k, name in enumerate(_VALUES)
    }
