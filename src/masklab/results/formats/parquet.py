"""Parquet: a row for each detection of all images, for millions of objects (pandas, polars, DuckDB, Spark)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from masklab.results.formats.base import Entries, Format, Result, entries

_ROWS = 100_000  # of a group, which is what is held in memory


def _write(path: Path, result: Result) -> None:
    _combine(path, [entries(result.instances, result.file_name)])


def _combine(path: Path, images: Iterable[Entries]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
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
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for found in images:
            rows += map(_row, found.entries, found.labels)
            if len(rows) >= _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _row(entry: dict[str, Any], label: int) -> dict[str, Any]:
    x, y, width, height = entry["bbox"]
    rle = entry["segmentation"]
    return {
        "file_name": entry["file_name"],
        "label": label,
        "class": entry["category_name"],
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
)
