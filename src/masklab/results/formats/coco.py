"""COCO results: a list of objects, with masks as run lengths of the image's own size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from masklab.results.formats.base import Entries, Format, Result, entries, json_list


def _write(path: Path, result: Result) -> None:
    _combine(path, [entries(result.instances, result.file_name)])


def _combine(path: Path, images: Iterable[Entries]) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.writelines(json_list(entry for found in images for entry in found.entries))


COCO = Format(
    "coco",
    ".json",
    "predictions.json: every detection of all images, masks as run lengths (COCO results)",
    _write,
    (".json",),
    combined="predictions.json",
    combine=_combine,
    every=True,
    media_type="application/vnd.coco+json",
)
