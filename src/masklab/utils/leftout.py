"""Images that cannot be used, while the others go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masklab.utils.errors import InputError
from masklab.utils.failures import is_out_of_memory
from masklab.utils.words import counted

_log = logging.getLogger(__name__)


def reason_of(error: Exception) -> str | None:
    """Why an image cannot be used, in a sentence; None for an error of code."""
    if isinstance(error, InputError):
        return str(error)
    return "it needs more memory than there is: shrink it." if is_out_of_memory(error) else None


class LeftOut:
    """The images that a verb left out, each of which it named in a warning."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    @contextmanager
    def skipping(self, path: Path) -> Iterator[None]:
        """Leave the image ``path`` out if it cannot be read, or takes more memory than there is; errors of code remain."""
        try:
            yield
        except Exception as error:
            reason = reason_of(error)
            if reason is None:
                if hasattr(error, "add_note"):  # from Python 3.11 on
                    error.add_note(f"The image is {path}.")
                raise
            _log.warning("%s", reason if str(path) in reason else f"{path}: {reason}")
            self.paths.append(path)

    def refuse(self, total: int) -> None:
        """Raise `InputError` if any of ``total`` images was left out; to be called when all else is written."""
        if self.paths:
            raise InputError(
                f"{len(self.paths)} of {counted(total, 'image')} could not be used, for the reasons above: correct or "
                "replace them."
            )
