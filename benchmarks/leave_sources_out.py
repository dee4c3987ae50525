"""How a recipe does on images of microscopes that it was not trained on: folds that leave whole sources out.

    uv run python benchmarks/leave_sources_out.py DIR OUTPUT [--recipe nuclei] [--steps 1000] [--folds 4] [--FIELD VALUE ...]
    uv run python benchmarks/leave_sources_out.py --quick

DIR is a data set folder; only its split train is used.  Its images are grouped into ``--sources`` sources by size,
colour, brightness and the size of their objects (k-means, seed 0), and the sources shared out to folds of about as many
images.  For each fold the recipe is trained on the other folds (``masklab train``; a finished run in OUTPUT is kept, one
that was stopped goes on) and measured on this one.  Fields such as ``--train.seed 1`` or ``--image.augment.noise 0.1``
are passed on to the training.

Printed for each fold and on average: mask AP and AP50 as COCO counts them, those of colour images alone, the Kaggle
score at the threshold that was tuned on training images, and the best threshold for the images left out.  The average of
the latter is what a model for strangers' images should ship with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from masklab.datasets.open import open_split
from masklab.datasets.split import Split
from masklab.datasets.synthetic.shapes import draw_shapes
from masklab.evaluation.evaluate import evaluate_in_full
from masklab.evaluation.matching import tune_score_threshold
from masklab.images.intensity import is_grey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("output", nargs="?", type=Path, metavar="OUTPUT")
    parser.add_argument("--recipe", default="nuclei")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the folds to train, from 0")
    parser.add_argument("--sources", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="drawn images, two folds, two steps")
    options, fields = parser.parse_known_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            options.data, options.output, options.steps = (
                draw_shapes(Path(folder) / "data", {"train": 8}),
                Path(folder) / "runs",
                2,
            )
            options.folds = options.sources = 2
            compare(options, fields)
    elif options.output is None:
        parser.error("give DIR and OUTPUT, or --quick, which draws its own images")
    else:
        compare(options, fields)


def compare(options: argparse.Namespace, fields: list[str]) -> None:
    split = open_split(options.data, "train")
    sources = find_sources(split, options.sources)
    folds = share_out(sources, options.folds)
    for number in range(options.folds):
        names = ", ".join(f"{np.count_nonzero(sources == s)} images" for s in np.unique(sources[folds == number]))
        print(f"fold {number}: {np.count_nonzero(folds == number)} images of the sources of {names}")
    rows = []
    for number in options.only or range(options.folds):
        data, run = options.output / f"data{number}", options.output / f"fold{number}"
        write_fold(split, folds == number, data)
        train(options, data, run, fields)
        rows.append(score(run, data))
        print(f"fold {number}  {as_text(rows[-1])}", flush=True)
    print(f"average {as_text({key: average([row[key] for row in rows]) for key in rows[0]})}")


def find_sources(split: Split, count: int) -> NDArray[np.int64]:
    """The source of each image: a cluster by size, colour, brightness and the size of objects."""
    features = []
    for index in range(len(split)):
        image = split.read(index, 3).astype(np.float32)
        areas = split.objects(index).areas
        features.append(
            [
                *np.log(image.shape[1:]),
                3.0 * (not is_grey(image)),
                np.median(image) / 64,
                np.log(np.percentile(image, 99.5) + 1) / 2,
                np.log(np.median(areas)) / 4 if len(areas) else 0,
            ]
        )
    return np.asarray(kmeans2(np.array(features), count, minit="++", rng=0)[1], np.int64)


def share_out(sources: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """The fold of each image: sources from the largest to the smallest, each to the fold with the fewest images."""
    result, sizes = np.empty_like(sources), [0] * folds
    numbers, counts = np.unique(sources, return_counts=True)
    for source in numbers[np.argsort(-counts, kind="stable")]:
        smallest = sizes.index(min(sizes))
        result[sources == source] = smallest
        sizes[smallest] += int(np.count_nonzero(sources == source))
    return result


def write_fold(split: Split, held_out: NDArray[np.bool_], folder: Path) -> None:
    """A data set folder whose val is the images held out, and whose images are links to the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", ~held_out), ("val", held_out)):
        part = split.part(np.flatnonzero(chosen).tolist(), "")
        images = folder / name
        images.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = part.coco
        for entry, image in zip(document["images"], part.images, strict=True):
            entry["file_name"] = image.path.name
            link = images / image.path.name
            if not link.is_symlink():
                link.symlink_to(image.path.resolve())
        (folder / f"{name}.json").write_text(json.dumps(document))


def train(options: argparse.Namespace, data: Path, run: Path, fields: list[str]) -> None:
    steps = str(options.steps)
    command = ["train", options.recipe, "--data", str(data), "--output", str(run)]
    command += ["--train.steps", steps, "--train.validate_every", steps, *fields]
    if (run / "resume.ckpt").is_file():
        command = ["train", options.recipe, "--data", str(data), "--output", str(run), "--resume"]
    subprocess.run([sys.executable, "-m", "masklab.cli", *command], check=True)


def score(run: Path, data: Path) -> dict[str, float]:
    found = evaluate_in_full(str(run), data)
    metrics = found.metrics
    colour = metrics.get("by_colour", {}).get("colour", {"mask": metrics["mask"]})
    return {
        "AP": metrics["mask"]["AP"],
        "AP50": metrics["mask"]["AP50"],
        "AP75": metrics["mask"]["AP75"],
        "colour AP": colour["mask"]["AP"],
        "Kaggle": metrics["matching"]["kaggle"]["mean"],
        "threshold": found.threshold,
        "best threshold": tune_score_threshold(found.overlaps),
    }


def average(values: list[float]) -> float:
    return float(np.nanmean(values))


def as_text(row: dict[str, float]) -> str:
    return "  ".join(f"{key} {value:.3f}" for key, value in row.items())


if __name__ == "__main__":
    main()
