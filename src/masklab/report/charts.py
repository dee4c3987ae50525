"""Curves as SVG that stands in a page: drawn with matplotlib, in the page's own text colour and fonts.

No text from data is drawn: names stand in the legend of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from masklab.report.markup import Html, figure, joined, named, tag
from masklab.results.colours import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#010203"  # stands for the page's text colour
_COLOURS = tuple("#{:02x}{:02x}{:02x}".format(*PALETTE[k]) for k in (4, 5, 2, 0, 6, 1, 3))
_STYLES = ("-", "--", ":", "-.")  # of the next classes of the same colour
_MOST_NAMED = 2 * len(_COLOURS)  # lines with a colour of their own; further ones are grey
_GREY = "#8c8c8c"
_MOST_POINTS = 400  # of a line


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, its points ``x`` and ``y``, and whether it is the one to look at first."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    main: bool = False


def line_chart(
    identifier: str,
    caption: Any,
    lines: Sequence[Line],
    across: str,
    up: str,
    unit: bool = False,
    marks: bool = False,
    upright: float | None = None,
    diagonal: bool = False,
    log: bool = False,
) -> Html:
    """A chart of lines with its legend; "" without lines.

    ``unit`` makes the axes 0 to 1, ``marks`` sets a dot on each point, ``upright`` is where an upright line stands,
    ``log`` makes the upward axis logarithmic where all values are above 0.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return Html("")
    styles = _styles(lines)
    drawing, axes = _axes(across, up, unit)
    for line, (colour, style) in zip(lines, styles, strict=True):
        x, y = _thinned(line.x), _thinned(line.y)
        axes.plot(
            x,
            y,
            color=colour,
            linestyle=style,
            linewidth=2.4 if line.main else 1.3,
            zorder=3 if line.main else 2,
            marker="o" if marks or len(x) == 1 else None,
            markersize=4,
        )
    if diagonal:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":", alpha=0.6)
    if upright is not None:
        axes.axvline(upright, color=_INK, linewidth=1, linestyle="--", alpha=0.7)
    if log and all(value > 0 for line in lines for value in line.y):
        axes.set_yscale("log")
    return figure(_svg(drawing, identifier), joined([_legend(lines, styles), caption]))


def _styles(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Colour and pattern of each line."""
    found, place = [], 0
    for line in lines:
        if line.main:
            found.append((_INK, "-"))
            continue
        used = place < _MOST_NAMED
        found.append((_COLOURS[place % len(_COLOURS)], _STYLES[place // len(_COLOURS)]) if used else (_GREY, "-"))
        place += 1
    return found


def _legend(lines: Sequence[Line], styles: Sequence[tuple[str, str]]) -> Html:
    if len(lines) == 1:
        return Html("")
    entries, rest = [], 0
    for line, (colour, style) in zip(lines, styles, strict=True):
        if colour == _GREY:
            rest += 1
            continue
        shown = "var(--ink)" if colour == _INK else colour
        kind = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}[style]
        entries.append(tag("li", tag("i", style=f"border-top-color:{shown};border-top-style:{kind}"), named(line.name)))
    if rest:
        entries.append(tag("li", tag("i", style=f"border-top-color:{_GREY}"), f"{rest} more"))
    return tag("ul", *entries, class_="key")


def _thinned(values: Sequence[float]) -> list[float]:
    """At most `_MOST_POINTS` values, evenly spaced, the first and the last among them."""
    if len(values) <= _MOST_POINTS:
        return [float(value) for value in values]
    last = len(values) - 1
    return [float(values[round(k * last / (_MOST_POINTS - 1))]) for k in range(_MOST_POINTS)]


def _axes(across: str, up: str, unit: bool) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5.2, 3.3), layout="constrained")
    drawing.patch.set_alpha(0)
    axes = drawing.subplots()
    axes.patch.set_alpha(0)
    axes.set_xlabel(across, color=_INK)
    axes.set_ylabel(up, color=_INK)
    axes.tick_params(which="both", colors=_INK, labelsize=9)
    axes.grid(color=_INK, alpha=0.13, linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_alpha(0.5)
        spine.set_visible(side in ("left", "bottom"))
    if unit:
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
    return drawing, axes


def _svg(drawing: Any, identifier: str) -> Html:
    """The drawing as an element of the page; ids within it begin with ``identifier``."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        FigureCanvasSVG(drawing).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{identifier}-", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = text.replace(_INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)
    # text without a colour of its own, and numbers on the axes
    return Html(text.replace("<svg ", '<svg fill="currentColor" ', 1))
