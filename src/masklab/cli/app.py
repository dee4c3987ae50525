"""The command line: ``masklab VERB ...``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from masklab.config.fields import VAL_FRACTION
from masklab.config.recipe import common_recipes, load_recipe, recipe_names
from masklab.config.schema import Config, validate
from masklab.paper.tables import TABLES, print_recipes, table_rows
from masklab.utils.errors import BrokenLossError, FailedRunsError, FaultyDataError, InputError
from masklab.utils.files import file_to_write, make_folder
from masklab.utils.types import Precision

Verb = Callable[[Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for work that failed, 2 for input that cannot be used."""
    # OpenMP's waiting threads spin by default; with another process on the same cores, such as the one
    # that loads images, that makes a training step many times slower.  It must be set before torch.
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
    except (BrokenLossError, FailedRunsError, FaultyDataError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "stopped.", 130)
    except BrokenPipeError:  # whoever read our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
        description="Instance segmentation: from a folder of annotated images to masks of every object.",
        exit_on_error=False,
    )
    from masklab import __version__

    parser.add_argument("--version", action="version", version=f"masklab {__version__}")
    verbs = parser.add_subcommands(required=True, metavar="VERB", title="verbs")
    verbs.add_subcommand("demo", _demo_parser(), help="draw images, train on them, show what came out (minutes)")
    verbs.add_subcommand("train", _train_parser(words), help="train a model on your images")
    verbs.add_subcommand("pretrain", _pretrain_parser(words), help="train a backbone on semantic segmentation first")
    verbs.add_subcommand(
        "ablate", _ablate_parser(words), help="train and evaluate every row of one of the paper's tables"
    )
    verbs.add_subcommand("evaluate", _evaluate_parser(), help="measure a model on annotated images")
    verbs.add_subcommand("predict", _predict_parser(), help="find the objects of images")
    verbs.add_subcommand("show", _show_parser(), help="draw what a model sees in an image, or where it fails")
    verbs.add_subcommand("submit", _submit_parser(), help="predict a list of images into files for COCO's server")
    data = _verb("Make or look at data sets.")
    verbs.add_subcommand("data", data, help="make or look at data sets")
    kinds = data.add_subcommands(required=True, metavar="WHAT")
    kinds.add_subcommand("shapes", _shapes_parser(), help="draw a data set")
    kinds.add_subcommand("check", _check_parser(), help="list all that is wrong with a data set")
    kinds.add_subcommand("show", _show_data_parser(), help="draw a data set's images and counts; suggest anchors")
    kinds.add_subcommand("download", _download_parser(), help="fetch a public data set from its own site")
    kinds.add_subcommand("convert", _convert_parser(), help="write a data set of any known format in COCO's")
    verbs.add_subcommand("share", _share_parser(), help="write a model's weights at half the size, to give to others")
    verbs.add_subcommand("info", _info_parser(), help="what a model says of itself, or what a recipe's model costs")
    verbs.add_subcommand("recipes", _verb("The recipes that come with the package."), help="list the recipes")
    verbs.add_subcommand("doctor", _verb("Check versions, devices and operations."), help="check the installation")
    return parser, {
        "demo": _demo,
        "train": _train,
        "pretrain": _pretrain,
        "ablate": _ablate,
        "evaluate": _evaluate,
        "predict": _predict,
        "show": _show,
        "submit": _submit,
        "data shapes": _shapes,
        "data check": _check,
        "data show": _show_data,
        "data download": _download,
        "data convert": _convert,
        "share": _share,
        "info": _info,
        "recipes": _recipes,
        "doctor": _doctor,
    }


def _verb(description: str) -> ArgumentParser:
    return ArgumentParser(description=description, exit_on_error=False)


RECIPE_HELP = f"one of {common_recipes()}, another of `masklab recipes`, or a YAML file"
MODEL_HELP = "a run folder that `masklab train` wrote, a weights file, or nuclei, the model that comes with masklab"


