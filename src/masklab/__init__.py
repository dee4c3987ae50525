"""MaskLab: instance segmentation by refining object detection with semantic and direction features.

    import masklab

    model = masklab.load("runs/nuclei")
    instances = model.predict("picture.jpg")

Pictures are RGB ``(3, H, W)``; boxes ``xyxy`` in pixels, x right, y down; labels ``0..K-1``, background never
among them; sizes ``(height, width)``; ``num_classes`` counts foreground.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masklab.config import Config, load_recipe, recipe_names
    from masklab.data.shapes import draw_shapes
    from masklab.errors import BrokenLossError, InputError
    from masklab.evaluation.run import evaluate
    from masklab.instances import Instances
    from masklab.model.masklab import MaskLab, build_model
    from masklab.structures import ClassTable
    from masklab.training.fit import train
    from masklab.visualize import overlay
    from masklab.weights import load_model as load
    from masklab.weights import save_model as save

_HOMES = {
    "BrokenLossError": "errors.BrokenLossError",
    "ClassTable": "structures.ClassTable",
    "Config": "config.Config",
    "InputError": "errors.InputError",
    "Instances": "instances.Instances",
    "MaskLab": "model.masklab.MaskLab",
    "build_model": "model.masklab.build_model",
    "draw_shapes": "data.shapes.draw_shapes",
    "evaluate": "evaluation.run.evaluate",
    "load": "weights.load_model",
    "load_recipe": "config.load_recipe",
    "overlay": "visualize.overlay",
    "recipe_names": "config.recipe_names",
    "save": "weights.save_model",
    "train": "training.fit.train",
}
__version__ = version("masklab")
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import masklab`` itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module masklab has no attribute {name}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(f"masklab.{module}"), attribute)
