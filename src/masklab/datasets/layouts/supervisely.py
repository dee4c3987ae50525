"""Supervisely: ``meta.json`` with the classes, ``DATASET/img/x.jpg`` and ``DATASET/ann/x.jpg.json``.

Data sets of a project that are called as splits are these; others are joined.  Polygons with whole numbers, as its
downloads have, are corners at pixels, which belong to the object, as Supervisely itself draws them.
"""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.beside import files_in, join_pools, key
from masklab.datasets.layouts.outlines import bitmap_mask, polygon_mask, subtract, union
from masklab.datasets.problems import MALFORMED, UNKNOWN_CATEGORY, Problem, Sink
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.files import read_json
from masklab.utils.types import Size

_DEEPEST = 6  # folders of data sets inside data sets
_WITHOUT_MASK = frozenset(("rectangle", "oriented_bbox", "point", "line", "polyline", "graph", "cuboid", "cuboid_2d"))
_NO_DATA_SETS = frozenset({"img", "ann", "meta", "seg", "img_info"})
_PNG_BYTES = 2**20  # a PNG may be larger than its pixels by this


def _find(folder: Path) -> dict[str, SplitSource]:
    classes = _classes_of_meta(folder / "meta.json")
    places = _data_sets(folder)
    if not places or (classes is None and not any(map(_is_annotation, _first_annotations(places)))):
        return {}
    if classes and all(shape in _WITHOUT_MASK for shape in classes.values()):
        raise InputError(
            f"{folder / 'meta.json'} has only classes of the shapes {', '.join(sorted({*classes.values()}))}, which are "
            "no masks: annotate with polygons or bitmaps (masks)."
        )
    by_split: dict[str, list[Path]] = {}
    for place in places:
        parts = place.relative_to(folder).parts
        by_split.setdefault(parts[0] if parts else "", []).append(place)
    found = join_pools({split: partial(_pairs_of, inside) for split, inside in by_split.items()})
    names = cache(lambda: _names(classes, [pair for pairs in found.values() for pair in pairs()]))
    return {split: SplitSource(pairs, partial(_objects, names=names), names) for split, pairs in found.items()}


def _classes_of_meta(path: Path) -> dict[str, str] | None:
    """The classes of a project with their shapes; None where the file is not there or not Supervisely's."""
    try:
        value = read_json(path) if path.is_file() else None
    except InputError:
        return None
    classes = value.get("classes") if isinstance(value, dict) else None
    if not isinstance(classes, list) or not all(isinstance(one, dict) and "title" in one for one in classes):
        return None
    return {str(one["title"]): str(one.get("shape", "any")) for one in classes}


def _data_sets(folder: Path, depth: int = 0) -> list[Path]:
    """The folders with ``img`` and ``ann``, also those inside ``datasets`` of others."""
    if depth > _DEEPEST:
        return []
    subs = {sub.name: sub for sub in subfolders(folder)}
    own = [folder] if "ann" in subs else []
    inside = [place for name, sub in subs.items() if name not in _NO_DATA_SETS for place in _data_sets(sub, depth + 1)]
    return own + inside


def _first_annotations(places: list[Path]) -> list[Path]:
    return [path for place in places[:3] for path in files_in(place / "ann", (".json",))[:1]]


def _is_annotation(path: Path) -> bool:
    try:
        value = read_json(path)
    except InputError:
        return False
    return isinstance(value, dict) and isinstance(value.get("objects"), list) and isinstance(value.get("size"), dict)


def _pairs_of(places: list[Path]) -> list[Pair]:
    return [pair for place in places for pair in _pairs(place)]


def _pairs(place: Path) -> list[Pair]:
    annotations = {key(path.name[:-5]): path for path in files_in(place / "ann", (".json",))}
    if annotations and not images_in(place / "img"):
        raise InputError(f"{place / 'img'} holds no image: download the project with its images.")
    pairs = []
    for image in images_in(place / "img"):
        path = annotations.pop(key(image.name), None) or annotations.pop(key(image.stem), None)
        if path is None:
            raise InputError(
                f"{image} has no annotation {image.name}.json in {place / 'ann'}: restore it or move the image away."
            )
        pairs.append(Pair(image, (path,)))
    if annotations:
        lone = next(iter(annotations.values()))
        raise InputError(f"{lone} has no image in {place / 'img'}: restore it or move the annotation away.")
    return pairs


def _names(classes: dict[str, str] | None, pairs: list[Pair]) -> dict[int, str]:
    """The classes of the project that have masks; those that the objects name where there is no ``meta.json``."""
    if classes is None:
        titles: set[str] = set()
        for pair in pairs:
            try:
                titles |= {_title(one) for one in _read(pair.masks[0])[0] if isinstance(one, dict)} - {""}
            except InputError:
                continue
        return dict(enumerate(sorted(titles), 1))
    return dict(enumerate((title for title, shape in classes.items() if shape not in _WITHOUT_MASK), 1))


def _title(one: dict[str, Any]) -> str:
    return str(one.get("classTitle") or "")


