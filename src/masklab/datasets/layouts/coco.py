"""COCO: JSON files with the annotations of a split, wherever they and their images lie.

Such a file is read by `masklab.datasets.split.Split` itself.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from masklab.datasets.coco_document import CocoDocument
from masklab.datasets.image_table import ImageRecord, find_files, read_images
from masklab.datasets.layouts.base import VAL_NAMES, check_names, subfolders
from masklab.datasets.problems import TrainingSink
from masklab.datasets.source import DataSource
from masklab.utils.errors import InputError

NAME, DESCRIPTION = "coco", "COCO (a JSON file with images, annotations and categories)"
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_OTHER_TASKS = ("captions", "panoptic", "person_keypoints", "stuff", "image_info")
_FIRST_KEYS = (b"info", b"licenses", b"images", b"annotations", b"categories", b"type")
_MOST_FILES = 50  # JSON files of a folder that are looked at: more are annotations of single images


@dataclass(frozen=True)
class CocoSource:
    """A COCO file, the folders that its images may lie in, likeliest first, and the folder that holds them anyway."""

    json_path: Path
    places: tuple[Path, ...]
    root: Path

    @property
    def has_own_folder(self) -> bool:
        """Whether there is a folder for the images of this file alone."""
        stem = _stem(self.json_path)
        return any(stem in place.parts[len(self.root.parts) :] and place.is_dir() for place in self.places)


@dataclass(frozen=True)
class CocoFiles:
    """The COCO files of a folder by split, "" where the name of none tells.

    ``annotations/instances_train2017.json`` is found as ``train`` and as ``train2017``; where there is no ``val``,
    ``valid`` and ``validation`` are found as that too.
    """

    folder: Path
    splits: dict[str, list[CocoSource]]

    @classmethod
    def find(cls, folder: Path) -> CocoFiles:
        """The files in a folder, in folders inside it, and in those of ``annotations``."""
        named = [(path, _split_names(path, folder)) for path in _json_files(folder)]
        sources = [(CocoSource(path, _places(path, folder, names), folder), names) for path, names in named]
        return cls(folder, _by_split(sources))

    @classmethod
    def of_file(cls, json_path: Path) -> CocoFiles:
        """A file that is named itself, undivided."""
        parent = json_path.parent
        root = parent.parent if parent.name.lower() in ("annotations", "labels", "jsons", "json") else parent
        return cls(root, {"": [CocoSource(json_path, _places(json_path, root, _split_names(json_path, root)), root)]})

    @classmethod
    def of_files(cls, files: DataSource) -> CocoFiles:
        """Files that are named themselves, with the folders of their images."""
        for path in files.annotations:
            if not path.is_file():
                raise InputError(f"{path} is no file; correct the path of the annotations.")
        for folder in files.images:
            if not folder.is_dir():
                raise InputError(f"{folder} is no folder; correct the path of the images.")
        root = files.images[0]
        if len(files.images) > 1:
            root = Path(os.path.commonpath([folder.absolute() for folder in files.images]))
        images = tuple(folder.absolute() for folder in files.images) if len(files.images) > 1 else files.images
        sources = [(CocoSource(path, images, root), _split_names(path, path.parent)) for path in files.annotations]
        return cls(root, {"": [sources[0][0]]} if len(sources) == 1 else _by_split(sources))

    def one(self, split: str) -> CocoSource:
        """The file of a split; `InputError` where there are several."""
        own = self.splits[split]
        complete = [source for source in own if source.has_own_folder] or own
        if len(complete) > 1:
            names = ", ".join(str(source.json_path) for source in complete)
            raise InputError(
                f"{self.folder} holds several splits called {split} ({names}); name one with its year, give one of the "
                "files as the data set, or move one."
            )
        return complete[0]

    def names(self) -> set[str]:
        """One name of each file, the shortest, of those that are the only file of that name; without ""."""
        files: dict[Path, str] = {}
        for name in sorted(self.splits, key=len):
            if len(self.splits[name]) == 1:
                files.setdefault(self.splits[name][0].json_path, name)
        return set(files.values()) - {""}


def _by_split(sources: Sequence[tuple[CocoSource, Sequence[str]]]) -> dict[str, list[CocoSource]]:
    found: defaultdict[str, list[CocoSource]] = defaultdict(list)
    for source, names in sources:
        for name in names:
            found[name].append(source)
    if len(found.get("", [])) > 1:  # several files whose names tell nothing: their names are the splits'
        found |= {_stem(source.json_path): [source] for source in found.pop("")}
    for other in VAL_NAMES:
        if other in found:
            found.setdefault("val", found[other])
    if len(found) > 1:
        found.pop("", None)  # all images beside the splits, such as TACO's annotations.json
    return dict(found)


def find_split(folder: str | Path, split: str) -> CocoSource:
    """Find a split's JSON file; raises `InputError` that says what was looked for."""
    folder = Path(folder)
    check_names(folder, split)
    files = CocoFiles.find(folder)
    if split in files.splits:
        return files.one(split)
    known = ", ".join(sorted(filter(None, files.splits)))
    there = f" (there is {known})" if known else ""
    raise InputError(
        f"{folder} holds no split {split}{there}: neither {split}.json with a folder {split} nor "
        f"annotations/instances_{split}2017.json with a folder {split}2017 was found; correct the path or the name."
    )


