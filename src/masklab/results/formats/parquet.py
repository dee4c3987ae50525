"""Parquet: a row for each detection of all images, for millions of objects (pandas, polars, DuckDB, Spark)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklab.results.formats.base import Entries, Format, Result, entries

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 100_000  # of a group, which is what is held in memory


def _write(path: Path, result: Result) -> None:
    _combine(path, [entries(result.instances, result.file_name)])


def _combine(path: Path, images: Iterable[Entries]) -> None:
    import pyarrow.parquet as pq

    waiting: list[Entries] = []
    count = 0
    with pq.ParquetWriter(path, _schema(), compression="zstd") as writer:
        for found in images:
            if found.entries:
                waiting.append(found)
                count += len(found.entries)
            if count >= _ROWS:
                writer.write_table(to_table(waiting))
                waiting, count = [], 0
        if count:
            writer.write_table(to_table(waiting))


def to_table(images: Iterable[Entries]) -> pa.Table:
    """The objects of images as an Arrow table, a row each; without images, its columns alone.

    Characters of a file's name that are no text (a name that is not UTF-8) are written as ``\\udce4``.
    """
    import pyarrow as pa

    rows = [_row(entry, label) for found in images for entry, label in zip(found.entries, found.labels, strict=True)]
    return pa.Table.from_pylist(rows, _schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("file_name", pa.string()),
            ("label", pa.int32()),
            ("class", pa.string()),
            ("score", pa.float32()),
            *((name, pa.float32()) for name in ("x1", "y1", "x2", "y2")),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("rle", pa.string()),
        ]
    )


def as_text(name: str) -> str:
    """A name as a table can hold it, with what is no text escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _row(entry: dict[str, Any], label: int) -> dict[str, Any]:
    x, y, width, height = entry["bbox"]
    rle = entry["segmentation"]
    return {
        "file_name": as_text(entry["file_name"]),
        "label": label,
        "class": as_text(entry["category_name"]),
        "score": entry["score"],
        "x1": x,
        "y1": y,
        "x2": x + width,
        "y2": y + height,
        "height": rle["size"][0],
        "width": rle["size"][1],
        "rle": rle["counts"],
    }


PARQUET = Format(
    "parquet",
    ".parquet",
    "predictions.parquet: a table of every detection of all images (needs masklab[results])",
    _write,
    (".parquet",),
    combined="predictions.parquet",
    combine=_combine,
    every=True,
    packages=("pyarrow",),
    media_type="application/vnd.apache.parquet",
)
