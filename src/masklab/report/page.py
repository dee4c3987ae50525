"""The page around the sections of a report: one HTML file with its styles and its script, and no other file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from masklab.report.markup import Html, joined, paragraph, shown, tag
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, file_to_write
from masklab.utils.versions import versions

# No page of this kind loads anything, whatever a name in it says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, subtitle: Any, sections: Sequence[tuple[str, str, Html]]) -> str:
    """A whole page; ``sections`` are (anchor, title, content), and links to them stand at the top."""
    head = joined(
        [
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", title),
            tag("style", Html(_part("style.css"))),
        ]
    )
    links = (tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in sections)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    body = joined(
        [
            tag("header", tag("h1", title), subtitle),
            tag("nav", tag("ul", *links), aria_label="Sections"),
            tag("main", *(tag("section", tag("h2", name), content, id=anchor) for anchor, name, content in sections)),
            tag("footer", paragraph(tag("span", f"Written {made} by masklab {versions()['masklab']}.", class_="soft"))),
            tag("dialog", tag("img", alt=""), tag("p"), id="large"),
            tag("script", Html(_part("script.js"))),
        ]
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _part(name: str) -> str:
    return (files("masklab.report") / name).read_text(encoding="utf-8")


def data_block(identifier: str, values: Any) -> Html:
    """Values for the script; nothing in them can end the element."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Html(text), type="application/json", id=identifier)


def page_to_write(path: str | Path) -> Path:
    """The path of a page to write later; creates its folder.

    Raises `InputError` for a name that a browser would not take for a page, and as `file_to_write` does.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"a report is an HTML file, and {path} is no name of one: name it {path}.html.")
    return file_to_write(path)


def write_page(path: str | Path, text: str) -> Path:
    """Write a page atomically; returns its path."""
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def note(*parts: Any) -> Html:
    """A remark that stands out, such as what is missing from a report and why."""
    return tag("p", *map(shown, parts), class_="note")
