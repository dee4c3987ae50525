"""Threads that work on jobs at the same time, and a bounded number of jobs that wait for them.

Images are at the network at the same time, each in a thread, but not joined into batches: the sums of a convolution take
another order in a batch of another size, so that an answer would depend on what others ask for at that moment, and group
norm keeps images of different sizes apart anyway.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from masklab.inference.finder import ImageThreads
from masklab.serve.refusals import Refusal

T = TypeVar("T")
_LATE = "the work took longer than the {:g} seconds that this server allows: send a smaller image."
_STOPPING = "the server is stopping: try again when it is back."
_WEIGHT = 0.2  # of the latest job in the mean of their times
_ONE = ImageThreads()
_LOOK = 0.5  # seconds after which a job that waits for its turn asks whether it is still wanted


class Order:
    """How long a job is wanted: until the time limit, or until its client has gone."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ends, self.given_up = seconds, time.monotonic() + seconds, False

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return max(0.0, self.ends - time.monotonic())

    def check(self) -> None:
        """Raise `Refusal` if nobody waits for the job any more; long jobs ask now and then."""
        if self.given_up or not self.left:
            raise self.late()

    def late(self) -> Refusal:
        """The answer to a job that took too long."""
        return Refusal(503, _LATE.format(self.seconds))


class _Turns:
    """Which jobs run: several among others, or one alone, which waits until the others have finished and goes before new
    ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running, self._wanting_alone = 0, 0
        self._one_alone = False

    @contextmanager
    def among_others(self, order: Order) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._one_alone and not self._wanting_alone, order)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, order: Order) -> Iterator[None]:
        """For a job that runs among others."""
        with self._changed:
            self._wanting_alone += 1
            self._running -= 1
            self._changed.notify_all()
            try:
                self._wait(lambda: not self._running, order)
                self._one_alone = True
            finally:
                self._wanting_alone -= 1
                self._running += 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._one_alone = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool], order: Order) -> None:
        while not free():
            order.check()
            self._changed.wait(_LOOK)


class Worker:
    """As many threads as images are predicted in at the same time; ``waiting`` is how many jobs may wait for them."""

    def __init__(self, name: str, waiting: int, threads: ImageThreads = _ONE) -> None:
        self._pool = ThreadPoolExecutor(threads.number, thread_name_prefix=name, initializer=threads.begin)
        self._threads, self._turns = threads, _Turns()
        self._most, self._unfinished, self._mean = waiting + threads.number, 0, 1.0
        self._lock = threading.Lock()
        self.stopping = False

    @property
    def unfinished(self) -> int:
        """Jobs that wait or are worked on."""
        return self._unfinished

    def check(self) -> None:
        """Raise `Refusal` where no other job is taken now."""
        if self.stopping:
            raise Refusal(503, _STOPPING)
        if self._unfinished >= self._most:
            seconds = max(1, math.ceil(self._mean / self._threads.number))
            raise Refusal(429, f"{self._unfinished} requests are before this one: try again in {seconds} s.", seconds)

    async def run(self, work: Callable[[], T], order: Order) -> T:
        """What ``work`` returns, when its turn has come; raises `Refusal` as `check` does, and after the time limit."""
        self.check()
        with self._lock:
            self._unfinished += 1
        future = self._pool.submit(self._work, work, order)
        future.add_done_callback(self._finished)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), order.left)
        except (asyncio.TimeoutError, asyncio.CancelledError) as stop:
            order.given_up = True
            if isinstance(stop, asyncio.TimeoutError):
                raise order.late() from None
            if self.stopping:
                raise Refusal(503, _STOPPING) from None
            raise

    def stop(self) -> None:
        """Refuse the jobs that wait, and all others from now on; the one that is worked on is finished."""
        self.stopping = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def alone(self, order: Order) -> Iterator[None]:
        """Within a job: no other job runs in here, and it has the processors of all; raises `Refusal` after its time limit."""
        with self._turns.alone(order):
            self._threads.alone()
            try:
                yield
            finally:
                self._threads.begin()

    def _work(self, work: Callable[[], T], order: Order) -> T:
        with self._turns.among_others(order):
            order.check()
            began = time.monotonic()
            try:
                return work()
            finally:
                self._mean += _WEIGHT * (time.monotonic() - began - self._mean)

    def _finished(self, future: Future[Any]) -> None:
        with self._lock:
            self._unfinished -= 1
