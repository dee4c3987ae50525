"""Table of a YOLO data set: the class names, and where the images of each split are.

It is ``data.yaml``, a YAML file of another name that lists ``names``, or Darknet's ``obj.data``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from masklab.datasets.layouts.base import VAL_NAMES
from masklab.utils.errors import InputError
from masklab.utils.files import read_text

_TABLES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "obj.names", "classes.names", "labels/classes.txt", "labels/obj.names")
_SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {*_SPLITS, *VAL_NAMES}
_LARGEST = 2**20  # bytes of a YAML file
_DEEPEST = 50  # lists in lists: deeper ones keep PyYAML busy
_LONGEST_PATH = 4096  # characters
_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Table:
    """The file, its class names by number, and the entries of each split: paths as they are written there.

    ``names`` is None where the file gives none; ``start`` is the folder that entries are relative to.
    """

    path: Path
    names: dict[int, str] | None
    entries: dict[str, list[str]]
    start: str = ""

    @property
    def is_yolo(self) -> bool:
        """Whether the file's name alone says that the folder is YOLO's."""
        return self.path.name.lower() in _TABLES


def find_table(folder: Path) -> Table | None:
    """The table of a folder, None where it has none.  Raises `InputError` for one that cannot be used."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml") and path.is_file())
    named = [path for path in files if path.name.lower() in _TABLES]
    if len(named) > 1:
        raise InputError(f"{folder} has both {named[0].name} and {named[1].name}: remove one.")
    if named:
        return _read_table(named[0], _read_yaml(named[0]))
    others = {path: values for path in files if _lists_names(values := _read_other(path))}
    if len(others) > 1:
        raise InputError(f"{folder} has {' and '.join(p.name for p in others)}, which list names: remove all but one.")
    for path, values in others.items():
        return _read_table(path, values)
    return next((table for path in sorted(folder.glob("*.data")) if (table := _read_darknet(path))), None)


def listed_names(folder: Path) -> dict[int, str] | None:
    """The class names of a file with one per line, such as ``classes.txt``; None where there is none."""
    for path in (folder / name for name in _CLASS_LISTS):
        if path.is_file():
            return _lines_as_names(path)
    return None


def read_names(path: Path) -> dict[int, str]:
    """The class names of one file: ``data.yaml`` or the like, or a text file with one per line.

    Raises `InputError` for a file that lists none.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        return _lines_as_names(path)
    return _names(values if isinstance(values := _read_yaml(path), dict) else {}, path)


def resolve(folder: Path, bases: list[str], entry: str) -> Path | None:
    """The file or folder inside ``folder`` that an entry names; None where there is none.

    An entry is relative to one of ``bases``.  It may lead out of them, begin with folders that are not here, be an
    absolute path of another computer, or have backslashes: then leading parts are left out, the fewest possible.  The
    last part that is called after a split stays.
    """
    root, text = os.path.abspath(folder), entry.strip().replace("\\", "/")
    if len(text) > _LONGEST_PATH:
        return None
    parts = [part for part in text.split("/") if part not in ("", ".") and not part.endswith(":")]
    climbs = max((k + 1 for k, part in enumerate(parts) if part == ".."), default=0)
    last = max((k for k, part in enumerate(parts) if part.lower() in _SPLIT_WORDS), default=len(parts) - 1)
    tried = [os.path.join(root, base, text) for base in bases]
    tried += [os.path.join(root, *parts[k:]) for k in range(climbs, max(last, climbs) + 1) if parts[k:]]
    for place in map(os.path.normpath, tried):
        if (place == root or place.startswith(root + os.sep)) and os.path.exists(place):
            return folder / os.path.relpath(place, root)
    return None


def _read_yaml(path: Path) -> Any:
    """The values of a YAML file, all scalars as text: ``no`` stays ``no`` and ``010`` stays ``010``."""
    try:
        status = path.stat()
        if status.st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        return _parse(path, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): correct the file.") from None


@lru_cache(maxsize=16)
def _parse(path: Path, size: int, changed: int) -> Any:
    """The values of a file of this size and time, read once: a data set is looked at for each split."""
    text, depth = read_text(path), 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            raise ValueError(f"its lists are nested more than {_DEEPEST} deep")
    return yaml.load(text, yaml.BaseLoader)


def _read_other(path: Path) -> Any:
    """The values of a YAML file that may have nothing to do with YOLO; None where it cannot be read."""
    try:
        return _read_yaml(path)
    except InputError:
        return None


def _lists_names(values: Any) -> bool:
    return isinstance(values, dict) and isinstance(values.get("names"), (list, dict))


def _read_table(path: Path, values: Any) -> Table:
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a YOLO data file: write names, and paths for train and val, into it.")
    if "kpt_shape" in values:
        raise InputError(f"{path} describes keypoints (kpt_shape), not outlines: export outlines (segmentation).")
    names = _names(values, path)
    start = values.get("path") or ""
    given = {split: values[split] for split in (*_SPLITS, *VAL_NAMES) if values.get(split)}
    listed = {split: entry if isinstance(entry, list) else [entry] for split, entry in given.items()}
    for split, entries in listed.items():
        if not isinstance(start, str) or not all(isinstance(entry, str) for entry in entries):
            raise InputError(
                f"{path}: {split}, and path if there is one, must be paths such as images/train: correct the file."
            )
    return Table(path, names, listed, start.replace("\\", "/"))


def _names(values: dict[str, Any], path: Path) -> dict[int, str]:
    names = values.get("names")
    count = values.get("nc")
    if names is None and isinstance(count, str) and re.fullmatch("[0-9]{1,6}", count):
        names = [str(number) for number in range(min(int(count), _MOST_CLASSES))]
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not names or not isinstance(names, dict) or not all(re.fullmatch("[0-9]{1,9}", str(key)) for key in names):
        raise InputError(f"{path}: names must list the classes, such as names: [leaf, fruit]; correct the file.")
    if not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path}: a class has a list for its name; write one name per class.")
    return {int(number): name for number, name in names.items()}


def _read_darknet(path: Path) -> Table | None:
    """Darknet's ``obj.data``: lines ``key = value``, of which ``names`` and the splits are paths of text files.

    None for a file that is something else.
    """
    try:
        lines = read_text(path).splitlines() if path.stat().st_size <= _LARGEST else []
    except (OSError, InputError):
        return None
    values = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines) if value.strip()}
    if not {"train", "names"} <= values.keys():
        return None
    file = resolve(path.parent, [""], values["names"])
    names = _lines_as_names(file) if file and file.is_file() else None
    return Table(path, names, {split: [values[split]] for split in (*_SPLITS, *VAL_NAMES) if split in values})


def _lines_as_names(path: Path) -> dict[int, str]:
    """The class names of a text file with one per line; empty lines at its end are no classes."""
    return {number: line.strip() or str(number) for number, line in enumerate(read_text(path).rstrip().splitlines())}