def _json_files(folder: Path) -> list[Path]:
    """The COCO files directly in a folder, in folders inside it, and in those of ``annotations``."""
    inside = subfolders(folder)
    deeper = [sub for place in inside if place.name.lower() == "annotations" for sub in subfolders(place)]
    return [path for place in (folder, *inside, *deeper) for path in _coco_files(place)]


def _coco_files(folder: Path) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".json") and name[0] != ".")
    except OSError:
        return []
    if len(names) > _MOST_FILES:
        names = [name for name in names if "coco" in name.lower() or "instances" in name.lower()][:_MOST_FILES]
    return [folder / name for name in names if not name.startswith(_OTHER_TASKS) and is_coco(folder / name)]


def is_coco(path: Path) -> bool:
    """Whether a file has COCO's fields; of a broken one, whether its name or its beginning promise them."""
    try:
        status = path.stat()
        return stat.S_ISREG(status.st_mode) and _has_fields(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=1024)
def _has_fields(path: Path, size: int, changed: int) -> bool:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        fields = set(msgspec.json.decode(content, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        first = re.match(rb'\s*\{\s*"([^"]*)"', content)
        if first is None:
            return path.stem.startswith("instances_") or (path.parent / path.stem).is_dir()
        return first[1] in _FIRST_KEYS and not any(key in content for key in (b'"shapes"', b'"items"'))
    return {"images", "annotations"} <= fields or len(fields & {"images", "annotations", "categories"}) == 2


def _stem(path: Path) -> str:
    return re.sub(r"^_?annotations\.coco$", "", path.stem).removeprefix("instances_")


def _split_names(path: Path, folder: Path) -> list[str]:
    """The names of a file's split: of the file itself, or of the folder that it lies in."""
    stem = _stem(path)
    name = re.sub(r"(?<=.)\d{4}$", "", stem)
    if stem and ((folder / stem).is_dir() or (path.stem.startswith("instances_") and stem != "default")):
        return list(dict.fromkeys([_WORDS.get(name.lower(), name), name, stem]))
    for name in (path.stem, *(part.name for part in path.parents if part != folder and part.is_relative_to(folder))):
        words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS]
        if len(set(words)) == 1:
            return [_WORDS[words[0]]]
    return [""]


def _places(path: Path, folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Where the images of a file may lie; the last is the folder as a whole."""
    places: list[Path] = []
    for name in filter(None, (_stem(path), *names)):
        places += [folder / name, folder / "images" / name, folder / name / "images", folder / name / "data"]
    if path.parent != folder:
        places += [path.parent / "images", path.parent / "data", path.parent]
    return tuple(dict.fromkeys([*places, folder / "images", folder / "data", folder]))


def listed_images(json_path: str | Path, folder: str | Path) -> list[ImageRecord]:
    """The images that a COCO JSON names, with or without annotations, such as COCO's ``image_info_test-dev2017.json``.

    Raises `InputError` for a file that is not COCO and for an image that is not in ``folder``.
    """
    json_path, folder = Path(json_path), Path(folder)
    document = CocoDocument.read(json_path, ("images",))
    return find_files(read_images(document.images, json_path, folder, TrainingSink()), json_path, folder)[0]
