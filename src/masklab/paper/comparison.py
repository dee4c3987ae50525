"""Rows of a table side by side: mean and spread over seeds, beside the paper's figures, and whether the order is the same."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from masklab.paper.tables import TABLES, Row
from masklab.utils.files import atomic_write, make_folder

FIGURES = {
    "mask AP": ("mask", "AP"),
    "mask AP50": ("mask", "AP50"),
    "mask AP75": ("mask", "AP75"),
    "box AP": ("box", "AP"),
    "mask AP in true boxes": ("mask_in_true_boxes", "AP"),
    "mask AP50 in true boxes": ("mask_in_true_boxes", "AP50"),
    "mask AP75 in true boxes": ("mask_in_true_boxes", "AP75"),
}
TRUE = " in true boxes"
PAPER = ("AP50", "AP75")
CLEAR = 2.0  # standard errors that two means must lie apart to count as different


class Result(NamedTuple):
    """A row of a table and the figures of each of its finished runs, by the names in `FIGURES`, in percent."""

    row: Row
    figures: list[dict[str, float | None]]

    def values(self, name: str) -> list[float]:
        """One figure of every run in which it could be measured."""
        return [value for run in self.figures if (value := run.get(name)) is not None]


class Order(NamedTuple):
    """Of the pairs of rows that the paper's ``figure`` tells apart: how many are ordered the ``same``, the ``other`` way, or ``unclear``."""

    figure: str
    same: int
    other: int
    unclear: int
    error: float | None
    """Standard deviation of a run, pooled over the rows; None where no row has two runs."""


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and sample standard deviation; None where there is no value, and where there is one."""
    return (
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )


def order_of(results: Sequence[Result], boxes: str = "") -> Order | None:
    """Compare the order of the rows with the paper's, by AP75, or by AP50 where the paper has no other.

    ``boxes`` is `TRUE` for what was measured in the annotated boxes, where only the masks differ.  Every pair of rows counts that has finished runs and different figures in the paper.  It is unclear when its
    two means lie within two standard errors of their difference, from the standard deviation of a run pooled over
    all rows; with one run a row there is none, and each pair counts as its two runs have it.  None without figures.
    """
    key = next((key for key in ("AP75", "AP50") if any(key in result.row.paper for result in results)), None)
    if key is None:
        return None
    rows = [(r.row.paper[key], v) for r in results if key in r.row.paper and (v := r.values(f"mask {key}{boxes}"))]
    freedom = sum(len(values) - 1 for _, values in rows)
    squares = sum((len(values) - 1) * statistics.variance(values) for _, values in rows if len(values) > 1)
    error = math.sqrt(squares / freedom) if freedom else None
    counts = {"same": 0, "other": 0, "unclear": 0}
    for (paper, values), (others_paper, others) in combinations(rows, 2):
        apart = statistics.fmean(values) - statistics.fmean(others)
        noise = CLEAR * (error or 0.0) * math.sqrt(1 / len(values) + 1 / len(others))
        if paper != others_paper:
            same = apart * (paper - others_paper) > 0
            counts["unclear" if abs(apart) <= noise else "same" if same else "other"] += 1
    return Order(key, **counts, error=error)


def orders(results: Sequence[Result]) -> str:
    """The order with the model's own boxes and in the annotated ones, in words, a line each."""
    both = [(order, boxes) for boxes in ("", TRUE) if (order := order_of(results, boxes))]
    return "\n\n".join(order_sentence(*pair) for pair in both) or "The paper has no such table."


