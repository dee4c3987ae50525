"""Messages of the package on a terminal.

The modules of the package write to loggers below ``masklab`` and print nothing themselves.  A program that uses the
package chooses where they go, for example with ``logging.basicConfig(level="INFO")``; the command line uses
`terminal_messages`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _TerminalHandler(logging.Handler):
    """Informative messages as plain lines on stdout; warnings and errors on stderr, with the program's name."""

    def emit(self, record: logging.LogRecord) -> None:
        # The streams are looked up for each message, because a progress bar and tests replace them.
        if record.levelno >= logging.WARNING:
            print(f"masklab: {self.format(record)}", file=sys.stderr, flush=True)
        else:
            print(self.format(record), flush=True)


@contextmanager
def terminal_messages() -> Iterator[None]:
    """Write the package's messages of level INFO and above to the terminal while the context is open."""
    logger, handler = logging.getLogger("masklab"), _TerminalHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
