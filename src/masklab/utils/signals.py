"""Signals that ask the program to stop: Ctrl-C, a scheduler's SIGTERM, and a terminal that is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop; ``code`` is the exit code by which shells know it, 128 and its number."""

    def __init__(self, message: str = "", code: int = 128 + signal.SIGINT) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped` while the context is open, as Ctrl-C raises `KeyboardInterrupt`.

    Work is undone as after any exception, such as files that are half written.  A signal that is ignored, as ``nohup``
    asks for, or that a program handles itself is left as it is.  Only the main thread can change signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    changed = [number for number in _ASKING if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in changed:
            signal.signal(number, _stop)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code after a signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return stop.code if isinstance(stop, Stopped) else 128 + signal.SIGINT


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(code=128 + number)
