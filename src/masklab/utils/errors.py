"""Errors of bad input and of failed work."""

from __future__ import annotations


class InputError(Exception):
    """Input that cannot be used: a file, a field or an argument.

    The message is one sentence that names the file or field and says what to do next.
    The command line prints it and exits with code 2; from Python it is an ordinary exception.  Characters that cannot be
    printed, which a damaged or hostile file brings into it, are shown escaped.
    """

    def __init__(self, message: str) -> None:
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(shown))


class FailedRunsError(RuntimeError):
    """Some of several runs failed and the others continued; the message names the failed ones."""


class FaultyDataError(RuntimeError):
    """A data set has faults that stop training or are skipped by it; the message counts them."""


class BrokenLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the step, the loss and the images."""


class MachineError(RuntimeError):
    """The machine refused what the work needs, such as room on a disk or memory; the message says what to do next."""
