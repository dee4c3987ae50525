"""Verbs that make or inspect data sets: data shapes, check, show, download, convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from masklab.cli.options import add_data, add_output, required_data
from masklab.utils.errors import FaultyDataError
from masklab.utils.files import file_to_write
from masklab.utils.signals import Stopped, exit_code
from masklab.utils.words import counted

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_shapes(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=160, help="training images")
    parser.add_argument("--val", type=int, default=40, help="validation images")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same images")
    parser.add_argument(
        "--style",
        choices=["shapes", "crowd"],
        default="shapes",
        help="shapes are small; a crowd is of large, elongated, concave objects, of which those of one class overlap "
        "and look alike",
    )


def shapes(arguments: Namespace) -> None:
    """Draw a data set of dense, overlapping, textured objects of four classes, and write it as a COCO folder. A mask
    is the part of an object that is not covered by another."""
    from masklab.datasets.synthetic.shapes import draw_shapes

    images = {"train": arguments.train, "val": arguments.val}
    draw_shapes(arguments.folder, images, arguments.seed, style=arguments.style)
    print(f"{arguments.train} + {counted(arguments.val, 'image')} drawn into {arguments.folder}")


def add_check(parser: ArgumentParser) -> None:
    from jsonargparse.typing import PositiveInt

    add_data(parser, "folder")
    parser.add_argument("--output", type=Path | None, default=None, help="also write every finding to this JSON file")
    parser.add_argument(
        "--workers", type=PositiveInt | None, default=None, help="processes that share the work, if not one per core"
    )


def check(arguments: Namespace) -> None:
    """List everything that is wrong with a data set, and what training does about it. Exit code 1 if training would
    stop or skip something, 2 if there is no data set, 0 otherwise. With --output, the same command continues a check
    that was interrupted."""
    from masklab.datasets.check import check, print_check, write_check

    output = arguments.output and file_to_write(arguments.output)
    unfinished = output and output.with_name(f"{output.name}.unfinished")
    try:
        report = check(required_data(arguments, "folder"), arguments.workers, unfinished)
    except KeyboardInterrupt as stop:
        advice = "the same command goes on" if output else "with --output FILE, the same command would go on"
        raise Stopped(f"stopped; {advice}.", exit_code(stop)) from None
    print_check(report)
    if output:
        write_check(output, report)
        print(f"written to {output}")
    if report.fault:
        raise FaultyDataError(report.fault)


def add_show(parser: ArgumentParser) -> None:
    add_data(parser, "folder")
    add_output(parser, "figures")
    parser.add_argument("--split", default="train", help="which split to draw")
    parser.add_argument(
        "--recipe",
        type=str | None,
        default=None,
        help="recipe whose image size the anchors are for, if not the paper's",
    )


def show(arguments: Namespace) -> None:
    """Draw a data set: a sheet of images with their annotations, counts of classes, sizes of objects and objects
    per image; and print the anchor sizes and detection limits that suit it."""
    from masklab.plots.dataset import show_data

    show_data(required_data(arguments, "folder"), arguments.output, arguments.split, arguments.recipe)


def add_download(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="coco2017 (20 GB) or nuclei (2018 Data Science Bowl)")
    parser.add_argument("folder", type=Path, help="folder to unpack into")


def download(arguments: Namespace) -> None:
    """Fetch the official archives of a public data set, verify and unpack them. The same command continues a transfer
    that was interrupted."""
    from masklab.datasets.download import download

    print(f"{arguments.name} is in {download(arguments.name, arguments.folder)}")


def add_convert(parser: ArgumentParser) -> None:
    from masklab.config.fields import VAL_FRACTION

    add_data(parser, "source")
    parser.add_argument("folder", type=Path, help="new folder to write to")
    parser.add_argument(
        "--val_fraction", type=float, default=VAL_FRACTION, help="share that becomes val, if there is no val"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed chooses the same images for val")
    parser.add_argument(
        "--format",
        choices=["coco", "yolo", "label_images"],
        default="coco",
        help="coco keeps everything; yolo joins the parts and holes of an object into one outline and has no crowd "
        "regions; label_images have none either, and hold one object per pixel",
    )


def convert(arguments: Namespace) -> None:
    """Write a data set of any layout that masklab reads in COCO's, with exact masks, as run lengths; or as YOLO
    segmentation or label images, for other tools. Training reads all layouts without it. What the new format cannot
    hold is left out and counted."""
    from masklab.datasets.convert import convert

    source = required_data(arguments, "source")
    splits = convert(source, arguments.folder, arguments.val_fraction, arguments.seed, arguments.format)
    for split, place, lost in splits.values():
        print(f"{place} from {split.summary()}")
        for what, count in lost.items():
            print(f"{place} lost: {count} {what}")
