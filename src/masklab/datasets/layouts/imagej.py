"""ImageJ and Fiji: a set of regions ``x.zip`` of the ROI manager, or one region ``x.roi``, beside the image ``x.tif``.

Classes are the groups of the regions (``group 1``, ...) where any region of the data set has a group, and "no group"
for the others; names of regions are no classes.  A set ``RoiSet.zip`` belongs to the only image of its folder.
"""

from __future__ import annotations

import logging
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from masklab.datasets.layouts.base import Layout, ObjectMask, Pair, SplitSource, images_in, subfolders
from masklab.datasets.layouts.beside import files_in, find_beside
from masklab.datasets.layouts.cellpose import is_cellpose_folder
from masklab.datasets.layouts.outlines import ellipse_points, odd_mask, polygon_mask, rectangle_points
from masklab.datasets.problems import MALFORMED, Problem, Sink
from masklab.images.read import channels_and_dtype
from masklab.masks.rle import RLE
from masklab.utils.errors import InputError
from masklab.utils.files import open_plain
from masklab.utils.types import Size

logging.getLogger("roifile").setLevel(logging.ERROR)  # it warns of what is reported here

_MOST_REGIONS = 100_000  # of a set
_MOST_BYTES = 2**28  # of a set, unpacked
_SET_WORDS = r"(?:roi[ _-]?set|rois?)"
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)
_BROKEN_ROI = (ValueError, TypeError, IndexError, KeyError, OverflowError, AssertionError, struct.error)
_OUTLINES = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
_CURVE_STEPS = 16
_NO_GROUP = "no group"


def _find(folder: Path) -> dict[str, SplitSource]:
    places = (folder, *subfolders(folder))
    found = find_beside(folder, _files, _image_names)
    lone = [] if found else [path for place in places for path in _files(place) if any(_image_names(path))]
    if (found or lone) and any(map(is_cellpose_folder, places)):
        return {}  # Cellpose writes x_rois.zip beside its masks
    if not found:
        if lone:
            raise InputError(
                f"{lone[0]} has no image of its name beside it: give both the same name, such as x.zip and x.tif."
            )
        return {}
    names = cache(lambda: _names([pair for pairs in found.values() for pair in pairs()]))
    return {split: SplitSource(pairs, partial(_objects, names=names), names) for split, pairs in found.items()}


def _files(folder: Path) -> list[Path]:
    return files_in(folder, (".zip", ".roi"))


def _image_names(path: Path) -> Iterator[str]:
    """The name of the file, without the words for a set; the only image of the folder for a set without a name."""
    if path.suffix.lower() == ".zip" and not _holds_regions(path):
        return
    yield path.stem
    bare = re.sub(rf"^{_SET_WORDS}[ _.-]+|[ _.-]+{_SET_WORDS}$", "", path.stem, flags=re.IGNORECASE)
    yield bare
    if re.fullmatch(_SET_WORDS, bare, flags=re.IGNORECASE) and len(images := images_in(path.parent)) == 1:
        yield images[0].name


def _holds_regions(path: Path) -> bool:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return False
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            return any(map(_is_region, archive.infolist()))
    except _BROKEN_ZIP:
        return bool(re.search(_SET_WORDS, path.stem, flags=re.IGNORECASE))  # its reader says what is wrong


