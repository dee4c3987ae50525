"""Renaming of tensors in weights of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_RENAMED_TENSORS = {
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
    for old, new in _RENAMED_TENSORS.items():
        if name.startswith(prefix + old):
            return prefix + new + name[len(prefix + old) :]
    return name


def migrate_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of version 0.1, which Lightning's Trainer wrote, in the present form; a present one unchanged.

    The order of the parameters, by which the optimiser's state is numbered, is the same in both.
    """
    if "state_dict" not in checkpoint:
        return checkpoint
    tensors, callbacks = checkpoint["state_dict"], checkpoint["callbacks"]
    saver = next(state for name, state in callbacks.items() if name.startswith("WeightsSaver"))
    return {
        "global_step": checkpoint["global_step"],
        # "step.model." of `masklab train`, "network." of `masklab pretrain`
        "network": _tensors_below("step.model.", tensors) or _tensors_below("network.", tensors),
        "average": _tensors_below("average.network.", tensors) or None,
        "optimizer": checkpoint["optimizer_states"][0],
        "scaler": checkpoint.get("ScaledGradients", {}),
        "best": saver["best"],
        "below": saver.get("below", 0),
        "seconds": saver["seconds"],
        "loggers": {},
    }


def _tensors_below(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    found = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return migrate_tensors(found)
