"""Charts drawn with matplotlib: a data set's statistics, and measured figures of the rows of a table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from masklab.datasets.statistics import Statistics
from masklab.plots.sheets import CONTENT_WIDTH, GAP, PAPER, TEXT
from masklab.results.colours import PALETTE
from masklab.results.text import drawable
from masklab.utils.types import Doubles, Integers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_DPI = 100
_BINS = 24
_MOST_CLASSES = 30  # bars; further classes are counted together
_LONGEST_NAME = 60  # characters of a class name
_TOP, _HISTOGRAMS, _ROW = 50, 330, 27  # pixels: heights of the title, of the histograms and of a class's bar
_BAR, _REST, _LINE = "#{:02x}{:02x}{:02x}".format(*PALETTE[4]), "#8c8c8c", "#{:02x}{:02x}{:02x}".format(*PALETTE[0])
MEASURED, REFERENCE = "#005aa0", "#963c00"  # colours of panels in `rows_chart`


def statistics_chart(title: str, statistics: Statistics, class_names: Sequence[str], scaling: str) -> Image.Image:
    """Histograms of object sizes, with the suggested anchors, and of objects per image; a bar for each class.

    Sizes are in pixels of the network's input; ``scaling`` is a phrase on how images are scaled to it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, counts = _most_frequent(class_names, statistics.per_class)
    heights = (_HISTOGRAMS, 60 + _ROW * len(names))
    figure = Figure((CONTENT_WIDTH / _DPI, (_TOP + sum(heights)) / _DPI), dpi=_DPI, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(_TOP + heights[0], heights[1]))
    upper, lower = halves
    _write(
        upper.suptitle("", x=0.003, ha="left", fontsize=_points(TEXT + 2)), textwrap.fill(drawable(title, TEXT)[0], 160)
    )
    left, right = upper.subplots(1, 2)
    _draw_sizes(left, statistics, scaling)
    _draw_counts(right, statistics)
    _draw_classes(lower.subplots(), names, counts, rest=len(class_names) > _MOST_CLASSES)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return ImageOps.expand(drawn, GAP, PAPER)


