"""The verbs of the command line, one row each.

No module that is imported here imports torch or reads a recipe; the functions of a row import what they need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from masklab.cli import data, export, model, predict, report, serve, train

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from masklab.config import Config


class Verb(NamedTuple):
    """One row.  The docstring of ``run`` is the description that ``masklab VERB --help`` prints."""

    help: str
    """Line in the list of verbs."""
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]
    config: Callable[[Namespace], Config] | None = None
    """The configuration whose fields the verb takes as options, from the other arguments; None for no such options."""


GROUPS = {
    "": "Instance segmentation: from a folder of annotated images to masks of every object.",
    "data": "make or inspect data sets",
}
"""Description of ``masklab`` itself, and of the first words that several verbs share."""

VERBS = {
    "demo": Verb("draw images, train on them, show the results (minutes)", train.add_demo, train.demo),
    "train": Verb("train a model on your images", train.add_train, train.train, train.named_recipe),
    "pretrain": Verb(
        "train a backbone on semantic segmentation first", train.add_train, train.pretrain, train.named_recipe
    ),
    "ablate": Verb(
        "train and evaluate every row of one of the paper's tables", train.add_ablate, train.ablate, train.start_recipe
    ),
    "evaluate": Verb("measure a model on annotated images", predict.add_evaluate, predict.evaluate),
    "report": Verb("write a page about a run or a model: figures, curves, errors", report.add_report, report.report),
    "compare": Verb("compare two models image by image", report.add_compare, report.compare),
    "predict": Verb("find the objects of images", predict.add_predict, predict.predict),
    "segment": Verb("compute masks for boxes from any detector", predict.add_segment, predict.segment),
    "show": Verb("draw what a model sees in an image, or where it fails", predict.add_show, predict.show),
    "submit": Verb("predict a list of images into files for COCO's server", predict.add_submit, predict.submit),
    "data shapes": Verb("draw a data set of shapes", data.add_shapes, data.shapes),
    "data check": Verb("list everything that is wrong with a data set", data.add_check, data.check),
    "data show": Verb("draw a data set's images and counts; suggest anchors", data.add_show, data.show),
    "data download": Verb("fetch a public data set from its own site", data.add_download, data.download),
    "data convert": Verb(
        "write a data set in COCO's format, YOLO's, or as label images", data.add_convert, data.convert
    ),
    "export": Verb("write a model as ONNX, OpenVINO or a PyTorch program", export.add_export, export.export),
    "serve": Verb("answer over HTTP, with a page to see the objects of images", serve.add_serve, serve.serve),
    "share": Verb("write a model's weights at half the size, to give to others", model.add_share, model.share),
    "info": Verb("describe a model, or count the cost of a recipe's model", model.add_info, model.info),
    "recipes": Verb("list the recipes", model.add_nothing, model.recipes),
    "doctor": Verb("check the installation", model.add_nothing, model.doctor),
}
