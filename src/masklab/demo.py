"""The whole job on pictures that the program draws: data, training, evaluation, prediction; and the shipped model on one."""

from __future__ import annotations

import time
from pathlib import Path

from hotcoco import mask
from rich.console import Console
from rich.table import Table

from masklab.config import load_recipe
from masklab.data.nuclei import draw_nuclei
from masklab.data.shapes import draw_shapes
from masklab.evaluation import print_report, write_metrics
from masklab.evaluation.run import evaluate
from masklab.files import whole
from masklab.ops.masks import runs_to_rle
from masklab.ops.rle import encode_labels
from masklab.predict import predict_folder
from masklab.training.fit import train
from masklab.visualize import overlay
from masklab.weights import load_model

PICTURES = {"train": 240, "val": 24}


def demo(output: str | Path, steps: int | None = None) -> dict[str, float | None]:
    """Draw, train, evaluate and predict into the folder ``output``; returns the mask figures.

    The last step runs the model `nuclei` that comes with the package on a drawn picture (see `try_nuclei`).
    """
    began, output = time.monotonic(), Path(output)
    data, run, pictures = output / "shapes", output / "run", output / "predictions"
    print(f"1/5  drawing {sum(PICTURES.values())} pictures into {data}")
    draw_shapes(data, PICTURES, seed=0)
    print("2/5  training from scratch")
    config = load_recipe("shapes", {"train": {"steps": steps}} if steps else None)
    model = train(config, data, run)
    print("3/5  evaluating on the validation pictures")
    metrics = evaluate(model, data, "val")
    write_metrics(output / "metrics.json", metrics)
    print("4/5  writing predictions and overlays")
    predict_folder(model, [data / "val"], pictures)
    print("5/5  the model that comes with masklab, on a drawn picture of nuclei")
    found, drawn = try_nuclei(output / "nuclei.png")
    print(f"{found} of {drawn} nuclei found: {output / 'nuclei.png'}")
    print_report(metrics)
    table = Table(title=f"done in {(time.monotonic() - began) / 60:.1f} minutes", show_header=False)
    for what, where in {
        "data set, COCO format": data,
        "weights": run / "best.safetensors",
        "log": run / "metrics.csv",
        "figures": output / "metrics.json",
        "overlays and predictions.json": pictures,
        "nuclei, by the model that comes with masklab": output / "nuclei.png",
    }.items():
        table.add_row(what, str(where))
    table.add_row("next, with your own picture of nuclei", "masklab predict nuclei PICTURE")
    table.add_row("next, with your own pictures", "masklab train nuclei --data DIR --output RUN")
    Console().print(table)
    return metrics["mask"]


def try_nuclei(path: str | Path) -> tuple[int, int]:
    """Run the model `nuclei` that comes with the package on a drawn picture and write the overlay to ``path``, a PNG.

    Returns how many nuclei it found, at an IoU of at least 0.5 and its own score threshold, and how many were drawn.
    """
    model, (picture, labels) = load_model("nuclei"), draw_nuclei()
    instances = model.predict(picture).above(model.threshold)
    with whole(path) as beside:
        overlay(picture, instances, model.threshold).save(beside, "PNG")
    drawn = runs_to_rle(encode_labels(labels)[1], instances.size)
    shares = mask.iou(instances.rles(), drawn, [False] * len(drawn))
    return int((shares >= 0.5).any(axis=0).sum()), len(drawn)
