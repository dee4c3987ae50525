"""Cellpose's ``x_seg.npy``: a dictionary with the label image, stored as a pickle, read without running its code."""

from __future__ import annotations

import math
import mmap
import re
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from masklab.utils.errors import InputError
from masklab.utils.files import open_plain
from masklab.utils.pickled import Call, Name, plain_values

_KNOWN = frozenset(
    {
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        "numpy.ndarray",
        "numpy.dtype",
    }
)
_MAGIC = b"\x93NUMPY\x01\x00"
_ONE_OBJECT = rb"\{'descr': '\|?O', 'fortran_order': (?:True|False), 'shape': \(\), \}\s*"  # as numpy.save writes it
_WHOLE_NUMBERS = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {"b1"}


def read_seg(path: Path) -> dict[str, Any]:
    """The dictionary of a ``_seg.npy``: arrays are those that `label_image` reads; `InputError` for any other file."""
    try:
        with open_plain(path) as file:
            magic, length = file.read(8), int.from_bytes(file.read(2), "little")
            if magic != _MAGIC or not re.fullmatch(_ONE_OBJECT, file.read(length)):
                raise ValueError("it holds no dictionary")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                mapped.seek(file.tell())
                values = _item(plain_values(cast(IO[bytes], mapped), _KNOWN))
        if type(values) is not dict:
            raise ValueError("it holds no dictionary")
        return values
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"{path} is not a _seg.npy as Cellpose writes it ({reason}): save it again.") from None


def label_image(path: Path) -> NDArray[Any]:
    """The label image ``(H, W)`` of a ``_seg.npy``, 0 for background; `InputError` if it has none."""
    values = read_seg(path)
    if "masks" not in values:
        raise InputError(f"{path} has no masks: save it again with a newer Cellpose, or save the masks as PNG or TIFF.")
    try:
        labels = _array(values["masks"])
    except ValueError as error:
        raise InputError(f"{path}: the masks cannot be read ({error}): save the file again.") from None
    flat = labels.reshape([side for side in labels.shape[:-2] if side != 1] + list(labels.shape[-2:]))
    if flat.ndim != 2:
        raise InputError(
            f"{path} has masks of the shape {labels.shape}, but one image is one plane: save each plane by itself."
        )
    return flat + 1 if flat.size and flat.dtype.kind == "i" and flat.min() == -1 else flat  # as Cellpose's own reader


def image_name(path: Path) -> str:
    """The file name of the image that a ``_seg.npy`` says it is of, or ""."""
    name = read_seg(path).get("filename")
    return name.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(name, str) else ""


def _item(value: Any) -> Any:
    """The one value of the array of objects that `numpy.save` makes of a dictionary."""
    match value:
        case Call(state=(_, (), _, _, [item])):
            return item
    raise ValueError("it holds no dictionary")


def _array(value: Any) -> NDArray[Any]:
    """The array of whole numbers that a pickle asks for; `ValueError` for anything else."""
    match value:
        case Call(
            arguments=(Name("numpy.ndarray"), *_),
            state=(
                _,
                tuple(shape),
                Call("numpy.dtype", (str(kind), *_), (_, str(order), *_)),
                bool(fortran),
                bytes(raw),
            ),
        ) if all(type(side) is int and side >= 0 for side in shape) and 2 <= len(shape) <= 8:
            pass
        case _:
            raise ValueError("they are not a label image")
    if kind not in _WHOLE_NUMBERS:
        raise ValueError(f"they are of the type {kind!r}, not whole numbers")
    dtype = np.dtype(f">{kind}" if order == ">" else f"<{kind}")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError("their shape does not fit their data")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
