"""Table of measurements: a row for each object, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from masklab.results.formats.base import Format, Result


def _write(path: Path, result: Result) -> None:
    """Numbers that an object has not, such as the neighbour of a single one, are empty cells."""
    from masklab.results.measurements import measure

    columns = measure(result.instances, result.image, result.pixel_size)
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*(values.tolist() for values in columns.values()), strict=True):
            writer.writerow(map(_cell, row))


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return "" if isinstance(value, float) and math.isnan(value) else value


CSV = Format(
    "csv",
    ".csv",
    "NAME.csv: a table of measurements (needs masklab[results])",
    _write,
    (".csv",),
    measures=True,
    packages=("skimage",),
    media_type="text/csv",
)
