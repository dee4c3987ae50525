"""Conversion of a data set of any layout to COCO's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from masklab.config.fields import VAL_FRACTION
from masklab.datasets.layouts.coco import Data
from masklab.datasets.open import open_split, split_names
from masklab.datasets.split import Split
from masklab.images.embedded import copy_image, stored_suffix
from masklab.utils.files import atomic_folder, atomic_write, file_name


def convert(source: Data, folder: str | Path, val_fraction: float = VAL_FRACTION, seed: int = 0) -> dict[str, Split]:
    """Write every split of a data set as ``SPLIT.json`` and ``SPLIT/`` into a new ``folder``; returns the splits read.

    Masks are kept exactly, as run lengths; annotations of COCO's layout are copied unchanged, and so are images.
    ``split.json`` lists the images of each split.  Finds and raises what `open_split` does.
    """
    splits: dict[str, Split] = {}
    with atomic_folder(folder) as temporary:
        for name in split_names(source):
            splits[name] = open_split(source, name, None, val_fraction, seed)
            _write_split(splits[name], temporary, name)
        write_lists(splits, temporary / "split.json")
    return splits


def write_lists(splits: Mapping[str, Split], path: Path) -> None:
    """Write a JSON list of the images of each split, and how it was held out if it was."""
    lists = {
        name: {
            "held_out": split.note or None,
            "images": split.images.names(),
        }
        for name, split in splits.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(lists, indent=1), encoding="utf-8")


def _distinct(names: list[str]) -> list[str]:
    """Paths of which none overwrites another where ``A.png`` and ``a.png`` are one file: a number is added to the later."""
    taken = {name.lower() for name in names}
    seen: set[str] = set()
    distinct = []
    for name in names:
        path, number = PurePosixPath(name), 1
        while name.lower() in seen or (number > 1 and name.lower() in taken):
            number += 1
            name = path.with_name(file_name(path.stem, f"_{number}{path.suffix}")).as_posix()
        seen.add(name.lower())
        distinct.append(name)
    return distinct


def _write_split(split: Split, folder: Path, name: str) -> None:
    """Write ``NAME.json`` and ``NAME/``, without subfolders where no two images have the same file name."""
    names = [
        PurePosixPath(own).with_suffix(stored_suffix(image.path)).as_posix()
        for own, image in zip(split.images.names(), split.images, strict=True)
    ]
    flat = max(Counter(Path(name).name.lower() for name in names).values(), default=1) == 1
    names = _distinct(names)
    values = split.coco
    entries = []
    (folder / name).mkdir()
    for image, entry, own in zip(split.images, values["images"], names, strict=True):
        target = Path(own).name if flat else own
        (folder / name / target).parent.mkdir(parents=True, exist_ok=True)
        copy_image(image.path, folder / name / target)
        entries.append({**entry, "file_name": target})
    text = json.dumps(values | {"images": entries})
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
