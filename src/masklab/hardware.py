"""What the machine can do, and how much of it is in use."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Literal

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

Precision = Literal["auto", "bf16", "fp16", "float32"]


def default_device() -> torch.device:
    """A CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether the device has bfloat16 instructions of its own."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
    return False


def wants_bf16(device: torch.device | str, precision: Precision) -> bool:
    """Whether ``precision`` means bfloat16 on this device."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def autocast(device: torch.device | str, precision: Precision = "auto") -> AbstractContextManager[object]:
    """A context in which convolutions run in bfloat16, or float16 on CUDA, where ``precision`` says so.

    The rest stays float32; so does everything where float16 is asked for on another device.
    """
    kind = torch.device(device).type
    if precision == "fp16" and kind == "cuda":
        return torch.autocast(kind, torch.float16)
    return torch.autocast(kind, torch.bfloat16, enabled=wants_bf16(device, precision))


def memory_in_use(device: torch.device | str) -> int:
    """The most bytes that tensors have held on the device, or, on the CPU, that this process has held."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
