"""The whole job on pictures that the program draws: data, training, evaluation, prediction."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from masklab.config import load_recipe
from masklab.data.shapes import draw_shapes
from masklab.evaluation import print_report, write_metrics
from masklab.evaluation.run import evaluate
from masklab.predict import predict_folder
from masklab.training.fit import train

PICTURES = {"train": 240, "val": 24}


def demo(output: str | Path, steps: int | None = None) -> dict[str, float | None]:
    """Draw, train, evaluate and predict into the folder ``output``; returns the mask figures."""
    began, output = time.monotonic(), Path(output)
    data, run, pictures = output / "shapes", output / "run", output / "predictions"
    print(f"1/4  drawing {sum(PICTURES.values())} pictures into {data}")
    draw_shapes(data, PICTURES, seed=0)
    print("2/4  training from scratch")
    config = load_recipe("shapes", {"train": {"steps": steps}} if steps else None)
    model = train(config, data, run)
    print("3/4  evaluating on the validation pictures")
    metrics = evaluate(model, data, "val")
    write_metrics(output / "metrics.json", metrics)
    print("4/4  writing predictions and overlays")
    predict_folder(model, [data / "val"], pictures)
    print_report(metrics)
    table = Table(title=f"done in {(time.monotonic() - began) / 60:.1f} minutes", show_header=False)
    for what, where in {
        "data set, COCO format": data,
        "weights": run / "best.safetensors",
        "log": run / "metrics.csv",
        "figures": output / "metrics.json",
        "overlays and predictions.json": pictures,
    }.items():
        table.add_row(what, str(where))
    table.add_row("next, with your own pictures", "masklab train nuclei --data DIR --output RUN")
    Console().print(table)
    return metrics["mask"]
