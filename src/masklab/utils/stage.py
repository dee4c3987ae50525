"""A stage of a pipeline: a thread that does one piece of work after another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Stage(Generic[T, R]):
    """A thread that calls ``work`` on each item that it is given, in order, while other threads go on.

    One thread gives items and takes results; ``waiting`` counts those given and not yet taken.  After an error of
    ``work`` no other item is worked on.  Signals may raise in the thread that uses a stage, at any point: it holds no lock
    there, so that the stage can always be closed.  ``begin`` is called in the thread first.
    """

    def __init__(self, work: Callable[[T], R], begin: Callable[[], object] = bool) -> None:
        self.waiting = 0
        self._work, self._begin = work, begin
        self._closed = False
        self._given: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._running = True
        threading.Thread(target=self._run, name=getattr(work, "__qualname__", None), daemon=True).start()

    def give(self, item: T) -> None:
        """Have an item worked on after those before it."""
        self.waiting += 1
        self._given.put(item)

    def take(self) -> R:
        """The result of the first item that is not taken yet, once it is there; raises what its work raised."""
        result, error = self._done.get()
        self.waiting -= 1
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread after the item it is at; those behind it are dropped.

        A signal does not cut that item short: what it raises is raised when the thread has ended.
        """
        self._closed = True
        self._given.put(None)
        stop: KeyboardInterrupt | None = None
        while self._running:
            try:
                self._ended.get()  # a signal in `Thread.join` makes Python 3.11 take a thread that runs for one that ended
            except KeyboardInterrupt as asked:
                stop = asked
        if stop is not None:
            raise stop

    def _run(self) -> None:
        try:
            self._work_on_all()
        finally:
            self._running = False
            self._ended.put(None)

    def _work_on_all(self) -> None:
        error: BaseException | None = None
        self._begin()
        while error is None:
            item = self._given.get()
            if self._closed:
                return
            result = None
            try:
                result = self._work(item)
            except BaseException as raised:  # raised again in the thread that takes it
                error = raised
            self._done.put((result, error))
            del item, result  # else kept until the next one comes
