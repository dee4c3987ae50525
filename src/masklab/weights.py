"""Weights files: safetensors whose header holds the configuration, the class table and the score threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from masklab.config import validate
from masklab.errors import InputError
from masklab.hardware import default_device
from masklab.model.masklab import MaskLab, build_model
from masklab.model.tensors import read_tensors, write_tensors
from masklab.structures import ClassTable

FORMAT = "masklab 1"


def save_model(model: MaskLab, path: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Write a weights file that `load_model` opens with no other file; written beside and renamed.

    ``notes`` are further facts for the header: how the weights came about and what they scored.
    """
    config = model.config.model_dump(mode="json")
    del config["data"], config["output"]  # paths of the machine it was trained on
    config["model"]["backbone"] |= {"weights": None, "segmentation_weights": None}
    header = {
        "format": FORMAT,
        "config": json.dumps(config),
        "classes": json.dumps({"ids": model.classes.ids, "names": model.classes.names}),
        "score_threshold": json.dumps(model.score_threshold),
        "notes": json.dumps(notes or {}),
    }
    write_tensors(path, model.state_dict(), header)


def find_weights(model: str | Path) -> Path:
    """The weights file that MODEL names: a file, or a run folder, whose ``best`` wins over its ``last``."""
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path} holds no best.safetensors or last.safetensors: give the folder of a finished run.")
    raise InputError(
        f"{path}: there is no such run folder or weights file: give the folder that `masklab train` wrote."
    )


def load_model(model: str | Path, device: str | torch.device | None = None) -> MaskLab:
    """Load MaskLab from a run folder or a weights file, in evaluation mode on ``device``, by default a GPU if there is one.

    Raises `InputError` for a missing file, one of another kind, and one whose tensors do not fit its header.
    """
    path = find_weights(model)
    header, tensors = read_tensors(path, FORMAT, "train")
    config = validate(json.loads(header["config"]), str(path))
    classes = json.loads(header["classes"])
    loaded = build_model(config, ClassTable(tuple(classes["ids"]), tuple(classes["names"])), load_pretrained=False)
    try:
        loaded.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path}: its tensors do not fit its configuration ({str(error).splitlines()[1].strip()}): "
            "take the file as it was written."
        ) from None
    loaded.score_threshold = json.loads(header["score_threshold"])
    return loaded.to(device or default_device()).to(memory_format=torch.channels_last).eval()


def read_notes(model: str | Path) -> dict[str, Any]:
    """The facts that were saved with the weights."""
    notes: dict[str, Any] = json.loads(read_tensors(find_weights(model), FORMAT, "train")[0]["notes"])
    return notes
