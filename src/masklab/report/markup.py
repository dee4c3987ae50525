"""HTML from Python: text is escaped unless it is `Html`, so that names from data cannot become markup."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


_DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))  # would reorder the text around
DASH = "\u2013"
"""What stands for a figure that was not measured."""
_EMPTY = frozenset({"img", "input", "meta", "br"})  # tags without content


def shown(value: Any) -> Html:
    """A value as markup: `Html` as it is, anything else as escaped text, without what is no letter of a text."""
    if isinstance(value, Html):
        return value
    return Html(html.escape("".join("\ufffd" if _is_odd(c) else c for c in str(value))))


def _is_odd(letter: str) -> bool:
    """Control characters, half pairs that UTF-8 cannot hold, and marks that turn the direction of writing."""
    kind = unicodedata.category(letter)
    return (kind == "Cc" and letter not in "\n\t") or kind == "Cs" or letter in _DIRECTIONS


def named(value: Any) -> Html:
    """A name from data, whose direction of writing stays its own."""
    return tag("bdi", value)


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element; of an attribute's name a final underscore is dropped and others are hyphens, None leaves it out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{shown(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[Any]) -> Html:
    """Parts one after the other."""
    return Html("".join(shown(part) for part in parts))


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], caption: Any = None, class_: str | None = None) -> Html:
    """A table that scrolls sideways where it is too wide, its caption below; the first cell of a row is its header.

    A cell that is a ``td`` element stays one.
    """
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    body = (tag("tr", tag("th", row[0], scope="row"), *map(_cell, row[1:])) for row in rows)
    scrolled = tag("div", tag("table", top, tag("tbody", *body), class_=class_), class_="wide")
    return joined([scrolled, tag("p", caption, class_="soft")]) if caption else scrolled


def _cell(value: Any) -> Html:
    return value if isinstance(value, Html) and value.startswith("<td") else tag("td", value)


def paragraph(*parts: Any) -> Html:
    """A paragraph."""
    return tag("p", *parts)


def figure(content: Html, caption: Any, **attributes: Any) -> Html:
    """A figure with its caption."""
    return tag("figure", content, tag("figcaption", caption), **attributes)


def number(value: float | None, digits: int = 3) -> str:
    """A figure of a table; a dash for what was not measured."""
    return DASH if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign."""
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "\u2212")
