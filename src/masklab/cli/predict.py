"""Verbs that use a trained model: evaluate, predict, segment, show, submit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from masklab.cli.options import (
    MODEL_HELP,
    add_data,
    add_intensity,
    add_output,
    add_prediction_options,
    add_results,
    add_score,
    add_view_options,
    given_data,
    given_score,
    prediction_options,
    required_data,
)
from masklab.utils.errors import InputError
from masklab.utils.extras import require
from masklab.utils.files import file_to_write
from masklab.utils.words import counted

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from masklab.inference.finder import ObjectFinder
    from masklab.inference.options import PredictionOptions


def add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_data(parser, "--data")
    parser.add_argument("--split", default="val", help="which split to measure; all is a folder without splits")
    parser.add_argument("--output", type=Path | None, default=None, help="also write the figures to this JSON file")
    parser.add_argument(
        "--ground_truth_boxes",
        action="store_true",
        help="give the model the annotated boxes, to measure the masks alone",
    )
    parser.add_argument(
        "--error_analysis",
        action="store_true",
        help="also measure what limits the model: boxes or outlines, where boxes are lost, types of errors",
    )
    parser.add_argument(
        "--report", type=Path | None, default=None, help="also write a report to this HTML file (see `masklab report`)"
    )
    add_prediction_options(parser)


def evaluate(arguments: Namespace) -> None:
    """Measure a model on a split of a data set folder and print the figures."""
    from masklab.evaluation.evaluate import evaluate_in_full
    from masklab.evaluation.report import print_report, write_metrics
    from masklab.report.page import page_to_write

    output = arguments.output and file_to_write(arguments.output)
    if arguments.report:
        require("matplotlib", "report", "--report")
    page = arguments.report and page_to_write(arguments.report)
    data = required_data(arguments, "data")
    evaluation = evaluate_in_full(
        arguments.model,
        data,
        arguments.split,
        prediction_options(arguments),
        arguments.ground_truth_boxes,
        arguments.error_analysis,
    )
    metrics = evaluation.metrics
    print_report(metrics)
    if output:
        write_metrics(output, metrics)
        print(f"written to {output}")
    if page:
        from masklab.report.report import report_of

        report_of(arguments.model, evaluation, page, data)
        print(f"written to {page}")
    if names := metrics["measured"]["images_left_out"]:
        raise InputError(
            f"{counted(len(names), 'image')} could not be used, for the reasons above, and the figures are without: "
            "correct or replace them."
        )


def add_predict(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=f"{MODEL_HELP}; or a file that `masklab export` wrote")
    parser.add_argument(
        "images",
        nargs="+",
        help="images, or folders of images; with --engine ray also addresses, such as s3://bucket/folder",
    )
    add_output(parser, "predictions")
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="where to predict: in this process, or on the machines of a Ray cluster, which writes tables in Parquet and "
        "always resumes (docs/many-machines.md; needs masklab[ray])",
    )
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="with --engine ray: how many processes hold the model, by default one for each GPU, or each core without any",
    )
    parser.add_argument(
        "--annotations",
        type=Path | None,
        default=None,
        help="COCO JSON that lists the images: results get its image ids and, by class name, its category ids",
    )
    add_score(parser, "an object found")
    parser.add_argument(
        "--min_score",
        type=float,
        default=0.0,
        help="leave detections of a lower score out before their masks are computed. The formats with every detection hold "
        "those as well, for average precision; without them an image takes less time",
    )
    add_results(parser)
    parser.add_argument(
        "--pixel_size",
        type=float | None,
        default=None,
        help="of images that are pyramids, such as slides, read the level whose pixels are nearest to this size in "
        "micrometres; results are in pixels of that level. The largest level by default",
    )
    parser.add_argument(
        "--magnification",
        type=float | None,
        default=None,
        help="the same by the magnification of the objective, such as 20",
    )
    add_prediction_options(parser)


def predict(arguments: Namespace) -> None:
    """Find the objects of images and write them in one or more formats: by default predictions.json (COCO results: every
    detection with its score, masks as run lengths, your own category ids) and, for each image, an overlay of the objects
    found. The id of an image is its file's name; other tools that compare results with a COCO JSON need its ids: name
    it as --annotations. The results of an image stand on disk when it is done; after an interruption, the same command with
    --resume does the rest."""
    from masklab.inference.folder import predict_folder

    options = prediction_options(arguments, given_score(arguments))
    if arguments.engine == "ray":
        _predict_on_ray(arguments, options)
        return
    if arguments.workers is not None:
        raise InputError("--workers is for --engine ray alone: leave it out.")
    predict_folder(
        any_model(arguments.model, options),
        arguments.images,
        arguments.output,
        arguments.annotations,
        arguments.save,
        arguments.resume,
        arguments.pixel_size,
        arguments.magnification,
    )


def any_model(model: str, options: PredictionOptions) -> ObjectFinder:
    """A predictor with weights or, by the suffix, with an exported file, which needs no torch."""
    from masklab.runtime.sessions import is_exported

    if is_exported(model):
        from masklab.runtime import predictor as runtime

        return runtime.load(model, options)
    from masklab.inference.predictor import load

    return load(model, options=options)


def _predict_on_ray(arguments: Namespace, options: PredictionOptions) -> None:
    from masklab.inference.engines.on_ray import predict_on_ray
    from masklab.results.formats.registry import DEFAULT

    if arguments.annotations is not None:
        raise InputError("--engine ray writes file names and no ids of a COCO JSON: leave --annotations out.")
    if list(arguments.save) not in (list(DEFAULT), ["parquet"]):
        raise InputError("--engine ray writes Parquet alone: leave --save out.")
    predict_on_ray(arguments.model, arguments.images, arguments.output, options, arguments.workers)


def add_segment(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("images", nargs="+", help="images, or folders of images")
    parser.add_argument(
        "--boxes",
        type=Path,
        required=True,
        help="what the detector wrote: COCO results or annotations, a folder of YOLO's text files or one of them, JSON or "
        "CSV of supervision, or another CSV with columns such as file, x1, y1, x2, y2, class, score",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=None,
        help="names of the classes if --boxes has numbers alone: a file (data.yaml, classes.txt, a COCO JSON), or the names "
        "in order from 0, or NUMBER=NAME",
    )
    parser.add_argument("--label", type=str | None, default=None, help="class of the model for all boxes")
    add_output(parser, "segmented")
    parser.add_argument(
        "--annotations",
        type=Path | None,
        default=None,
        help="COCO JSON that lists the images, if --boxes calls them by its ids: results get its image and category ids",
    )
    parser.add_argument(
        "--score", type=float | None, default=None, help="lowest score of an object found, from 0 to 1, by default any"
    )
    add_results(parser)
    add_view_options(parser)


def segment(arguments: Namespace) -> None:
    """Compute the masks of boxes from any detector. Writes what `masklab predict` writes, with the scores of the boxes. A
    box belongs to the image whose file name its file gives, with or without folders and suffix. Classes are matched
    by name as in `masklab evaluate`; a model of one class takes all boxes."""
    from masklab.inference.predictor import load
    from masklab.inference.segment import segment_folder

    predictor = load(arguments.model, options=prediction_options(arguments, given_score(arguments)))
    segment_folder(
        predictor,
        arguments.images,
        arguments.boxes,
        arguments.output,
        arguments.annotations,
        arguments.classes,
        arguments.label,
        arguments.save,
        arguments.resume,
    )


def add_submit(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--list", type=Path, required=True, help="COCO JSON that names the images")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images, such as test2017")
    add_output(parser, "submission")


def submit(arguments: Namespace) -> None:
    """Predict the images that a COCO list names, such as image_info_test-dev2017.json, and write the two zip files that
    COCO's evaluation server takes: one of masks, one of boxes, with the best 100 detections of each image."""
    from masklab.inference.predictor import load
    from masklab.paper.submission import write_submission

    for path in write_submission(load(arguments.model), arguments.list, arguments.images, arguments.output):
        print(f"written to {path}")


