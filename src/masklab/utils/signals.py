"""Signals that ask the program to stop: Ctrl-C, a scheduler's SIGTERM, and a terminal that is closed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, NoReturn

_ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop; ``code`` is the exit code by which shells know it, 128 and its number."""

    def __init__(self, message: str = "", code: int = 128 + signal.SIGINT) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Stopped` while the context is open.

    Work is undone as after any exception, such as files that are half written.  Code in C may put an error of its own in
    the place of `Stopped`; here it becomes `Stopped` again.  Where Python can raise nothing, as in ``__del__`` and at a
    fork, the signal is sent once more.  A process that was forked meanwhile ends without a word.  A signal that is ignored, as ``nohup`` asks for, or that a
    program handles itself is left as it is.  Only the main thread can change signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[Stopped] = []
    process, report = os.getpid(), sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != process:
            os._exit(0)
        told.append(Stopped(code=128 + number))
        raise told[-1]

    def stop_again(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Stopped):
            report(lost)
            return
        timer = threading.Timer(0.1, os.kill, (process, lost.exc_value.code - 128))
        timer.daemon = True
        timer.start()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ASKING)}
    before = {number: way for number, way in before.items() if way in (signal.SIG_DFL, signal.default_int_handler)}
    try:
        for number in before:
            signal.signal(number, stop)
        sys.unraisablehook = stop_again
        yield
    except Exception:
        if told:
            raise told[-1] from None
        raise
    finally:
        sys.unraisablehook = report
        for number, way in before.items():
            signal.signal(number, way)


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code after a signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return stop.code if isinstance(stop, Stopped) else 128 + signal.SIGINT


def follow_parent(answer: Callable[..., object] | signal.Handlers = signal.SIG_IGN) -> None:
    """Let this process, which another one started to share its work, end soon after its parent, however that ends.

    Terminals and schedulers send a signal to all processes at once; the parent alone says what it means, and this one's
    ``answer`` is to ignore it or to end without a word.  A parent that is killed can tell its processes nothing.
    """
    for number in (signal.SIGINT, *_ASKING):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, answer)
    process, report = multiprocessing.parent_process(), sys.excepthook
    if process is None:
        return
    threading.Thread(target=_end_after, args=(process.sentinel, os.getppid()), daemon=True).start()

    def report_later(*error: Any) -> None:  # of other threads; this process ends first if it lost its parent
        time.sleep(3)
        report(*error)

    sys.excepthook = report_later


def _end_after(sentinel: int, parent: int) -> NoReturn:
    while not wait([sentinel], 1) and os.getppid() == parent:  # other processes may hold the pipe of the sentinel
        pass
    os._exit(1)
