"""File of what a check has done, so that it can be stopped and go on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

from masklab.datasets.check.work import BLOCK, Work, read_block
from masklab.utils.files import atomic_write
from masklab.utils.versions import versions

_SECONDS = 20.0  # between two writings of the file

_log = logging.getLogger(__name__)


class Progress:
    """The blocks of images that have been checked, by split, written to ``path`` from time to time; None keeps none.

    The file has two lines for each split, its name and fingerprint and the number of its blocks, and a line for each
    block.  A file that is damaged, or of a data set that has changed, is not used.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._splits = {} if path is None else _read(path)
        self._done: dict[str, tuple[str, list[str]]] = {}
        self._written = time.monotonic()

    def begin(self, split: str, work: Work) -> list[str]:
        """The blocks of a split that are done."""
        if self.path is None:
            return []
        fingerprint = _fingerprint(work)
        before, lines = self._splits.pop(split, ("", []))
        if before and before != fingerprint:
            _log.warning(f"{split} has changed since the check was stopped: it begins anew")
        kept = list(lines) if before == fingerprint else []
        if kept:
            _log.info(f"{split}: the check goes on after {min(len(kept) * BLOCK, len(work.images))} images")
        self._done[split] = fingerprint, kept
        return list(kept)

    def add(self, split: str, line: str) -> None:
        """Take a block that is done."""
        if self.path is not None:
            self._done[split][1].append(line)
            if time.monotonic() - self._written > _SECONDS:
                self.write()

    def write(self) -> None:
        """Write the file, if there is anything to write."""
        if self.path is None or not (self._splits or self._done):
            return
        with atomic_write(self.path) as temporary, open(temporary, "w", encoding="ascii") as file:
            for split, (fingerprint, lines) in (self._splits | self._done).items():
                for line in (json.dumps([split, fingerprint, len(lines)]), *lines):
                    file.write(line + "\n")
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file, as the check is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, tuple[str, list[str]]]:
    """The fingerprint and the blocks of each split; of none where the file cannot be read."""
    splits: dict[str, tuple[str, list[str]]] = {}
    try:
        lines = iter(path.read_text(encoding="ascii").splitlines())
        for line in lines:
            name, fingerprint, count = json.loads(line)
            own = [next(lines) for _ in range(count)]
            for block in own:
                read_block(block)
            splits[name] = fingerprint, own
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, StopIteration, RuntimeError, RecursionError):
        _log.warning(f"{path} is damaged: the check begins anew")
        return {}
    return splits


def _fingerprint(work: Work) -> str:
    """A digest of what a check reads: annotations, classes, and the names, sizes and times of the images."""
    digest = hashlib.blake2b(f"{versions()} {work.labels}".encode("utf-8", "surrogatepass"), digest_size=16)
    for text in work.annotations.texts():
        digest.update(text + b"\n")
    for image in work.images:
        try:
            status = os.stat(image.path)
            version = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            version = "missing"
        digest.update(f"{image.image_id} {image.path} {image.size} {version}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
