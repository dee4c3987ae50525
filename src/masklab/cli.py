"""The command line: ``masklab VERB ...``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from masklab.config import Config, load_recipe, recipe_names, validate
from masklab.errors import BrokenLossError, InputError

Verb = Callable[[Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for work that failed, 2 for input that cannot be used."""
    # OpenMP's waiting threads spin by default; with another process on the same cores, such as the one
    # that loads pictures, that makes a training step many times slower.  It must be set before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser, verbs = _parser(words)
        parsed = parser.parse_args(words)
        name = parsed.subcommand
        chosen = parsed[name]
        if name == "data":
            name, chosen = f"data {chosen.subcommand}", chosen[chosen.subcommand]
        verbs[name](chosen)
    except InputError as error:
        return _fail(str(error), 2)
    except ArgumentError as error:
        return _fail(_one_sentence(str(error)), 2)
    except BrokenLossError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped.", 130)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"masklab: {message}", file=sys.stderr)
    return code


def _one_sentence(message: str) -> str:
    """What jsonargparse says over several lines, as one sentence with a next step."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if "validation error" not in line and not line.startswith("For further")]
    text = " ".join(lines).split(" [type=")[0].replace("Parser key ", "").rstrip(". ")
    return f"{text}; see `masklab --help` or `masklab VERB --help`."


def _parser(words: list[str]) -> tuple[ArgumentParser, dict[str, Verb]]:
    parser = ArgumentParser(
        prog="masklab",
        description="Instance segmentation: from a folder of annotated pictures to masks of every object.",
        exit_on_error=False,
    )
    from masklab import __version__

    parser.add_argument("--version", action="version", version=f"masklab {__version__}")
    verbs = parser.add_subcommands(required=True, metavar="VERB", title="verbs")
    verbs.add_subcommand("demo", _demo_parser(), help="draw pictures, train on them, show what came out (minutes)")
    verbs.add_subcommand("train", _train_parser(words), help="train a model on your pictures")
    verbs.add_subcommand("evaluate", _evaluate_parser(), help="measure a model on annotated pictures")
    verbs.add_subcommand("predict", _predict_parser(), help="find the objects of pictures")
    data = _verb("Make or look at data sets.")
    verbs.add_subcommand("data", data, help="make or look at data sets")
    data.add_subcommands(required=True, metavar="WHAT").add_subcommand(
        "shapes", _shapes_parser(), help="draw a data set"
    )
    verbs.add_subcommand("info", _info_parser(), help="parameters and arithmetic of a recipe's model, part by part")
    verbs.add_subcommand("recipes", _verb("The recipes that come with the package."), help="list the recipes")
    verbs.add_subcommand("doctor", _verb("Check versions, devices and operations."), help="check the installation")
    return parser, {
        "demo": _demo,
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "data shapes": _shapes,
        "info": _info,
        "recipes": _recipes,
        "doctor": _doctor,
    }


def _verb(description: str) -> ArgumentParser:
    return ArgumentParser(description=description, exit_on_error=False)


MODEL_HELP = "a run folder that `masklab train` wrote, or a weights file"


def _demo_parser() -> ArgumentParser:
    parser = _verb(
        "Draw a data set of textured shapes, train a small model on it from scratch, evaluate it, and write its "
        "predictions and pictures: the whole job in a few minutes on a CPU."
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything it writes")
    parser.add_argument("--steps", type=int | None, default=None, help="training steps, if not the recipe's")
    return parser


def _demo(arguments: Namespace) -> None:
    from masklab.demo import demo

    demo(arguments.output, arguments.steps)


def _train_parser(words: list[str]) -> ArgumentParser:
    parser = _verb(
        "Train a model. Every field of the recipe can be changed here, for example "
        "--train.steps 1000 --model.mask.directions 4; the defaults below are those of the recipe you name."
    )
    parser.add_argument("recipe", help=f"one of {', '.join(recipe_names())}, or a YAML file")
    named = words[1] if len(words) > 1 and words[0] == "train" and not words[1].startswith("-") else None
    config = load_recipe(named) if named else Config()
    for name, field in Config.model_fields.items():
        parser.add_argument(
            f"--{name}", type=field.annotation, default=getattr(config, name), help=field.description or name
        )
    parser.add_argument("--resume", type=bool, default=False, help="true continues the run in --output")
    return parser


def _train(arguments: Namespace) -> None:
    from masklab.training.fit import train

    values = {name: _plain(arguments[name]) for name in Config.model_fields}
    train(validate(values, f"recipe {arguments.recipe}"), resume=arguments.resume)


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return value.as_dict()
    return value.model_dump() if hasattr(value, "model_dump") else value


def _evaluate_parser() -> ArgumentParser:
    parser = _verb("Measure a model on a split of a COCO-format folder and print the figures.")
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--split", default="val", help="which split to measure")
    parser.add_argument("--output", type=Path | None, default=None, help="also write the figures to this JSON file")
    parser.add_argument(
        "--ground_truth_boxes", type=bool, default=False, help="true gives the model the annotated boxes: masks alone"
    )
    return parser


def _evaluate(arguments: Namespace) -> None:
    from masklab.evaluation import print_report, write_metrics
    from masklab.evaluation.run import evaluate

    metrics = evaluate(arguments.model, arguments.data, arguments.split, arguments.ground_truth_boxes)
    print_report(metrics)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_metrics(arguments.output, metrics)
        print(f"written to {arguments.output}")


def _predict_parser() -> ArgumentParser:
    parser = _verb(
        "Find the objects of pictures. Writes predictions.json (COCO results: every detection with its score, masks "
        "as run lengths, your own category ids) and, for each picture, an overlay of the objects found."
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("pictures", nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write to")
    parser.add_argument(
        "--score", type=float | None, default=None, help="least score of a drawn object, if not the model's own"
    )
    return parser


def _predict(arguments: Namespace) -> None:
    from masklab.predict import predict_folder
    from masklab.weights import load_model

    predict_folder(load_model(arguments.model), arguments.pictures, arguments.output, arguments.score)


def _shapes_parser() -> ArgumentParser:
    parser = _verb(
        "Draw a data set of dense, overlapping, textured shapes of several classes, and write it as a COCO folder."
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=160, help="training pictures")
    parser.add_argument("--val", type=int, default=40, help="validation pictures")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same pictures")
    return parser


def _shapes(arguments: Namespace) -> None:
    from masklab.data.shapes import draw_shapes

    draw_shapes(arguments.folder, {"train": arguments.train, "val": arguments.val}, arguments.seed)
    print(f"{arguments.train} + {arguments.val} pictures drawn into {arguments.folder}")


def _info_parser() -> ArgumentParser:
    parser = _verb("Parameters and multiply-adds of a recipe's model, part by part.")
    parser.add_argument("recipe", help=f"one of {', '.join(recipe_names())}, or a YAML file")
    parser.add_argument("--classes", type=int, default=80, help="number of classes")
    parser.add_argument("--height", type=int, default=800, help="height of the network's input")
    parser.add_argument("--width", type=int, default=1200, help="width of the network's input")
    return parser


def _info(arguments: Namespace) -> None:
    from masklab.model.cost import model_cost, print_cost

    config = load_recipe(arguments.recipe)
    print_cost(model_cost(config, arguments.classes, (arguments.height, arguments.width)))


def _recipes(arguments: Namespace) -> None:
    from masklab.config import describe_recipes

    for name, description in describe_recipes().items():
        print(f"{name:12} {description}")


def _doctor(arguments: Namespace) -> None:
    from masklab.doctor import doctor

    doctor()


if __name__ == "__main__":
    sys.exit(main())
