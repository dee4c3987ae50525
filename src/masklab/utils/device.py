"""Devices: defaults, number formats, mixed precision and memory use."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from typing import Literal

import torch

from masklab.utils.errors import InputError
from masklab.utils.types import Precision

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


_EMULATING = ("AVX512_CORE", "AVX512_CORE_VNNI")  # sets of instructions with which oneDNN emulates bfloat16


def default_device() -> torch.device:
    """A CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether the device has native bfloat16 instructions, and on a CPU whether oneDNN, which convolves, may use them.

    oneDNN is held to a smaller set of instructions by the environment variable ``ONEDNN_MAX_CPU_ISA``, which is how a
    machine without them is tried out.
    """
    type_ = torch.device(device).type
    if type_ == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if type_ != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if allowed in _EMULATING or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def number_format(device: torch.device | str, precision: Precision) -> Literal["bf16", "fp16", "float32"]:
    """The number format that ``precision`` selects on this device."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "float32"
    return "float32" if precision == "fp16" and torch.device(device).type != "cuda" else precision


def check_precision(precision: Precision, device: torch.device | str, name: str) -> None:
    """Raise `InputError`, which names the setting ``name``, for a ``precision`` that the device does not support."""
    if precision == "fp16" and torch.device(device).type == "cpu":
        raise InputError(f"{name} is fp16 but there is no CUDA GPU: set it to auto.")


def autocast(device: torch.device | str, precision: Precision = "auto") -> AbstractContextManager[object]:
    """A context in which convolutions run in bfloat16, or float16 on CUDA, as ``precision`` says.

    Everything else stays float32; float16 on a device other than CUDA is float32 throughout.
    """
    chosen = number_format(device, precision)
    dtype = torch.float16 if chosen == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=chosen != "float32")


def synchronise(device: torch.device | str) -> None:
    """Wait until a CUDA device has done all that it was given, as a clock must; nothing on others."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def memory_in_use(device: torch.device | str) -> int:
    """Peak memory in bytes: of tensors on a CUDA device, or of this process on the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
