"""Images of any size: what is found at the seams of tiles, memory and time, on mosaics of real images.

    uv run python benchmarks/tiles.py DIR [--sides 2048 6000 20000] [--model nuclei] [--surroundings]

A mosaic of the grey val images of 256 x 256 of the data set ``DIR``, turned at random, is written as a tiled TIFF,
and predicted in a process of its own as `masklab predict` does.  For each side, in pixels:

- AP(t) = TP / (TP + FP + FN) at IoU .5 and .75 of all objects, of those that cross an edge of a tile, and of those that
  cross the same number of lines half a tile away; bar: the last two differ by .01 at most;
- seconds and processor seconds for each megapixel, and the peak of the process's memory; bar: at most 1.2 times that
  at 4,096 pixels.

With StarDist installed (``pip install stardist tensorflow``), its ``predict_instances_big`` with the weights
2D_versatile_fluo runs on the same mosaics.

``--surroundings`` measures instead how far scores depend on what lies around an object: ten surroundings of the same
256 x 256 pixels, in the middle of 768 x 768.  For each object, the largest difference from its mean score; bar: .03.
A second line is of the same with black and white by those pixels alone: what is left of it is the network's.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

import masklab
from masklab.datasets.open import open_split
from masklab.images.intensity import intensity_range
from masklab.images.reader import open_reader
from masklab.inference.tiles.merge import bounds_of
from masklab.masks import rle
from masklab.masks.encode import encode_labels, encode_windows
from masklab.masks.packed import PackedRLEs
from masklab.results.instances import Instances
from masklab.utils.device import number_format
from masklab.utils.types import Bools, Integers, Size

PATCH = 256
OFFSET = 100  # pixels of the first patches that lie outside the mosaic
IOUS = (0.5, 0.75)


class Patch(NamedTuple):
    """An image of ``PATCH`` pixels a side, and the boxes and bitmaps of its objects."""

    image: NDArray[np.uint8]
    boxes: Integers
    bitmaps: list[NDArray[np.uint8]]


class Objects(NamedTuple):
    """Objects of an image: the boxes around their masks (n, 4), and run lengths."""

    boxes: Integers
    masks: PackedRLEs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096, 6000])
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--surroundings", action="store_true")
    parser.add_argument("--predict", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.predict:
        predict(options.model, *options.predict)
        return
    print(f"{options.model}, {number_format('cpu', 'auto')}")
    patches = grey_patches(options.data)
    if options.surroundings:
        show_surroundings(options.model, patches)
        return
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            measure(options.model, patches, side, Path(folder))


def grey_patches(data: str) -> list[Patch]:
    """The grey images of the right size of a data set's val split."""
    split = open_split(data, "val")
    found = []
    for index, record in enumerate(split.images):
        image = split.read(index, 3)
        if record.size == (PATCH, PATCH) and (image[1:] == image[:-1]).all():
            objects = split.objects(index)
            boxes = objects.boxes.astype(np.int64)
            bitmaps = [rle.window(objects.rle(row), record.size, tuple(box)) for row, box in enumerate(boxes.tolist())]
            found.append(Patch(image, boxes, bitmaps))
    return found


def measure(model: str, patches: list[Patch], side: int, folder: Path) -> None:
    """One mosaic: quality, memory and time."""
    truth = write_mosaic(patches, side, folder / "mosaic.tif")
    found_file = str(folder / "found.npz")
    command = [sys.executable, __file__, "-", "--model", model, "--predict", str(folder / "mosaic.tif"), found_file]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    with np.load(found_file) as arrays:
        strings = arrays["strings"].tobytes().split(b"\n") if len(arrays["boxes"]) else []
        found = Objects(arrays["boxes"], PackedRLEs(strings))
    size = (side, side)
    matched = match(truth, found, size)
    print(
        f"{side} x {side}: {len(truth.boxes)} objects, {len(found.boxes)} found, {report['tiles']} tiles, "
        f"{report['seconds'] / side**2 * 1e6:.2f} s a megapixel ({report['processor'] / side**2 * 1e6:.2f} of a processor), "
        f"peak {report['peak'] / 2**20:.0f} MiB"
    )
    everything = np.ones(len(truth.boxes), bool), np.ones(len(found.boxes), bool)
    lines, half = report["lines"], report["half"]
    print(f"  all {scores(matched, *everything)}")
    for name, shift in (("seams", 0), ("elsewhere", half)):
        chosen = crossing(truth.boxes, lines, shift), crossing(found.boxes, lines, shift)
        print(f"  {name} {scores(matched, *chosen)} ({chosen[0].sum()} objects)")
    compare_stardist(folder / "mosaic.tif", truth, size)


