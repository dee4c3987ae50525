"""The header of a weights file and its checksum, read without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from masklab.utils.errors import InputError

CHECKSUM = "sha256"
_BLOCK = 1 << 20
T = TypeVar("T")


@contextmanager
def open_weights(
    path: str | Path, formats: Sequence[str], verb: str, framework: Literal["pt", "np"] = "np"
) -> Iterator[tuple[dict[str, str], Any]]:
    """The header and the open safetensors file, whose ``format`` is one of ``formats``; tensors are ``framework``'s.

    Raises `InputError` for a file that is missing, damaged, changed or of another format; it names ``verb``, the
    command that writes the right one.  A file without a checksum is accepted.
    """
    from safetensors import SafetensorError, safe_open  # exported models are predicted with without it

    try:
        with safe_open(path, framework=framework) as opened:
            header: dict[str, str] = opened.metadata() or {}
            if header.get("format") not in formats:
                raise InputError(
                    f"{path} is a safetensors file but not masklab's of this format: give a file that `masklab {verb}` wrote."
                )
            if CHECKSUM in header and header[CHECKSUM] != _file_checksum(path):
                raise InputError(
                    f"{path} was changed after it was written (its checksum differs): copy it again from its source."
                )
            yield header, opened
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not a weights file or is damaged ({reason}): give a file that `masklab {verb}` wrote."
        ) from None


def header_value(header: Mapping[str, str], name: str, type_: type[T], path: str | Path) -> T:
    """A JSON value of a header; `InputError` names the file if the value is missing or not of ``type_``."""
    try:
        value = json.loads(header[name])
    except (LookupError, ValueError, RecursionError):
        value = ...
    if not isinstance(value, type_):
        raise InputError(f"{path}: the {name} of its header cannot be read: use the file as it was written.")
    return value


def checksum(description: dict[str, Any], content: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of a file's JSON header, without the checksum itself, and of the bytes after it."""
    facts = {name: value for name, value in description["__metadata__"].items() if name != CHECKSUM}
    digest = hashlib.sha256(json.dumps(description | {"__metadata__": facts}, sort_keys=True).encode())
    for block in content:
        digest.update(block)
    return digest.hexdigest()


def _file_checksum(path: str | Path) -> str:
    with open(path, "rb") as file:
        description = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return checksum(description, iter(lambda: file.read(_BLOCK), b""))
