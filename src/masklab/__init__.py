"""MaskLab: instance segmentation by refining object detection with semantic and direction features.

    import masklab

    predictor = masklab.load("nuclei")  # predictor.model is the torch.nn.Module
    instances = predictor.predict("image.jpg")

Images are RGB ``(3, H, W)``; boxes ``xyxy`` in pixels, x right, y down; labels ``0..K-1``, background never
among them; sizes ``(height, width)``; ``num_classes`` counts foreground.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masklab.config.recipe import load_recipe, recipe_names
    from masklab.config.schema import Config
    from masklab.datasets.synthetic.shapes import draw_shapes
    from masklab.evaluation.evaluate import evaluate
    from masklab.inference.options import PredictionOptions
    from masklab.inference.predictor import Predictor, load
    from masklab.model.masklab import MaskLab
    from masklab.results.instances import Instances
    from masklab.results.overlay import overlay
    from masklab.structures import ClassTable
    from masklab.training.train import train
    from masklab.utils.errors import BrokenLossError, InputError
    from masklab.weights.checkpoint import save_model as save
    from masklab.weights.segmentation import initial_model as build_model

    __version__: str

_HOMES = {
    "BrokenLossError": "utils.errors.BrokenLossError",
    "ClassTable": "structures.ClassTable",
    "Config": "config.schema.Config",
    "InputError": "utils.errors.InputError",
    "Instances": "results.instances.Instances",
    "MaskLab": "model.masklab.MaskLab",
    "PredictionOptions": "inference.options.PredictionOptions",
    "Predictor": "inference.predictor.Predictor",
    "build_model": "weights.segmentation.initial_model",
    "draw_shapes": "datasets.synthetic.shapes.draw_shapes",
    "evaluate": "evaluation.evaluate.evaluate",
    "load": "inference.predictor.load",
    "load_recipe": "config.recipe.load_recipe",
    "overlay": "results.overlay.overlay",
    "recipe_names": "config.recipe.recipe_names",
    "save": "weights.checkpoint.save_model",
    "train": "training.train.train",
}
logging.getLogger("masklab").addHandler(logging.NullHandler())
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import masklab`` itself costs nothing."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("masklab")
    if name not in _HOMES:
        raise AttributeError(f"module masklab has no attribute {name}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(f"masklab.{module}"), attribute)
