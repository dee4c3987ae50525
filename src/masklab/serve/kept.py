"""Results that are kept for a while, with their images, so that the page can ask for more of them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import NamedTuple

from masklab.results.instances import Instances
from masklab.serve.refusals import Refusal


class Kept(NamedTuple):
    """What was found in an image, called ``name`` by its sender, that lies at ``path``."""

    key: str
    path: Path
    name: str
    found: Instances


def new_key() -> str:
    """A key that cannot be guessed."""
    return secrets.token_urlsafe(16)


class KeptResults:
    """The latest results: at most ``most`` of them, and files of ``bytes`` together; older ones are removed."""

    def __init__(self, most: int, bytes: int) -> None:
        self._most, self._bytes = most, bytes
        self._results: dict[str, Kept] = {}

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def add(self, kept: Kept) -> None:
        """Keep a result and its image, whose file is removed with it."""
        self._results[kept.key] = kept
        while len(self._results) > 1 and (len(self._results) > self._most or self._size() > self._bytes):
            self.remove(next(iter(self._results)))

    def get(self, key: str) -> Kept:
        """The result of a key; `Refusal` where it is not kept any more."""
        kept = self._results.get(key)
        if kept is None:
            raise Refusal(404, "this result is not kept, or not any more: send the image again.")
        self._results[key] = self._results.pop(key)  # the latest that was used
        return kept

    def remove(self, key: str) -> None:
        """Forget a result; a key that is unknown is nothing to do."""
        kept = self._results.pop(key, None)
        if kept is not None:
            kept.path.unlink(missing_ok=True)

    def _size(self) -> int:
        return sum(kept.path.stat().st_size for kept in self._results.values())