def write_mosaic(patches: list[Patch], side: int, path: Path) -> Objects:
    """Write patches, turned at random, side by side as a tiled TIFF; returns the objects whole or in part inside.

    The patches lie off the grid of the tiles, whose edges would else be those of patches.
    """
    rng, count = np.random.default_rng(0), side // PATCH + 2
    chosen = [[(patches[rng.integers(len(patches))], int(rng.integers(4))) for _ in range(count)] for _ in range(count)]

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for row in range(count - 1):
            two = [
                np.concatenate([np.rot90(patch.image[0], turns) for patch, turns in chosen[row + n]], axis=1)
                for n in (0, 1)
            ]
            band = np.concatenate(two)[OFFSET : OFFSET + PATCH, OFFSET:]
            for left in range(0, (count - 1) * PATCH, PATCH):
                yield np.ascontiguousarray(band[:, left : left + PATCH])

    shape = (side, side)
    needed = -(-side // PATCH)
    kept_tiles = (tile for n, tile in enumerate(tiles()) if n % (count - 1) < needed and n // (count - 1) < needed)
    tifffile.imwrite(
        path, kept_tiles, shape=shape, dtype=np.uint8, tile=(PATCH, PATCH), compression="zlib", bigtiff=True
    )
    boxes, masks = [], []
    for y, row in enumerate(chosen):
        for x, (patch, turns) in enumerate(row):
            places, bitmaps = turned(patch, turns)
            places += np.array([x, y, x, y]) * PATCH - OFFSET
            inside = places.clip(0, side)
            kept = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(axis=1)).tolist()
            first = inside[:, :2] - places[:, :2]
            last = inside[:, 2:] - places[:, :2]
            cut = [bitmaps[n][first[n, 1] : last[n, 1], first[n, 0] : last[n, 0]] for n in kept]
            some = PackedRLEs.of(encode_windows(cut, inside[kept], shape))
            tight = bounds_of(some, shape)
            seen = np.flatnonzero(tight[:, 2] > tight[:, 0])
            masks.append(some.take(seen.tolist()))
            boxes.append(tight[seen])
    return Objects(np.concatenate(boxes), PackedRLEs.joined(masks))


def turned(patch: Patch, turns: int) -> tuple[Integers, list[NDArray[np.uint8]]]:
    """The boxes and bitmaps of a patch's objects after quarter turns."""
    boxes = patch.boxes
    for _ in range(turns):  # counter-clockwise, as np.rot90
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack((y1, PATCH - x2, y2, PATCH - x1), axis=1)
    return boxes.copy(), [np.rot90(bitmap, turns) for bitmap in patch.bitmaps]


def predict(model: str, image: str, output: str) -> None:
    """Predict an image and write what counts as found; the last line printed is a report."""
    predictor = masklab.load(model)
    started, before = time.perf_counter(), time.process_time()
    with open_reader(image, 3) as reader:
        found = predictor.predict_reader(reader).above(predictor.threshold)
        seconds, processor = time.perf_counter() - started, time.process_time() - before
        plan = predictor.tile_plan(reader.size)
    assert isinstance(found.rle, PackedRLEs) or plan is None
    masks = PackedRLEs.of(found.rle)
    strings = np.frombuffer(b"\n".join(masks.strings), np.uint8)
    np.savez(output, boxes=bounds_of(found.rle, found.size), strings=strings)
    tiles = [] if plan is None else plan.tiles()
    edges = [[tile[axis] for tile in tiles if tile[axis]] for axis in (0, 1)]
    ends = [[tile[axis] for tile in tiles if tile[axis] < max(each[axis] for each in tiles)] for axis in (2, 3)]
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = re.search(r"VmHWM:\s*(\d+)", status)
    assert peak is not None
    report = {
        "seconds": seconds,
        "processor": processor,
        "peak": int(peak[1]) * 1024,
        "tiles": len(tiles),
        "lines": [sorted({*first, *last}) for first, last in zip(edges, ends, strict=True)],
        "half": 0 if plan is None else plan.side // 2,
    }
    print(json.dumps(report))


def crossing(boxes: Integers, lines: list[list[int]], shift: int) -> Bools:
    """Which boxes cross one of the vertical or horizontal lines, moved by ``shift``."""
    found = np.zeros(len(boxes), bool)
    for axis in (0, 1):
        for line in lines[axis]:
            found |= (boxes[:, axis] < line + shift) & (boxes[:, axis + 2] > line + shift)
    return found


def match(truth: Objects, found: Objects, size: Size) -> list[tuple[float, int, int]]:
    """The pairs of objects with an IoU of at least .5, best first."""
    pairs = []
    order = np.argsort(found.boxes[:, 1], kind="stable")
    tops = found.boxes[order, 1]
    tallest = int((found.boxes[:, 3] - found.boxes[:, 1]).max(initial=0))
    areas = np.array([rle.area(mask) for mask in found.masks])
    for one, (mask, box) in enumerate(zip(truth.masks, truth.boxes, strict=True)):
        first, last = np.searchsorted(tops, (box[1] - tallest, box[3]))
        near = order[first:last]
        low, high = np.maximum(found.boxes[near, :2], box[:2]), np.minimum(found.boxes[near, 2:], box[2:])
        area = rle.area(mask)
        for row in np.flatnonzero((high > low).all(axis=1)).tolist():
            other = int(near[row])
            window = (int(low[row, 0]), int(low[row, 1]), int(high[row, 0]), int(high[row, 1]))
            shared = np.count_nonzero(rle.window(mask, size, window) & rle.window(found.masks[other], size, window))
            if (iou := shared / (area + areas[other] - shared)) >= IOUS[0]:
                pairs.append((iou, one, other))
    return sorted(pairs, reverse=True)


def scores(pairs: list[tuple[float, int, int]], truths: Bools, founds: Bools) -> str:
    """AP(t) of some of the objects, as text; a pair counts with its true object."""
    texts = []
    for least in IOUS:
        true: set[int] = set()
        taken: set[int] = set()
        for iou, one, other in pairs:
            if iou >= least and one not in true and other not in taken:
                true.add(one)
                taken.add(other)
        hits = sum(truths[one] for one in true)
        misses = truths.sum() - hits
        false = sum(other not in taken for other in np.flatnonzero(founds).tolist())
        texts.append(f"AP({least}) {hits / max(1, hits + misses + false):.4f}")
    return ", ".join(texts)


def compare_stardist(path: Path, truth: Objects, size: Size) -> None:
    """The same for StarDist's prediction of big images, where it is installed."""
    try:
        from stardist.models import StarDist2D
    except ImportError:
        return
    image = tifffile.imread(path)
    model = StarDist2D.from_pretrained("2D_versatile_fluo")
    started = time.perf_counter()
    low, high = np.percentile(image, (1, 99.8))
    values = (image.astype(np.float32) - low) / (high - low)
    labels, _ = model.predict_instances_big(values, "YX", block_size=1024, min_overlap=128, context=96)
    seconds = time.perf_counter() - started
    masks = PackedRLEs.of(encode_labels(labels)[1])
    found = Objects(bounds_of(masks, size), masks)
    everything = np.ones(len(truth.boxes), bool), np.ones(len(found.boxes), bool)
    print(
        f"  StarDist {scores(match(truth, found, size), *everything)}, {seconds / labels.size * 1e6:.2f} s a megapixel"
    )


def show_surroundings(model: str, patches: list[Patch]) -> None:
    """How far the scores of the same pixels differ in ten surroundings."""
    predictor = masklab.load(model)
    compare_surroundings("intensities of the whole image", predictor.predict, patches, predictor.threshold)
    config = predictor.config.image
    if config.percentiles is None:
        return

    def by_the_middle(image: NDArray[np.uint8]) -> Instances:
        low, high = intensity_range(image[:, PATCH : 2 * PATCH, PATCH : 2 * PATCH], config)
        own = config.model_copy(update={"percentiles": None, "value_range": (low[0], high[0])})  # of a grey image
        fixed = predictor.config.model_copy(update={"image": own})
        return predictor.on_tiles(fixed, predictor.options, {}).predict(image)

    compare_surroundings("intensities of the same pixels alone", by_the_middle, patches, predictor.threshold)


def compare_surroundings(
    name: str, predict_image: Callable[[NDArray[np.uint8]], Instances], patches: list[Patch], threshold: float
) -> None:
    middle = slice(PATCH, 2 * PATCH)
    brightest = sorted(patches, key=lambda patch: -np.percentile(patch.image, 99))
    means, largest, lost = [], [], []
    for patch in brightest[:: max(1, len(brightest) // 5)]:
        ground = np.percentile(patch.image, 5)
        around = [np.full((3, 3 * PATCH, 3 * PATCH), value, np.uint8) for value in (0, ground)]
        around += [tiled((patch.image * factor).clip(0, 255).astype(np.uint8)) for factor in (0.5, 1, 2)]
        around += [tiled(other.image) for other in brightest[:: len(brightest) // 4][:5]]
        found = []
        for image in around:
            image[:, middle, middle] = patch.image
            result = predict_image(image)
            found.append((result.boxes - PATCH, result.scores))
        boxes, first = max(found, key=lambda pair: int((pair[1] >= threshold).sum()))
        clear = (first >= threshold) & (boxes[:, :2] > 24).all(axis=1) & (boxes[:, 2:] < PATCH - 24).all(axis=1)
        table = np.array([best_scores(boxes[clear], *each) for each in found])
        if table.size:
            away = np.abs(table - table.mean(axis=0)).max(axis=0)
            means.append(away.mean())
            largest.append(away.max())
            lost.append((table < threshold).mean())
    print(
        f"{name}: {len(around)} surroundings of {len(means)} images: an object's score is at most {np.mean(means):.3f} from its "
        f"mean on average, {np.max(largest):.3f} for the worst; lost {np.mean(lost):.1%}"
    )


def tiled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(image, ((0, 0), (PATCH, PATCH), (PATCH, PATCH)), mode="symmetric")


def best_scores(boxes: NDArray[Any], others: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
    """The score of the best match of each box, 0 where no other has an IoU of .5 with it."""
    low, high = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=-1)
    sizes, other_sizes = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, others))
    iou = shared / (sizes[:, None] + other_sizes[None] - shared)
    best: NDArray[Any] = np.where(iou >= 0.5, scores[None], 0).max(axis=1, initial=0)
    return best


if __name__ == "__main__":
    main()
