"""One thread that does one job after another, and a bounded number of jobs that wait for it.

Images are not joined into batches: the sums of a convolution take another order in a batch of another size, so that an
answer would depend on what others ask for at that moment, and group norm keeps images of different sizes apart anyway.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from masklab.serve.refusals import Refusal

T = TypeVar("T")
_LATE = "the work took longer than the {:g} seconds that this server allows: send a smaller image."
_STOPPING = "the server is stopping: try again when it is back."
_WEIGHT = 0.2  # of the latest job in the mean of their times


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


class Worker:
    """A thread; ``waiting`` is how many jobs may wait while it works on one."""

    def __init__(self, name: str, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._most, self._unfinished, self._mean = waiting + 1, 0, 1.0
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
            seconds = max(1, math.ceil(self._mean))
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

    def _work(self, work: Callable[[], T], order: Order) -> T:
        order.check()
        began = time.monotonic()
        try:
            return work()
        finally:
            self._mean += _WEIGHT * (time.monotonic() - began - self._mean)

    def _finished(self, future: Future[Any]) -> None:
        with self._lock:
            self._unfinished -= 1
