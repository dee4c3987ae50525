"""QuPath and other GeoJSON: ``x.geojson`` beside the image ``x.tif``, coordinates in pixels of the image.

Where a data set holds detections or cells, these are its objects, and annotations are the regions in which they were
looked for; else the annotations are the objects.  Of a cell, the cell's outline is read, not the nucleus's.  Tiles, TMA
cores and classes that end in ``*``, which QuPath ignores, are no objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, subfolders
from masklab.datasets.layouts.beside import files_in, find_beside
from masklab.datasets.layouts.outlines import polygon_mask, union
from masklab.datasets.problems import MALFORMED, Problem, Sink
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.files import open_plain, read_json
from masklab.utils.types import Size

_SNIFFED = 3  # .json files of a folder that are looked at, and bytes of each
_SNIFFED_BYTES = 4096
_KINDS = {
    "detection": "detection",
    "cell": "detection",
    "PathDetectionObject": "detection",
    "PathCellObject": "detection",
    "tile": "none",
    "PathTileObject": "none",
    "tmaCore": "none",
    "tma_core": "none",
    "TMACoreObject": "none",
    "root": "none",
    "PathRootObject": "none",
}  # the kind of a feature by QuPath's name for its type, also that of versions before 0.4; others are annotations
_CLASS_FIELDS = ("label", "class", "category")  # where other tools than QuPath write the class
_UNCLASSIFIED = "unclassified"


class _Table(NamedTuple):
    """What is known of a whole data set: category ids by class, and whether its objects are detections."""

    classes: dict[str, int]
    detections: bool


def _find(folder: Path) -> dict[str, SplitSource]:
    found = find_beside(folder, _files, _image_names)
    if not found:
        lone = [path for place in (folder, *subfolders(folder)) for path in files_in(place, (".geojson",))]
        if lone:
            raise InputError(
                f"{lone[0]} has no image of its name beside it: add the image, such as {lone[0].stem}.tif; of a slide, "
                "export the region as TIFF or PNG."
            )
        return {}
    table = cache(lambda: _table([pair for pairs in found.values() for pair in pairs()]))
    return {
        split: SplitSource(
            pairs, partial(_objects, table=table), lambda: {number: name for name, number in table().classes.items()}
        )
        for split, pairs in found.items()
    }


def _image_names(path: Path) -> tuple[str, ...]:
    """QuPath calls images of several series ``x.tif - Series0``."""
    if path.suffix.lower() == ".json" and not _is_geojson(path):
        return ()
    return path.stem, path.stem.split(" - ")[0]


def _files(folder: Path) -> list[Path]:
    """The GeoJSON files of a folder: ``.geojson``, and ``.json`` where the first ones look like GeoJSON."""
    plain = files_in(folder, (".json",))
    return sorted([*files_in(folder, (".geojson",)), *(plain if any(map(_is_geojson, plain[:_SNIFFED])) else [])])


def _is_geojson(path: Path) -> bool:
    try:
        with open_plain(path) as file:
            start = file.read(_SNIFFED_BYTES).replace(b"\0", b"")  # also of UTF-16
    except OSError:
        return False
    return b'"FeatureCollection"' in start or (b'"Feature"' in start and b'"geometry"' in start)


def _table(pairs: list[Pair]) -> _Table:
    """Classes by name, in order; none where no object has one.  Files that cannot be read are reported elsewhere."""
    names: dict[bool, set[str]] = {True: set(), False: set()}
    detections = False
    for pair in pairs:
        try:
            features = list(_features(pair.masks[0]))
        except InputError:
            continue
        for feature in features:
            kind = _kind(feature)
            if kind != "none":
                names[kind == "detection"].add(_class_of(feature))
                detections |= kind == "detection"
    used = {name for name in names[detections] if not name.endswith("*")}
    if used <= {""}:
        return _Table({}, detections)
    ordered = sorted(used - {""}) + ([_UNCLASSIFIED] if "" in used and _UNCLASSIFIED not in used else [])
    return _Table({name: number for number, name in enumerate(ordered, 1)}, detections)


def _features(path: Path) -> Iterator[dict[str, Any]]:
    """All features of a file, those inside others included; `InputError` if it is not GeoJSON."""
    value = read_json(path)
    if not isinstance(value, list) and not (
        isinstance(value, dict) and {"features", "geometry", "coordinates"} & {*value}
    ):
        raise InputError(f"{path} is not GeoJSON: it has no list of features; export it again as GeoJSON.")
    waiting: list[Any] = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        elif not isinstance(value, dict):
            yield {}
        elif isinstance(value.get("features"), list):
            waiting.extend(reversed(value["features"]))
        elif "coordinates" in value or "geometries" in value:
            yield {"geometry": value}
        else:
            yield value
            properties = _properties(value)
            children = properties.get("childObjects", properties.get("children"))
            waiting.append(children if isinstance(children, list) else [])


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _kind(feature: dict[str, Any]) -> str:
    """``detection``, ``annotation`` or ``none``."""
    properties = _properties(feature)
    for value in (*(properties.get(name) for name in ("objectType", "object_type", "type")), feature.get("id")):
        if isinstance(value, str) and value in _KINDS:
            return _KINDS[value]
    return "annotation"


def _class_of(feature: dict[str, Any]) -> str:
    """The class of a feature as QuPath shows it, or as other tools call it; "" without one."""
    properties = _properties(feature)
    value = properties.get("classification")
    if value is None and "objectType" not in properties:
        value = next((properties[name] for name in _CLASS_FIELDS if isinstance(properties.get(name), str)), None)
    if isinstance(value, dict):
        names = value.get("names")
        parent = _class_of({"properties": {"classification": value["parentClass"]}}) if value.get("parentClass") else ""
        value = value.get("name", ": ".join(map(str, names)) if isinstance(names, list) else None)
        value = f"{parent}: {value}" if parent and value else value
    return "" if value is None or isinstance(value, (dict, list)) else str(value).strip()


def _objects(pair: Pair, size: Size, sink: Sink, table: Any) -> list[ObjectMask]:
    path = pair.masks[0]
    classes, detections = table()
    objects: list[ObjectMask] = []
    features = [(number, feature) for number, feature in enumerate(_features(path), 1) if _kind(feature) != "none"]
    wanted = [(n, feature) for n, feature in features if (_kind(feature) == "detection") == detections]
    if features and not wanted:
        _report(
            sink, pair, f"{len(features)} annotations are taken as regions, as other images have detections or cells"
        )
    seen: dict[Any, Any] = {}  # exports with children may hold an object twice
    for number, feature in wanted:
        name = _class_of(feature)
        own_id = feature["id"] if isinstance(feature.get("id"), (str, int)) else None
        if name.endswith("*") or (own_id in seen and seen[own_id] == feature.get("geometry")):
            continue
        if own_id is not None:
            seen[own_id] = feature.get("geometry")
        parts = _parts(feature, partial(_report, sink, pair, where=f"feature {number}"), size)
        if parts:
            objects.append(ObjectMask(classes.get(name or _UNCLASSIFIED), union(parts, size)))
    return objects


def _report(sink: Sink, pair: Pair, reason: str, where: str = "") -> None:
    detail = f"{where}: {reason}" if where else reason
    sink.report(Problem(MALFORMED, detail, file_name=pair.image.name, sentence=f"{pair.masks[0]}: {detail}."))


def _parts(feature: dict[str, Any], report: Any, size: Size) -> list[RLE]:
    """The masks of the polygons of a feature; what cannot be used is reported."""
    geometry = feature.get("geometry") or feature.get("nucleusGeometry")
    plane = geometry.get("plane") if isinstance(geometry, dict) else None
    if isinstance(plane, dict) and (plane.get("z") or plane.get("t")):
        report(f"it lies on the plane z={plane.get('z')}, t={plane.get('t')} of a stack, not on the image")
        return []
    masks: list[RLE] = []
    polygons = list(_polygons(geometry, report))
    for rings in polygons:
        if not isinstance(rings, list) or not rings:
            report("a polygon has no points")
            continue
        holes = []
        for ring in rings[1:]:
            try:
                polygon_mask(_points(ring), size)
                holes.append(_points(ring))
            except ValueError as error:
                report(f"a hole is not used: {error}")
        try:
            masks.append(polygon_mask(_points(rings[0]), size, holes))
        except ValueError as error:
            report(str(error))
    return masks


def _polygons(geometry: Any, report: Any) -> Iterator[Any]:
    """The polygons of a geometry, each a list of rings: the outline, then the holes."""
    waiting = [geometry]
    while waiting:
        value = waiting.pop()
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "GeometryCollection" and isinstance(value.get("geometries"), list):
            waiting.extend(reversed(value["geometries"]))
        elif kind == "Polygon":
            yield value.get("coordinates")
        elif kind == "MultiPolygon" and isinstance(value.get("coordinates"), list):
            yield from value["coordinates"]
        elif value is None or kind is None:
            report("it has no geometry")
        else:
            report(f"a {kind} has no area")


def _points(ring: Any) -> Any:
    """The corners ``(N, 2)`` of a ring, whose points may have a third coordinate."""
    if not isinstance(ring, list) or not all(isinstance(point, list) and len(point) >= 2 for point in ring):
        raise ValueError("a polygon must be a list of points x, y")
    points = [point[:2] for point in ring]
    if any(type(value) not in (int, float) for point in points for value in point):
        raise ValueError("a polygon has a point that is not two numbers")
    try:
        return np.asarray(points, np.float64)
    except OverflowError:
        raise ValueError("a polygon holds a number that is too large") from None


GEOJSON = Layout("geojson", "QuPath GeoJSON (x.geojson beside x.tif, or in a folder beside images)", _find)
