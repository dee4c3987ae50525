"""How often items of work were begun; a module of its own, as the process that counts needs no model."""

from __future__ import annotations

from collections import Counter


class Begun:
    """Counts how often each item is begun, in a process that outlives the workers."""

    def __init__(self) -> None:
        self._times: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """How often an item was begun, with this time."""
        self._times[number] += 1
        return self._times[number]
