"""Folders of OME-Zarr (NGFF 0.4 and 0.5): one image each, in chunks, with its pyramid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masklab.images.opened import Opened, Reduced, Scale, check_size
from masklab.images.scale import checked, micrometres
from masklab.images.tiles import Tile, TileCache, Tiles
from masklab.utils.errors import InputError

_AXES = "tczyx"  # in the order that NGFF asks for


def open_zarr(path: Path, cache: TileCache | None = None) -> Opened:
    """Open the image of a folder of OME-Zarr, all channels, to decode parts of it.

    Axes of time and depth must have length 1.  Raises `InputError` naming the folder for one that is no flat image.
    """
    group, multiscales = _multiscales(path)
    axes = _axes(multiscales, path)
    names = [str(entry["path"]) for entry in multiscales["datasets"]]
    first = _Level(_array(group, names[0], axes), axes)
    first.check(path)
    reduced = []
    for name in names[1:]:
        level = _Level(_array(group, name, axes), axes)
        reduced.append(Reduced(level.size, lambda level=level: level.pixels(cache)))  # type: ignore[misc]
    return Opened(first.pixels(cache), first.channels, _scale(multiscales, axes), tuple(reduced))


class _Level(NamedTuple):
    """An array of a pyramid, with a letter for each of its axes."""

    array: Any
    axes: str

    def side(self, axis: str) -> int:
        return int(self.array.shape[self.axes.index(axis)]) if axis in self.axes else 1

    @property
    def size(self) -> tuple[int, int]:
        return self.side("y"), self.side("x")

    @property
    def channels(self) -> int:
        return self.side("c")

    def check(self, path: Path) -> None:
        """Refuse what is no flat image."""
        if self.side("t") > 1 or self.side("z") > 1:
            sides = " x ".join(map(str, self.array.shape))
            raise InputError(
                f"{path} is a stack (axes {self.axes}, {sides}) but a flat image is needed: "
                "save its planes, or their projection, as images of their own."
            )

    def pixels(self, cache: TileCache | None) -> Tiles:
        """The chunks as tiles ``(H, W, C)``."""
        chunk = dict(zip(self.axes, map(min, self.array.chunks, self.array.shape), strict=True))
        planes = chunk.get("c", 1)
        tile = (chunk["y"], chunk["x"], planes if self.channels % planes == 0 else self.channels)
        check_size(*tile, self.array.dtype.itemsize)
        shape = (*self.size, self.channels)

        def decode(place: Tile) -> NDArray[Any]:
            starts = [number * length for number, length in zip(place, tile, strict=True)]
            parts = {
                axis: slice(start, start + length) for axis, start, length in zip("yxc", starts, tile, strict=True)
            }
            values = np.asarray(self.array[tuple(parts.get(axis, 0) for axis in self.axes)])
            left = "".join(axis for axis in self.axes if axis in parts)
            values = values if "c" in left else values[None]
            return values.transpose(*(left.index(axis) if "c" in left else "cyx".index(axis) for axis in "yxc"))

        return Tiles(shape, self.array.dtype, tile, self.array.fill_value or 0, decode, cache)


def _multiscales(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """The group of a folder's image and its metadata."""
    try:
        import zarr
    except ImportError:
        raise InputError(
            f'{path} is OME-Zarr, which needs the package zarr and Python 3.11: pip install "masklab[slides]".'
        ) from None
    try:
        root: Any = zarr.open(str(path), mode="r")
    except FileNotFoundError:
        raise InputError(f"{path} is no Zarr: it has no zarr.json, .zgroup or .zarray; name an image.") from None
    if not isinstance(root, zarr.Group):
        raise InputError(f"{path} is an array without the metadata of OME-Zarr: write it as OME-Zarr, or as TIFF.")
    group: Any = root
    if "bioformats2raw.layout" in _metadata(root):
        series = [name for name, _ in root.groups() if name.isdecimal()]
        if len(series) != 1:
            raise InputError(f"{path} holds {len(series)} images: save each as a folder of its own.")
        group = root[series[0]]
    found = _metadata(group)
    if not found.get("multiscales"):
        kind = "a plate of many images" if "plate" in found else "Zarr without multiscales, the metadata of OME-Zarr"
        raise InputError(f"{path} is {kind}: name one image of it, as a folder with the suffix .zarr.")
    return group, found["multiscales"][0]


def _metadata(group: Any) -> Mapping[str, Any]:
    """NGFF's attributes; since version 0.5 they are inside of one called ome."""
    attributes = dict(group.attrs)
    return {**attributes, **attributes.get("ome", {})}


def _axes(multiscales: Mapping[str, Any], path: Path) -> str:
    axes = "".join(axis if isinstance(axis, str) else str(axis["name"]) for axis in multiscales.get("axes", _AXES))
    if len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes) <= set(_AXES):
        raise InputError(
            f"{path} has the axes {axes}, but an image has y and x, and c, t and z if need be; convert it."
        )
    return axes


def _array(group: Any, name: str, axes: str) -> Any:
    array = group[name]
    if len(array.shape) != len(axes):
        raise ValueError(f"its array {name} has {len(array.shape)} axes, not {axes}")
    return array


def _scale(multiscales: Mapping[str, Any], axes: str) -> Scale:
    """The size of the pixels of level 0; in units other than those of length it is not known."""
    factors = []
    for axis in "yx":
        entry = next((e for e in multiscales.get("axes", ()) if isinstance(e, dict) and e["name"] == axis), {})
        scales = [
            transformation["scale"][axes.index(axis)]
            for place in (multiscales, multiscales["datasets"][0])
            for transformation in place.get("coordinateTransformations", ())
            if transformation.get("type") == "scale"
        ]
        unit = micrometres(entry.get("unit"))
        factors.append(None if unit is None or not scales else unit * math.prod(scales))
    return checked(factors[0], factors[1])
