"""Annotation files of a data set folder, and the images that they name, wherever those lie in the folder."""

from __future__ import annotations

import codecs
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from masklab.datasets.image_table import name_key, shared_start
from masklab.images.read import IMAGE_SUFFIXES
from masklab.utils.errors import InputError
from masklab.utils.files import open_plain

_DEEPEST = 3  # folders below the data set's in which annotation files are looked for
_MOST_FOLDERS = 2000
_FEW = 20  # files of a folder that are looked at to tell whether it holds a tool's files
_HEAD = 4096  # bytes
_SPLIT_WORD = re.compile(r"(train|val|test)(?:id|idation|ing)?(?:\d{4})?")
_IMAGE_FOLDERS = ("images", "imgs", "img", "image", "jpegimages", "data")


def annotation_files(
    folder: Path, suffixes: tuple[str, ...], is_tools: Callable[[str], bool]
) -> dict[Path, list[tuple[Path, bool]]]:
    """The files with one of some suffixes in each folder that holds at least one of a tool's.

    Every file comes with the answer of ``is_tools`` to its first characters.  Of each folder only some files are read
    unless one of them is the tool's.
    """
    found: dict[Path, list[tuple[Path, bool]]] = {}
    for place in _folders(folder):
        files = _entries(place, suffixes)
        answers = [is_tools(_head(path)) for path in files[:_FEW]]
        if any(answers):
            answers += [is_tools(_head(path)) for path in files[_FEW:]]
            found[place] = list(zip(files, answers, strict=True))
    return found


def split_in(words: Iterable[str]) -> str:
    """The split that the names of folders and files tell, such as ``images/Train2017``; "" where none or several do."""
    for word in words:
        parts = filter(None, map(_SPLIT_WORD.fullmatch, re.split(r"[^a-z0-9]+", word.lower())))
        splits = {match[1] for match in parts}
        if len(splits) == 1:
            return splits.pop()
    return ""


def public_splits(splits: Iterable[str]) -> dict[str, str]:
    """The names that splits get, "" being what no name tells.

    Where none is train, val or test, all are one undivided folder.  What no name tells beside others is train, or
    ``default`` where there is a train.
    """
    found = set(splits)
    if not found & {"train", "val", "test"}:
        return dict.fromkeys(found, "")
    return {split: split or ("default" if "train" in found else "train") for split in found}


class ImageIndex:
    """The images in a folder and below, found by the names that annotation files give them.

    A name may be a path of another machine, with slashes or backslashes: only images in the folder are ever found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images: defaultdict[str, list[Path]] = defaultdict(list)
        self._stems: defaultdict[str, list[Path]] = defaultdict(list)
        for place in _folders(folder, deepest=None, most=None):
            for path in _entries(place, tuple(IMAGE_SUFFIXES)):
                self._images[name_key(path.name)].append(path)
                self._stems[name_key(path.stem)].append(path)

    def __iter__(self) -> Iterator[Path]:
        for paths in self._images.values():
            yield from paths

    def find(self, name: str, source: Path, stem: bool = False) -> Path | None:
        """The image that a file ``source`` calls ``name``, None where there is none.

        It is the image at that path, seen from the file or from the folder; else the one of that file name that shares
        most of the path, then the one closest to the file.  ``stem`` says that the name has no suffix.  Raises
        `InputError` if several images fit as well.
        """
        parts = re.split(r"[/\\]+", name)
        found = (self._stems if stem else self._images).get(name_key(parts[-1]), [])
        if len(found) <= 1:
            return found[0] if found else None
        exact = self.at(name, source.parent, stem) or self.at(name, self.folder, stem)
        if exact is not None:
            return exact
        ranks = [(self._closeness(path, parts, source), path) for path in found]
        best = max(rank for rank, _ in ranks)
        chosen = [path for rank, path in ranks if rank == best]
        if len(chosen) > 1:
            raise InputError(
                f"{source} names the image {name}, which may be {chosen[0]} or {chosen[1]}: move one away."
            )
        return chosen[0]

    def at(self, name: str, place: Path, stem: bool = False) -> Path | None:
        """The image at the path ``name``, seen from the folder ``place``; None where there is none."""
        relative = name.replace("\\", "/").lstrip("/")
        wanted = os.path.normpath(place / relative)
        found = (self._stems if stem else self._images).get(name_key(relative.rsplit("/", 1)[-1]), [])
        return next(
            (path for path in found if os.path.normpath(path.with_suffix("") if stem else path) == wanted), None
        )

    def _closeness(self, path: Path, parts: Sequence[str], source: Path) -> tuple[int, int, int, bool]:
        own, near = path.relative_to(self.folder).parts, source.relative_to(self.folder)
        split = split_in((*near.parts[:-1], near.stem))
        return (
            shared_start(map(name_key, reversed(own)), map(name_key, reversed(parts))),
            int(bool(split) and split_in(own[:-1]) == split),
            shared_start(own[:-1], near.parts[:-1]),
            any(part.lower() in _IMAGE_FOLDERS for part in own[:-1]),
        )


def _folders(folder: Path, deepest: int | None = _DEEPEST, most: int | None = _MOST_FOLDERS) -> Iterator[Path]:
    """A folder and those below it, the nearest first, each once however it is linked."""
    level, seen, depth = [folder], set[str](), 0
    while level and (deepest is None or depth <= deepest):
        below: list[Path] = []
        for place in level:
            real = os.path.realpath(place)
            if real in seen or len(seen) == most:
                continue
            seen.add(real)
            yield place
            below += _entries(place)
        level, depth = below, depth + 1


def _entries(folder: Path, endings: tuple[str, ...] = ()) -> list[Path]:
    """The files with one of some suffixes directly in a folder, or its folders where none are given, by name.

    Hidden ones and what cannot be read are left out.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name[0] != "."
                and (
                    entry.name.lower().endswith(endings) and os.path.isfile(entry.path)
                    if endings
                    else os.path.isdir(entry.path)
                )
            )
    except OSError:
        return []
    return [folder / name for name in names]


def _head(path: Path) -> str:
    """The first characters of a text file; "" for one that cannot be read."""
    try:
        with open_plain(path) as file:
            raw = file.read(_HEAD)
    except OSError:
        return ""
    wide = raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return raw.decode("utf-16" if wide else "utf-8-sig", errors="replace")