def rows_chart(
    title: str, names: Sequence[str], panels: Sequence[tuple[str, str, Sequence[Sequence[float]]]]
) -> Figure:
    """Chart of named rows, one below the other, with panels (title, colour, values of each row) side by side.

    Each value is a hollow mark, the mean of a row a filled one, the bar one sample standard deviation to each side.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 4.4 * len(panels), 1.6 + 0.34 * len(names)), layout="constrained")
    figure.suptitle(title)
    for axes, (panel, colour, rows) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        axes.set_title(panel, fontsize="medium")
        axes.grid(axis="x", color="0.85")
        for place, values in enumerate(rows):
            axes.plot(values, [place] * len(values), "o", color=colour, markerfacecolor="none")
            if values:
                std = stdev(values) if len(values) > 1 else None
                axes.errorbar(fmean(values), place, xerr=std, fmt="o", color=colour)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _draw_sizes(axes: Axes, statistics: Statistics, scaling: str) -> None:
    from matplotlib.ticker import NullFormatter

    counts, edges = _log_bins(statistics.sides)
    anchors = statistics.anchor_sizes or []
    lines = ", ".join(f"{size:g}" for size in anchors) or "none, as there is no object"
    text = (
        f"Objects by size: root of the box's area, in pixels of the network's input\n({scaling}).\n"
        f"Lines: the suggested anchors, {lines}."
    )
    axes.set_xscale("log")
    _draw_histogram(axes, counts, edges, text)
    for size in anchors:
        axes.axvline(size, color="black", linewidth=4)
        axes.axvline(size, color=_LINE, linewidth=2)
    ticks = _log_ticks(edges[0], edges[-1])
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_counts(axes: Axes, statistics: Statistics) -> None:
    from matplotlib.ticker import MaxNLocator

    counts, borders = _integer_bins(statistics.per_image)
    text = (
        f"Images by number of objects: {statistics.per_image.mean():.1f} on average, "
        f"at most {int(statistics.per_image.max(initial=0))}.\n"
        f"Suggested model.box.max_detections: {statistics.max_detections}."
    )
    _draw_histogram(axes, counts, borders - 0.5, text)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))


def _draw_histogram(axes: Axes, counts: Integers, edges: NDArray[Any], text: str) -> None:
    from matplotlib.ticker import MaxNLocator

    highest = max(1, int(counts.max()))
    heights = np.where(counts > 0, np.maximum(counts, 0.012 * highest), 0)  # a single object is seen, too
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=_BAR, edgecolor="white", linewidth=1)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, highest * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    lines = [textwrap.fill(line, 88) for line in text.split("\n")]
    axes.set_title("\n".join(lines), loc="left", fontsize=_points(TEXT))
    _style(axes, "left", "bottom")


def _draw_classes(axes: Axes, names: Sequence[str], counts: Integers, rest: bool) -> None:
    colours = [_BAR] * (len(names) - rest) + [_REST] * rest
    bars = axes.barh(np.arange(len(names)), counts, height=0.7, color=colours)
    axes.bar_label(bars, padding=6, fontsize=_points(TEXT))
    axes.set_yticks(np.arange(len(names)), [drawable(name, TEXT)[0] for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        _write(label, name)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, max(1, int(counts.max(initial=0))) * 1.06)
    axes.set_xticks([])
    axes.set_title("Objects by class", loc="left", fontsize=_points(TEXT))
    _style(axes)
    axes.tick_params(axis="y", length=0)


def _style(axes: Axes, *spines: str) -> None:
    for name, spine in axes.spines.items():
        spine.set_visible(name in spines)
    axes.tick_params(labelsize=_points(TEXT))


def _points(pixels: float) -> float:
    return pixels * 72 / _DPI


def _write(label: Text, text: str) -> None:
    """Set a label's text, in a font that has its letters, and never as a formula."""
    from matplotlib.font_manager import FontProperties

    shown, font = drawable(text, TEXT, lines=True)
    label.set_text(shown)
    label.set_parse_math(False)
    if isinstance(font.path, str):
        label.set_fontproperties(FontProperties(fname=font.path, size=label.get_fontsize()))


def _most_frequent(names: Sequence[str], per_class: Integers) -> tuple[list[str], Integers]:
    """Class names and their numbers of objects, most first; classes beyond the first 29 of more than 30 together."""
    order = np.argsort(-per_class, kind="stable")
    shown = [names[k] if len(names[k]) <= _LONGEST_NAME else f"{names[k][:_LONGEST_NAME]}..." for k in order.tolist()]
    counts = per_class[order]
    if len(shown) > _MOST_CLASSES:
        kept = _MOST_CLASSES - 1
        shown = [*shown[:kept], f"{len(shown) - kept} other classes"]
        counts = np.append(counts[:kept], counts[kept:].sum())
    return shown, counts


def _log_bins(values: Doubles) -> tuple[Integers, Doubles]:
    """Counts ``(n,)`` in bins of equal ratio over all positive values, and their edges ``(n + 1,)``."""
    values = values[values > 0]
    low, high = (values.min(), values.max()) if values.size else (1.0, 2.0)
    edges = np.geomspace(low / 1.02, max(high, low * 1.5) * 1.02, _BINS + 1)
    return np.histogram(values, edges)[0], edges


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, more of each decade where the range is short."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    coarse, fine = ((1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
    for steps in (coarse, fine):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= 4:
            break
    return ticks


def _integer_bins(values: Integers) -> tuple[Integers, Integers]:
    """Counts in bins of equally many integers from 0, and the first integer of each bin and of the one after."""
    highest = int(values.max(initial=0))
    step = math.ceil((highest + 1) / _BINS)
    borders = np.arange(0, highest + step + 1, step)
    return np.histogram(values, borders)[0], borders
