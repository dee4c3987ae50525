"""Messages of the package on a terminal.

The modules of the package write to loggers below ``masklab`` and print nothing themselves.  A program that uses the
package chooses where they go, for example with ``logging.basicConfig(level="INFO")``; the command line uses
`terminal_messages`.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masklab.utils.failures import machine_error

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Control characters, which file names may hold and terminals obey, and how they are written instead."""

_LIBRARIES = {"PIL": "Pillow, which reads images"}
_HARMLESS = (
    r"Image size \(\d+ pixels\) exceeds limit",  # of Pillow; masklab has its own limits
    "Palette images with Transparency",  # of Pillow, about alpha, which is left out
)


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
    """Write the package's messages of level INFO and above to the terminal while the context is open.

    So are warnings of libraries, in one line without the place in their code.  A thread that the machine refuses
    something is silent: whoever waits for it raises the same error.
    """
    logger, handler = logging.getLogger("masklab"), _TerminalHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    hook, threading.excepthook = threading.excepthook, _of_thread
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            for harmless in _HARMLESS:
                warnings.filterwarnings("ignore", harmless)
            yield
    finally:
        threading.excepthook = hook
        logger.removeHandler(handler)
        logger.setLevel(level)


def _of_thread(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_value is None or machine_error(raised.exc_value) is None:
        threading.__excepthook__(raised)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    library = Path(filename).parent.name
    logging.getLogger("masklab").warning("%s: %s", _LIBRARIES.get(library, library), " ".join(str(message).split()))