def _read(path: Path) -> tuple[list[Any], Size | None]:
    """The objects of an annotation file, and its ``(height, width)`` where it has them."""
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get("annotation"), dict):  # as the server's interface returns it
        value = value["annotation"]
    if not isinstance(value, dict) or not isinstance(value.get("objects"), list):
        raise InputError(f"{path} is not a Supervisely annotation: it has no list objects; download it again.")
    size = value.get("size")
    height, width = (size.get("height"), size.get("width")) if isinstance(size, dict) else (None, None)
    return value["objects"], (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _objects(pair: Pair, size: Size, sink: Sink, names: Callable[[], dict[int, str]]) -> list[ObjectMask]:
    path = pair.masks[0]
    values, annotated = _read(path)
    if annotated not in (None, size):
        raise InputError(
            f"{path} says {annotated[1]} wide and {annotated[0]} high but {pair.image} is {size[1]} wide and {size[0]} "
            "high (EXIF orientation applied): make them the same size."
        )
    ids = {name: number for number, name in names().items()}
    objects: list[ObjectMask] = []

    def report(number: int, reason: str, problem: str = MALFORMED) -> None:
        detail = f"object {number}: {reason}"
        sink.report(Problem(problem, detail, file_name=pair.image.name, sentence=f"{path}: {detail}."))

    for number, one in enumerate(values, 1):
        try:
            mask = _mask(one, size, partial(report, number))
        except ValueError as error:
            report(number, str(error))
            continue
        if _title(one) in ids:
            objects.append(ObjectMask(ids[_title(one)], mask))
        else:
            report(number, f"the class {_title(one)!r} is not in meta.json", UNKNOWN_CATEGORY)
    return objects


def _mask(one: Any, size: Size, report: Callable[[str], None]) -> RLE:
    """Run lengths of an object; parts that cannot be used are reported, `ValueError` if none can."""
    if not isinstance(one, dict):
        raise ValueError("it is not an object with fields")
    kind = one.get("geometryType")
    if isinstance(one.get("bitmap"), dict) and kind in (None, "bitmap", "alpha_mask"):
        return _bitmap(one["bitmap"], size)
    if kind == "multipolygon":
        parts = one.get("parts")
        masks = []
        for part in parts if isinstance(parts, list) else []:
            try:
                masks.append(_polygon(part, size))
            except ValueError as error:
                report(str(error))
        if not masks:
            raise ValueError("none of its parts is a polygon")
        return union(masks, size)
    points = one.get("points")
    if kind == "polygon" or (kind is None and isinstance(points, dict) and len(points.get("exterior") or []) > 2):
        return _polygon(points, size)
    raise ValueError(f"the shape {kind or 'rectangle'} has no mask: annotate it as polygon or bitmap")


def _bitmap(value: dict[str, Any], size: Size) -> RLE:
    """A PNG, packed and written as text, and the place of its top left pixel ``origin`` ``[x, y]``."""
    origin, data = value.get("origin"), value.get("data")
    if not isinstance(origin, list) or len(origin) != 2 or not all(_is_number(number) for number in origin):
        raise ValueError("a bitmap has no origin x, y")
    if not isinstance(data, str):
        raise ValueError("a bitmap has no data")
    try:
        raw = base64.b64decode(data)
        if raw[:4] != b"\x89PNG":
            raw = zlib.decompressobj().decompress(raw, 8 * size[0] * size[1] + _PNG_BYTES)
        with Image.open(io.BytesIO(raw), formats=("PNG",)) as png:
            if png.width > size[1] or png.height > size[0]:
                raise ValueError(f"it is {png.width} x {png.height}, larger than the image")
            alpha = png.mode in ("RGBA", "LA")
            bits: NDArray[Any] = np.asarray(png)
    except (ValueError, OSError, SyntaxError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"a bitmap cannot be read ({error})") from None
    if bits.ndim == 3:
        bits = bits[:, :, -1] if alpha else bits.max(axis=2)
    return bitmap_mask(bits > 0, [math.floor(number) for number in origin], size)


def _polygon(points: Any, size: Size) -> RLE:
    if not isinstance(points, dict):
        raise ValueError("a polygon has no points")
    holes = points.get("interior") or []
    rings = [points.get("exterior"), *(holes if isinstance(holes, list) else [holes])]
    corners = [_corners(ring) for ring in rings]
    if all((ring == np.floor(ring)).all() for ring in corners):
        outline, *inside = (_drawn(ring, size) for ring in corners)
        return subtract(outline, inside, size)
    return polygon_mask(corners[0], size, corners[1:])


def _corners(ring: Any) -> NDArray[np.float64]:
    if not isinstance(ring, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(_is_number(number) for number in point) for point in ring
    ):
        raise ValueError("a polygon must be a list of points x, y")
    return np.array(ring, np.float64).reshape(-1, 2)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**31  # False for NaN


def _drawn(ring: NDArray[np.float64], size: Size) -> RLE:
    """A polygon whose corners are pixels: all pixels inside, and those of its outline."""
    inside = polygon_mask(ring + 0.5, size)
    left, top = (int(max(side, 0)) for side in ring.min(axis=0))
    right, bottom = (int(min(side + 1, end)) for side, end in zip(ring.max(axis=0), size[::-1], strict=True))
    if right <= left or bottom <= top:
        return inside
    line = Image.new("1", (right - left, bottom - top))
    ImageDraw.Draw(line).line([tuple(point) for point in ring[[*range(len(ring)), 0]] - (left, top)], fill=1)
    return union([inside, bitmap_mask(np.asarray(line), (left, top), size)], size)


SUPERVISELY = Layout("supervisely", "Supervisely (meta.json, DATASET/img, DATASET/ann)", _find)
