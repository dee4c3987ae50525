"""The verb export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from masklab.cli.options import MODEL_HELP

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_export(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--format",
        choices=["onnx", "torch_export", "openvino"],
        default="onnx",
        help="onnx (.onnx) runs in onnxruntime from many languages, openvino (.xml and .bin) on processors of Intel, "
        "torch_export (.pt2) in PyTorch with masklab",
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--images",
        type=Path | None,
        default=None,
        help="folder of images like those of the training, on which the file is compared with the model; drawn images "
        "without one",
    )
    parser.add_argument(
        "--int8", action="store_true", help="convolutions in 8-bit integers, calibrated on --images: faster, less exact"
    )


def export(arguments: Namespace) -> None:
    """Write a model as a file that runs without masklab's network: image in, boxes, scores, labels and masks out, for any
    height and width. The file is compared with the model, object by object, before it is kept. `masklab predict` takes it
    in place of a model."""
    from masklab.export.export import export

    export(arguments.model, arguments.format, arguments.output, arguments.images, arguments.int8)