def _is_region(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a region, not what macOS adds to archives."""
    name = member.filename.replace("\\", "/").rsplit("/", 1)[-1]
    return name.lower().endswith(".roi") and not name.startswith("._")


def _read(path: Path) -> Iterator[tuple[str, ImagejRoi | str]]:
    """The regions of a file by name, or the reason why one cannot be read; `InputError` for a broken archive."""
    if path.suffix.lower() == ".roi":
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError("it is too large for a region")
            with open_plain(path) as file:
                content = file.read()
            yield path.name, _decode(content)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): save the region again.") from None
        return
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if _is_region(member)]
            if len(members) > _MOST_REGIONS or sum(member.file_size for member in members) > _MOST_BYTES:
                raise ValueError(f"it unpacks to more than {_MOST_REGIONS} regions or {_MOST_BYTES} bytes")
            for member in members:
                yield member.filename, _decode(archive.read(member))
    except _BROKEN_ZIP as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}): save the set of regions again.") from None


def _decode(data: bytes) -> ImagejRoi | str:
    try:
        return ImagejRoi.frombytes(data)
    except _BROKEN_ROI as error:
        return f"it is no ImageJ region ({error})"


def _names(pairs: list[Pair]) -> dict[int, str]:
    """The groups of all regions; none where no region has one.  Files that cannot be read are reported elsewhere."""
    groups: set[int] = set()
    for pair in pairs:
        try:
            groups |= {roi.group for _, roi in _read(pair.masks[0]) if isinstance(roi, ImagejRoi) and _has_area(roi)}
        except InputError:
            continue
    return {group: f"group {group}" if group else _NO_GROUP for group in sorted(groups)} if any(groups) else {}


def _objects(pair: Pair, size: Size, sink: Sink, names: Any) -> list[ObjectMask]:
    objects: list[ObjectMask] = []
    planes = cache(lambda: channels_and_dtype(pair.image)[0])
    for name, roi in _read(pair.masks[0]):
        try:
            if isinstance(roi, str):
                raise ValueError(roi)
            _check_position(roi, planes)
            objects.append(ObjectMask(roi.group if names() else None, _mask(roi, size)))
        except ValueError as error:
            detail = f"{name}: {error}"
            sink.report(Problem(MALFORMED, detail, file_name=pair.image.name, sentence=f"{pair.masks[0]}: {detail}."))
    return objects


def _check_position(roi: ImagejRoi, planes: Any) -> None:
    """Raise `ValueError` for a region of another plane than the image's; its channels are one plane."""
    for word, position in (("slice", roi.z_position), ("frame", roi.t_position)):
        if position > 1:
            raise ValueError(f"it lies on {word} {position} of a stack, but the image is one plane")
    if roi.position > 1 and roi.position > planes():
        raise ValueError(f"it lies on position {roi.position} of a stack, but the image is one plane")


def _has_area(roi: ImagejRoi) -> bool:
    flat = roi.roitype in (*_OUTLINES, ROI_TYPE.RECT, ROI_TYPE.OVAL)
    return flat and roi.subtype not in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.IMAGE, ROI_SUBTYPE.ARROW)


def _mask(roi: ImagejRoi, size: Size) -> RLE:
    """Run lengths of a region; `ValueError` for one without area and for coordinates that are none."""
    if not _has_area(roi):
        kind = roi.roitype if roi.subtype == ROI_SUBTYPE.UNDEFINED else roi.subtype
        raise ValueError(f"a region of the kind {kind.name.lower()} has no area")
    if roi.composite:
        return odd_mask(
            [polygon_mask(points, size) for points in _paths(roi.multi_coordinates) if len(points) > 2], size
        )
    if roi.roitype in _OUTLINES:
        return polygon_mask(np.asarray(roi.coordinates(), np.float64), size)
    x, y, width, height = map(float, (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top))
    if roi.subpixelrect:
        x, y, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
    if roi.roitype == ROI_TYPE.RECT:
        return polygon_mask(rectangle_points((x, y), (x + width, y + height)), size)
    return polygon_mask(ellipse_points((x + width / 2, y + height / 2), (width / 2, height / 2)), size)


def _paths(values: NDArray[Any] | None) -> Iterator[NDArray[np.float64]]:
    """The closed lines of a composite region: move, line, quadratic and cubic curve, close (0 to 4), then points."""
    numbers = [] if values is None else values.astype(np.float64).tolist()
    line: list[list[float]] = []
    place = 0
    while place < len(numbers):
        command = numbers[place]
        count = {0: 1, 1: 1, 2: 2, 3: 3, 4: 0}.get(command, -1)
        given = numbers[place + 1 : place + 1 + 2 * max(count, 0)]
        if count < 0 or len(given) != 2 * count or (command in (1, 2, 3) and not line):
            raise ValueError("its path is damaged")
        points = [given[k : k + 2] for k in range(0, len(given), 2)]
        if command == 0 and line:
            yield np.array(line)
            line = []
        line += points if command < 2 else _curve(line[-1:] + points) if count else []
        place += 1 + 2 * count
    if line:
        yield np.array(line)


def _curve(points: list[list[float]]) -> list[list[float]]:
    """Points on the Bezier curve of three or four points, the first left out."""
    steps = np.linspace(0, 1, _CURVE_STEPS + 1)[1:, None, None]
    values = np.array(points)[None]
    while values.shape[1] > 1:
        values = values[:, :-1] * (1 - steps) + values[:, 1:] * steps
    result: list[list[float]] = values[:, 0].tolist()
    return result


IMAGEJ = Layout("imagej", "ImageJ regions (x.zip or x.roi beside x.tif)", _find)
