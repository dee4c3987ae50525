"""Progress bars on a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from masklab.utils.extras import installed

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

_lock = threading.RLock()  # a signal may ask for it again in the thread that has it
_shown: list[Progress] = []


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterable[T]:
    """Iterate over the items with a progress bar and the time left, removed at the end.

    Bars inside others stand below them; a terminal shows one group of bars at a time.  Without a bar where stdout is not a
    terminal, or where rich is not installed, as on a machine that only predicts with exported models.
    """
    on_terminal = bool(_shown) or sys.stdout.isatty()  # while bars are shown, rich stands in for stdout
    return _tracked(items, description, total) if on_terminal and installed("rich") else items


def _tracked(items: Iterable[T], description: str, total: float | None) -> Iterator[T]:
    from rich.progress import Progress

    if total is None and isinstance(items, Sized):
        total = len(items)
    with _lock:
        progress = _shown[0] if _shown else Progress(transient=True)
        if not _shown:
            progress.start()
        _shown.append(progress)
        task = progress.add_task(description, total=total)
    try:
        for item in items:
            yield item
            progress.advance(task)
    finally:
        with _lock:
            progress.remove_task(task)
            _shown.remove(progress)
            if not _shown:
                progress.stop()
