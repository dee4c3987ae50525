"""Memory that there is, and memory that was refused, in the words of each library."""

from __future__ import annotations

import errno
from pathlib import Path

_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory")  # of PyTorch and of the system


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused; PyTorch raises a plain `RuntimeError` for it."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def available_memory() -> int | None:
    """The bytes that this process may still take without swapping, on Linux; None where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
