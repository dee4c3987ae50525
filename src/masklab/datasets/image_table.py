"""Image entries of COCO's form: reading, finding of their files, and a table of them in flat arrays."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from masklab.datasets.problems import Problem, Sink
from masklab.utils.errors import InputError
from masklab.utils.types import Size

_MOST_FILES = 2_000_000  # files of a folder that are looked through for an image
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio's mark of an upload, before the name


@dataclass(frozen=True)
class ImageRecord:
    """The entry of one image: COCO's image id, the file, and ``(height, width)`` as the JSON gives it."""

    image_id: int | str
    path: Path
    size: Size


class ImageTable(Sequence[ImageRecord]):
    """Images of a folder, in flat arrays that processes share; ``rows`` are their places among the file's entries."""

    def __init__(self, records: Sequence[ImageRecord], folder: Path, rows: Sequence[int] | None = None) -> None:
        self.folder = folder
        names = [relative_name(record.path, folder).encode("utf-8", "surrogateescape") for record in records]
        self.rows = np.arange(len(records)) if rows is None else np.asarray(rows, np.int64)
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._sizes = np.array([record.size for record in records], np.int64).reshape(-1, 2)
        ids = [record.image_id for record in records]
        plain = all(type(number) is int and abs(number) < 2**63 for number in ids)
        self._ids: NDArray[np.int64] | list[int | str] = np.array(ids, np.int64) if plain else ids

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        k = range(len(self))[index]
        start = int(self._ends[k - 1]) if k else 0
        name = self._names[start : int(self._ends[k])].decode("utf-8", "surrogateescape")
        number = self._ids[k]
        height, width = self._sizes[k].tolist()
        image_id = int(number) if isinstance(number, np.int64) else number
        return ImageRecord(image_id, self.folder / name, (height, width))

    def take(self, kept: Sequence[int]) -> ImageTable:
        """The table of some of the images."""
        return ImageTable([self[k] for k in kept], self.folder, self.rows[np.asarray(kept, np.int64)].tolist())

    def names(self) -> list[str]:
        """The path of each image relative to the folder, with forward slashes."""
        return [relative_name(image.path, self.folder) for image in self]


def relative_name(path: Path, folder: Path) -> str:
    """The path of a file in a folder relative to it, with forward slashes."""
    return path.relative_to(folder).as_posix()


def read_images(entries: Iterable[Any], source: str | Path, folder: Path | None, sink: Sink) -> list[ImageRecord]:
    """The usable entries of COCO's ``images``, the first of each id; files are looked for by `find_files`.

    ``source`` is named in messages.  Without a ``folder``, entries need no file name.
    """
    found: dict[int | str, ImageRecord] = {}
    for entry in entries:
        try:
            image = _read_entry(entry, source, folder)
        except InputError as error:
            sink.report(Problem("unusable image entry", str(error), id_of(entry), sentence=str(error)))
            continue
        if image.image_id in found:
            sentence = f"{source}: image id {image.image_id} occurs twice; give each image its own id."
            detail, first = f"{image.path.name} has it too", found[image.image_id].path
            file_name = None if folder is None else relative_name(first, folder)
            sink.report(Problem("duplicate image id", detail, image.image_id, None, file_name, sentence))
        else:
            found[image.image_id] = image
    return list(found.values())


def is_id(value: Any) -> TypeGuard[int | str]:
    """Whether a value can be the id of an image, annotation or category."""
    plain = type(value)  # the common case, without the slow question after `Integral`
    return plain is int or plain is str or (isinstance(value, (Integral, str)) and plain is not bool)


def id_of(entry: Any) -> int | str | None:
    """The id of an entry or annotation, if it has one."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return number if is_id(number) else None


def _read_entry(entry: Any, source: str | Path, folder: Path | None) -> ImageRecord:
    """Check one entry of ``images``; `InputError` for one without id, size or a file name."""
    image_id = id_of(entry)
    if image_id is None:
        raise InputError(f"{source}: an entry of images has no id; correct the file.")
    path = Path() if folder is None else folder / _file_name(entry, source)
    return ImageRecord(image_id, path, (_side(entry, "height", source), _side(entry, "width", source)))


def _file_name(entry: dict[str, Any], source: str | Path) -> str:
    """The name of an image's file, as a path that leaves no folder."""
    image_id, name = entry["id"], entry.get("file_name")
    if name is None and isinstance(entry.get("coco_url"), str):  # LVIS
        name = entry["coco_url"]
    if not isinstance(name, str) or not name:
        raise InputError(f"{source}: image {image_id} has no file_name; correct the file.")
    if min(name) < " ":
        raise InputError(
            f"{source}: image {image_id} has file_name {name!r}, which holds control characters; correct the file."
        )
    inner = inner_path(name)
    if not inner:
        raise InputError(f"{source}: image {image_id} has file_name {name!r}, which names no file; correct the file.")
    return inner


def inner_path(name: str) -> str:
    """What a path or address of another computer says about the place of a file in its folder.

    Backslashes become slashes; a scheme, host, drive or leading slash goes, and all that leads out of a folder.
    """
    if "://" in name or "/?" in name:
        address = urlsplit(name)
        name = unquote(address.query.rpartition("=")[2] or address.path)
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    outside = max((k for k, part in enumerate(parts) if part == ".." or (k == 0 and part.endswith(":"))), default=-1)
    return "/".join(parts[outside + 1 :])


