"""Messages of the package on a terminal.

The modules of the package write to loggers below ``masklab`` and print nothing themselves.  A program that uses the
package chooses where they go, for example with ``logging.basicConfig(level="INFO")``; the command line uses
`terminal_messages`.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Control characters, which file names may hold and terminals obey, and how they are written instead."""


class _TerminalHandler(logging.Handler):
    """Informative messages as plain lines on stdout; warnings and errors on stderr, with the program's name."""

    def emit(self, record: logging.LogRecord) -> None:
        # The streams are looked up for each message, because a progress bar and tests replace them.
        if record.levelno >= logging.WARNING:
            print(f"masklab: {self.format(record)}".translate(_CONTROL), file=sys.stderr, flush=True)
        else:
            print(self.format(record).translate(_CONTROL), flush=True)


@contextmanager
def any_encoding() -> Iterator[None]:
    """Letters that the terminal's encoding lacks are written as ``\\u7ec6`` while the context is open.

    Otherwise a class or file name beyond ASCII would end the program on a terminal of another code page.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    try:
        for stream in streams:
            stream.reconfigure(errors="backslashreplace")
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


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