def _demo_parser() -> ArgumentParser:
    parser = _verb(
        "Draw a data set of textured shapes, train a small model on it from scratch, evaluate it, and write its "
        "predictions and images: the whole job in a few minutes on a CPU."
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything it writes")
    parser.add_argument("--steps", type=int | None, default=None, help="training steps, if not the recipe's")
    return parser


def _demo(arguments: Namespace) -> None:
    from masklab.cli.demo import demo

    demo(arguments.output, arguments.steps)


def _train_parser(words: list[str]) -> ArgumentParser:
    return _recipe_parser("train", "Train a model.", words)


def _pretrain_parser(words: list[str]) -> ArgumentParser:
    return _recipe_parser(
        "pretrain",
        "Train the recipe's backbone to name the class of each pixel, and write weights for `masklab train RECIPE "
        "--model.backbone.segmentation_weights FILE`. Of the model, only the backbone and mask.dilations are used.",
        words,
    )


def _recipe_parser(verb: str, description: str, words: list[str]) -> ArgumentParser:
    parser = _verb(
        f"{description} Every field of the recipe can be changed here, for example "
        "--train.steps 1000 --model.mask.directions 4; the defaults below are those of the recipe you name."
    )
    parser.add_argument("recipe", help=RECIPE_HELP)
    named = _named_first(verb, "recipe", words)
    _add_fields(parser, load_recipe(named) if named else Config())
    parser.add_argument("--resume", type=bool, default=False, help="true continues the run in --output")
    return parser


def _named_first(verb: str, what: str, words: list[str]) -> str | None:
    """The word after the verb, if it is among ``words``: it names where the defaults of all options come from.

    Raises `InputError` when an option stands there, as its defaults would silently be others.
    """
    if len(words) < 2 or words[0] != verb or words[1] in ("-h", "--help"):
        return None
    if words[1].startswith("-"):
        raise InputError(f"{words[1]} stands before the {what}: write `masklab {verb} {what.upper()} {words[1]} ...`.")
    return words[1]


def _add_fields(parser: ArgumentParser, config: Config) -> None:
    """An option for every field, with the values of ``config``."""
    for name, field in Config.model_fields.items():
        parser.add_argument(
            f"--{name}", type=field.annotation, default=getattr(config, name), help=field.description or name
        )


def _train(arguments: Namespace) -> None:
    from masklab.training.fit import train

    train(_recipe(arguments), resume=arguments.resume)


def _pretrain(arguments: Namespace) -> None:
    from masklab.training.pretrain import pretrain

    pretrain(_recipe(arguments), resume=arguments.resume)


def _recipe(arguments: Namespace) -> Config:
    """The recipe with the fields that the command line changed."""
    values = {name: _plain(arguments[name]) for name in Config.model_fields}
    return validate(values, f"recipe {arguments.recipe}")


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return value.as_dict()
    return value.model_dump() if hasattr(value, "model_dump") else value


def _ablate_parser(words: list[str]) -> ArgumentParser:
    parser = _verb(
        "Train and evaluate every row of one of the paper's tables, on any data set and from any recipe, and write the "
        "figures beside the paper's. Fields that all rows share can be changed as for `masklab train`, for example "
        "--train.steps 1000. Run the same command again to go on after an interruption."
    )
    parser.add_argument("table", choices=list(TABLES), help="the table: what its rows change is in `masklab recipes`")
    parser.add_argument(
        "--recipe", type=str | None, default=None, help="recipe that the rows change, if not the table's own"
    )
    parser.add_argument("--seeds", type=PositiveInt, default=1, help="runs of each row")
    parser.add_argument("--rows", nargs="+", default=None, help="rows to run, if not all")
    _add_fields(parser, _ablate_start(words))
    return parser


def _ablate_start(words: list[str]) -> Config:
    """The recipe that the rows change, as far as it can be told before the words are parsed."""
    table = _named_first("ablate", "table", words)
    if table is None:
        return Config()
    named = [b for a, b in pairwise(words) if a == "--recipe"] + [w[9:] for w in words if w.startswith("--recipe=")]
    if named:
        return load_recipe(named[-1])
    return load_recipe(table_rows(table)[0].start) if table in TABLES else Config()


def _ablate(arguments: Namespace) -> None:
    from masklab.paper.ablate import ablate
    from masklab.training.fit import required

    recipe = arguments.recipe or table_rows(arguments.table)[0].start
    start = load_recipe(recipe)
    values = {name: _plain(arguments[name]) for name in ("model", "image", "train")}
    changed = validate(values, f"recipe {recipe}")
    ablate(
        arguments.table,
        required(arguments.data or start.data, "--data"),
        required(arguments.output or start.output, "--output"),
        arguments.seeds,
        arguments.recipe,
        _changes(changed.model_dump(), start.model_dump()),
        arguments.rows,
    )


def _changes(values: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """The nested fields that differ from those of ``start``."""
    changed = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(start[name], dict):
            value = _changes(value, start[name])
            if value:
                changed[name] = value
        elif value != start[name]:
            changed[name] = value
    return changed


def _evaluate_parser() -> ArgumentParser:
    parser = _verb("Measure a model on a split of a data set folder and print the figures.")
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--split", default="val", help="which split to measure; all is a folder without splits")
    parser.add_argument("--output", type=Path | None, default=None, help="also write the figures to this JSON file")
    parser.add_argument(
        "--ground_truth_boxes", type=bool, default=False, help="true gives the model the annotated boxes: masks alone"
    )
    parser.add_argument(
        "--error_analysis",
        type=bool,
        default=False,
        help="true also tells what limits the model: boxes or outlines, where boxes are lost, its kinds of errors",
    )
    _add_views(parser)
    return parser


def _add_views(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--flips",
        choices=["none", "horizontal", "both", "turns"],
        default="none",
        help="also look at each image mirrored: 2 views; top and bottom too: 4; quarter turns too: 8",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        help="sizes to look at it, times the model's own: 0.8 1.0 1.25",
    )
    parser.add_argument(
        "--max_detections", type=PositiveInt | None, default=None, help="most objects an image, if not the model's own"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default=None,
        help="number format of the convolutions, if not the model's own; auto takes bf16 where the hardware has it",
    )


def _evaluate(arguments: Namespace) -> None:
    from masklab.evaluation.evaluate import evaluate
    from masklab.evaluation.report import print_report, write_metrics

    output = arguments.output and file_to_write(arguments.output)
    metrics = evaluate(
        arguments.model,
        arguments.data,
        arguments.split,
        arguments.ground_truth_boxes,
        arguments.flips,
        arguments.scales,
        arguments.error_analysis,
        arguments.max_detections,
        arguments.precision,
    )
    print_report(metrics)
    if output:
        write_metrics(output, metrics)
        print(f"written to {output}")


def _predict_parser() -> ArgumentParser:
    parser = _verb(
        "Find the objects of images. Writes predictions.json (COCO results: every detection with its score, masks "
        "as run lengths, your own category ids) and, for each image, an overlay of the objects found."
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("images", nargs="+", help="images, or folders of images")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write to")
    parser.add_argument(
        "--score", type=float | None, default=None, help="least score of a drawn object, if not the model's own"
    )
    _add_views(parser)
    return parser


def _predict(arguments: Namespace) -> None:
    from masklab.inference.folder import predict_folder
    from masklab.weights.checkpoint import load_model

    predict_folder(
        load_model(arguments.model, max_detections=arguments.max_detections, precision=arguments.precision),
        arguments.images,
        arguments.output,
        arguments.score,
        arguments.flips,
        arguments.scales,
    )


def _submit_parser() -> ArgumentParser:
    parser = _verb(
        "Predict the images that a COCO list names, such as image_info_test-dev2017.json, and write the two zip files "
        "that COCO's evaluation server takes: one of masks, one of boxes, with the best 100 detections of each image."
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--list", type=Path, required=True, help="COCO JSON that names the images")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images, such as test2017")
    parser.add_argument("--output", type=Path, default=Path("submission"), help="folder to write to")
    return parser


def _submit(arguments: Namespace) -> None:
    from masklab.paper.submission import write_submission
    from masklab.weights.checkpoint import load_model

    for path in write_submission(load_model(arguments.model), arguments.list, arguments.images, arguments.output):
        print(f"written to {path}")


def _show_parser() -> ArgumentParser:
    parser = _verb(
        "Draw figures, as PNG files. Of one IMAGE: the objects found, the semantic and the direction logits they are "
        "made of, how the best masks come about, and where a deformable crop looks. With --data instead: the split's "
        "worst images, with every missed, wrong and badly localised object marked."
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("image", nargs="?", default=None, help="the image; leave it out with --data")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder to write to")
    parser.add_argument(
        "--score", type=float | None, default=None, help="least score of an object shown, if not the model's own"
    )
    parser.add_argument("--data", type=Path | None, default=None, help="data set folder, for the worst images")
    parser.add_argument("--split", default="val", help="which split of --data to search")
    parser.add_argument("--worst", type=int, default=9, help="how many images of --data to draw")
    return parser


def _show(arguments: Namespace) -> None:
    from masklab.plots.failures import show_failures
    from masklab.plots.image import show_image
    from masklab.weights.checkpoint import load_model

    if (arguments.image is None) == (arguments.data is None):
        raise InputError("show takes either an image or --data DIR: name one of the two.")
    model = load_model(arguments.model)
    if arguments.data is None:
        show_image(model, arguments.image, arguments.output, arguments.score)
    else:
        show_failures(model, arguments.data, arguments.output, arguments.split, arguments.worst, arguments.score)


def _shapes_parser() -> ArgumentParser:
    parser = _verb(
        "Draw a data set of dense, overlapping, textured shapes of several classes, and write it as a COCO folder."
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=160, help="training images")
    parser.add_argument("--val", type=int, default=40, help="validation images")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same images")
    return parser


def _shapes(arguments: Namespace) -> None:
    from masklab.datasets.synthetic.shapes import draw_shapes

    draw_shapes(arguments.folder, {"train": arguments.train, "val": arguments.val}, arguments.seed)
    print(f"{arguments.train} + {arguments.val} images drawn into {arguments.folder}")


def _convert_parser() -> ArgumentParser:
    parser = _verb(
        "Write a data set - YOLO segmentation, label images, Cellpose's or Kaggle's layout, or COCO - in the COCO layout, "
        "its masks exactly, as run lengths. Training reads all of them without it."
    )
    parser.add_argument("source", type=Path, help="data set folder")
    parser.add_argument("folder", type=Path, help="new folder to write to")
    parser.add_argument(
        "--val_fraction", type=float, default=VAL_FRACTION, help="share that becomes val, if there is no val"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same images for val")
    return parser


def _convert(arguments: Namespace) -> None:
    from masklab.datasets.convert import convert

    splits = convert(arguments.source, arguments.folder, arguments.val_fraction, arguments.seed)
    for name, split in splits.items():
        print(f"{arguments.folder / name}.json from {split.summary()}")


def _check_parser() -> ArgumentParser:
    parser = _verb(
        "List all that is wrong with a data set, and what training makes of it. Exit code 1 if training would "
        "stop or skip something, 2 if there is no data set, 0 otherwise."
    )
    parser.add_argument("folder", type=Path, help="data set folder")
    parser.add_argument("--output", type=Path | None, default=None, help="also write every finding to this JSON file")
    return parser


def _check(arguments: Namespace) -> None:
    from masklab.datasets.check import check, print_check, write_check

    output = arguments.output and file_to_write(arguments.output)
    report = check(arguments.folder)
    print_check(report)
    if output:
        write_check(output, report)
        print(f"written to {output}")
    if report.fault:
        raise FaultyDataError(report.fault)


def _show_data_parser() -> ArgumentParser:
    parser = _verb(
        "Draw a data set: a sheet of images with their annotations, counts of classes, sizes of objects and objects a "
        "image; and print the anchor sizes and caps that suit it."
    )
    parser.add_argument("folder", type=Path, help="data set folder")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder to write to")
    parser.add_argument("--split", default="train", help="which split to draw")
    parser.add_argument(
        "--recipe",
        type=str | None,
        default=None,
        help="recipe whose image size the anchors are for, if not the paper's",
    )
    return parser


def _show_data(arguments: Namespace) -> None:
    from masklab.plots.dataset import show_data

    show_data(arguments.folder, arguments.output, arguments.split, arguments.recipe)


def _download_parser() -> ArgumentParser:
    parser = _verb(
        "Fetch the official archives of a public data set, verify and unpack them. The same command goes on where "
        "a transfer broke off."
    )
    parser.add_argument("name", help="coco2017 (20 GB) or nuclei (2018 Data Science Bowl)")
    parser.add_argument("folder", type=Path, help="folder to unpack into")
    return parser


def _download(arguments: Namespace) -> None:
    from masklab.datasets.download import download

    print(f"{arguments.name} is in {download(arguments.name, arguments.folder)}")


def _share_parser() -> ArgumentParser:
    parser = _verb(
        "Write a model's weights in half precision, with all that is needed to use them: half the size, to give to others. "
        "Predictions are computed in the same precision as before."
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("file", type=Path, help="file to write, NAME.safetensors; `masklab info` shows NAME.md with it")
    return parser


def _share(arguments: Namespace) -> None:
    from masklab.weights.checkpoint import load_model, read_notes, save_model

    file: Path = arguments.file
    if file.suffix != ".safetensors":
        raise InputError(f"{file} is to be a weights file: give it a name that ends in .safetensors.")
    make_folder(file.parent)
    save_model(load_model(arguments.model, "cpu"), file, read_notes(arguments.model), half=True)
    print(
        f"{file}: {file.stat().st_size / 1e6:.1f} MB; say in {file.with_suffix('.md')} what it was trained on and for"
    )


def _info_parser() -> ArgumentParser:
    parser = _verb(
        "Of a model: its classes, how it was trained, what it scored, and its card, the Markdown file beside its weights. "
        "Of a recipe: parameters and multiply-adds of its model, part by part. Of a name that is both: both."
    )
    parser.add_argument("name", help=f"model: {MODEL_HELP}; or recipe: {RECIPE_HELP}")
    parser.add_argument("--classes", type=int, default=80, help="number of classes")
    parser.add_argument("--height", type=int, default=800, help="height of the network's input")
    parser.add_argument("--width", type=int, default=1200, help="width of the network's input")
    return parser


def _info(arguments: Namespace) -> None:
    from masklab.model.cost import model_cost, print_cost
    from masklab.weights.checkpoint import describe, model_names

    name, path = arguments.name, Path(arguments.name)
    recipe = name in recipe_names() or path.suffix in (".yaml", ".yml")
    model = name in model_names() or (not recipe and (path.exists() or path.suffix == ".safetensors"))
    if model:
        print(describe(name))
    if recipe or not model:
        size = (arguments.height, arguments.width)
        title = f"{name}: one image of {size[0]} x {size[1]}, {arguments.classes} classes"
        print_cost(model_cost(load_recipe(name), arguments.classes, size), title)


def _recipes(arguments: Namespace) -> None:
    print_recipes()


def _doctor(arguments: Namespace) -> None:
    from masklab.cli.doctor import doctor

    doctor()


if __name__ == "__main__":
    sys.exit(main())
