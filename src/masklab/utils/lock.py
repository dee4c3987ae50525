"""Lock of a folder that is written to: one process at a time trains or predicts in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from masklab.utils.errors import InputError, MachineError
from masklab.utils.files import make_folder

try:
    import fcntl
except ImportError:  # Windows, where the record in the file decides alone
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: set[int] = set()  # descriptors of locked files


class RunLock:
    """The lock that this process holds on a run folder."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder, self.descriptor = folder, descriptor

    def check(self) -> None:
        """Raise `MachineError` if the folder was removed, moved or replaced since it was locked."""
        if not _is_at(self.folder / LOCK, self.descriptor):
            raise MachineError(
                f"{self.folder} was removed or moved while it was written to: bring it back and resume the run "
                "(--resume), or train anew."
            )


@contextmanager
def locked(folder: Path) -> Iterator[RunLock]:
    """Make a folder and hold its lock; `InputError` names the process and the host that hold it already.

    The system releases the lock when the process ends, however it ends, and does so on a shared file system too (NFS
    since Linux 2.6).  As some file systems keep locks to one host, ``.lock`` also records who holds it: what a process
    of this host has left there is taken over, and of another host, which cannot be asked, `InputError` says what to
    remove.  The file is removed at the end.
    """
    descriptor = _acquire(make_folder(folder) / LOCK)
    _held.add(descriptor)
    try:
        yield RunLock(folder, descriptor)
    finally:
        _held.discard(descriptor)
        with suppress(OSError):
            if _is_at(folder / LOCK, descriptor):
                (folder / LOCK).unlink()  # before it is released: whoever waits for it sees that it is gone
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """An open descriptor of the file, which is locked and records this process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_sure = _take(path, descriptor)
            if _is_at(path, descriptor):  # else its holder ended in between
                _take_over(path, descriptor, is_sure)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(path: Path, descriptor: int) -> bool:
    """Lock a file; `InputError` if another process has. Returns False where the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InputError(
            f"{path.parent} is being written by {_holder(_record(descriptor))}: wait for it or stop it, or give another "
            "output folder."
        ) from None
    except OSError:
        return False
    return True


def _take_over(path: Path, descriptor: int, is_sure: bool) -> None:
    """Record this process in a locked file; `InputError` if the process recorded there may still live."""
    before, here = _record(descriptor), _here()
    if before and not (is_sure and (before.get("boot") == here["boot"] or before.get("host") == here["host"])):
        raise InputError(
            f"{path.parent} was being written by {_holder(before)}, which cannot be asked from here whether it has "
            f"ended: if it has, remove {path} and run this again."
        )
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(here).encode(), 0)


def _here() -> dict[str, Any]:
    """This process and its machine; containers of one machine have other hosts but the same boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot = socket.gethostname()
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since, "boot": boot}


def _record(descriptor: int) -> dict[str, Any]:
    """Who holds the lock, empty if that is not known."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _holder(record: dict[str, Any]) -> str:
    if not record:
        return "another process"
    return f"process {record.get('process')} on host {record.get('host')} since {record.get('since')}"


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _let_go() -> None:
    """In a forked process, such as one that loads images: it must not keep the lock when its parent is killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
