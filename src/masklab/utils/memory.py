"""Memory that cannot be had, in the words of each library."""

from __future__ import annotations

import errno

_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory")  # of PyTorch and of the system


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused; PyTorch raises a plain `RuntimeError` for it."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
