"""Models on a split as other microscopes would have taken it: how much each change of its images costs.

    uv run python benchmarks/altered_images.py DIR MODEL [MODEL ...] [--split val] [--images 40]
    uv run python benchmarks/altered_images.py --quick

DIR is a data set folder of colour or grey images of 8 bits.  Its images are changed in ways that leave their objects what
they are: dim with noise, low contrast on a bright ground, gamma, blur, one colour alone, negative, another stain, uneven
light, half and twice the size.  Mask AP of each model is printed for each change and on average, and the mean of the score
thresholds that are best for each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import masklab
from masklab.datasets.open import open_split
from masklab.datasets.split import Split
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.evaluation.evaluate import evaluate_in_full
from masklab.evaluation.matching import tune_score_threshold
from masklab.masks import rle
from masklab.masks.encode import encode_windows

Change = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


def dim(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return 0.15 * image + rng.normal(0, 0.008, image.shape)


def hazy(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return 0.35 + 0.3 * image


def power(exponent: float) -> Change:
    return lambda image, rng: image**exponent


def blurred(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    picture = Image.fromarray((image * 255).round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    return np.asarray(picture, np.float32) / 255


def one_colour(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return image.mean(axis=2, keepdims=True) * np.array([0, 0, 1], np.float32)


def negative(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return 1 - image


def other_stain(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return image @ np.array([[0.9, 0.1, 0.0], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]], np.float32)


def uneven(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return image * np.linspace(0.35, 1, image.shape[1], dtype=np.float32)[None, :, None]


def noisy(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return image + rng.normal(0, 0.06, image.shape)


CHANGES: dict[str, tuple[Change, float]] = {
    "as it is": (power(1.0), 1.0),
    "dim": (dim, 1.0),
    "hazy": (hazy, 1.0),
    "gamma 0.5": (power(0.5), 1.0),
    "gamma 2": (power(2.0), 1.0),
    "blurred": (blurred, 1.0),
    "noisy": (noisy, 1.0),
    "blue alone": (one_colour, 1.0),
    "negative": (negative, 1.0),
    "other stain": (other_stain, 1.0),
    "uneven light": (uneven, 1.0),
    "half size": (power(1.0), 0.5),
    "twice the size": (power(1.0), 2.0),
}
"""What is done to the values 0 to 1 of an image (H, W, 3), and the factor of its size, by name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=40, help="at most so many, evenly spaced")
    parser.add_argument("--quick", action="store_true", help="drawn images and the packaged model")
    options = parser.parse_args()
    if not options.quick and not options.models:
        parser.error("give DIR and a MODEL, or --quick, which draws its own images")
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.data, options.models = draw(Path(scratch) / "drawn"), ["nuclei"]
        split = open_split(options.data, options.split)
        rows = split.evenly_spaced_indices(options.images)
        predictors = [masklab.load(model) for model in options.models]
        table: dict[str, list[float]] = {}
        thresholds: list[list[float]] = []
        print(f"{'mask AP':16}" + "".join(f"{Path(model).name[:18]:>20}" for model in options.models))
        for name, (change, factor) in CHANGES.items():
            folder = Path(scratch) / name.replace(" ", "_")
            write(split, rows, folder, change, factor)
            found = [evaluate_in_full(predictor, folder) for predictor in predictors]
            table[name] = [each.metrics["mask"]["AP"] for each in found]
            thresholds.append([tune_score_threshold(each.overlaps) for each in found])
            print(as_line(name, table[name]), flush=True)
        changed = np.array([values for name, values in table.items() if name != "as it is"])
        print(as_line("mean of changed", changed.mean(axis=0).tolist()))
        print(as_line("best threshold", np.mean(thresholds, axis=0).tolist()))


def as_line(name: str, values: list[float]) -> str:
    return f"{name:16}" + "".join(f"{value:20.3f}" for value in values)


def write(split: Split, rows: list[int], folder: Path, change: Change, factor: float) -> None:
    """A data set folder whose val is images ``rows`` of a split, changed."""
    part, rng = split.part(rows, ""), np.random.default_rng(0)
    (folder / "val").mkdir(parents=True)
    document: dict[str, Any] = part.coco
    document["annotations"] = []
    for index, entry in enumerate(document["images"]):
        height, width = part.images[index].size
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        values = change(part.read(index, 3).transpose(1, 2, 0).astype(np.float32) / 255, rng).clip(0, 1)
        picture = Image.fromarray((values * 255).round().astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)
        name = f"{index}.png"
        picture.save(folder / "val" / name)
        entry |= {"file_name": name, "width": size[0], "height": size[1]}
        objects, whole = part.objects(index), (0, 0, width, height)
        for row, label in enumerate(objects.labels.tolist()):
            mask = Image.fromarray(rle.window(objects.rle(row), objects.size, whole)).resize(
                size, Image.Resampling.NEAREST
            )
            bits = np.asarray(mask)
            if bits.any():
                document["annotations"].append(
                    annotation(bits, len(document["annotations"]) + 1, entry["id"], part.categories.ids[label])
                )
    (folder / "val.json").write_text(json.dumps(document))


def annotation(bits: NDArray[np.uint8], number: int, image_id: Any, category: Any) -> dict[str, Any]:
    height, width = bits.shape
    (segmentation,) = rle.rle_to_coco(encode_windows([bits], [(0, 0, width, height)], (height, width)), (height, width))
    ids = {"id": number, "image_id": image_id, "category_id": category, "iscrowd": 0}
    return ids | {"area": int(bits.sum()), "segmentation": segmentation}


def draw(folder: Path) -> Path:
    """Two drawn images of nuclei as a data set folder."""
    (folder / "val").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in (1, 2):
        values, labels = draw_nuclei(seed=number)
        Image.fromarray(values.transpose(1, 2, 0)).save(folder / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 256, "height": 256})
        for label in range(1, int(labels.max()) + 1):
            annotations.append(annotation((labels == label).astype(np.uint8), len(annotations) + 1, number, 1))
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (folder / "val.json").write_text(json.dumps(document))
    return folder


if __name__ == "__main__":
    main()
