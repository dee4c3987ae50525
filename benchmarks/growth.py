"""How time and memory grow with objects, pixels, images and classes: one row each, and the exponent of the growth.

    uv run python benchmarks/growth.py [--quick] [--plot docs/images/growth.png]

Time is processor time of this process, so that other work on the machine weighs little, and memory is what was held at
most beyond what was held before.  Python's garbage collector is off while time is measured: it looks at all objects of the process
now and then, so that what it takes jumps with the number of records that are alive.  The exponent is that of a power of the size, fitted to the upper half of the sizes
(least squares of the logarithms); 1 is linear.  A row is at most linear if both exponents are at most 1.1.

Objects are 10 to 20,000 in an image that grows with them.  Images of 0.25 to 400 megapixels are predicted in tiles with a
small random network.  Data sets are COCO files of 100 to 118,000 images.  Classes are 1 to 1,200, for as many boxes.
The last line is the largest exponent of time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from coco_size import draw as draw_coco
from side_by_side import peak_memory, ratio, show

from masklab.config.recipe import load_recipe
from masklab.datasets.split import Split
from masklab.evaluation.matching import matching_metrics, overlaps
from masklab.evaluation.recall import neighbour_gaps
from masklab.inference.predictor import Predictor
from masklab.inference.tiles.merge import TileObjects, bounds_of, merge
from masklab.inference.tiles.plan import TilePlan
from masklab.masks.label_map import label_map
from masklab.masks.packed import PackedRLEs
from masklab.masks.threshold import encode_masks
from masklab.model.build import build_model
from masklab.model.masklab import MaskLab
from masklab.ops.nms import nms_by_label, soft_nms
from masklab.results.instances import Instances
from masklab.results.overlay import tinted
from masklab.structures import ClassTable, Targets
from masklab.training.assign import sample_anchors, sample_proposals

MOST = 1.1  # exponent up to which growth counts as linear
LEAST_SECONDS, LEAST_MEMORY = 0.05, 16  # smaller figures say nothing about growth: seconds, MiB
SPACING = 24  # pixels of an object's share of the image, a side
Work = Callable[[], object]


class Row(NamedTuple):
    """What is measured: a name, what grows, its sizes, and the work at a size, made ready beforehand."""

    name: str
    grows: str
    sizes: list[int]
    prepare: Callable[[int], Work]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes: under a minute on an idle machine")
    parser.add_argument("--plot", type=Path, help="write the curves into this PNG file")
    parser.add_argument("--only", default="", help="only rows whose name has this text in it")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    curves: list[tuple[Row, list[float], list[float]]] = []
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in (row for row in rows(options.quick, Path(scratch)) if options.only in row.name):
            seconds, memory = measure(row)
            powers = exponent(row.sizes, seconds, LEAST_SECONDS), exponent(row.sizes, memory, LEAST_MEMORY)
            linear = all(power is None or power <= MOST for power in powers)
            span = f"{row.sizes[0]:,} to {row.sizes[-1]:,} {row.grows}"
            lines.append((row.name, span, seconds[-1], powers[0], memory[-1], powers[1], "yes" if linear else "no"))
            print(*lines[-1], sep=" | ", flush=True)
            curves.append((row, seconds, memory))
    columns = ["", "from", "seconds", "exponent", "MiB", "exponent", "at most linear"]
    show("growth; seconds and MiB at the largest size", columns, lines)
    if options.plot is not None:
        plot(options.plot, curves)
    ratio(max((line[3] for line in lines if line[3] is not None), default=0.0))


def measure(row: Row) -> tuple[list[float], list[float]]:
    """Processor seconds and peak MiB at each size."""
    row.prepare(row.sizes[0])()  # what is done only once
    seconds, memory = [], []
    for size in row.sizes:
        work = row.prepare(size)
        memory.append(peak_memory(work) or 0.0)
        least, spent = np.inf, 0.0
        for _ in range(5):
            gc.collect()
            gc.disable()
            began = time.process_time()
            work()
            took = time.process_time() - began
            gc.enable()
            least, spent = min(least, took), spent + took
            if spent > 1:
                break
        seconds.append(least)
    return seconds, memory


def exponent(sizes: list[int], values: list[float], least: float) -> float | None:
    """The exponent of the growth over the upper half of the sizes; None where the largest figure is below ``least``."""
    if values[-1] < least:
        return None
    upper = slice(len(sizes) // 2, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(np.maximum(values[upper], least / 100)), 1)[0])


def rows(quick: bool, scratch: Path) -> Iterator[Row]:
    """All rows of the table."""
    objects = [10, 100, 1000, 2500, 5000] if quick else [10, 100, 1000, 2500, 5000, 10_000, 20_000]
    for name, prepare in OBJECT_PARTS.items():
        yield Row(name, "objects", objects, prepare)
    for suffix, what in (
        (".geojson", "GeoJSON"),
        (".zip", "ImageJ's regions"),
        (".csv", "measurements"),
        (".tif", "label image"),
    ):
        yield Row(f"file: {what}", "objects", objects[: 4 if quick else None], saved(scratch / f"objects{suffix}"))
    megapixels = [1, 4, 16] if quick else [1, 4, 16, 64, 200, 400]
    model = small_model(1)
    yield Row(
        "prediction in tiles", "quarter megapixels", megapixels if quick else [1, *megapixels[1:], 1600], tiled(model)
    )
    images = [100, 1000, 3000, 6000] if quick else [100, 1000, 10_000, 30_000, 60_000, 118_000]
    yield Row("opening a data set", "images", images, opened(scratch))
    classes = [1, 20, 80, 300] if quick else [1, 20, 80, 300, 600, 1200]
    yield Row("suppression of 20,000 boxes", "classes", classes, suppressed)
    yield Row("network, 65 x 65", "classes", classes, classified)


def instances(count: int, samples: int = 11) -> Instances:
    """Round objects all over an image that grows with them."""
    rng = np.random.default_rng(0)
    side = round(SPACING * count**0.5) + 40
    sides = rng.uniform(14, 30, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (side - sides)
    across = np.linspace(-1, 1, samples)
    disc = (1.2 - np.hypot(across[:, None], across) * 0.8).clip(0, 1).astype(np.float32)
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    scores = rng.random(count).astype(np.float32)
    labels = np.zeros(count, np.int64)
    return Instances((side, side), boxes, scores, labels, np.tile(disc, (count, 1, 1)), ("cell",), (1,))


def suppression(count: int) -> Work:
    found = instances(count)
    boxes, scores = torch.from_numpy(found.boxes), torch.from_numpy(found.scores)
    return lambda: nms_by_label(boxes, scores, torch.zeros(count, dtype=torch.long), 0.85)


def softening(count: int) -> Work:
    found = instances(count)
    boxes, scores = torch.from_numpy(found.boxes), torch.from_numpy(found.scores)
    return lambda: soft_nms(boxes, scores, torch.zeros(count, dtype=torch.long), 0.5)


def encoding(count: int) -> Work:
    found = instances(count)
    return lambda: encode_masks(found.masks, found.boxes, found.size)


def painting(count: int) -> Work:
    found = instances(count)
    return lambda: label_map(found.rle, found.scores, found.size)


def overlaying(count: int) -> Work:
    found = instances(count)
    image = np.zeros((3, *found.size), np.uint8)
    return lambda: tinted(image, found.rle, found.boxes)


def matching(count: int) -> Work:
    found = instances(count)
    results = found.to_coco(1)
    shared = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": found.size[0], "width": found.size[1]}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": k + 1, "segmentation": entry["segmentation"], "bbox": entry["bbox"], "area": 1.0} | shared
            for k, entry in enumerate(results)
        ],
    }
    return lambda: matching_metrics(overlaps(truth, results), 0.1)


def merging(count: int) -> Work:
    found = instances(count)
    plan = TilePlan(found.size, 1.0, 512, 64, 8)
    masks = PackedRLEs.of(found.rle)
    bounds = bounds_of(found.rle, found.size)
    parts = []
    for tile in plan.tiles():
        inside = (bounds[:, :2] >= tile[:2]).all(axis=1) & (bounds[:, 2:] <= tile[2:]).all(axis=1)
        whole = TileObjects(tile, found.boxes, found.scores, found.labels, bounds, masks)
        parts.append(whole.rows(np.flatnonzero(inside)))
    return lambda: merge(parts, found.size, 0.5)


def gaps(count: int) -> Work:
    boxes = instances(count).boxes
    return lambda: neighbour_gaps(boxes)


def assigning(count: int) -> Work:
    """Anchors of a map of a fixed size and 1,500 proposals, as a training step has them."""
    config = load_recipe("nuclei").model
    side = 257
    rng = np.random.default_rng(0)
    corner, sides = torch.rand(count, 2) * (side - 30), 6 + 20 * torch.rand(count, 2)
    boxes = torch.cat([corner, corner + sides], dim=1)
    centre = torch.from_numpy(rng.uniform(0, side, (4000, 2)).astype(np.float32))
    anchors = torch.cat([centre - 12, centre + 12], dim=1)
    none = torch.zeros(0)
    targets = Targets(boxes, torch.zeros(count, dtype=torch.long), none, none, none, torch.zeros(0, 4))

    def run() -> None:
        generator = torch.Generator().manual_seed(0)
        sample_anchors(anchors, targets, (side, side), config.rpn, generator)
        sample_proposals(anchors[:1500], targets, config.box, generator)

    return run


OBJECT_PARTS: dict[str, Callable[[int], Work]] = {
    "hard suppression": suppression,
    "Soft-NMS": softening,
    "run lengths": encoding,
    "label map": painting,
    "overlay": overlaying,
    "matching with annotations": matching,
    "merging of tiles": merging,
    "distances of objects": gaps,
    "assignment of 4,000 anchors": assigning,
}


def saved(path: Path) -> Callable[[int], Work]:
    """Writing the objects into a file."""

    def prepare(count: int) -> Work:
        found = instances(count)
        return lambda: found.save(path)

    return prepare


def small_model(classes: int) -> MaskLab:
    """The network of `nuclei`, narrow, with random weights, that finds some hundred objects in a tile."""
    changes: dict[str, Any] = {
        "model": {
            "backbone": {"width": 0.25},
            "rpn": {"proposals_test": 50, "pre_nms_test": 300},
            "box": {"score_threshold": 0.0, "max_detections": 50, "soft_nms": None},
        },
        "image": {"scale": 1.0},
    }
    names = tuple(map(str, range(classes)))
    return build_model(load_recipe("nuclei", changes), ClassTable(tuple(range(classes)), names)).eval()


def tiled(model: MaskLab) -> Callable[[int], Work]:
    """Prediction of an image of noise of so many quarter megapixels, in tiles of 1,024 pixels."""
    from masklab.inference.tiles.predict import predict_tiles
    from masklab.results.pixels import ArrayImage

    class Noise(ArrayImage):
        """Noise of any size that is made where it is read."""

        path, channels = None, 3

        def __init__(self, side: int) -> None:
            self._side, self._cell = side, np.random.default_rng(0).integers(0, 255, (3, 2048, 2048), np.uint8)

        @property
        def size(self) -> tuple[int, int]:
            return self._side, self._side

        def read(self, box: tuple[int, int, int, int]) -> Any:
            x1, y1, x2, y2 = box
            rows, columns = np.arange(y1, y2) % 2048, np.arange(x1, x2) % 2048
            return np.ascontiguousarray(self._cell[:, rows][:, :, columns])

        def overview(self) -> Any:
            return self._cell

    def prepare(quarters: int) -> Work:
        predictor, image = Predictor(model), Noise(512 * round(quarters**0.5))
        plan = TilePlan(image.size, 1.0, 512, 64, 8)
        return lambda: predict_tiles(predictor, image, plan)  # type: ignore[arg-type]

    return prepare


def opened(scratch: Path) -> Callable[[int], Work]:
    """Opening a COCO folder of so many images with seven times as many annotations."""

    def prepare(count: int) -> Work:
        folder = scratch / str(count)
        if not folder.exists():
            folder.mkdir()
            draw_coco(folder, count, 7 * count)
        return lambda: len(Split.find(folder, "train"))

    return prepare


def suppressed(classes: int) -> Work:
    """Both suppressions of 20,000 boxes."""
    found = instances(20_000)
    boxes, scores = torch.from_numpy(found.boxes), torch.from_numpy(found.scores)
    labels = torch.arange(20_000) % classes

    def run() -> None:
        nms_by_label(boxes, scores, labels, 0.85)
        soft_nms(boxes, scores, labels, 0.5)

    return run


def classified(classes: int) -> Work:
    """The whole network, every class of every proposal a candidate."""
    model, image, size = small_model(classes), torch.rand(1, 3, 65, 65), torch.tensor([[65, 65]])

    def run() -> None:
        with torch.inference_mode():
            model(image, size)

    return run


def plot(path: Path, curves: list[tuple[Row, list[float], list[float]]]) -> None:
    """Time and memory over the sizes, a pair of panels for each thing that grows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    things = list(dict.fromkeys(row.grows for row, _, _ in curves))
    figure = Figure((5 * len(things), 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(things), squeeze=False)
    for column, thing in enumerate(things):
        own = [curve for curve in curves if curve[0].grows == thing]
        sizes = np.array(own[0][0].sizes, float)
        figures = (
            ("processor seconds", 1e-4, [seconds for _, seconds, _ in own]),
            ("MiB", 0.1, [mib for _, _, mib in own]),
        )
        for axes, (unit, least, values) in zip(panels[:, column], figures, strict=True):
            for number, (curve, (row, _, _)) in enumerate(zip(values, own, strict=True)):
                style = ("-", "--")[number // 10 % 2]
                axes.loglog(row.sizes, np.maximum(curve, least), style, marker=".", label=row.name)
            largest = max(curve[-1] for curve in values)
            axes.loglog(sizes, np.maximum(2 * largest * sizes / sizes[-1], least), ":", color="0.5", label="linear")
            axes.set(xlabel=thing, ylabel=unit)
            axes.grid(alpha=0.3)
        panels[0, column].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
