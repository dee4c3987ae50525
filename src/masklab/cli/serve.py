"""The verb serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from masklab.cli.options import MODEL_HELP, add_prediction_options, add_score, given_score, prediction_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_serve(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=f"{MODEL_HELP}; or a file that `masklab export` wrote")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0 takes a free one")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; any but this machine's own needs a token, in the variable MASKLAB_TOKEN",
    )
    parser.add_argument("--max_body", type=int, default=2**28, help="most bytes of an image file")
    parser.add_argument("--max_pixels", type=int, default=100_000_000, help="most pixels of an image")
    parser.add_argument("--seconds", type=float, default=300.0, help="most time that a request may take")
    parser.add_argument(
        "--waiting",
        type=int,
        default=1,
        help="requests that may wait while others are worked on; the rest are told to come again",
    )
    parser.add_argument("--keep", type=int, default=16, help="results that are kept for the page, with their images")
    add_score(parser, "an object found")
    add_prediction_options(parser)


def serve(arguments: Namespace) -> None:
    """Answer over HTTP with the objects of the images that are sent, and show a page for it: see docs/serve.md. Images
    that are kept for the page lie in a temporary folder, which is removed at the end."""
    from masklab.serve.run import check_installed, token_for
    from masklab.serve.run import serve as run
    from masklab.serve.settings import Settings

    check_installed()
    options = prediction_options(arguments, given_score(arguments))
    settings = Settings(
        max_body=arguments.max_body,
        max_pixels=arguments.max_pixels,
        seconds=arguments.seconds,
        waiting=arguments.waiting,
        keep=arguments.keep,
        token=token_for(arguments.host),
        host=arguments.host,
    )
    from masklab.cli.predict import any_model

    name = Path(arguments.model).name or arguments.model
    run(any_model(arguments.model, options), name, arguments.port, settings)
