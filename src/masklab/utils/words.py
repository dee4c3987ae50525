"""Numbers and values in messages: plurals, values as a file has them, names that were meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

_LONGEST_VALUE = 60  # letters of a value in a message


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, such as "1 image" and "2 images"; ``plural`` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def as_written(value: Any) -> str:
    """A value as a JSON or YAML file has it, text in quotes: ``'1'``, ``1``, ``true``, ``null``; cut where it is long."""
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ..."


def listed(names: Iterable[Any], most: int = 5) -> str:
    """The first names, separated by commas, and how many more there are."""
    words = [str(name) for name in names]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, None where none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)
