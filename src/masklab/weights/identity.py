"""Checksums of a model."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from masklab.model.masklab import MaskLab


def weights_id(model: MaskLab) -> str:
    """A checksum of a model: its weights, its configuration and its classes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{model.config.model_dump_json()} {model.classes}".encode())
    _add_tensors(digest, model)
    return digest.hexdigest()


def weights_sha256(model: MaskLab) -> str:
    """SHA-256 of the weights of a model: of their names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    _add_tensors(digest, model)
    return digest.hexdigest()


def _add_tensors(digest: Any, model: MaskLab) -> None:
    for name, values in sorted(model.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
