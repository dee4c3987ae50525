"""COCO: ``SPLIT.json`` with ``SPLIT/``, or ``annotations/instances_SPLIT2017.json`` with ``SPLIT2017/``.

Its files hold all annotations of a split and are read by `masklab.datasets.split.Split` itself.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from masklab.datasets.annotations import ImageRecord, read_images, require_files
from masklab.datasets.layouts.base import VAL_NAMES, check_names
from masklab.datasets.problems import TrainingSink
from masklab.utils.errors import InputError

DESCRIPTION = "COCO (SPLIT.json with SPLIT, or annotations/instances_SPLIT2017.json with SPLIT2017)"


def find_split(folder: str | Path, split: str) -> tuple[Path, Path]:
    """Find a split's JSON file and image folder.

    Either ``FOLDER/SPLIT.json`` with ``FOLDER/SPLIT/``, or COCO's own
    ``FOLDER/annotations/instances_SPLIT2017.json`` with ``FOLDER/SPLIT2017/``, of any year or none.
    Raises `InputError` that says what was looked for.
    """
    folder = Path(folder)
    check_names(folder, split)
    pairs = split_files(folder).get(split, [])
    complete = [pair for pair in pairs if pair[1].is_dir()]
    if len(complete) > 1:
        names = ", ".join(str(pair[0].relative_to(folder)) for pair in complete)
        raise InputError(
            f"{folder} holds several splits called {split} ({names}); name one with its year, or move one."
        )
    if complete:
        return complete[0]
    if pairs:
        raise InputError(f"{pairs[0][0]} has no image folder: put its images into {pairs[0][1]}.")
    raise InputError(
        f"{folder} holds no split {split}: neither {split}.json with a folder {split} nor "
        f"annotations/instances_{split}2017.json with a folder {split}2017 was found; correct the path or the name."
    )


def split_files(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """The JSON files in a folder that may be splits: each split's files, with the folder that should hold its images.

    ``annotations/instances_train2017.json`` is found as ``train`` and as ``train2017``; where there is no ``val``,
    ``valid`` and ``validation`` are found as that too.
    """
    found: defaultdict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        found[path.stem].append((path, folder / path.stem))
    for path in sorted(folder.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        for split in {name, re.sub(r"\d{4}$", "", name)}:
            found[split].append((path, folder / name))
    for other in VAL_NAMES:
        if other in found:
            found.setdefault("val", found[other])
    return found


def listed_images(json_path: str | Path, folder: str | Path) -> list[ImageRecord]:
    """The images that a COCO JSON names, with or without annotations, such as COCO's ``image_info_test-dev2017.json``.

    Raises `InputError` for a file that is not COCO and for an image that is not in ``folder``.
    """
    json_path, folder = Path(json_path), Path(folder)
    images = read_images(read_json(json_path, ("images",))["images"], json_path, folder, TrainingSink())
    require_files(images, json_path, folder)
    return images


def read_json(path: Path, lists: Iterable[str] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """Read a COCO file; `InputError` names it when it is not JSON or one of ``lists`` is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct the path.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); replace or repair the file.") from None
    for key in lists:
        if not isinstance(values, dict) or not isinstance(values.get(key), list):
            raise InputError(f"{path} is not a COCO file: it has no list {key!r}; name another file.")
    return values
