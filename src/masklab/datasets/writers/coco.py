"""COCO: ``SPLIT.json``, and ``SPLIT/`` with the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from masklab.datasets.split import Split
from masklab.datasets.writers.base import Writer, copy, stored_names


def _write(splits: Mapping[str, Split], folder: Path) -> dict[str, Counter[str]]:
    """Annotations of COCO's layout stay as they are; masks of other layouts are run lengths."""
    for name, split in splits.items():
        _write_split(split, folder, name)
    return {name: Counter() for name in splits}


def _write_split(split: Split, folder: Path, name: str) -> None:
    """Write ``NAME.json`` and ``NAME/``, without subfolders where no two images have the same file name."""
    names = stored_names(split)
    flat = max(Counter(name.name.lower() for name in names).values(), default=1) == 1
    values = split.coco
    entries = []
    (folder / name).mkdir()
    for image, entry, own in zip(split.images, values["images"], names, strict=True):
        written = copy(image.path, folder / name / (own.name if flat else own))
        entries.append({**entry, "file_name": written.relative_to(folder / name).as_posix()})
    text = json.dumps(values | {"images": entries})
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


COCO = Writer("{split}.json", _write)
