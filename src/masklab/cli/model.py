"""Verbs about models, recipes and the installation: share, info, recipes, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from masklab.cli.options import MODEL_HELP, recipe_help
from masklab.utils.errors import InputError
from masklab.utils.files import file_to_write
from masklab.utils.words import counted

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_nothing(parser: ArgumentParser) -> None:
    """For a verb without arguments."""


def add_share(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("file", type=Path, help="file to write, NAME.safetensors; `masklab info` shows NAME.md with it")


def share(arguments: Namespace) -> None:
    """Write a model's weights in half precision, with everything that is needed to use them: half the size, to give to
    others. Predictions are computed in the same precision as before."""
    from masklab.weights.checkpoint import load_model, save_model
    from masklab.weights.facts import read_notes

    file: Path = arguments.file
    if file.suffix != ".safetensors":
        raise InputError(f"{file} is to be a weights file: give it a name that ends in .safetensors.")
    save_model(load_model(arguments.model, "cpu"), file_to_write(file), read_notes(arguments.model), half=True)
    print(
        f"{file}: {file.stat().st_size / 1e6:.1f} MB; describe in {file.with_suffix('.md')} "
        "what it was trained on and what it is for"
    )


def add_info(parser: ArgumentParser) -> None:
    from masklab.config.fields import Above0

    parser.add_argument("name", help=f"model: {MODEL_HELP}; or recipe: {recipe_help()}")
    parser.add_argument("--cost", action="store_true", help="of a name that is both, count the recipe's cost too")
    parser.add_argument("--training", action="store_true", help="of a recipe, also what its training costs on COCO")
    parser.add_argument(
        "--step_seconds",
        type=Above0 | None,
        default=None,
        help="measured time of a training step, to give the hours of the whole training; implies --training",
    )
    parser.add_argument("--classes", type=int, default=80, help="number of classes")
    parser.add_argument("--height", type=int, default=800, help="height of the network's input")
    parser.add_argument("--width", type=int, default=1200, help="width of the network's input")


def info(arguments: Namespace) -> None:
    """Of a model: its classes, how it was trained, what it scored, and its card, the Markdown file beside its weights.
    Of a recipe: parameters and multiply-adds of its model, part by part, and with --training those of its whole
    schedule. Of a name that is both: the model, and with --cost or --training both."""
    from masklab.config import load_recipe, recipe_names
    from masklab.weights.facts import describe, model_names

    name, path = arguments.name, Path(arguments.name)
    recipe = name in recipe_names() or path.suffix in (".yaml", ".yml")
    model = name in model_names() or (not recipe and (path.exists() or path.suffix == ".safetensors"))
    training = arguments.training or arguments.step_seconds is not None
    counts = arguments.cost or training
    if model:
        print(describe(name))
        if recipe and not counts:
            print(f"{name} is a recipe too: `masklab info {name} --cost` counts what its model costs.")
    if (recipe and counts) or not model:
        from masklab.cli.cost import print_cost
        from masklab.model.cost import model_cost

        size = (arguments.height, arguments.width)
        title = f"{name}: one image of {size[0]} x {size[1]}, {counted(arguments.classes, 'class', 'classes')}"
        config = load_recipe(name)
        print_cost(model_cost(config, arguments.classes, size), title)
        if training:
            from masklab.paper.training_cost import training_cost, training_lines

            print("\n".join(training_lines(training_cost(config, arguments.classes, size), arguments.step_seconds)))


def recipes(arguments: Namespace) -> None:
    """List the recipes that come with the package, with the paper's figures beside the rows of its tables."""
    from masklab.paper.tables import print_recipes

    print_recipes()


def doctor(arguments: Namespace) -> None:
    """Check versions, devices and operations."""
    from masklab.cli.doctor import doctor

    doctor()
