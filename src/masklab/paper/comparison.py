"""Comparison of a table's rows with the paper: mean and standard deviation over seeds, and the order of the rows."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from masklab.paper.tables import TABLES, Row
from masklab.plots.charts import MEASURED, REFERENCE, rows_chart
from masklab.utils.files import atomic_write, make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "mask AP": ("mask", "AP"),
    "mask AP50": ("mask", "AP50"),
    "mask AP75": ("mask", "AP75"),
    "box AP": ("box", "AP"),
    "mask AP in true boxes": ("mask_in_true_boxes", "AP"),
    "mask AP50 in true boxes": ("mask_in_true_boxes", "AP50"),
    "mask AP75 in true boxes": ("mask_in_true_boxes", "AP75"),
}
_TRUE = " in true boxes"
PAPER = ("AP50", "AP75")
_CLEAR = 2.0  # two means are different if they differ by more than this many standard errors


class Result(NamedTuple):
    """A row of a table and the figures of each of its finished runs, by the names in `FIGURES`, in percent."""

    row: Row
    figures: list[dict[str, float | None]]

    def values(self, name: str) -> list[float]:
        """One figure of every run in which it could be measured."""
        return [value for run in self.figures if (value := run.get(name)) is not None]


class _Order(NamedTuple):
    """Number of pairs of rows in the ``same`` order as in the paper, in the ``other``, or ``unclear``.

    Pairs with equal ``figure`` in the paper do not count.
    """

    figure: str
    same: int
    other: int
    unclear: int
    error: float | None
    """Standard deviation of a run, pooled over the rows; None if no row has two runs."""


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None without values and, for the deviation, with only one."""
    return (
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )


def order_of(results: Sequence[Result], boxes: str = "") -> _Order | None:
    """Compare the order of the rows with the paper's, by AP75, or by AP50 if the paper gives no AP75.

    ``boxes`` is " in true boxes" for figures measured in the annotated boxes, where only the masks differ.  A pair of
    rows counts if both have finished runs and their figures in the paper differ.  It is unclear if the two means differ
    by at most 2 standard errors of the difference, from the standard deviation of a run pooled over all rows; with one
    run per row there is no deviation and no pair is unclear unless equal.  Returns None if the paper gives no figures.
    """
    key = next((key for key in ("AP75", "AP50") if any(key in result.row.paper for result in results)), None)
    if key is None:
        return None
    rows = [(r.row.paper[key], v) for r in results if key in r.row.paper and (v := r.values(f"mask {key}{boxes}"))]
    degrees = sum(len(values) - 1 for _, values in rows)
    squares = sum((len(values) - 1) * statistics.variance(values) for _, values in rows if len(values) > 1)
    error = math.sqrt(squares / degrees) if degrees else None
    counts = {"same": 0, "other": 0, "unclear": 0}
    for (paper, values), (other_paper, other_values) in combinations(rows, 2):
        difference = statistics.fmean(values) - statistics.fmean(other_values)
        noise = _CLEAR * (error or 0.0) * math.sqrt(1 / len(values) + 1 / len(other_values))
        if paper != other_paper:
            same = difference * (paper - other_paper) > 0
            counts["unclear" if abs(difference) <= noise else "same" if same else "other"] += 1
    return _Order(key, **counts, error=error)


def orders(results: Sequence[Result]) -> str:
    """Sentences on the order of the rows, with the model's own boxes and in the annotated ones."""
    both = [(order, boxes) for boxes in ("", _TRUE) if (order := order_of(results, boxes))]
    return "\n\n".join(order_sentence(*pair) for pair in both) or "The paper has no such table."


