"""Reading of text, YAML and JSON, atomic writing of files and folders, and checks of paths to write to."""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from masklab.utils.errors import InputError
from masklab.utils.failures import disk_is_full

_LONGEST_NAME = 255  # bytes of a file's name, on nearly all file systems


def open_plain(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes; `OSError` also for a pipe or device, which may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return open(path, "rb")


def read_text(path: str | Path) -> str:
    """A file's text: UTF-8, with or without byte order mark, or UTF-16 with one; `InputError` if it is something else."""
    try:
        with open_plain(path) as file:
            raw = file.read()
        return raw.decode("utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read ({reason}): replace the file.") from None


def read_json(path: str | Path) -> Any:
    """The values of a JSON file; `InputError` names it if it cannot be read or is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): replace or repair the file.") from None


def read_yaml(file: Any, name: str | Path) -> Any:
    """Contents of a YAML file; raises `InputError`, which calls the file ``name``, if it cannot be read."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be read ({reason}): correct the file.") from None


def file_name(stem: str, ending: str) -> str:
    """``stem`` and ``ending`` as the name of a file; a stem that would make it too long is cut and marked by a number.

    The number is a checksum of the stem, so that names which begin alike stay apart.
    """
    raw, room = os.fsencode(stem), _LONGEST_NAME - len(os.fsencode(ending))
    if len(raw) <= room:
        return stem + ending
    mark = f"~{zlib.crc32(raw):08x}"
    kept = raw[: room - len(mark)]
    while kept and len(raw) > len(kept) and raw[len(kept)] & 0xC0 == 0x80:  # never within a letter of UTF-8
        kept = kept[:-1]
    return os.fsdecode(kept) + mark + ending


@contextmanager
def naming(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Name the file ``path`` in errors of the system that name none, as those of writing, or its ``temporary``.

    So too in the error that another one was raised from.
    """
    try:
        yield
    except Exception as error:
        refused = error if isinstance(error, OSError) else error.__cause__
        if isinstance(refused, OSError):
            named = refused.filename2 or refused.filename
            if named is None or (temporary is not None and Path(os.fsdecode(named)).is_relative_to(temporary)):
                refused.filename, refused.filename2 = str(path), None
        raise


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder to write to; renamed to ``path`` at the end, removed if writing fails."""
    path = Path(path)
    temporary = path.with_name(file_name(f".{path.name}", f".{os.getpid()}.part"))
    try:
        with naming(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # the error that stopped the writing says more
            temporary.unlink(missing_ok=True)


def make_folder(output: str | Path) -> Path:
    """The folder, created if it is missing; raises `InputError` if that is not possible or it cannot be written to."""
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        _try_to_write(output, output)
    except OSError as error:
        if disk_is_full(error):
            raise
        raise InputError(
            f"{output} cannot be a folder to write to ({error.strerror}): name another output folder."
        ) from None
    return output


def _try_to_write(folder: Path, path: Path) -> None:
    """Make an empty file in a folder and remove it; `OSError` names ``path`` where that is refused.

    Rights alone would not tell of a disk to read only or of a network that maps users.
    """
    trial = folder / f".trial.{os.getpid()}.part"
    with naming(path, trial):
        trial.touch()
        trial.unlink(missing_ok=True)  # another thread may have


def leaves_folder(name: str) -> bool:
    """Whether a relative path from a file is absolute or may lead out of its folder, on any operating system."""
    parts = re.split(r"[/\\]", name)
    return ".." in parts or parts[0] == "" or ":" in parts[0]


def file_to_write(path: str | Path) -> Path:
    """The path of a file to write later; creates its folder.

    Raises `InputError` if the path is a folder itself, and for a folder that cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write to.")
    if not path.parent.is_dir():
        make_folder(path.parent)
    try:
        _try_to_write(path.parent, path)
    except OSError as error:
        if disk_is_full(error):
            raise
        raise InputError(
            f"{path} cannot be written, as the folder {path.parent.resolve()} refuses new files ({error.strerror}): "
            "name a file in another folder."
        ) from None
    return path


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder to fill; renamed to ``folder`` at the end, removed if filling it fails.

    Raises `InputError` if ``folder`` exists and is not empty, or cannot be created.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; name a new folder or empty this one.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        if disk_is_full(error):
            raise
        raise InputError(f"{folder} cannot be made ({error.strerror}): name another folder.") from None
    try:
        with naming(folder, temporary):
            temporary.chmod(0o755)
            yield temporary
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