def order_sentence(order: Order, boxes: str = "") -> str:
    """`Order` in words."""
    pairs = order.same + order.other + order.unclear
    noise = (
        "one run a row gives no spread, so differences may be chance"
        if order.error is None
        else f"unclear means within {CLEAR:g} standard errors; a run's standard deviation, pooled over the rows, is {order.error:.2f}"
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
    Console().print(shown)


def write_results(folder: Path, table: str, about: str, results: Sequence[Result]) -> None:
    """Write ``TABLE.md``, ``TABLE.csv`` and ``TABLE.png`` into a folder."""
    make_folder(folder)
    head, *rows = _cells(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    text = [f"# {TABLES[table].title}", "", about, SAYS, "", *(f"| {' | '.join(cells)} |" for cells in lines)]
    with atomic_write(folder / f"{table}.md") as path:
        path.write_text("\n".join([*text, "", orders(results)]) + "\n", encoding="utf-8")
    with atomic_write(folder / f"{table}.csv") as path, path.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(_csv(results))
    with atomic_write(folder / f"{table}.png") as path:
        draw_results(table, results).save(path, format="PNG")


SAYS = (
    "Figures are in percent, mean ± sample standard deviation over the runs; true boxes are the annotated ones. The paper's are of ResNet-101 on COCO "
    "minival, one run each: compare the order of the rows, not the figures."
)


def _cells(results: Sequence[Result]) -> list[list[str]]:
    """The table as text, its head first."""
    paper = [key for key in PAPER if any(key in result.row.paper for result in results)]
    cells = [["row", "runs", *FIGURES, *(f"paper {key}" for key in paper)]]
    for result in results:
        own = [_number(*mean_and_std(result.values(name))) for name in FIGURES]
        theirs = [_number(result.row.paper.get(key)) for key in paper]
        cells.append([result.row.name, str(len(result.figures)), *own, *theirs])
    return cells


def _csv(results: Sequence[Result]) -> list[list[Any]]:
    """The table for programs: mean and deviation apart, nothing where nothing was measured."""
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


LABELS, PANEL, LINE, DOT = 230, 450, 34, 6  # pixels
OURS, THEIRS, LIGHT = (0, 90, 160), (150, 60, 0), (205, 205, 205)


def draw_results(table: str, results: Sequence[Result]) -> Image.Image:
    """Rows below one another: left every run, mean and spread of what was measured, right the paper's figures."""
    order = order_of(results)
    key = order.figure if order else "AP75"
    panels = [
        (f"mask {key}{boxes}: runs, mean, spread", OURS, [r.values(f"mask {key}{boxes}") for r in results])
        for boxes in ("", TRUE)
    ]
    if order:
        theirs = [[r.row.paper[key]] if key in r.row.paper else [] for r in results]
        panels.append((f"the paper's mask {key}", THEIRS, theirs))
    image = Image.new("RGB", (LABELS + PANEL * len(panels), LINE * (len(results) + 4)), "white")
    draw = ImageDraw.Draw(image)
    _write(draw, image.width / 2, LINE * 0.6, TABLES[table].title)
    for place, result in enumerate(results):
        _write(draw, LABELS - 10, _middle(place), result.row.name, "rm")
    for k, (title, colour, rows) in enumerate(panels):
        _panel(draw, LABELS + PANEL * k, title, colour, rows)
    return image


def _panel(
    draw: ImageDraw.ImageDraw, left: int, title: str, colour: tuple[int, int, int], rows: Sequence[Sequence[float]]
) -> None:
    """Dots on a scale of percent: each value hollow, the mean filled, a bar of one standard deviation to each side."""
    ticks = _ticks([end for values in rows for end in _ends(values)])

    def x(value: float) -> float:
        return left + 30 + (PANEL - 60) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    _write(draw, left + PANEL / 2, LINE * 1.5, title)
    for tick in ticks:
        draw.line((x(tick), _middle(-0.5), x(tick), _middle(len(rows) - 0.5)), fill=LIGHT)
        _write(draw, x(tick), _middle(len(rows)), f"{tick:g}")
    for place, values in enumerate(rows):
        y, (mean, std) = _middle(place), mean_and_std(values)
        if mean is not None and std is not None:
            draw.line((x(mean - std), y, x(mean + std), y), fill=colour, width=3)
        for value in values:
            draw.ellipse((x(value) - DOT, y - DOT, x(value) + DOT, y + DOT), outline=colour, width=2)
        if mean is not None:
            draw.ellipse((x(mean) - DOT, y - DOT, x(mean) + DOT, y + DOT), fill=colour)


def _ends(values: Sequence[float]) -> list[float]:
    """What a row needs room for: its values and its bar."""
    mean, std = mean_and_std(values)
    return [*values] if mean is None or std is None else [*values, mean - std, mean + std]


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, anchor: str = "mm") -> None:
    draw.text((x, y), text, fill="black", font=ImageFont.load_default(size=17), anchor=anchor)


def _middle(place: float) -> float:
    """The height of a row, counted from 0."""
    return LINE * (place + 2.5)


def _ticks(values: Sequence[float]) -> list[float]:
    """Three to eight round numbers that span the values, a little beyond them."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    reach = max(high - low, 0.4)
    low, high = max(0.0, low - 0.1 * reach), high + 0.1 * reach
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if (high - low) / s <= 6)
    return [round(step * k, 1) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]
