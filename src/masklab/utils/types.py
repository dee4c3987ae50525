"""Type aliases that several parts share."""

from __future__ import annotations

from typing import Literal

Auto = Literal["auto"]
Precision = Literal["auto", "bf16", "fp16", "float32"]

Size = tuple[int, int]

Box = tuple[int, int, int, int]