def add_show(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("image", nargs="?", default=None, help="the image; leave it out with --data")
    add_output(parser, "figures")
    add_score(parser, "an object shown")
    add_intensity(parser)
    add_data(parser, "--data", " for the worst images")
    parser.add_argument("--split", default="val", help="which split of --data to search")
    parser.add_argument("--worst", type=int, default=9, help="how many images of --data to draw")


def show(arguments: Namespace) -> None:
    """Draw figures, as PNG files. Of one IMAGE: the objects found, the semantic and the direction logits they are made
    of, how the best masks are assembled, and where a deformable crop samples. With --data instead: the split's worst
    images, with every missed, wrong and badly localised object marked."""
    from masklab.inference.options import PredictionOptions
    from masklab.inference.predictor import load
    from masklab.plots.failures import show_failures
    from masklab.plots.image import show_image

    data = given_data(arguments, "data")
    if (arguments.image is None) == (data is None):
        raise InputError("show takes either an image or --data DIR: name one of the two.")
    predictor = load(
        arguments.model,
        options=PredictionOptions(score_threshold=given_score(arguments), intensity=arguments.intensity),
    )
    if data is None:
        show_image(predictor, arguments.image, arguments.output)
    else:
        show_failures(predictor, data, arguments.output, arguments.split, arguments.worst)
