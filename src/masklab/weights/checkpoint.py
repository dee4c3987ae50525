"""Weights files: safetensors whose header holds the configuration, the class table, the score threshold and more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from masklab.config.schema import Config
from masklab.model.build import build_model
from masklab.model.masklab import MaskLab
from masklab.structures import ClassTable
from masklab.utils.device import default_device
from masklab.utils.errors import InputError
from masklab.weights.facts import FORMAT, READABLE, find_weights
from masklab.weights.migrate import migrate_tensors
from masklab.weights.model_facts import header_of, read_facts
from masklab.weights.tensors import read_tensors, write_tensors
from masklab.weights.uninitialised import Uninitialised


def save_model(model: MaskLab, path: str | Path, notes: dict[str, Any] | None = None, half: bool = False) -> None:
    """Write a weights file that `load_model` needs nothing else for, atomically.

    ``notes`` are further facts for the header: how the model was trained and what it scored.  ``half`` writes float16,
    half the size, which `load_model` returns as float32; `InputError` for weights beyond its range.
    """
    header = {"format": FORMAT, **header_of(model), "notes": json.dumps(notes or {})}
    write_tensors(path, model.state_dict(), header, half)


def load_model(model: str | Path, device: str | torch.device | None = None) -> MaskLab:
    """Load the network from a run folder, a weights file or by the name of a model that comes with the package.

    It is in evaluation mode on ``device``, by default a GPU if there is one.  Raises `InputError` for a missing file,
    a file that is not masklab's, and one whose tensors do not fit its header.
    """
    place = torch.device(device or default_device())
    path = find_weights(model)
    header, tensors = read_tensors(path, READABLE, "train")
    config, classes, threshold, training_data = read_facts(header, path)
    tensors = migrate_tensors(tensors)
    loaded = _build_for(config, classes, tensors, path)
    loaded.load_state_dict(tensors)
    loaded.score_threshold = threshold
    loaded.training_data = training_data
    return loaded.to(place).to(memory_format=torch.channels_last).eval()


def _build_for(config: Config, classes: ClassTable, tensors: dict[str, torch.Tensor], path: Path) -> MaskLab:
    """The network of a configuration, without values, into which tensors fit; `InputError` where they do not.

    A header may name any size: what the network reserves is not touched before the tensors turn out to fit.
    """
    try:
        with Uninitialised():
            model = build_model(config, classes, load_pretrained=False)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"{path}: its configuration cannot be built ({str(error).splitlines()[0]}): use the file as it was written."
        ) from None
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{path}: its tensors do not fit its configuration ({name} is {found.get(name, 'missing')}, not "
                f"{wanted.get(name, 'expected')}): use the file as it was written."
            )
    return model
