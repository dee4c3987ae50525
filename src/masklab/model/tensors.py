"""Files of weights: safetensors whose header says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from masklab.errors import InputError
from masklab.files import whole


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors and a header whose ``format`` says what they are; written beside and renamed."""
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as beside:
        beside.write_bytes(save(values, metadata=header))


def read_tensors(path: str | Path, form: str, verb: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a file whose header has ``form`` as its ``format``.

    Raises `InputError` for a file that is missing, damaged or of another kind; it names ``verb``, the
    command that writes the right one.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata() or {}
            if header.get("format") != form:
                raise InputError(
                    f"{path} is a safetensors file but not masklab's of this kind: give a file that `masklab {verb}` wrote."
                )
            return header, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not a weights file or is damaged ({reason}): give a file that `masklab {verb}` wrote."
        ) from None
