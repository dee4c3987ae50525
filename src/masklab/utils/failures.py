"""What a machine refuses - room on a disk, rights, memory - as a sentence with the next step."""

from __future__ import annotations

import errno
import re

from masklab.utils.errors import MachineError

_AGAIN = "run the same command again"
_ADVICE = {
    errno.ENOSPC: f"make room on that disk, then {_AGAIN}",
    getattr(errno, "EDQUOT", errno.ENOSPC): f"make room within your quota, then {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f), then {_AGAIN}",
    errno.EACCES: "change its rights, or name another place",
    errno.EPERM: "change its rights, or name another place",
    errno.EROFS: "name a place on a disk that can be written to",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.EMFILE: f"raise the limit of open files (ulimit -n), then {_AGAIN}",
    errno.ENFILE: f"close other programs, then {_AGAIN}",
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, getattr(errno, "ESTALE", errno.ENOENT)),
        "it or its folder was removed or moved meanwhile; bring it back, or name another place",
    ),
}
_NO_MEMORY = re.compile(  # in the errors of torch, NumPy, CUDA and oneDNN
    r".*((allocate|not enough|out of|insufficient)\b.{0,30}\bmemory|bad_alloc|MemoryError|create a primitive).*",
    re.IGNORECASE,
)
_LOST_WORKER = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal).*")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_OF_WRITING = (*_FULL, errno.EFBIG, errno.EROFS)
_OF_ITS_NAME = (errno.ENAMETOOLONG, errno.EINVAL, getattr(errno, "EILSEQ", errno.EINVAL))


def machine_error(error: BaseException) -> MachineError | None:
    """A `MachineError` that says what the disk or the memory refused and what to do; None for any other error.

    It is the one place that knows how Python, torch and the libraries tell of it.  An error that was raised from
    another one is what that one is.
    """
    if isinstance(error, MachineError):
        return error
    if error.__cause__ is not None:
        return machine_error(error.__cause__)
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        return _of_file(error)
    text = str(error)
    lost = _LOST_WORKER.search(text) if isinstance(error, RuntimeError) else None
    if lost is not None:
        return MachineError(
            f"a process that loads images was ended by the system ({_short(lost[0])}), as a rule for want of memory: set "
            f"train.workers to a smaller number, then {_AGAIN}."
        )
    if is_out_of_memory(error):
        found = _NO_MEMORY.search(text)
        return _of_memory(found[0] if found else text)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused; PyTorch raises a plain `RuntimeError` for it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def disk_is_full(error: OSError) -> bool:
    """Whether there is no room to write, wherever on that disk."""
    return error.errno in _FULL


def only_this_file(error: OSError) -> bool:
    """Whether a file could not be written because of its name, so that others can."""
    return error.errno in _OF_ITS_NAME


def _of_file(error: OSError) -> MachineError | None:
    file = error.filename2 or error.filename
    if error.errno is None and file is None:
        return None
    name = "the output" if file is None else file
    reason = error.strerror or _short(str(error))
    advice = _ADVICE.get(error.errno or 0, f"check the disk or the connection to it, then {_AGAIN}")
    refused = "cannot be written" if error.errno in _OF_WRITING else "cannot be read or written"
    return MachineError(f"{name} {refused} ({reason}): {advice}.")


def _of_memory(reason: str) -> MachineError:
    return MachineError(
        f"the machine has no memory for this ({_short(reason) or 'the system gave none'}): close other programs, use "
        "smaller images, or in training a smaller train.batch_size or train.workers."
    )


def _short(text: str) -> str:
    return " ".join(text.split())[:200].rstrip(".: ")
