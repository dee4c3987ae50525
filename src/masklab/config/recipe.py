"""Recipes: named configurations, packaged or in YAML files, each based on another or on the defaults."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from masklab.config.migrate import migrate_config
from masklab.config.nested import merge
from masklab.config.schema import Config, validate
from masklab.utils.errors import InputError
from masklab.utils.files import read_yaml


def recipe_names() -> list[str]:
    """The recipes that come with the package, those of the paper's tables included."""
    return sorted(_packaged())


def load_recipe(recipe: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a recipe and check it.

    ``recipe`` is the name of one that comes with the package or the path of a YAML file; a line
    ``base: NAME`` in it names the recipe that it changes.  ``overrides`` is a nested dictionary of
    fields that win over the recipe.  Raises `InputError` for an unknown recipe, field or value.
    """
    return validate(merge(_resolve(str(recipe), ()), overrides or {}), f"recipe {recipe}")


class RecipeFile(NamedTuple):
    """Contents of one recipe file: description, name of the base recipe, changed fields, and the paper's figures."""

    description: str
    base: str | None
    changes: dict[str, Any]
    paper: dict[str, Any]


def read_recipe(recipe: str) -> RecipeFile:
    """Read one recipe without its base; argument and errors as for `load_recipe`."""
    packaged = _packaged()
    is_file = Path(recipe).suffix in (".yaml", ".yml") and os.path.isfile(recipe)
    if recipe not in packaged and not is_file:
        raise InputError(
            f"there is no recipe {recipe}: use one of {common_recipes()}, one of the paper's tables "
            "(`masklab recipes` lists them), or the path of a YAML file."
        )
    values = read_yaml(packaged.get(recipe, Path(recipe)), f"recipe {recipe}") or {}
    if not isinstance(values, dict):
        raise InputError(
            f"recipe {recipe} must be a mapping of fields, such as `train: {{steps: 100}}`: correct the file."
        )
    description, base = values.pop("description", ""), values.pop("base", None)
    paper = values.pop("paper", {})
    if not isinstance(description, str) or not isinstance(base or "", str) or not isinstance(paper, dict):
        raise InputError(f"recipe {recipe}: description and base must be text and paper a mapping: correct the file.")
    return RecipeFile(description, base, migrate_config(values), paper)


def common_recipes() -> str:
    """Names of the packaged recipes that are not rows of the paper's tables, separated by commas."""
    return ", ".join(sorted(_packaged("config/recipes")))


def _resolve(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a recipe merged over those of its bases."""
    if recipe in seen:
        raise InputError(
            f"recipe {recipe} is its own base ({' -> '.join((*seen, recipe))}): remove one of the base lines."
        )
    _, base, changes, _ = read_recipe(recipe)
    return changes if base is None else merge(_resolve(base, (*seen, recipe)), changes)


def _packaged(*folders: str) -> dict[str, Any]:
    """The packaged recipe files by name; from both folders unless ``folders`` names one."""
    package = resources.files("masklab")
    files = [file for folder in folders or ("config/recipes", "paper/recipes") for file in (package / folder).iterdir()]
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}
