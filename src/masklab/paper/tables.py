"""Tables of the paper as recipes: rows, the fields each row changes, and the paper's figures.

A row is a packaged recipe.  Its ``base`` is the row before it, if the table adds one part per row, or the recipe that
the whole table starts from.
"""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

from masklab.config.nested import merge
from masklab.config.recipe import RecipeFile, read_recipe, recipe_names


class _Table(NamedTuple):
    """Title of a table, and its rows in the paper's order."""

    title: str
    rows: tuple[str, ...]


def _rows(table: str, names: str) -> tuple[str, ...]:
    return tuple(f"{table}-{name}" for name in names.split())


TABLES = {
    "table1": _Table("Table 1, mask crop size", _rows("table1", "21 41 81 161 321")),
    "table2": _Table("Table 2, semantic and direction features", _rows("table2", "semantic direction both both-4bins")),
    "table3": _Table("Table 3, number of directions", _rows("table3", "2 4 6 8")),
    "table4": _Table("Table 4, mask refinement", _rows("table4", "none conv1 conv12 conv123")),
    "table5": _Table(
        "Table 5, multi-grid dilations",
        tuple(f"table5-{mask}-{box}" for mask in ("444", "484", "4816") for box in ("111", "121", "124")),
    ),
    "table6": _Table("Table 6, part by part", _rows("table6", "base bc seg mg anc dc rs os16 jft")),
    "heads": _Table("Mask heads in one detector", _rows("heads", "masklab unrefined mask_rcnn fcis")),
    "refinement": _Table("Refinement by object or shared", _rows("refinement", "paper shared")),
}
MODELS = _Table("Tables 7 and 8, the final models", ("masklab", "masklab-plus", "masklab-plus-jft"))
_WIDTH = 100


class Row(NamedTuple):
    """A row of a table: its recipe, the fields it changes in ``start``, and the paper's mask figures in percent."""

    name: str
    start: str
    changes: dict[str, Any]
    paper: dict[str, float]


def table_rows(table: str) -> list[Row]:
    """The rows of one of `TABLES`, in order; the changes of a row include those of the rows it is based on."""
    return [_row(name, TABLES[table]) for name in TABLES[table].rows]


def _row(name: str, table: _Table) -> Row:
    file = read_recipe(name)
    figures, changes, base = file.paper.get("mask", {}), file.changes, str(file.base)
    while base in table.rows:
        file = read_recipe(base)
        changes, base = merge(file.changes, changes), str(file.base)
    return Row(name, base, changes, figures)


def print_recipes() -> None:
    """Print every packaged recipe with its description, and the paper's figures beside the rows of its tables."""
    files = {name: read_recipe(name) for name in recipe_names()}
    tables = [MODELS, *TABLES.values()]
    rest = set(files).difference(*(table.rows for table in tables))
    _print_group(_Table("Recipes", tuple(sorted(rest))), files)
    for table in tables:
        print()
        _print_group(table, files)
    print(f"\n{textwrap.fill(_NOTE, _WIDTH)}")


_NOTE = (
    "Figures are the paper's, in percent, with ResNet-101 on COCO: of masks unless marked box, on minival in "
    "Tables 1 to 6 and on test-dev in Tables 7 and 8. A recipe that starts from segmentation weights reads "
    "segmentation.safetensors; give another file as --model.backbone.segmentation_weights FILE. "
    "`masklab ablate TABLE` trains and evaluates the rows of a table."
)
_COLUMNS = (("mask", "AP", "AP"), ("mask", "AP50", "AP50"), ("mask", "AP75", "AP75"), ("box", "AP", "box AP"))


def _print_group(table: _Table, files: dict[str, RecipeFile]) -> None:
    paper = [files[row].paper for row in table.rows]
    shown = [column for column in _COLUMNS if any(column[1] in figures.get(column[0], {}) for figures in paper)]
    titles = "".join(f"{title:>8}" for _, _, title in shown)
    print(f"{table.title:{_WIDTH - len(titles)}}{titles}".rstrip())
    room = _WIDTH - len(titles) - 22
    for row, figures in zip(table.rows, paper, strict=True):
        values = [figures.get(section, {}).get(key) for section, key, _ in shown]
        decimals = 1 if table is MODELS else 2  # as the paper prints them
        cells = "".join(f"{'-' if value is None else f'{value:.{decimals}f}':>8}" for value in values)
        first, *more = textwrap.wrap(files[row].description, room)
        print(f"  {row:18}  {first:{room}}{cells}".rstrip())
        for line in more:
            print(f"{'':22}{line}")
