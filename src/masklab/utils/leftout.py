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
            if not isinstance(error, InputError) and not is_out_of_memory(error):
                if hasattr(error, "add_note"):  # from Python 3.11 on
                    error.add_note(f"The image is {path}.")
                raise
            reason = str(error) if isinstance(error, InputError) else "it needs more memory than there is: shrink it."
            _log.warning("%s", reason if str(path) in reason else f"{path}: {reason}")
            self.paths.append(path)

    def refuse(self, total: int) -> None:
        """Raise `InputError` if any of ``total`` images was left out; to be called when all else is written."""
        if self.paths:
            raise InputError(
                f"{len(self.paths)} of {counted(total, 'image')} could not be used, for the reasons above: correct or "
                "replace them."
            )
