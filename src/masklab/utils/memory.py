"""Memory that there is, and that is given back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


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


def release_freed() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc).

    In a long row of large and small allocations the small ones that stay keep it from doing so by itself, and the process
    grows though it holds nothing more.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
