"""Configuration of the model, the images and the training, and the recipes that hold one."""

from masklab.config.recipe import load_recipe, recipe_names
from masklab.config.schema import Config, validate

__all__ = ["Config", "load_recipe", "recipe_names", "validate"]
