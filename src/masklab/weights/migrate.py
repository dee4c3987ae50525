"""Renaming of tensors in weights of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

RENAMED = {
    "rpn.codes.": "rpn.deltas.",
    "box_classifier.codes.": "box_head.deltas.",
    "box_classifier.": "box_head.",
    "mask_branch.": "mask_head.",
}
"""Prefix of tensor names in version 0.1 and at present; the first that matches counts."""


def migrate_tensors(tensors: Mapping[str, T], prefix: str = "") -> dict[str, T]:
    """The tensors under their present names; ``prefix`` is common to all names, as in a checkpoint."""
    return {_present(name, prefix): tensor for name, tensor in tensors.items()}


def _present(name: str, prefix: str) -> str:
    for old, new in RENAMED.items():
        if name.startswith(prefix + old):
            return prefix + new + name[len(prefix + old) :]
    return name