def _side(entry: dict[str, Any], key: str, source: str | Path) -> int:
    value: Any = entry.get(key)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 1 <= value < 2**31 or value != int(value):
        raise InputError(
            f"{source}: image {entry['id']} has {key} {value!r}, which must be a whole number of pixels; "
            "correct the file."
        )
    return int(value)


def find_files(
    images: Sequence[ImageRecord],
    source: str | Path,
    folder: Path,
    places: Sequence[Path] = (),
    root: Path | None = None,
) -> tuple[list[ImageRecord], Path]:
    """The images with the files that exist, and the folder that holds them all; see `look_for_files`.

    Raises `InputError` for images that are not found and for those that could be several files.
    """
    found, folder, missing = look_for_files(images, folder, places, root)
    if missing:
        raise InputError(
            f"{missing[0].path} is missing ({len(missing)} of the {len(images)} images of {source} are); "
            "restore the images, remove them from the JSON, or name the folder that holds them (--images)."
        )
    return found, folder


def look_for_files(
    images: Sequence[ImageRecord], folder: Path, places: Sequence[Path] = (), root: Path | None = None
) -> tuple[list[ImageRecord], Path, list[ImageRecord]]:
    """The images with the files that exist, the folder that holds them all, and the images without a file.

    A file is looked for by its path in ``folder``, then in the ``places`` one after the other; letters may differ in
    case and in how accents are written.  Where no image is found so, all of ``root`` is looked through for files that
    share the most of each path.  Raises `InputError` for an image that could be several files.
    """
    listing, names = _Listing(), [image.path.relative_to(folder) for image in images]
    for place in dict.fromkeys((folder, *places)):
        if all(listing.holds(place / name) for name in names):
            return [replace(image, path=place / name) for image, name in zip(images, names, strict=True)], place, []
    root = folder if root is None else root
    paths = [listing.find(name, (folder, *places)) for name in names]
    if not any(paths):
        anywhere = _Search(root)
        paths = [anywhere.find(name) for name in names]
    exact = {path for name, path in zip(names, paths, strict=True) if path is not None and path.name == name.name}
    paths = [  # a file that another image calls by its very name is not that of "a.png" beside "A.png"
        None if path in exact and path is not None and path.name != name.name else path
        for name, path in zip(names, paths, strict=True)
    ]
    found = [replace(image, path=path or image.path) for image, path in zip(images, paths, strict=True)]
    missing = [image for image, path in zip(images, paths, strict=True) if path is None]
    return found, folder if all(image.path.is_relative_to(folder) for image in found) else root, missing


class _Listing:
    """Which files exist, with one look at each folder."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def holds(self, path: Path) -> bool:
        return self._names(path).get(path.name) == path.name

    def find(self, name: Path, places: Iterable[Path]) -> Path | None:
        """The file of that path in the first of the places that has one, or has one that reads the same."""
        for place in places:
            names = self._names(place / name)
            own = (
                names.get(name.name)
                or names.get(name_key(name.name))
                or names.get(_UPLOAD.sub("", name_key(name.name)))
            )
            if own is not None:
                return (place / name).with_name(own)
        return None

    def _names(self, path: Path) -> dict[str, str]:
        """The files of the folder that a path is in, by their names and by how these read."""
        parent = os.path.dirname(path)
        if parent not in self._folders:
            try:
                names = os.listdir(parent)
            except OSError:
                names = []
            self._folders[parent] = {name_key(name): name for name in names} | {name: name for name in names}
        return self._folders[parent]


class _Search:
    """The files of a folder and all folders in it, by name; looked through when first asked."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: defaultdict[str, list[str]] | None = None

    def find(self, name: Path) -> Path | None:
        """The file whose path has most of the last parts of ``name``; None without one, `InputError` for several."""
        if self._files is None:
            self._files = self._look()
        parts = [name_key(part) for part in name.parts]
        found = self._files.get(parts[-1]) or self._files.get(_UPLOAD.sub("", parts[-1])) or []
        if not found:
            return None
        folders = parts[-2::-1]  # the nearest first
        agreeing = [shared_start(map(name_key, reversed(Path(path).parts[:-1])), folders) for path in found]
        best = [path for path, count in zip(found, agreeing, strict=True) if count == max(agreeing)]
        exact = [path for path in best if Path(path).name == name.name] or best
        if len(exact) > 1:
            raise InputError(
                f"{name} could be {exact[0]} or {exact[1]} in {self._root}: write more of the path as file_name, or "
                "name the folder of the images (--images)."
            )
        return self._root / exact[0]

    def _look(self) -> defaultdict[str, list[str]]:
        files: defaultdict[str, list[str]] = defaultdict(list)
        count = 0
        for folder, subfolders, names in os.walk(self._root):
            subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
            inside = os.path.relpath(folder, self._root)
            for name in names:
                files[name_key(name)].append(os.path.normpath(os.path.join(inside, name)))
            count += len(names)
            if count > _MOST_FILES:
                break
        return files


def name_key(name: str) -> str:
    """A file name for comparison: letters may differ in case and in how accents are written."""
    return unicodedata.normalize("NFC", name).casefold()


def shared_start(one: Iterable[str], other: Iterable[str]) -> int:
    """How many first elements two sequences have in common."""
    count = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        count += 1
    return count
