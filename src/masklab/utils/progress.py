"""A progress bar where somebody watches, and nothing where the output goes to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

import rich.progress

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterable[T]:
    """The items, with a bar on the terminal while they are gone through; it is removed at the end."""
    return rich.progress.track(items, description, total, transient=True, disable=not sys.stdout.isatty())
