"""Text in pictures: a font that has its letters, and a way to write those that no font has."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

from masklab.utils.extras import installed

_NEEDED = frozenset(map(ord, "U+0123456789ABCDEF "))  # of every font that is used, for letters that it lacks
_BLANK = ("lastresort", "blank")  # fonts that have every letter, as a box or as nothing
_LIKELY = ("noto", "cjk", "unicode", "droid", "wqy", "ming", "song", "hei", "gothic", "meiryo", "yahei", "malgun")
_SELECTORS = range(0xFE00, 0xFE10)  # variants of the letter before
Font = Any
"""A font of Pillow, with ``getlength``; its ``path`` is a name for a font found on the system."""


def default_font(size: int) -> Font:
    """The font that comes with Pillow; it has the letters of English."""
    return ImageFont.load_default(size=size)


def drawable(text: str, size: int, lines: bool = False) -> tuple[str, Font]:
    """``text`` as it can be drawn, and a font of ``size`` pixels that has its letters.

    The font is Pillow's, or else DejaVu Sans, which comes with matplotlib (Latin, Greek, Cyrillic), or else one of the
    system; searching those takes a moment, once.  Without matplotlib, which reads what letters a font has, only the first
    is used.  Letters that the best of them lacks are written as ``U+7EC6``, and so are control characters.  Line breaks stay
    only with ``lines``.
    """
    shown = _printable(text, lines)
    wanted = frozenset(map(ord, shown)) - {ord("\n")}
    best: tuple[int, str | None] = (-1, None)
    for path in _fonts():
        has = _letters(path)
        covered = len(wanted & has)
        if has >= _NEEDED and covered > best[0] and _opened(path, size) is not None:
            best = (covered, path)
        if best[0] == len(wanted):
            break
    has = _letters(best[1])
    written = "".join(letter if ord(letter) in has or letter == "\n" else _code(letter) for letter in shown)
    return written, _opened(best[1], size)


def _printable(text: str, lines: bool) -> str:
    """Text without invisible marks, accents joined with their letters, and what cannot be seen as its code."""
    parts = []
    for letter in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(letter)
        if letter.isspace():
            parts.append("\n" if lines and letter == "\n" else " ")
        elif kind == "Cf" or ord(letter) in _SELECTORS:
            continue
        else:
            parts.append(_code(letter) if kind[0] == "C" else letter)
    return "".join(parts)


def _code(letter: str) -> str:
    return f"U+{ord(letter):04X}"


def _fonts() -> Iterator[str | None]:
    """Fonts in the order in which they are tried; None is Pillow's own."""
    yield None
    if not installed("matplotlib"):
        return
    import matplotlib

    yield str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    yield from _system_fonts()


@cache
def _system_fonts() -> tuple[str, ...]:
    """Font files of the system, those that are likely to have many letters first."""
    from matplotlib.font_manager import findSystemFonts

    names = {path: Path(path).name.lower() for path in findSystemFonts()}
    usable = [path for path, name in names.items() if not any(word in name for word in _BLANK)]
    return tuple(sorted(usable, key=lambda path: (not any(word in names[path] for word in _LIKELY), path)))


@cache
def _letters(path: str | None) -> frozenset[int]:
    """The code points that a font has; none if it cannot be read.  Without matplotlib, those of English."""
    if not installed("matplotlib"):
        return frozenset(range(0x20, 0x7F)) if path is None else frozenset()
    from matplotlib.ft2font import FT2Font

    source: Any = io.BytesIO(default_font(10).font_bytes) if path is None else path
    try:
        return frozenset(FT2Font(source).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def _opened(path: str | None, size: int) -> Font | None:
    """A font of ``size`` pixels; None if it has none of this size, such as one of bitmaps."""
    if path is None:
        return default_font(size)
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError):
        return None
