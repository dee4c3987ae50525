"""Safetensors files with a typed header and a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, float16

from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write
from masklab.weights.header import CHECKSUM, checksum, open_weights


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
    description["__metadata__"][CHECKSUM] = checksum(description, [content[start:]])
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, content[start:]])


def read_tensors(path: str | Path, formats: Sequence[str], verb: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a file; float16 is returned as float32.

    Arguments and errors are those of `masklab.weights.header.open_weights`.
    """
    with open_weights(path, formats, verb, "pt") as (header, opened):
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return header, {name: t.float() if t.dtype == float16 else t for name, t in tensors.items()}


def _halved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if (half.isinf() & tensor.isfinite()).any():
        raise InputError(
            f"{name} holds values beyond the range of half precision (65504): keep the weights in full precision."
        )
    return half
