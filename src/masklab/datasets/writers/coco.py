"""COCO: ``SPLIT.json``, and ``SPLIT/`` with the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from masklab.datasets.split import Split
from masklab.datasets.writers.base import Writer, copy, stored_names


def _write(splits: Mapping[str, Split], folder: Path) -> dict[str, Counter[str]]:
    """Annotations of COCO's layout stay as they are; masks of other layouts are run lengths."""
    for name, split in splits.items():
        _write_split(split, folder, name)
    return {name: Counter() for name in splits}


def _write_split(split: Split, folder: Path, name: str) -> None:
    """Write ``NAME.json`` and ``NAME/``, without subfolders where no two images have the same file name."""
    names = _distinct(stored_names(split))
    flat = max(Counter(name.name.lower() for name in names).values(), default=1) == 1
    values = split.coco
    entries = []
    (folder / name).mkdir()
    for image, entry, own in zip(split.images, values["images"], names, strict=True):
        written = copy(image.path, folder / name / (own.name if flat else own))
        entries.append({**entry, "file_name": written.relative_to(folder / name).as_posix()})
    text = json.dumps(values | {"images": entries})
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _distinct(names: list[PurePosixPath]) -> list[PurePosixPath]:
    """Paths of which none is another's where ``A.png`` and ``a.png`` are one file: the later gets a number."""
    given = {str(name).lower() for name in names}
    taken = set[str]()
    distinct = []
    for name in names:
        path, number = name, 1
        while str(path).lower() in taken or (number > 1 and str(path).lower() in given):
            number += 1
            path = name.with_name(f"{name.stem}_{number}{name.suffix}")
        taken.add(str(path).lower())
        distinct.append(path)
    return distinct


COCO = Writer("{split}.json", _write)
