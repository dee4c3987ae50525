"""Verbs that write a page for people: report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from masklab.cli.options import MODEL_HELP, add_data, add_prediction_options, given_data, prediction_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_report(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_data(parser, "--data", " to measure the model on, if not the run's own")
    parser.add_argument("--split", default="val", help="which split to measure; all is a folder without splits")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="file to write")
    add_prediction_options(parser)


def report(arguments: Namespace) -> None:
    """Write a report of a run or a model as one HTML file that needs no other: what it was trained on, how losses went,
    and how good it is on a split: figures, curves, a slider for the score threshold, kinds of errors, worst and best
    images. Without --data, on the data of the run."""
    from masklab.report.report import report

    report(
        arguments.model, arguments.output, given_data(arguments, "data"), arguments.split, prediction_options(arguments)
    )
    print(f"written to {arguments.output}")


def add_compare(parser: ArgumentParser) -> None:
    parser.add_argument("first", help=MODEL_HELP)
    parser.add_argument("second", help="the model to compare with it, named in the same way")
    add_data(parser, "--data", " to measure both on, if not that of the first run")
    parser.add_argument("--split", default="val", help="which split to measure; all is a folder without splits")
    parser.add_argument("--output", type=Path, default=Path("comparison.html"), help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same intervals")
    add_prediction_options(parser)


def compare(arguments: Namespace) -> None:
    """Compare two models on the same images: the difference of each figure with its 95 % interval, and which images
    the second does better or worse. Prints the figures and writes a page as one HTML file."""
    from masklab.report.compare import compare, sentences

    compared = compare(
        arguments.first,
        arguments.second,
        arguments.output,
        given_data(arguments, "data"),
        arguments.split,
        prediction_options(arguments),
        arguments.seed,
    )
    for line in sentences(compared):
        print(line)
    print(f"written to {arguments.output}")
