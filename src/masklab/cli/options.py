"""Help texts and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from masklab.utils.errors import InputError
from masklab.utils.types import Intensity, Precision

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from masklab.config import Config
    from masklab.datasets.source import Data
    from masklab.inference.options import PredictionOptions

MODEL_HELP = "a run folder that `masklab train` wrote, a weights file, or nuclei, the model that comes with masklab"


def recipe_help() -> str:
    from masklab.config.recipe import common_recipes

    return f"one of {common_recipes()}, another of `masklab recipes`, or a YAML file"


def add_output(parser: ArgumentParser, default: str) -> None:
    parser.add_argument("--output", type=Path, default=Path(default), help="folder to write to")


def add_data(parser: ArgumentParser, name: str, purpose: str = "") -> None:
    """A data set: a folder or a file as argument or option ``name``, or the files that it consists of."""
    text = f"data set{purpose}: a folder, whose layout is recognised, or a COCO file beside its images"
    kind = {"default": None} if name.startswith("-") else {"nargs": "?", "default": None}
    parser.add_argument(name, type=Path | None, help=text, **kind)
    parser.add_argument(
        "--layout", type=str | None, default=None, help="its layout, where the folder fits more than one"
    )
    parser.add_argument(
        "--annotations", type=Path, nargs="+", default=None, help="COCO files instead, such as train.json and val.json"
    )
    parser.add_argument("--images", type=Path, nargs="+", default=None, help="folders of the images of --annotations")
    parser.add_argument(
        "--split_components",
        action="store_true",
        help="read each connected piece of a mask as an object, where masks hold one value for many objects",
    )


def given_data(arguments: Namespace, name: str) -> Data | None:
    """The data set that the options of `add_data` name; None where they name none."""
    from masklab.datasets.source import named_source

    given = arguments[name], arguments.annotations, arguments.images, arguments.layout, arguments.split_components
    return named_source(*given)


def required_data(arguments: Namespace, name: str) -> Data:
    """`given_data`; `InputError` where there is none."""
    data = given_data(arguments, name)
    if data is None:
        raise InputError("no data set is named: give its folder, or --annotations FILE --images DIR.")
    return data


def add_prediction_options(parser: ArgumentParser) -> None:
    """The options of `add_view_options`, and how many detections are kept."""
    parser.add_argument(
        "--max_detections",
        type=int | None,
        default=None,
        help="largest number of objects per image, if not the model's own",
    )
    add_view_options(parser)


def add_view_options(parser: ArgumentParser) -> None:
    """Test-time augmentation, precision and intensity."""
    parser.add_argument(
        "--flips",
        choices=["none", "horizontal", "both", "turns"],
        default="none",
        help="test-time augmentation: also predict each image flipped horizontally (2 views), also vertically "
        "(both: 4 views), and also transposed (turns: 8 views)",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        help="test-time augmentation: factors on the model's own image size, such as 0.8 1.0 1.25",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="number format of the convolutions; auto takes bf16 where the hardware has it",
    )
    add_intensity(parser)


def add_results(parser: ArgumentParser) -> None:
    """The formats that results are written in, and whether to go on with an earlier run."""
    from masklab.results.formats.registry import DEFAULT, FORMATS

    holds = "; ".join(f"{format.name}, {format.holds}" for format in FORMATS.values())
    parser.add_argument(
        "--save",
        nargs="+",
        choices=list(FORMATS),
        default=list(DEFAULT),
        help=f"formats to write, one or more: {holds}. Files of an image (NAME) hold the objects found",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what an earlier run wrote with the same model and options of images that have not changed, and do "
        "only the others: those that were not reached, or failed",
    )


def add_intensity(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--intensity",
        choices=get_args(Intensity),
        default="model",
        help="which values become black and white: those of the training, or each image's percentiles 0.1 and 99.9, "
        "for images that use little of their 16 bits",
    )


def add_score(parser: ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--score", type=float | None, default=None, help=f"lowest score of {what}, from 0 to 1, if not the model's own"
    )


def given_score(arguments: Namespace) -> float | None:
    """The value of ``--score``; `InputError` if it is no probability."""
    from masklab.inference.options import check_probability

    if arguments.score is not None:
        check_probability(arguments.score, "--score")
    return arguments.score


def prediction_options(arguments: Namespace, score_threshold: float | None = None) -> PredictionOptions:
    """The options that `add_prediction_options` or `add_view_options` added."""
    from masklab.inference.options import PredictionOptions

    return PredictionOptions(
        flips=arguments.flips,
        scales=tuple(arguments.scales),
        max_detections=arguments.get("max_detections"),
        score_threshold=score_threshold,
        min_score=arguments.get("min_score") or 0.0,
        precision=arguments.precision,
        intensity=arguments.intensity,
    )


def add_fields(parser: ArgumentParser, config: Config) -> None:
    """An option for every field of the configuration, with the values of ``config`` as defaults."""
    for name, field in type(config).model_fields.items():
        parser.add_argument(
            f"--{name}", type=field.annotation, default=getattr(config, name), help=field.description or name
        )


def field_defaults(config: Config) -> dict[str, Any]:
    """The values of ``config`` by the names that `add_fields` gives the options."""
    from masklab.config.nested import flatten

    return flatten(config.model_dump())


def given_fields(arguments: Namespace, source: str) -> Config:
    """The configuration that the options of `add_fields` hold; `InputError` names ``source``."""
    from masklab.config import Config, validate

    return validate({name: _plain(arguments[name]) for name in Config.model_fields}, source)


def _plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        return value.as_dict()
    return value.model_dump() if hasattr(value, "model_dump") else value
