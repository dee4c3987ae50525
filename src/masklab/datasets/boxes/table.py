"""Boxes in a CSV file, such as supervision's CSV sink and spreadsheets write."""

from __future__ import annotations

import csv
from pathlib import Path

from masklab.datasets.boxes.box_list import BoxList, Collector
from masklab.datasets.boxes.columns import WANTED, Columns, find_columns
from masklab.utils.errors import InputError

_DELIMITERS = ",;\t|"


def read_table(path: Path, text: str) -> BoxList:
    """The boxes of a table whose first line names its columns (see `find_columns`), with any usual delimiter.

    Raises `InputError` with the number of the line for a row that cannot be used.
    """
    lines = text.splitlines(keepends=True)
    skipped = 0
    while skipped < len(lines) and (not lines[skipped].strip() or lines[skipped].startswith("sep=")):
        skipped += 1
    header = lines[skipped] if skipped < len(lines) else ""
    delimiter = max(_DELIMITERS, key=header.count)
    rows = csv.reader(lines[skipped:], delimiter=delimiter, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(rows)]
        _refuse_missing_header(names, f"{path} line {skipped + 1}")
        columns = find_columns(names, f"{path} line {skipped + 1}")
        collector = Collector(path)
        for row in rows:
            if any(value.strip() for value in row):
                _add(collector, columns, names, row, delimiter, f"{path} line {skipped + rows.line_num}")
    except csv.Error as error:
        raise InputError(f"{path} line {skipped + rows.line_num} cannot be read ({error}): correct the line.") from None
    return collector.finish()


def _add(collector: Collector, columns: Columns, names: list[str], row: list[str], delimiter: str, where: str) -> None:
    if len(row) > len(names) and any(value.strip() for value in row[len(names) :]):
        raise InputError(f"{where} has {len(row)} values for {len(names)} columns: correct the line.")
    values = dict(zip(names, row, strict=False))
    if delimiter != ",":  # spreadsheets of many countries write 12,5
        values |= {name: values[name].replace(",", ".") for name in columns.box + columns.score if name in values}
    columns.add(collector, values, where)


def _refuse_missing_header(names: list[str], where: str) -> None:
    if sum(name.lstrip("+-").replace(".", "", 1).isdecimal() for name in names) >= 4:
        raise InputError(f"{where} holds numbers, not the names of columns: write a first line with {WANTED}.")
