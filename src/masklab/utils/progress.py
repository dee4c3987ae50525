"""Progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

import rich.progress

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterable[T]:
    """Iterate over the items with a progress bar, removed at the end; without one where stdout is not a terminal."""
    return rich.progress.track(items, description, total, transient=True, disable=not sys.stdout.isatty())
