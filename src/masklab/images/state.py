"""Whether an image is still the one that it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from masklab.utils.errors import InputError

_PIECE = 1 << 16  # bytes
_PIECES = 16  # of a file, evenly spread


def image_state(path: Path) -> list[Any]:
    """What tells whether an image is still the same: its bytes, its time of change, and a checksum.

    The checksum is of the whole file up to 1 MiB, and of 16 pieces of a larger one; of an image that is a folder, it is
    of the names, sizes and times of its files.  Raises `InputError` for an image that cannot be read.
    """
    try:
        status, digest = path.stat(), hashlib.blake2b(digest_size=16)
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                found = file.stat()
                digest.update(f"{file.relative_to(path)} {found.st_size} {found.st_mtime_ns}\n".encode())
        else:
            with open(path, "rb") as opened:
                last = max(0, status.st_size - _PIECE)
                for start in sorted({last * k // (_PIECES - 1) for k in range(_PIECES)}):
                    opened.seek(start)
                    digest.update(opened.read(_PIECE))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): correct the path or restore the file.") from None
    return [status.st_size, status.st_mtime_ns, digest.hexdigest()]