def order_sentence(order: _Order, boxes: str = "") -> str:
    """The result of `order_of` as a sentence."""
    pairs = order.same + order.other + order.unclear
    noise = (
        "one run per row gives no standard deviation, so differences may be chance"
        if order.error is None
        else f"unclear means within {_CLEAR:g} standard errors; a run's standard deviation, pooled over the rows, is {order.error:.2f}"
    )
    return (
        f"Pairs of rows that the paper's mask {order.figure} tells apart: {pairs}; here{boxes} in the same order: {order.same}, "
        f"in the other: {order.other}, unclear: {order.unclear} ({noise})."
    )


def print_results(table: str, results: Sequence[Result]) -> None:
    """Print the table."""
    shown = Table(title=TABLES[table].title, caption=orders(results), caption_justify="left")
    head, *rows = _cells(results)
    for place, name in enumerate(head):
        shown.add_column(name, justify="right" if place else "left", no_wrap=not place)
    for cells in rows:
        shown.add_row(*cells)
    console = Console()
    console.print(shown, width=None if console.is_terminal else 200)


def write_results(folder: Path, table: str, about: str, results: Sequence[Result]) -> None:
    """Write ``TABLE.md``, ``TABLE.csv`` and ``TABLE.png`` into a folder."""
    make_folder(folder)
    head, *rows = _cells(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    text = [f"# {TABLES[table].title}", "", about, _NOTE, "", *(f"| {' | '.join(cells)} |" for cells in lines)]
    with atomic_write(folder / f"{table}.md") as path:
        path.write_text("\n".join([*text, "", orders(results)]) + "\n", encoding="utf-8")
    with atomic_write(folder / f"{table}.csv") as path, path.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(_csv(results))
    with atomic_write(folder / f"{table}.png") as path:
        draw_results(table, results).savefig(path, format="png", dpi=100)


_NOTE = (
    "Figures are in percent, mean ± sample standard deviation over the runs; true boxes are the annotated ones. The paper's are of ResNet-101 on COCO "
    "minival, one run each: compare the order of the rows, not the figures."
)


def _cells(results: Sequence[Result]) -> list[list[str]]:
    """Cells of the table as text, column titles first."""
    paper = [key for key in PAPER if any(key in result.row.paper for result in results)]
    cells = [["row", "runs", *FIGURES, *(f"paper {key}" for key in paper)]]
    for result in results:
        own = [_number(*mean_and_std(result.values(name))) for name in FIGURES]
        paper_cells = [_number(result.row.paper.get(key)) for key in paper]
        cells.append([result.row.name, str(len(result.figures)), *own, *paper_cells])
    return cells


def _csv(results: Sequence[Result]) -> list[list[Any]]:
    """Rows of the CSV file: mean and standard deviation in columns of their own, empty where nothing was measured."""
    names = [name.replace(" ", "_") for name in FIGURES]
    rows: list[list[Any]] = [
        ["row", "runs", *(f"{n}{end}" for n in names for end in ("", "_sd")), *(f"paper_{k}" for k in PAPER)]
    ]
    for result in results:
        own = [value for name in FIGURES for value in mean_and_std(result.values(name))]
        rows.append([result.row.name, len(result.figures), *own, *(result.row.paper.get(key) for key in PAPER)])
    return rows


def _number(value: float | None, std: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if std is None else f"{value:.2f} ± {std:.2f}"


def draw_results(table: str, results: Sequence[Result]) -> Figure:
    """Chart of the rows: every run, mean and standard deviation, and the paper's figures (see `rows_chart`).

    The measured panels show the mask figure that `order_of` compares, with the model's own boxes and in the annotated
    ones.
    """
    order = order_of(results)
    key = order.figure if order else "AP75"
    panels = [
        (f"mask {key}{boxes}: runs, mean, std", MEASURED, [result.values(f"mask {key}{boxes}") for result in results])
        for boxes in ("", _TRUE)
    ]
    if order:
        paper = [[result.row.paper[key]] if key in result.row.paper else [] for result in results]
        panels.append((f"the paper's mask {key}", REFERENCE, paper))
    return rows_chart(TABLES[table].title, [result.row.name for result in results], panels)
