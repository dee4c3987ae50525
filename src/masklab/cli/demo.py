"""The verb demo: data, training, evaluation and prediction on drawn images, and the packaged model on one of nuclei."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from hotcoco import mask
from rich.console import Console
from rich.table import Table

from masklab.config.recipe import load_recipe
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.datasets.synthetic.shapes import draw_shapes
from masklab.evaluation.evaluate import evaluate
from masklab.evaluation.report import print_report, write_metrics
from masklab.inference.folder import predict_folder
from masklab.inference.predictor import load
from masklab.masks.encode import encode_labels
from masklab.masks.rle import rle_to_coco
from masklab.results.overlay import overlay
from masklab.training.train import train
from masklab.utils.files import atomic_write

_log = logging.getLogger(__name__)

IMAGES = {"train": 240, "val": 24}


def demo(output: str | Path, steps: int | None = None) -> dict[str, float | None]:
    """Draw, train, evaluate and predict into the folder ``output``; returns the mask figures.

    The last step runs the model `nuclei` that comes with the package on a drawn image (see `try_nuclei`).
    """
    start, output = time.monotonic(), Path(output)
    data, run, images = output / "shapes", output / "run", output / "predictions"
    _log.info(f"1/5  drawing {sum(IMAGES.values())} images into {data}")
    draw_shapes(data, IMAGES, seed=0)
    _log.info("2/5  training from scratch: after ten steps it says how long that takes, nearly all of the demo's time")
    config = load_recipe("shapes", {"train": {"steps": steps}} if steps else None)
    predictor = train(config, data, run)
    _log.info("3/5  evaluating on the validation images")
    metrics = evaluate(predictor, data, "val")
    write_metrics(output / "metrics.json", metrics)
    _log.info("4/5  writing predictions and overlays")
    predict_folder(predictor, [data / "val"], images, data / "val.json")
    _log.info("5/5  the model that comes with masklab, on a drawn image of nuclei")
    found, drawn = try_nuclei(output / "nuclei.png")
    print(f"{found} of {drawn} nuclei found: {output / 'nuclei.png'}")
    print_report(metrics)
    table = Table(title=f"done in {(time.monotonic() - start) / 60:.1f} minutes", show_header=False)
    for content, path in {
        "data set, COCO format": data,
        "weights": run / "best.safetensors",
        "log": run / "metrics.csv",
        "figures": output / "metrics.json",
        "overlays and predictions.json": images,
        "nuclei, by the model that comes with masklab": output / "nuclei.png",
    }.items():
        table.add_row(content, str(path))
    table.add_row("next, with your own image of nuclei", "masklab predict nuclei IMAGE")
    table.add_row("next, with your own images", "masklab train nuclei --data DIR --output RUN")
    Console().print(table)
    return metrics["mask"]


def try_nuclei(path: str | Path) -> tuple[int, int]:
    """Run the model `nuclei` that comes with the package on a drawn image and write the overlay to ``path``, a PNG.

    Returns the number of nuclei that it found, at an IoU of at least 0.5 and its own score threshold, and the number drawn.
    """
    predictor, (image, labels) = load("nuclei"), draw_nuclei()
    instances = predictor.predict(image).above(predictor.threshold)
    with atomic_write(path) as temporary:
        overlay(image, instances, predictor.threshold).save(temporary, "PNG")
    drawn = rle_to_coco(encode_labels(labels)[1], instances.size)
    ious = mask.iou(instances.rles(), drawn, [False] * len(drawn))
    return int((ious >= 0.5).any(axis=0).sum()), len(drawn)
