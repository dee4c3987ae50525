"""The whole job on images that the program draws: data, training, evaluation, prediction; and the shipped model on one."""

from __future__ import annotations

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
from masklab.masks.encode import encode_labels
from masklab.masks.rle import rle_to_coco
from masklab.results.overlay import overlay
from masklab.training.fit import train
from masklab.utils.files import atomic_write
from masklab.weights.checkpoint import load_model

IMAGES = {"train": 240, "val": 24}


def demo(output: str | Path, steps: int | None = None) -> dict[str, float | None]:
    """Draw, train, evaluate and predict into the folder ``output``; returns the mask figures.

    The last step runs the model `nuclei` that comes with the package on a drawn image (see `try_nuclei`).
    """
    began, output = time.monotonic(), Path(output)
    data, run, images = output / "shapes", output / "run", output / "predictions"
    print(f"1/5  drawing {sum(IMAGES.values())} images into {data}")
    draw_shapes(data, IMAGES, seed=0)
    print("2/5  training from scratch")
    config = load_recipe("shapes", {"train": {"steps": steps}} if steps else None)
    model = train(config, data, run)
    print("3/5  evaluating on the validation images")
    metrics = evaluate(model, data, "val")
    write_metrics(output / "metrics.json", metrics)
    print("4/5  writing predictions and overlays")
    predict_folder(model, [data / "val"], images)
    print("5/5  the model that comes with masklab, on a drawn image of nuclei")
    found, drawn = try_nuclei(output / "nuclei.png")
    print(f"{found} of {drawn} nuclei found: {output / 'nuclei.png'}")
    print_report(metrics)
    table = Table(title=f"done in {(time.monotonic() - began) / 60:.1f} minutes", show_header=False)
    for what, where in {
        "data set, COCO format": data,
        "weights": run / "best.safetensors",
        "log": run / "metrics.csv",
        "figures": output / "metrics.json",
        "overlays and predictions.json": images,
        "nuclei, by the model that comes with masklab": output / "nuclei.png",
    }.items():
        table.add_row(what, str(where))
    table.add_row("next, with your own image of nuclei", "masklab predict nuclei IMAGE")
    table.add_row("next, with your own images", "masklab train nuclei --data DIR --output RUN")
    Console().print(table)
    return metrics["mask"]


def try_nuclei(path: str | Path) -> tuple[int, int]:
    """Run the model `nuclei` that comes with the package on a drawn image and write the overlay to ``path``, a PNG.

    Returns how many nuclei it found, at an IoU of at least 0.5 and its own score threshold, and how many were drawn.
    """
    model, (image, labels) = load_model("nuclei"), draw_nuclei()
    instances = model.predict(image).above(model.threshold)
    with atomic_write(path) as temporary:
        overlay(image, instances, model.threshold).save(temporary, "PNG")
    drawn = rle_to_coco(encode_labels(labels)[1], instances.size)
    shares = mask.iou(instances.rles(), drawn, [False] * len(drawn))
    return int((shares >= 0.5).any(axis=0).sum()), len(drawn)
