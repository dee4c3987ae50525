"""Safetensors files with a typed header and a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, float16

from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write

_CHECKSUM = "sha256"
_BLOCK = 1 << 20


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: dict[str, str], half: bool = False) -> None:
    """Write tensors and a header, whose ``format`` names the type of file, atomically.

    A checksum of both is added to the header.  ``half`` writes floating-point tensors as float16; `InputError` if one
    holds values beyond its range.
    """
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if half:
        values = {name: _halved(name, tensor) for name, tensor in values.items()}
    content = memoryview(save(values, metadata=header))
    start = 8 + int.from_bytes(content[:8], "little")
    description = json.loads(bytes(content[8:start]))
    description["__metadata__"][_CHECKSUM] = _checksum(description, [content[start:]])
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, content[start:]])


def read_tensors(path: str | Path, formats: Sequence[str], verb: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a file whose ``format`` is one of ``formats``; float16 is returned as float32.

    Raises `InputError` for a file that is missing, damaged, changed or of another format; it names ``verb``, the
    command that writes the right one.  A file without a checksum is accepted.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata() or {}
            if header.get("format") not in formats:
                raise InputError(
                    f"{path} is a safetensors file but not masklab's of this format: give a file that `masklab {verb}` wrote."
                )
            if _CHECKSUM in header and header[_CHECKSUM] != _file_checksum(path):
                raise InputError(
                    f"{path} was changed after it was written (its checksum differs): copy it again from its source."
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return header, {name: t.float() if t.dtype == float16 else t for name, t in tensors.items()}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not a weights file or is damaged ({reason}): give a file that `masklab {verb}` wrote."
        ) from None


def _halved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if (half.isinf() & tensor.isfinite()).any():
        raise InputError(
            f"{name} holds values beyond the range of half precision (65504): keep the weights in full precision."
        )
    return half


def _file_checksum(path: str | Path) -> str:
    with open(path, "rb") as file:
        description = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return _checksum(description, iter(lambda: file.read(_BLOCK), b""))


def _checksum(description: dict[str, Any], content: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of a file's JSON header, without the checksum itself, and of the bytes after it."""
    facts = {name: value for name, value in description["__metadata__"].items() if name != _CHECKSUM}
    digest = hashlib.sha256(json.dumps(description | {"__metadata__": facts}, sort_keys=True).encode())
    for block in content:
        digest.update(block)
    return digest.hexdigest()
