"""The one error that bad input raises, a sentence that names the file or field and the next step; and failed work."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file or field and says what to do next.
    The command line prints it and exits with code 2; from Python it is an ordinary exception.
    """


class FailedRunsError(RuntimeError):
    """Some of several runs failed while the others went on: the message names them."""


class FaultyDataError(RuntimeError):
    """A data set has faults that training would stop at or skip: the message counts them."""


class BrokenLossError(RuntimeError):
    """A loss became NaN or infinite: the message names the step, the loss and the images."""
