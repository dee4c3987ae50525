"""Unpacking of downloaded zip files, and the progress bar of work on bytes."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from masklab.utils.errors import InputError
from masklab.utils.files import leaves_folder

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)

Moved = Callable[[int, "int | None"], None]
"""Takes the bytes that are done and their total, if it is known."""


def unpack(path: Path, folder: Path, makes: str) -> None:
    """Unpack a zip file atomically to ``folder / makes``, verifying the checksum of every member.

    Raises `InputError`, and removes the archive, if it is damaged, holds links or names that leave the folder; raises
    it too if the disk has no room.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{makes}-", dir=folder))
    try:
        temporary.chmod(0o755)
        with zipfile.ZipFile(path) as opened, byte_progress(f"{path.name}: unpacking") as moved:
            members = opened.infolist()
            for member in members:
                _check_member(path, member)
            total, done = sum(member.file_size for member in members), 0
            if shutil.disk_usage(folder).free < total:
                raise InputError(f"{folder} has no room to unpack {path.name} ({total} bytes): make room.")
            for member in members:
                opened.extract(member, temporary)
                done += member.file_size
                moved(done, total)
        inside = temporary / makes
        os.replace(inside if inside.is_dir() else temporary, folder / makes)
    except _DAMAGE as error:
        path.unlink()
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{path} is a damaged archive ({reason}) and was removed: run the same command again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse names that leave the folder, and links."""
    link = stat.S_ISLNK(member.external_attr >> 16)
    if link or leaves_folder(member.filename):
        path.unlink()
        raise InputError(
            f"{path} holds {member.filename!r}, which {'is a link' if link else 'leaves the folder'}, and was removed: "
            "it is not the archive that it should be; fetch it by hand."
        )


@contextmanager
def byte_progress(description: str) -> Iterator[Moved]:
    """A progress bar on a terminal; yields a function of the bytes that are done and their total."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
